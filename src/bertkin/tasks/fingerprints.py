"""What a training was begun with, as a hash: who goes on with it goes on with the same data and the same model.

fingerprint_of(parts, stock)           of the examples of each part, and of a model's folder
fingerprint_of(parts, stock, before)   the same, of the kind of one that was written down, maybe by an older version
joint({name: fingerprint})             of several tasks
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertkin.tasks.task import Example

Parts = Sequence[Sequence[Example]]
VERSION = "2:"
"""What a fingerprint begins with; those without are of the first kind."""
STOCK = ("*.safetensors", "config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.txt")
"""The files of a model that say what it is."""


def fingerprint_of(parts: Parts, stock: Path, like: str = VERSION) -> str:
    """Hash of the examples of each part, with all that they are judged by, and of a model: its weights, its shape, its
    tokenizer.

    Args:
        like: a fingerprint that was written down, to be compared with.
    """
    if not like.startswith(VERSION):
        return _first_of(parts, stock)
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}\n".encode())
        for example in part:
            told = (example.texts, example.label, example.choices, example.answers, example.places)
            digest.update(repr(told).encode("utf-8", "surrogatepass"))
    for path in sorted({path for pattern in STOCK for path in stock.glob(pattern)}):
        digest.update(path.name.encode())
        _add(digest, path)
    return VERSION + digest.hexdigest()


def joint(fingerprints: Mapping[str, str]) -> str:
    """Hash of several tasks' fingerprints, by their names; of the kind that they are."""
    told = "".join(f"{name} {one}\n" for name, one in fingerprints.items())
    version = VERSION if all(one.startswith(VERSION) for one in fingerprints.values()) else ""
    return version + hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _first_of(parts: Parts, stock: Path) -> str:
    """As older versions wrote it down: of the weights alone, and of the examples in one line, without their answers."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for example in part:
            digest.update(repr((example.texts, example.label, example.choices)).encode("utf-8", "surrogatepass"))
    for path in sorted(stock.glob("*.safetensors")):
        _add(digest, path)
    return digest.hexdigest()


def _add(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
