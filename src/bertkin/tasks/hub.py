"""Labelled data of the hub, by OWNER/NAME:CONFIGURATION: fetched once, and read like any folder from then on.

fetch("nyu-mll/glue:cola")                     the folder of its parts
here(["reviews.csv", "stanfordnlp/imdb:plain_text"])    paths as they are, data of the hub as their folders
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from bertkin.errors import UserError
from bertkin.models.folders import fetched

CONVERTED = "refs/convert/parquet"
"""Where the hub has every set that it can read in one layout: CONFIGURATION/PART/0000.parquet."""
PLACE = re.compile(r"[\w.-]+/[\w.-]+:[\w.-]+")
"""What a set is called: OWNER/NAME:CONFIGURATION."""
CACHED = re.compile(r"datasets--([^/\\]+)[/\\]snapshots[/\\]([^/\\]+)[/\\](.+)")
"""Where the cache of huggingface_hub has a set: its name, the commit, the configuration."""


def fetch(place: str, *, mend: str = "") -> Path:
    """The folder of a set's parts in the cache of huggingface_hub.

    Args:
        place: OWNER/NAME:CONFIGURATION; with a star for the configuration, the only one there is.
        mend: what else to do where the hub does not give it.

    Raises:
        UserError: it does not, or it has no such configuration.
    """
    name, _, configuration = place.partition(":")
    patterns = [f"{configuration}/*.parquet"]  # a star goes into folders, too
    snapshot = fetched(name, patterns, mend=mend, repo_type="dataset", revision=CONVERTED)
    found = [folder for folder in snapshot.glob(configuration) if folder.is_dir()]
    if len(found) != 1:
        raise UserError(f"no configuration {configuration!r} on the hub", where=place, mend=mend or "name one it has")
    return found[0]


def here(paths: Iterable[str]) -> tuple[str, ...]:
    """The same paths, with those that are no files but name a set of the hub as the folders they were fetched into.

    Raises:
        UserError: as `fetch`.
    """
    return tuple(str(fetch(path)) if PLACE.fullmatch(path) and not os.path.exists(path) else path for path in paths)


def named(path: str) -> str:
    """How a folder of the cache is called on the hub; any other path as it is."""
    match = CACHED.search(path)
    return f"{match[1].replace('--', '/', 1)}:{match[3]}" if match else path
