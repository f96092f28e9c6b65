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

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertkin.config import Documents
from bertkin.errors import UserError
from bertkin.text.fields import Field, frame
from bertkin.text.sources import Block, Source, choose, list_sources, not_utf8, read_bytes, unreadable
from bertkin.text.tables import cut_parquet, cut_table, read_rows

__all__ = ["BLOCK", "Block", "Source", "cut_blocks", "list_sources", "read_block", "read_documents", "read_source"]

BLOCK = 4 << 20
"""Bytes a block aims at, and the longest a document of plain text can be."""

LONGEST_JSON = 64 << 20
"""Bytes of the longest JSON line."""


def read_documents(
    paths: Sequence[str | Path],
    *,
    field: Field = "text",
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
    source: Source, *, field: Field = "text", documents: Documents = "auto", encoding_errors: str = "strict"
) -> Iterator[str]:
    """The documents of one source, in order."""
    for block in cut_blocks(source, field=field, documents=documents, encoding_errors=encoding_errors):
        yield from read_block(block, field=field, documents=documents, encoding_errors=encoding_errors)


# Cutting.


def cut_blocks(
    source: Source,
    *,
    field: Field = "text",
    documents: Documents = "auto",
    encoding_errors: str = "strict",
    size: int = BLOCK,
) -> Iterator[Block]:
    """Cut `source` into blocks of about `size` bytes, each of whole documents."""
    if isinstance(field, tuple) and source.kind in ("text", "wiki"):
        mend = "give .jsonl, .csv, .tsv or .parquet, or leave out --fields"
        raise UserError("plain text has no fields", where=source.label, mend=mend)
    if source.kind == "parquet":
        yield from cut_parquet(source, field)
    elif source.kind in ("csv", "tsv"):
        yield from cut_table(source, field, encoding_errors, size)
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
    block: Block, *, field: Field = "text", documents: Documents = "auto", encoding_errors: str = "strict"
) -> Iterator[str]:
    """The documents of a block, in order; blank ones are left out."""
    kind = block.source.kind
    if block.texts is not None:
        found: Iterator[str] = iter(block.texts)
    elif kind == "parquet":
        found = read_rows(block, field, encoding_errors)
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
        raise not_utf8(block.source, block.start + error.start, data[error.start]) from None
    if block.start == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n") if "\r" in text else text


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


def _json_lines(block: Block, field: Field, encoding_errors: str) -> Iterator[str]:
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
                raise not_utf8(block.source, offset + error.start, line[error.start]) from None
            yield _field_of(text, field, where)
        offset += length


def _field_of(line: str, field: Field, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
        raise UserError(f"not JSON ({why})", where=where, mend=_one_a_line(line)) from None
    if isinstance(value, str) and isinstance(field, str):
        return _paired(value)
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found a {type(value).__name__}", where=where, mend=_one_a_line(line))
    if isinstance(field, tuple):
        return frame(value, field, where, choose(value, "--fields"))
    if field not in value:
        raise UserError(f"no field {field!r}", where=where, mend=choose(value))
    text = value[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"field {field!r} holds a {type(text).__name__}, not text", where=where, mend=choose(value))
    return _paired(text) if "\\u" in line else text


def _paired(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can smuggle in, replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _one_a_line(line: str) -> str:
    array = line.lstrip().startswith("[")
    return "give one JSON object a line" + (" (jq -c '.[]' turns an array into that)" if array else "")
