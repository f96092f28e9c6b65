"""English on every machine with Python: docstrings and help topics, read from source files, nothing imported."""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import multiprocessing
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bertkin.errors import UserError, disk_errors
from bertkin.text.cache import cache_folder, key_of

VERSION = 1
"""Of what is taken and how it is cleaned."""
LARGEST = 2_000_000
"""Bytes of source beyond which a file is a table, not a program."""
FEWEST_WORDS = 6
"""Words a paragraph must have."""
PLAIN = 0.8
"""Share of letters and blanks that a paragraph of prose has."""

Progress = Callable[[int, int, str], None]

_ROLE = re.compile(r":[a-zA-Z:+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_RULE = re.compile(r"^\s*([=\-~^*#\"'+])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^\s*\.\. ")
_SKIPPED_FOLDERS = {"__pycache__", "tests", "test", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Documentation:
    """What was found.

    Attributes:
        path: a .jsonl file, a document a line under `text`.
        documents, words: how much it is.
        sources: where it comes from, the largest first: the standard library's folder and packages, by name.
    """

    path: Path
    documents: int
    words: int
    sources: list[str]


def collect(*, words: int, cache: str | Path | None = None, progress: Progress | None = None) -> Documentation:
    """Write the documentation of this Python into one file, or find the one written before.

    The same paragraph is kept once, so that nothing held out is a copy of what is trained on.

    Args:
        words: stop after about this many.
        cache: folder to keep it in; by default as for prepared corpora.
        progress: called with bytes done, bytes in all, and what is being done.

    Raises:
        UserError: there is no documentation here, or the disk refuses.
    """
    places = _places()
    files = [(name, path) for name, folder in places for path in _python_files(folder)]
    states = [path.stat() for _, path in files]
    seen = [(str(path), state.st_size, state.st_mtime_ns) for (_, path), state in zip(files, states, strict=True)]
    sizes = [state.st_size for state in states]
    folder = cache_folder(cache) / "documentation"
    path = folder / f"{key_of([VERSION, words, seen])}.jsonl"
    about = path.with_suffix(".about")
    if not (about.exists() and path.exists()):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, about, files, sizes, words, progress or (lambda *_: None))
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        return Documentation(path, int(facts["documents"]), int(facts["words"]), list(facts["sources"]))
    except (ValueError, KeyError, TypeError):
        raise UserError("damaged", where=about, mend="delete it") from None


def _places() -> list[tuple[str, Path]]:
    """The standard library, then each installed package, by name."""
    paths = sysconfig.get_paths()
    places = [("python", Path(paths["stdlib"]))]
    installed = {Path(paths[key]) for key in ("purelib", "platlib")}
    for site in sorted(installed):
        if site.is_dir():
            packages = (entry for entry in site.iterdir() if entry.is_dir() and not entry.name.endswith("-info"))
            places += [(entry.name, entry) for entry in sorted(packages) if entry.name.isidentifier()]
    return places


def _python_files(folder: Path) -> Iterator[Path]:
    """Source files under a folder, in order, without those of tests."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.endswith(".py") and path.is_file() and path.stat().st_size <= LARGEST:
                yield path


def _write(
    path: Path, about: Path, files: list[tuple[str, Path]], sizes: list[int], most: int, progress: Progress
) -> None:
    """Read all files on all cores, drop what was there before, and write what remains."""
    from bertkin.train.state import write_text  # heavy, and of no use to the processes that read

    taken: set[bytes] = set()
    by_source: dict[str, int] = {}
    documents = words = 0
    before, total = [0, *itertools.accumulate(sizes)], sum(sizes)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as out:
            for done, (name, texts) in enumerate(_all_texts(files)):
                progress(before[done], total, "reading documentation")
                for text in texts:
                    kept = [p for p in text.split("\n") if _is_new(p, taken)]
                    if kept:
                        count = sum(len(p.split()) for p in kept)
                        documents, words = documents + 1, words + count
                        by_source[name] = by_source.get(name, 0) + count
                        out.write(json.dumps({"text": "\n".join(kept)}, ensure_ascii=False) + "\n")
                if words >= most:
                    break
            progress(total, total, "reading documentation")
        if not documents:
            raise UserError("no documentation in this Python", mend="try a corpus of your own: bertkin pretrain")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sources = sorted(by_source, key=lambda source: -by_source[source])
    facts = json.dumps({"documents": documents, "words": words, "sources": sources})
    write_text(about, facts)


def _all_texts(files: list[tuple[str, Path]]) -> Iterator[tuple[str, list[str]]]:
    """The documents of the help topics, then of each file, with the name of their source."""
    yield "help topics", list(_topics())
    names = [name for name, _ in files]
    paths = [str(path) for _, path in files]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(paths) < 100:
        yield from zip(names, map(docstrings, paths), strict=True)
        return
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        yield from zip(names, pool.imap(docstrings, paths, chunksize=16), strict=True)


def _topics() -> Iterator[str]:
    """What `help("…")` says about the language."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems take it out
        return
    for text in topics.values():
        clean = prose(text)
        if clean:
            yield clean


def docstrings(path: str) -> list[str]:
    """The prose of every docstring of a source file; nothing if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = prose(ast.get_docstring(node, clean=False) or "")
            if text:
                found.append(text)
    return found


def prose(text: str) -> str:
    """The paragraphs of a docstring that are prose, a line each, without examples, tables and markup."""
    kept = []
    for paragraph in _paragraphs(inspect.cleandoc(text).split("\n")):
        plain = _ROLE.sub(r"\1", paragraph).replace("`", "").replace("**", "")
        plain = " ".join(plain.split())
        letters = sum(character.isalpha() or character == " " for character in plain)
        if len(plain.split()) >= FEWEST_WORDS and letters >= PLAIN * len(plain):
            kept.append(plain)
    return "\n".join(kept)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines between blank ones, joined; without doctests, directives, underlined headings and code after ::."""
    current: list[str] = []
    code = example = False
    for line in [*lines, ""]:
        indented = line.startswith((" ", "\t"))
        if not line.strip():
            example = False
            if current:
                code = current[-1].rstrip().endswith("::")
                yield " ".join(current)
                current = []
        elif line.lstrip().startswith(">>>") or example:
            example = True
        elif _RULE.match(line):
            current = []
        elif not (_DIRECTIVE.match(line) or (code and indented)):
            code = False
            current.append(line.strip())


def _is_new(paragraph: str, taken: set[bytes]) -> bool:
    key = hashlib.blake2b(paragraph.lower().encode("utf-8", "replace"), digest_size=8).digest()
    if key in taken:
        return False
    taken.add(key)
    return True
