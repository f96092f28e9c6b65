"""Which files a corpus is, and their bytes: folders, globs, standard input, compressed or not."""

from __future__ import annotations

import atexit
import bz2
import glob
import gzip
import lzma
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from bertkin.errors import MissingExtra, UserError, disk_errors, nearest

Kind = Literal["text", "wiki", "json", "csv", "tsv", "parquet"]

CHUNK = 1 << 20
"""Bytes read from a file at once."""

KINDS: dict[str, Kind] = {
    ".txt": "text", ".text": "text", ".md": "text", ".rst": "text",
    ".jsonl": "json", ".json-lines": "json", ".jsonlines": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Source:
    """One file to read. `label` is its name in messages; `size` is in bytes on disk."""

    path: str
    label: str
    size: int
    kind: Kind
    compression: str = ""


@dataclass(frozen=True)
class Block:
    """A piece of a source that starts and ends with a document.

    Attributes:
        start, end: offsets in the decompressed file (of a parquet file: number of the row group, and one more).
        weight: about how many bytes of text it holds.
        position: how many bytes of the file on disk have been read after it.
        line: number of its first line.
        data: its bytes, or None where they are to be fetched from the file.
        texts: its documents, where cutting had to find them anyway (tables).
    """

    source: Source
    start: int
    end: int
    weight: int
    position: int
    line: int = 1
    data: bytes | None = None
    texts: tuple[str, ...] | None = None


# Which files.


def list_sources(paths: Sequence[str | Path]) -> list[Source]:
    """The files that `paths` name: folders are searched (sorted, hidden and unknown files left out), globs expanded, a
    file named twice read once, "-" is standard input (kept in a temporary file, so it can be read again).

    Raises:
        UserError: a path that is not there, an empty file, or nothing to read.
    """
    if not paths:
        raise UserError("no corpus given", mend="name files, folders, globs, or - for standard input")
    found: dict[str, Source] = {}
    for given in [os.fspath(path) for path in paths]:
        for path, how in _expand(given):
            real = os.path.realpath(path)
            if real in found:
                continue
            if how == "named" and not os.path.isfile(path):  # a pipe: read it once, keep it, read that
                source = _source(
                    _spooled(path, sys.stdin if path == "-" else None), "<stdin>" if path == "-" else path, how
                )
            else:
                source = _source(path, path, how)
            if source is not None:
                found[real] = source
    if not found:
        where = ", ".join(map(str, paths))
        raise UserError("no text files here", where=where, mend=f"known names end in {' '.join(sorted(KINDS))}")
    return list(found.values())


How = Literal["named", "matched", "found"]


def _expand(given: str) -> Iterator[tuple[str, How]]:
    """Paths of files that `given` stands for, and how they came: named, matched by a glob, or found in a folder."""
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        for folder, folders, files in os.walk(path, onerror=_refused):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                file = os.path.join(folder, name)
                if not name.startswith(".") and os.path.isfile(file):
                    yield file, "found"
    elif path == "-" or os.path.lexists(path):
        yield path, "named"
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UserError("no file matches this pattern", where=given, mend="check it with ls")
        for match in matches:
            if os.path.isdir(match):
                yield from _expand(match)
            elif os.path.isfile(match):
                yield match, "matched"
    else:
        raise UserError("no such file or folder", where=given, mend=_nearest_path(path))


def _refused(error: OSError) -> None:
    raise unreadable(error.filename, error)


def _nearest_path(path: str) -> str:
    """A mend for a path that is not there: what lies nearest to it."""
    folder, name = os.path.split(path.rstrip("/"))
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    folder = folder or "."
    try:
        beside = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError:
        beside = []
    guess = nearest(name, beside) if beside else ""
    if guess.startswith("did you mean"):
        close = guess.removeprefix("did you mean ").removesuffix("?")
        return (
            "did you mean " + " or ".join(os.path.normpath(os.path.join(folder, n)) for n in close.split(" or ")) + "?"
        )
    return f"the nearest folder is {folder}"


@cache
def _spooled(path: str, stdin: TextIO | None) -> str:
    """A temporary file, there until we end, of what comes through a pipe (or, for "-", this standard input)."""
    with tempfile.NamedTemporaryFile(prefix="bertkin-", delete=False) as file, disk_errors(file.name):
        atexit.register(Path(file.name).unlink, missing_ok=True)
        if stdin is not None:
            shutil.copyfileobj(stdin.buffer, file)
            return file.name
        try:
            with open(path, "rb") as pipe:
                shutil.copyfileobj(pipe, file)
        except OSError as error:
            raise unreadable(path, error) from None
    return file.name


def _source(path: str, label: str, how: How) -> Source | None:
    """What `path` is; None for a file of a folder that we leave alone."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise unreadable(label, error) from None
    if size == 0:
        if how == "named":
            raise UserError("the file is empty", where=label, mend="give a file with text")
        return None
    stem, suffix = os.path.splitext(label.lower())
    compression = suffix if suffix in COMPRESSED else _compression(magic)
    suffix = os.path.splitext(stem)[1] if suffix in COMPRESSED else suffix
    kind = KINDS.get(suffix)
    source = Source(path, label, size, kind or "text", compression)
    if kind in ("json", "csv", "tsv", "parquet"):
        return source
    head = _head(source) if how != "found" or kind or not suffix else b""
    if re.match(rb"\s*<doc\s[^>]*>", head):
        return Source(path, label, size, "wiki", compression)
    if kind is None and how == "found":
        return None
    if kind is None and re.match(rb'\s*\{\s*"', head):
        return Source(path, label, size, "json", compression)
    return source


def _compression(magic: bytes) -> str:
    """Compression that the first bytes betray; none of them can begin a text."""
    for name, start in (
        (".gz", b"\x1f\x8b"),
        (".bz2", b"BZh91AY&SY"),
        (".xz", b"\xfd7zXZ"),
        (".zst", b"\x28\xb5\x2f\xfd"),
    ):
        if magic.startswith(start):
            return name
    return ""


def _head(source: Source) -> bytes:
    try:
        return next(read_bytes(source), (b"", 0))[0].removeprefix(b"\xef\xbb\xbf")[:4096]
    except UserError:
        return b""  # said again, in its place, when the file is read


# Bytes.


def unreadable(label: str, error: Exception) -> UserError:
    """The error for a file that the system will not let us read."""
    why = (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).lower()
    return UserError(f"cannot be read ({why})", where=label, mend="check the path and its permissions")


@contextmanager
def open_bytes(source: Source) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The bytes of `source` as a file, decompressed and as they are; whatever goes wrong ends as a `UserError`."""
    opened: Any
    damaged = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    mend = "download or compress it again"
    try:
        with open(source.path, "rb") as raw:
            if source.compression == ".gz":
                opened = gzip.GzipFile(fileobj=raw)
            elif source.compression == ".bz2":
                opened = bz2.BZ2File(raw)
            elif source.compression == ".xz":
                opened = lzma.LZMAFile(raw)  # noqa: SIM115 (it holds nothing but raw)
            elif source.compression == ".zst":
                opened = _Zstandard(raw)
            else:
                opened = raw
            yield opened, raw
    except damaged as error:
        cut = isinstance(error, EOFError)
        what = "the compressed file is cut short" if cut else f"not a whole {source.compression} file ({error})"
        raise UserError(what, where=source.label, mend=mend) from None
    except OSError as error:
        if error.errno is None and source.compression:
            raise UserError(f"not a whole {source.compression} file ({error})", where=source.label, mend=mend) from None
        raise unreadable(source.label, error) from None


class _Zstandard:
    """A file of zstandard frames; unlike the library's own reader it notices a file that ends inside a frame."""

    def __init__(self, raw: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", "data", "reading .zst") from None
        self._raw, self._error = raw, zstandard.ZstdError
        self._new: Callable[[], Any] = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame: Any = None
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """The next decompressed bytes, not exactly `size`; empty at the end."""
        try:
            while True:
                compressed = self._rest or self._raw.read(1 << 17)
                self._rest = b""
                if not compressed:
                    if self._frame is not None:
                        raise EOFError
                    return b""
                self._frame = self._frame or self._new()
                data: bytes = self._frame.decompress(compressed)
                if self._frame.eof:
                    self._rest, self._frame = self._frame.unused_data, None
                if data:
                    return data
        except self._error as error:
            raise zlib.error(str(error)) from None


def read_bytes(source: Source) -> Iterator[tuple[bytes, int]]:
    """The decompressed bytes in chunks, each with how far the file on disk is read."""
    with open_bytes(source) as (file, raw):
        while chunk := file.read(CHUNK):
            yield chunk, raw.tell()


# What can be wrong with them.


def not_utf8(source: Source, offset: int, byte: int) -> UserError:
    """The error for a byte that is not UTF-8, at `offset` of the decompressed file."""
    unpacked = " of its decompressed bytes" if source.compression else ""
    return UserError(
        f"not UTF-8 (byte 0x{byte:02x}{unpacked})",
        where=f"{source.label}@{offset}",
        mend="convert it (iconv -t utf-8), or go on with --encoding-errors replace",
    )


def choose(known: Iterable[Any], option: str = "--data.field") -> str:
    """The mend for a field that is not there: those that are."""
    names = [" ".join(str(name).split())[:40] for name in known if name]
    few = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"choose with {option} among: {few}" if names else "give a file with named fields"
