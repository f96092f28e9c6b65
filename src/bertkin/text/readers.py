"""Text on disk to documents, streaming: .txt, .jsonl, .csv, .tsv, .parquet, compressed or not, folders, globs, stdin.

A source (one file) is read as a sequence of *blocks*, each some megabytes of bytes cut where a document ends, and a
block is turned into documents on its own. So memory does not grow with the file, and several processes share one file:
one cuts, the others decode.

    list_sources(paths) -> [Source]         which files, in which order
    cut_blocks(source, ...) -> Block ...    cheap: no decoding
    read_block(block, ...) -> str ...       the documents of a block

What a document is in plain text is a choice (`documents`): the whole file, a block between blank lines, or a line.
Anything longer than 4 MB is cut at the last line end before.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertkin.config import Documents
from bertkin.errors import MissingExtra, UserError
from bertkin.text.sources import Source, list_sources, open_bytes, read_bytes, unreadable

__all__ = ["BLOCK", "Block", "Source", "cut_blocks", "list_sources", "read_block", "read_documents", "read_source"]

BLOCK = 4 << 20
"""Bytes a block aims at, and the longest a document of plain text can be."""

LONGEST_FIELD = 16 << 20
"""Characters of the longest field of a table; an open quotation mark would swallow the whole file."""
LONGEST_JSON = 64 << 20
"""Bytes of the longest JSON line."""


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


def read_documents(
    paths: Sequence[str | Path],
    *,
    field: str = "text",
    documents: Documents = "auto",
    encoding_errors: str = "strict",
) -> Iterator[str]:
    """All documents of `paths` (files, folders, globs, or "-"), in order, one in memory at a time.

    Raises:
        UserError: something cannot be read; the message names the file and the line or offset.
    """
    for source in list_sources(paths):
        yield from read_source(source, field=field, documents=documents, encoding_errors=encoding_errors)


def read_source(
    source: Source, *, field: str = "text", documents: Documents = "auto", encoding_errors: str = "strict"
) -> Iterator[str]:
    """The documents of one source, in order."""
    for block in cut_blocks(source, field=field, documents=documents, encoding_errors=encoding_errors):
        yield from read_block(block, field=field, documents=documents, encoding_errors=encoding_errors)


# Cutting.


def cut_blocks(
    source: Source,
    *,
    field: str = "text",
    documents: Documents = "auto",
    encoding_errors: str = "strict",
    size: int = BLOCK,
) -> Iterator[Block]:
    """Cut `source` into blocks of about `size` bytes, each of whole documents."""
    if source.kind == "parquet":
        yield from _row_groups(source, field)
    elif source.kind in ("csv", "tsv"):
        yield from _tables(source, field, encoding_errors, size)
    else:
        yield from _cut_bytes(source, documents, size)


def _cut_bytes(source: Source, documents: Documents, size: int) -> Iterator[Block]:
    end_of_document = _last_line_end
    if source.kind == "wiki":
        end_of_document = _last_doc_end
    elif source.kind == "text" and documents in ("auto", "blank"):
        end_of_document = _last_blank_line
    elif source.kind == "text" and documents == "file":
        end_of_document = _nowhere
    start, line, position = 0, 1, 0
    held: list[bytes] = []
    length = 0
    in_file = not source.compression

    def block(data: bytes) -> Block:
        return Block(source, start, start + len(data), len(data), position, line, None if in_file else data)

    for chunk, position in read_bytes(source):  # noqa: B007 (block() looks at position)
        held.append(chunk)
        length += len(chunk)
        while length >= size:
            data = b"".join(held)
            cut = end_of_document(data)
            if cut <= 0 and length < max(size, BLOCK):
                break
            if cut <= 0 and source.kind == "json":  # a line is one value and cannot be cut
                if length < LONGEST_JSON:
                    break
                what = f"a line of more than {LONGEST_JSON >> 20} MB"
                raise UserError(what, where=f"{source.label}:{line}", mend="give one JSON object a line")
            cut = cut if cut > 0 else _cut_long(data)
            piece, rest = data[:cut], data[cut:]
            yield block(piece)
            start, line = start + cut, line + piece.count(b"\n")
            held, length = [rest], len(rest)
            if cut == len(data) or length < size:
                break
    data = b"".join(held)
    if data:
        yield block(data)


def _last_line_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _last_blank_line(data: bytes) -> int:
    """Offset after the last blank line that something follows (a blank line at the very end may yet grow)."""
    at = len(data)
    while (at := data.rfind(b"\n", 0, at)) > 0:
        before = data.rfind(b"\n", 0, at)
        if before >= 0 and not data[before:at].strip(b" \t\r\n"):
            return at + 1
        if before < 0:
            return 0
        at = before + 1
    return 0


def _last_doc_end(data: bytes) -> int:
    at = data.rfind(b"</doc>")
    end = data.find(b"\n", at) if at >= 0 else -1
    return end + 1


def _nowhere(data: bytes) -> int:
    return 0


def _cut_long(data: bytes) -> int:
    """Where to cut bytes that hold no end of a document: after a line, else a blank, else between two characters."""
    for mark in (b"\n", b" "):
        cut = data.rfind(mark) + 1
        if cut > 0:
            return cut
    cut = len(data)
    while cut > max(1, len(data) - 4) and (data[cut - 1] & 0xC0) == 0x80:
        cut -= 1
    return cut - 1 if cut > 1 and data[cut - 1] >= 0xC0 else len(data)


# Decoding.


def read_block(
    block: Block, *, field: str = "text", documents: Documents = "auto", encoding_errors: str = "strict"
) -> Iterator[str]:
    """The documents of a block, in order; blank ones are left out."""
    kind = block.source.kind
    if block.texts is not None:
        found: Iterator[str] = iter(block.texts)
    elif kind == "parquet":
        found = _rows(block, field)
    elif kind == "json":
        found = _json_lines(block, field, encoding_errors)
    elif kind == "wiki":
        found = _wiki(_decoded(block, encoding_errors))
    else:
        found = _plain(_decoded(block, encoding_errors), documents)
    for document in found:
        if document and not document.isspace():
            yield document


def _raw(block: Block) -> bytes:
    if block.data is not None:
        return block.data
    try:
        with open(block.source.path, "rb") as file:
            file.seek(block.start)
            data = file.read(block.end - block.start)
    except OSError as error:
        raise unreadable(block.source.label, error) from None
    if len(data) < block.end - block.start:
        raise UserError("the file shrank while it was read", where=block.source.label, mend="start again")
    return data


def _decoded(block: Block, encoding_errors: str) -> str:
    data = _raw(block)
    try:
        text = data.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        raise _not_utf8(block.source, block.start + error.start, data[error.start]) from None
    if block.start == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _not_utf8(source: Source, offset: int, byte: int) -> UserError:
    unpacked = " of its decompressed bytes" if source.compression else ""
    return UserError(
        f"not UTF-8 (byte 0x{byte:02x}{unpacked})",
        where=f"{source.label}@{offset}",
        mend="convert it (iconv -t utf-8), or go on with --encoding-errors replace",
    )


_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


def _plain(text: str, documents: Documents) -> Iterator[str]:
    if documents == "file":
        yield text
    elif documents == "line":
        yield from text.split("\n")
    else:
        yield from (part.strip("\n") for part in _BLANK_LINES.split("\n" + text))


_DOC = re.compile(r"<doc\s[^>]*>[ \t]*\n?(.*?)\n?[ \t]*</doc>", re.DOTALL)


def _wiki(text: str) -> Iterator[str]:
    """Articles between <doc …> and </doc>; what an unclosed tag leaves over is read too."""
    at = 0
    for match in _DOC.finditer(text):
        yield text[at : match.start()]
        yield match.group(1)
        at = match.end()
    yield re.sub(r"</?doc\b[^>]*>", "", text[at:])


def _json_lines(block: Block, field: str, encoding_errors: str) -> Iterator[str]:
    offset = block.start
    for number, line in enumerate(_raw(block).split(b"\n"), block.line):
        length = len(line) + 1
        where = f"{block.source.label}:{number}"
        if offset == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line and not line.isspace():
            try:
                text = line.decode("utf-8", encoding_errors)
            except UnicodeDecodeError as error:
                raise _not_utf8(block.source, offset + error.start, line[error.start]) from None
            yield _field_of(text, field, where)
        offset += length


def _field_of(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
        raise UserError(f"not JSON ({why})", where=where, mend=_one_a_line(line)) from None
    if isinstance(value, str):
        return _paired(value)
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found a {type(value).__name__}", where=where, mend=_one_a_line(line))
    if field not in value:
        raise UserError(f"no field {field!r}", where=where, mend=_choose(field, value))
    text = value[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"field {field!r} holds a {type(text).__name__}, not text", where=where, mend=_choose(field, value)
        )
    return _paired(text) if "\\u" in line else text


def _paired(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can smuggle in, replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _one_a_line(line: str) -> str:
    array = line.lstrip().startswith("[")
    return "give one JSON object a line" + (" (jq -c '.[]' turns an array into that)" if array else "")


def _choose(field: str, known: Any) -> str:
    names = [str(name) for name in known if name]
    return f"choose with --data.field among: {', '.join(names)}" if names else "give a file with named fields"


# Tables.


def _tables(source: Source, field: str, encoding_errors: str, size: int) -> Iterator[Block]:
    """Rows of a CSV (quoted as spreadsheets do) or TSV (not quoted) file, read by one process."""
    csv.field_size_limit(LONGEST_FIELD)
    rest: dict[str, Any] = {} if source.kind == "csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with open_bytes(source) as (unpacked, raw):
        file = io.TextIOWrapper(cast(Any, _Raw(unpacked)), encoding="utf-8-sig", errors=encoding_errors, newline="")
        rows = csv.reader(file, **rest)
        texts: list[str] = []
        length = 0
        try:
            header = next(rows, [])
            if field not in header:
                raise UserError(f"no column {field!r}", where=f"{source.label}:1", mend=_choose(field, header))
            column = header.index(field)
            for row in rows:
                if len(row) > column:
                    texts.append(row[column])
                    length += len(row[column])
                if length >= size:
                    yield Block(source, 0, length, length, raw.tell(), texts=tuple(texts))
                    texts, length = [], 0
        except csv.Error as error:
            where = f"{source.label}:{rows.line_num}"
            raise UserError(f"not a table ({error})", where=where, mend="save it again as CSV") from None
        except UnicodeDecodeError:
            raise _first_bad_byte(source) from None
    if texts:
        yield Block(source, 0, length, length, source.size, texts=tuple(texts))


class _Raw(io.RawIOBase):
    """Any of our byte readers as a raw stream that `TextIOWrapper` takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest = file, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or self._file.read(len(buffer))
        taken, self._rest = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _first_bad_byte(source: Source) -> UserError:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    for chunk, _ in read_bytes(source):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return _not_utf8(source, done - held + error.start, error.object[error.start])
        done += len(chunk)
    return _not_utf8(source, done - len(decoder.getstate()[0]), (decoder.getstate()[0] or b"\0")[0])


# Columns.


@contextmanager
def _parquet(source: Source) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading .parquet") from None
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"not a whole parquet file ({why})", where=source.label, mend="download it again") from None


def _row_groups(source: Source, field: str) -> Iterator[Block]:
    with _parquet(source) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise UserError(f"no column {field!r}", where=source.label, mend=_choose(field, names))
        import pyarrow.types as types

        kind = file.schema_arrow.field(field).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise UserError(f"column {field!r} holds {kind}, not text", where=source.label, mend=_choose(field, names))
        weights = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    for group, weight in enumerate(weights):
        yield Block(source, group, group + 1, weight, source.size * (group + 1) // len(weights))


def _rows(block: Block, field: str) -> Iterator[str]:
    with _parquet(block.source) as file:
        for batch in file.iter_batches(batch_size=256, row_groups=[block.start], columns=[field]):
            yield from (text for text in batch.column(0).to_pylist() if text)
