"""Files of labelled rows as they are: what kind a file is, its text, and its rows with their line numbers.

    open_file(path)                 what `bertkin.text.sources` knows of it, and its kind
    read_text(file)                 the text, without byte order mark and carriage returns
    read_table(file)                rows by column: .csv, .tsv, .jsonl, .json, .parquet

A TSV is taken as it is: tabs part columns and quotation marks mean nothing, as in GLUE. A CSV is quoted as
spreadsheets do it, with commas, semicolons, tabs or bars between its columns.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, cast

from bertkin.errors import MissingExtra, UserError
from bertkin.tasks.task import spaceless
from bertkin.text.sources import Source, list_sources, not_utf8, read_bytes
from bertkin.text.tables import LONGEST_FIELD

Kind = Literal["csv", "tsv", "json", "parquet", "conll", "conllu", "squad"]

KINDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".jsonlines": "json", ".conll": "conll", ".conll03": "conll", ".bio": "conll", ".iob": "conll",
    ".iob2": "conll", ".iob1": "conll", ".bioes": "conll", ".bmes": "conll", ".conllu": "conllu",
}  # fmt: skip
"""What a name says; any other file is looked into."""

PLAIN = (".txt", ".text", ".data", ".dat", "")
"""Endings that say nothing, yet may hold labelled rows."""

SKIP = "or leave such rows out with --skip-bad"


@dataclass
class Gate:
    """Where unusable rows are stopped: the first one ends the reading, or all are left out and remembered."""

    skip: bool = False
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of each."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """What was done to rows that are kept, and where."""

    def note(self, what: str, where: str) -> None:
        """Remember something about a row that is kept."""
        self.notes.setdefault(what, []).append(where)

    def refuse(self, what: str, where: str, mend: str) -> None:
        """Say what is wrong with a row; comes back only where such rows are left out.

        Raises:
            UserError: unless rows are left out.
        """
        if not self.skip:
            raise UserError(what, where=where, mend=f"{mend}, {SKIP}")
        self.left_out.append((where, what))

    def summary(self) -> list[str]:
        """A line for each reason and each note, for people."""
        reasons: dict[str, list[str]] = {}
        for where, why in self.left_out:
            reasons.setdefault(why, []).append(where)
        lines = [f"{len(places):,} {what} (first {places[0]})" for what, places in self.notes.items()]
        return lines + [f"left out {len(places):,}: {why} (first {places[0]})" for why, places in reasons.items()]


@dataclass(frozen=True)
class Row:
    """Values by column (text in tables, anything in JSON), and "file:line"."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Table:
    """Rows of one file; without a header, columns are called 1, 2, …"""

    label: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    header: bool = True
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By column the names of its classes, where the file declares them and holds their numbers."""


# Files.


def open_file(path: str | PathLike[str]) -> tuple[Source, Kind]:
    """A file and its kind, by its name or, where that says nothing, by its content.

    Raises:
        UserError: it cannot be read, or is of no kind we know.
    """
    source = list_sources([str(path)])[0]
    kind = KINDS.get(suffix_of(source.label))
    if kind == "parquet":
        return source, kind
    head = _head(source)
    if kind is None:
        kind = _sniffed(head)
    elif kind == "tsv":  # a table, unless it is plainly something else
        found = _sniffed(head)
        kind = found if found in ("conll", "conllu", "json") or (found == "csv" and "\t" not in head) else kind
    if kind == "conll" and _is_conllu(head):
        kind = "conllu"
    if kind == "json" and '"paragraphs"' in head and not _is_rows(head):
        kind = "squad"
    if kind is None:
        mend = "name it .csv, .tsv, .jsonl, .parquet, .conll or .conllu, by what it is"
        raise UserError("cannot tell what kind of table this is", where=source.label, mend=mend)
    return source, kind


def _is_rows(head: str) -> bool:
    """Whether a JSON file has an object on each line, of which the first is whole and is followed by another."""
    first, _, rest = head.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def suffix_of(name: str) -> str:
    """How a file's name ends, without what says it is compressed."""
    name = re.sub(r"\.(gz|bz2|xz|zst)$", "", name.lower())
    match = re.search(r"[^/\\.](\.[a-z0-9]+)$", name)
    return match[1] if match else ""


def _head(source: Source) -> str:
    data = next(read_bytes(source), (b"", 0))[0].removeprefix(b"\xef\xbb\xbf")[: 1 << 17]
    return _lines_fed(data.decode("utf-8", "replace"))


def _lines_fed(text: str) -> str:
    """Lines that end in a line feed alone, whatever they ended in."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def _sniffed(head: str) -> Kind | None:
    """The kind of a file by its first lines."""
    start = head.lstrip()
    if re.match(r'\{\s*"|\[\s*\{', start):
        return "json"
    if _is_conllu(head):
        return "conllu"
    if re.search(r"\n\s*\n", head.strip("\n")):
        whole = [line for line in head.strip("\n").split("\n")[:-1] if line.strip() and not line.startswith("# ")]
        if len({len(columns(line)) for line in whole}) == 1 and len(columns(whole[0])) > 1 and not _texts(whole):
            return "conll"
    lines = [line for line in head.split("\n")[:-1] or [head] if line.strip()]
    if not lines:
        return None
    for separator, kind in (("\t", "tsv"), (",", "csv"), (";", "csv")):
        if len({line.count(separator) for line in lines[:50]}) == 1 and separator in lines[0]:
            return cast(Kind, kind)
    return "csv" if _delimiter(head) != "\0" else None


def _texts(lines: Sequence[str]) -> bool:
    """Whether what tabs part is texts rather than words: a line in ten has a cell of several words, or a long one."""
    cells = [[cell.strip() for cell in line.split("\t")] for line in lines if "\t" in line]
    long = [len(line[0]) > 25 or any(" " in cell or sum(map(spaceless, cell)) > 8 for cell in line) for line in cells]
    return sum(long) > len(cells) / 10


def _is_conllu(head: str) -> bool:
    lines = [line for line in head.split("\n")[:50] if line.strip() and not line.startswith("#")]
    whole = lines[:-1] or lines  # the last one may be cut
    return bool(lines) and all(re.match(r"\d+([-.]\d+)?\t", line) and line.count("\t") == 9 for line in whole)


def columns(line: str) -> list[str]:
    """The columns of a line of words: parted by tabs, or where it has none by blanks."""
    if "\t" in line:
        return [cell.strip(" ") or cell for cell in line.split("\t")]
    return [part for part in line.split(" ") if part]


def read_text(source: Source, encoding_errors: str = "strict") -> str:
    """The text of a file, lines ending in a line feed alone.

    Raises:
        UserError: bytes that are not UTF-8, with their offset.
    """
    data = b"".join(chunk for chunk, _ in read_bytes(source))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("this is UTF-16", where=source.label, mend="convert it (iconv -f utf-16 -t utf-8)")
    try:
        text = data.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        raise not_utf8(source, error.start, data[error.start]) from None
    return _lines_fed(text.removeprefix("\ufeff"))


# Tables.


def read_table(
    source: Source,
    kind: Kind,
    gate: Gate,
    *,
    header: bool | None = None,
    known: Sequence[str] = (),
    guess: bool = True,
    encoding_errors: str = "strict",
) -> Table:
    """The rows of a .csv, .tsv, .jsonl, .json or .parquet file.

    Args:
        gate: where rows of the wrong length go.
        header: whether the first line names the columns; by default it is looked at.
        known: names that a header is known by, as `normal` writes them.
        guess: whether a first line without such a name may be a header, for being unlike what stands below it.

    Raises:
        UserError: not such a table, or a row of another length than the first.
    """
    if kind == "parquet":
        return _parquet(source)
    text = read_text(source, encoding_errors)
    if kind == "json":
        return _json(source, text, gate)
    read = _csv(source, text) if kind == "csv" else _tsv(text)
    lines = [(number, [cell.strip() for cell in cells]) for number, cells in read]
    empty = [""] if kind == "csv" else []  # a text of no characters, which a CSV may have in its one column
    lines = [(number, cells) for number, cells in lines if any(cells) or cells == empty]
    if not lines:
        raise UserError("no rows", where=source.label, mend="give a file with rows")
    if header is None:
        header = _looks_like_header([cells for _, cells in lines[:1000]], known, guess)
    first = lines[0][1]
    names = _distinct(first) if header else [str(at) for at in range(1, len(first) + 1)]
    rows = []
    for number, cells in lines[1:] if header else lines:
        where = f"{source.label}:{number}"
        if len(cells) != len(names):
            what = f"{_count(len(cells))}, but the first line has {len(names)}"
            tabs, marks = "take tabs and line breaks out of its texts", "put texts with separators in quotation marks"
            gate.refuse(what, where, tabs if kind == "tsv" else marks)
            continue
        rows.append(Row(dict(zip(names, cells, strict=True)), where))
    return Table(source.label, tuple(names), tuple(rows), header)


def _count(columns: int) -> str:
    return f"{columns} column" + "s" * (columns != 1)


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        yield number, line.split("\t")


def _csv(source: Source, text: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line."""
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = _delimiter(text[: 1 << 16]).replace("\0", ",")
    how: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True}
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, **how)
    line = 1
    try:
        for cells in reader:
            raw = lines[line - 1 : reader.line_num]
            if len(raw) > 1 and "".join(raw[1:]).strip():
                _see_quotes(raw, f"{source.label}:{line}", how)
            if cells != [""] or '"' in raw[0]:  # a line of blanks is none
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"not a table ({error})", where=f"{source.label}:{line}", mend="save it again as CSV") from None


def _see_quotes(lines: Sequence[str], where: str, how: Mapping[str, Any]) -> None:
    """Refuse a record of several lines that a mark of its text has opened, and that has swallowed what follows.

    Raises:
        UserError: its quotation marks do not pair.
    """
    try:
        text = re.sub(r'"[ \t]+(?=[,;|\t\n\r]|$)', '"', "".join(lines).rstrip())  # blanks behind a mark are no text
        list(csv.reader(io.StringIO(text, newline=""), strict=True, **how))
    except csv.Error:
        what = "a quotation mark opens here, and none closes the text"
        raise UserError(what, where=where, mend='close it; within a text write each mark twice ("")') from None


def _delimiter(head: str) -> str:
    """What parts the columns: the character that does so most evenly; a NUL, which no file has, where none does."""
    best, evenness = "\0", 0.0
    for delimiter in (",", ";", "\t", "|"):
        try:
            rows = list(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, skipinitialspace=True))
        except csv.Error:
            continue
        lengths = Counter(len(row) for row in rows[:50] if row)
        length, count = lengths.most_common(1)[0] if lengths else (1, 0)
        if length > 1 and count / lengths.total() > evenness:
            best, evenness = delimiter, count / lengths.total()
    return best


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of columns, those without one or with another's by their number."""
    seen: set[str] = set()
    found = []
    for at, name in enumerate(names, 1):
        name = name if name and name not in seen else str(at)
        seen.add(name)
        found.append(name)
    return found


def _looks_like_header(rows: Sequence[Sequence[str]], known: Sequence[str], guess: bool = True) -> bool:
    """Whether the first of `rows` names the columns: by a name we know, or by being unlike what stands below it."""
    first, below = rows[0], rows[1:]
    again = [cell and sum(at < len(row) and row[at] == cell for row in below) > 1 for at, cell in enumerate(first)]
    if any(again):
        return False
    if any(normal(cell) in known for cell in first):
        return True
    filled = [cell for cell in first if cell]
    if (
        not guess
        or not below
        or len(set(filled)) < len(filled)
        or any(is_number(cell) or len(cell) > 40 for cell in filled)
    ):
        return False
    for at in range(len(first)):
        values = [row[at] for row in below if at < len(row)]
        if values and all(map(is_number, values)):
            return True
    lengths = [len(row[at]) for row in below for at in range(len(row))]
    return max(map(len, first)) * 3 < max(lengths, default=0)


def normal(name: str) -> str:
    """A column's name as our lists write it."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def is_count(text: str) -> bool:
    """Whether a text is a whole number that may count something: digits, and not too many."""
    return text.isascii() and text.isdigit() and len(text) < 10


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # 1_2 is one in Python alone


def _json(source: Source, text: str, gate: Gate) -> Table:
    """Objects one a line, or an array of them over many."""
    start = len(text) - len(text.lstrip())
    values = _array(source, text, start, whole=True) if text[start : start + 1] == "[" else _lines(source, text, gate)
    rows = []
    names: dict[str, None] = {}
    for value, line in values:
        where = f"{source.label}:{line}"
        if not isinstance(value, dict):
            gate.refuse(f"expected a JSON object, found a {type(value).__name__}", where, ONE_A_LINE)
            continue
        names.update(dict.fromkeys(value))
        rows.append(Row(value, where))
    if not rows:
        raise UserError("no rows", where=source.label, mend="give a file with rows")
    return Table(source.label, tuple(names), tuple(rows))


ONE_A_LINE = "give one JSON object a line, or an array of them"


LIST, COMMA = re.compile(r"\[\s*\{"), re.compile(r"\s*,")
KEY = re.compile(r'\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
NAMED_ROWS = ("data", "rows", "examples", "instances")
"""What a file of one object may call its rows, in a list, as dataset viewers write it."""


def _lines(source: Source, text: str, gate: Gate) -> Iterator[tuple[Any, int]]:
    first, by_line = True, suffix_of(source.label) in (".jsonl", ".ndjson")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value, wrong = json.loads(line), ""
        except (ValueError, RecursionError) as error:
            value, wrong = None, f"not JSON ({getattr(error, 'msg', 'nested too deeply')})"
        alone = first and not by_line and text.strip() == line.strip()
        if first and (wrong or alone) and (start := _within(text)) is not None:
            yield from _array(source, text, start)
            return
        if not wrong:
            yield value, number
        elif first:  # another kind of file, and no bad row
            raise UserError(wrong, where=f"{source.label}:{number}", mend=ONE_A_LINE)
        else:
            gate.refuse(wrong, f"{source.label}:{number}", ONE_A_LINE)
        first = False


def _within(text: str) -> int | None:
    """Where the list of rows begins in a file that is one object, whole or broken off among its rows (so that the mistake
    has its line); None where it is none."""
    start = re.match(r"\s*\{", text)
    at, decoder = start.end() if start is not None else len(text), json.JSONDecoder()
    while (key := KEY.match(text, at)) is not None:
        if key[1] in NAMED_ROWS and LIST.match(text, key.end()):
            return key.end()
        try:
            at = decoder.raw_decode(text, key.end())[1]
        except (ValueError, RecursionError):
            return None
        comma = COMMA.match(text, at)
        at = comma.end() if comma is not None else len(text)
    return None


def _array(source: Source, text: str, start: int, *, whole: bool = False) -> Iterator[tuple[Any, int]]:
    """The values of an array that begins at `start`, each with its line; `whole` where nothing may stand behind it."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,]*")
    at, line, counted = start + 1, 1, 0
    while True:
        at = blank.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            if whole and text[at + 1 :].strip():
                raise UserError("more after the end of the array", where=f"{source.label}:{line}", mend=ONE_A_LINE)
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", "nested too deeply")
            raise UserError(f"not JSON ({why})", where=f"{source.label}:{line}", mend=ONE_A_LINE) from None
        yield value, line


def _parquet(source: Source) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading .parquet") from None
    try:
        table = pyarrow.parquet.read_table(source.path)
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:  # what damaged files make it say
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"not a whole parquet file ({why})", where=source.label, mend="download it again") from None
    classes = _classes(table.schema.metadata or {})
    rows = tuple(Row(value, f"{source.label}: row {number}") for number, value in enumerate(values, 1))
    if not rows:
        raise UserError("no rows", where=source.label, mend="give a file with rows")
    return Table(source.label, tuple(table.column_names), rows, classes=classes)


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """What the library `datasets` writes into a file's schema of columns that hold classes, or lists of them, by number."""
    try:
        features = dict(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for name, said in features.items():
        inner = said.get("feature", said) if isinstance(said, dict) else said
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[name] = tuple(map(str, inner["names"]))
    return found
