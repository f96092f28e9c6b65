"""What a folder of labelled data holds: its training, development and test parts, or a folder of texts for each class.

find_parts(folder)       a folder's parts by name
files_by_part(paths)     the same of a folder or of files that are named
part_of(name)            train, dev or test, by a file's name
class_folders(path)      texts by the folders they lie in, where a folder stands for a class
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertkin.errors import UserError
from bertkin.tasks.data.files import KINDS, PLAIN, suffix_of

Paths = str | Path | Sequence[str | Path]

PARTS = {
    "train": re.compile(r"(?<![a-z])(train|training|trn)(?![a-z])"),
    "dev": re.compile(r"(?<![a-z])(dev|devel|development|valid|validation|val|testa)(?![a-z])"),
    "test": re.compile(r"(?<![a-z])(test|testb|tst|heldout|trial)(?![a-z])"),
}
"""How files and folders are named by the part they hold."""
PIECE = re.compile(r"-\d+-of-\d+(-[0-9a-f]{8,})?(?=\.[^/\\]*$)")
"""What numbers the files of a part that is in several; a hash may follow, as the hub's older files have."""
NUMBERS = re.compile(r"(?<![a-z])ids(?![a-z])")
"""What is in the name of a file that lists rows of a part by their number."""


def class_folders(path: str) -> dict[str, list[str]]:
    """The texts of a folder by the folders they lie in; {} where it is not such a folder."""
    if not os.path.isdir(path):
        return {}
    found: dict[str, list[str]] = {}
    if any(_trains(path, name) for name in os.listdir(path)):
        return {}  # parts, and folders of something else
    for name in sorted(os.listdir(path)):
        inner = os.path.join(path, name)
        if name.startswith(".") or not os.path.isdir(inner) or name.lower() in PARTS:
            continue
        files = [os.path.join(inner, file) for file in sorted(os.listdir(inner)) if not file.startswith(".")]
        files = [file for file in files if os.path.isfile(file) and suffix_of(file) in (*PLAIN, ".md")]
        files = [file for file in files if os.path.getsize(file)]
        if files:
            found[name] = files
    classes = [name for name in found if not part_of(name)]  # as `valid` is beside `invalid`
    return found if len(found) > 1 and classes else {}


def _trains(path: str, name: str) -> bool:
    """Whether something in a folder is training data, so that the folder is of parts and not of classes."""
    inner = os.path.join(path, name)
    if name.startswith(".") or part_of(name) != "train" or NUMBERS.search(name.lower()):
        return False
    if os.path.isdir(inner):
        return name.lower() == "train" or bool(_of_one_kind(inner) or class_folders(inner))
    return suffix_of(name) in KINDS


def part_of(name: str) -> str:
    """train, dev, test, or "" by a file's name."""
    stem = os.path.basename(name).lower()
    return next((part for part, pattern in PARTS.items() if pattern.search(stem)), "")


def find_parts(folder: str | Path) -> dict[str, str | list[str]]:
    """The parts of a data set in a folder, by name: train, dev, test, and others by their file's name. A part in several
    files (train-00000-of-00002.parquet, train-00001-of-00002.parquet; or train/0000.parquet, train/0001.parquet) is a list.

    Raises:
        UserError: no training data there.
    """
    root = os.fspath(folder)
    if class_folders(root):
        return {"train": root}
    found: dict[str, list[_Source]] = {}
    for source in _sources(root):
        found.setdefault(part_of(os.path.basename(source.path)), []).append(source)
    if "train" not in found:
        return {"train": _lone_file(root, found)}
    parts: dict[str, str | list[str]] = {}
    for part, sources in found.items():
        first, *others = sorted(sources, key=_Source.rank)
        parts[part] = first.one_or_all()
        for other in others:
            ending = suffix_of(other.path)
            if ending == suffix_of(first.path):  # else the form it was first given out in, as MRPC's
                name = os.path.basename(other.path)
                parts.setdefault(name[: name.lower().rindex(ending)] if ending else name, other.one_or_all())
    return parts


def listed(paths: Paths) -> list[str]:
    """One path or several as a list; ~ is the home folder, and a pattern such as part-*.csv all that it matches.

    Raises:
        UserError: there is none.
    """
    given = [os.fspath(paths)] if isinstance(paths, str | Path) else [os.fspath(path) for path in paths]
    if not given:
        raise UserError("no data given", mend="name labelled files, or a folder of them")
    found: list[str] = []
    for path in map(os.path.expanduser, given):
        matched = [] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        found += matched or [path]
    return found


def files_by_part(paths: Paths) -> dict[str, list[str]]:
    """The files of a data set by the part they are: those of a folder, or of several by their names. A file whose name says
    nothing, or that is alone, is for training.

    Raises:
        UserError: no data.
    """
    given = listed(paths)
    if len(given) == 1 and os.path.isdir(given[0]):
        found = find_parts(given[0])
        return {name: [path] if isinstance(path, str) else path for name, path in found.items()}
    parts: dict[str, list[str]] = {}
    for path in given:
        parts.setdefault(part_of(path) or "train", []).append(path)
    if "train" not in parts:
        first = next(iter(parts))
        parts = {"train": parts.pop(first), **parts}
    return parts


def passed_over(parts: dict[str, list[str]]) -> list[str]:
    """Take further training files out of a folder's parts.

    Returns:
        what is to be said of each.
    """
    further = [file for name in list(parts) if name != "train" and part_of(name) == "train" for file in parts.pop(name)]
    return [f"{file} is passed over: a folder has one training file (name both, to train on both)" for file in further]


@dataclass
class _Source:
    """What holds one part of a data set: a file, a folder, or several files that are numbered.

    Attributes:
        path: of the file or folder, or what the numbered ones share of their names.
        folder: of files, rather than one for each class.
    """

    path: str
    files: list[str]
    folder: bool = False

    def rank(self) -> tuple[bool, bool, int, str]:
        """Of two sources of a part, the first is the part: MNLI's matched, a file rather than a folder, the shorter name."""
        return "mismatched" in self.path, self.folder, len(os.path.basename(self.path)), self.path

    def one_or_all(self) -> str | list[str]:
        return self.files[0] if len(self.files) == 1 else self.files


def _sources(root: str) -> list[_Source]:
    """What a folder holds that is named as a part is, in the order of the names."""
    found: dict[str, _Source] = {}
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if name.startswith(".") or NUMBERS.search(name.lower()) or not part_of(name):
            continue
        if os.path.isdir(path):
            classes = bool(class_folders(path))
            found[path] = _Source(path, [path] if classes else _of_one_kind(path), folder=not classes)
        elif suffix_of(name) in (*KINDS, *PLAIN):
            shared = PIECE.sub("", path)
            whole = path if os.path.exists(shared) else shared
            found.setdefault(whole, _Source(whole, [])).files.append(path)
    return [source for source in found.values() if source.files]


def _lone_file(root: str, found: dict[str, list[_Source]]) -> str:
    """The one labelled file of a folder in which nothing is named as training data are.

    Raises:
        UserError: there is none, or several.
    """
    files = [name for name in sorted(os.listdir(root)) if suffix_of(name) in KINDS]
    if len(files) == 1 and all(source.folder for sources in found.values() for source in sources):
        return os.path.join(root, files[0])
    mend = "name a file train.csv (or .tsv, .jsonl, .conll …), or name the files themselves"
    raise UserError("no training data here", where=root, mend=mend)


def _of_one_kind(folder: str) -> list[str]:
    """The labelled files of a folder that end as most of them do: what is there in two forms is read in one."""
    named = [name for name in sorted(os.listdir(folder)) if not name.startswith(".") and suffix_of(name) in KINDS]
    named = [name for name in named if os.path.isfile(os.path.join(folder, name))]
    ends = Counter(map(suffix_of, named)).most_common(1)
    return [os.path.join(folder, name) for name in named if suffix_of(name) == ends[0][0]]
