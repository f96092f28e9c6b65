"""Tables: a column of a .csv or .tsv file, or of a .parquet file."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from bertkin.errors import MissingExtra, UserError
from bertkin.text.fields import Field, frame
from bertkin.text.sources import Block, Source, choose, not_utf8, open_bytes, read_bytes

LONGEST_FIELD = 16 << 20
"""Characters of the longest field of a table; an open quotation mark would swallow the whole file."""


def cut_table(source: Source, field: Field, encoding_errors: str, size: int) -> Iterator[Block]:
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
            names = _columns(field, header, f"{source.label}:1")
            column = header.index(names[0])
            for row in rows:
                if isinstance(field, tuple):
                    where = f"{source.label}:{rows.line_num}"
                    texts.append(frame(dict(zip(header, row, strict=False)), field, where, "give the row all columns"))
                    length += len(texts[-1])
                elif len(row) > column:
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


def _columns(field: Field, known: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of the columns that are read, all of which are there."""
    names = field if isinstance(field, tuple) else (field,)
    for name in names:
        if name not in known:
            option = "--fields" if isinstance(field, tuple) else "--data.field"
            raise UserError(f"no column {name!r}", where=where, mend=choose(known, option))
    return names


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
            return not_utf8(source, done - held + error.start, error.object[error.start])
        done += len(chunk)
    return not_utf8(source, done - len(decoder.getstate()[0]), (decoder.getstate()[0] or b"\0")[0])


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
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:  # what damaged files make it say
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"not a whole parquet file ({why})", where=source.label, mend="download it again") from None


def cut_parquet(source: Source, field: Field) -> Iterator[Block]:
    """A block for each row group."""
    with _parquet(source) as file:
        names = file.schema_arrow.names
        _columns(field, names, source.label)
        import pyarrow.types as types

        if isinstance(field, str):
            kind = file.schema_arrow.field(field).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(kind) or types.is_large_string(kind)):
                raise UserError(f"column {field!r} holds {kind}, not text", where=source.label, mend=choose(names))
        weights = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    for group, weight in enumerate(weights):
        yield Block(source, group, group + 1, weight, source.size * (group + 1) // len(weights))


def read_rows(block: Block, field: Field, encoding_errors: str) -> Iterator[str]:
    """The documents of a row group."""
    import pyarrow

    row = 0
    if isinstance(field, tuple):
        with _parquet(block.source) as file:
            for batch in file.iter_batches(batch_size=256, row_groups=[block.start], columns=list(field)):
                for values in batch.to_pylist():
                    row += 1
                    where = f"{block.source.label}: row {row} of row group {block.start}"
                    dated = {name: str(v) if isinstance(v, datetime.date) else v for name, v in values.items()}
                    yield frame(dated, field, where, "leave it out")
        return
    with _parquet(block.source) as file:
        for batch in file.iter_batches(batch_size=256, row_groups=[block.start], columns=[field]):
            column = batch.column(0)
            column = column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column
            for data in column.cast(pyarrow.large_binary()).to_pylist():
                row += 1
                try:
                    yield (data or b"").decode("utf-8", encoding_errors)
                except UnicodeDecodeError:
                    where = f"{block.source.label}: row {row} of row group {block.start}"
                    raise UserError("not UTF-8", where=where, mend="go on with --encoding-errors replace") from None
