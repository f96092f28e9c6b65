"""Labelled files to examples: one file, a few, or a folder with its training, development and test parts.

    read_examples(paths)     the examples of some files, with the task they are of
    read_splits(path)        training, development and test data; a development part is made where there is none

Columns, kinds and labels are guessed and said (`Labelled.said`), and whatever the user says goes before. A mistake in a
file is one line that names the place.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bertkin.errors import UserError
from bertkin.tasks.data.answers import question_of, read_squad
from bertkin.tasks.data.columns import IDS, KNOWN, NUMBERED, Columns, Roles, asked_roles, choose_roles
from bertkin.tasks.data.files import Gate, Row, Table, normal, open_file, read_table, read_text, suffix_of
from bertkin.tasks.data.labels import (
    TEXTS,
    first_choice,
    guess_task,
    named_classes,
    number_choices,
    to_example,
    whole_characters,
)
from bertkin.tasks.data.parts import Paths, class_folders, files_by_part, listed, passed_over
from bertkin.tasks.data.raw import Raw
from bertkin.tasks.data.words import read_conll, read_conllu, words_of_marks, words_of_row
from bertkin.tasks.task import Example, Task
from bertkin.text.sources import list_sources

__all__ = ["Columns", "Labelled", "Splits", "read_examples", "read_splits", "split_by_hash"]


@dataclass(frozen=True)
class Labelled:
    """Examples and what they are examples of.

    Attributes:
        task: what is asked of each.
        examples: in the files' order.
        said: what was guessed and done, a line each, to be printed.
        left_out: (where, why) of rows that are not among the examples.
        roles: what the columns of the last table were taken for.
        notes: what was done to rows that are kept, and where.
    """

    task: Task
    examples: tuple[Example, ...]
    said: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    roles: Roles = field(default_factory=Roles)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set, all of one task.

    Attributes:
        train, dev: labelled.
        test: labelled or not, or None.
        others: further parts by name, such as dev_mismatched.
        said: what was found and guessed, a line each.
    """

    train: Labelled
    dev: Labelled
    test: Labelled | None = None
    others: dict[str, Labelled] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task of all parts."""
        return self.train.task


def read_examples(
    paths: Paths,
    task: Task | None = None,
    *,
    output: str = "",
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    roles: Roles | None = None,
    header: bool | None = None,
    scheme: str = "",
    labelled: bool | None = True,
    asking: bool = False,
    skip_bad: bool = False,
    encoding_errors: str = "strict",
) -> Labelled:
    """Read labelled files.

    Args:
        paths: files, or folders with a folder of texts for each class.
        task: what they are examples of; by default it is found out, from `output` and the labels.
        output: the kind of task, where there is no `task`; "" to find out.
        columns: what the user says of the columns.
        roles: the roles of the training data's columns, which go before guesses where a file has the same ones.
        header: whether the first line of a table names its columns; by default it is looked at.
        scheme: how entities are written (iob1, iob2, bioes, bmes); by default it is told by the tags.
        labelled: True where a missing label is a mistake, None where it may be missing, False to read none.
        asking: whether the rows are for a model to answer, of whose task they are: then no column is guessed by what it holds.
        skip_bad: leave unusable rows out, instead of stopping at the first.
        encoding_errors: strict, or replace for bytes that are not UTF-8.

    Raises:
        UserError: a file that cannot be read or told, an unusable row, labels that make no task, no rows left.
    """
    gate = Gate(skip_bad)
    files = listed(paths)
    reader = _Reader(task, output, columns, roles, header, scheme, labelled, gate, encoding_errors, asking)
    rows = reader.numbered([raw for path in files for raw in reader.read(path) if whole_characters(raw, gate)])
    where = files[0] if len(files) == 1 else f"{files[0]} …"
    if not rows:
        raise _nothing_left(where, gate, 0)
    found = task or guess_task(rows, reader.roles, where, output=output, scheme=scheme)
    numbers = {name: at for at, name in enumerate(found.labels)}
    examples = [to_example(raw, found, numbers, gate, labelled=labelled) for raw in rows]
    kept = tuple(example for example in examples if example is not None)
    if not kept:
        raise _nothing_left(where, gate, len(rows))
    said = tuple(dict.fromkeys([*reader.said, *gate.summary()]))
    notes = {what: tuple(places) for what, places in gate.notes.items()}
    return Labelled(found, kept, said, tuple(gate.left_out), reader.roles, notes)


def _nothing_left(where: str, gate: Gate, rows: int) -> UserError:
    why = f" ({len(gate.left_out):,} were left out, the first: {gate.left_out[0][1]})" if gate.left_out else ""
    return UserError(f"no rows left{why}", where=gate.left_out[0][0] if gate.left_out else where, mend="mend the rows")


@dataclass
class _Reader:
    """Reads files of one data set, and remembers what it took their columns for."""

    task: Task | None
    output: str
    columns: Columns
    roles_before: Roles | None
    header: bool | None
    scheme: str
    labelled: bool | None
    gate: Gate
    encoding_errors: str
    asking: bool = False
    roles: Roles = field(default_factory=Roles)
    said: list[str] = field(default_factory=list)

    def read(self, path: str) -> list[Raw]:
        """The rows of a file, or of a folder with a folder for each class."""
        classes = class_folders(path)
        if classes:
            self._see_none(path, "text", "text2", "label")
            self.roles = Roles(("file",), "folder", form="folder")
            self.said.append(f"{path}: a class for each folder ({', '.join(list(classes)[:8])})")
            return [self._whole(file, name) for name, files in classes.items() for file in files]
        if os.path.isdir(path):
            mend = "give files, or a folder with train and dev files in it, or one with a folder of texts a class"
            raise UserError("a folder without labelled files", where=path, mend=mend)
        source, kind = open_file(path)
        if self.asking and kind == "csv" and suffix_of(source.label) in TABBED:
            kind = "tsv"  # of one column, whose commas part nothing
        if kind in ("csv", "tsv", "json", "parquet"):
            return self._table(source, kind)
        text = read_text(source, self.encoding_errors)
        if kind == "squad":
            self._see_none(source.label, "text", "text2", "label")
            self.roles = Roles(("question", "context"), "answers", "id", holds="answers", form="squad")
            self.said.append(f"{source.label}: SQuAD's format")
            return read_squad(source.label, text, self.gate, answered=self.labelled is not False)
        same = self.roles_before if self.roles_before is not None and self.roles_before.form == kind else None
        self._see_none(source.label, "text2", *(["text"] if kind == "conllu" else []))
        if kind == "conllu":
            tag = self.columns.label or (same.label if same is not None else "upos")
            self.said.append(f"{source.label}: CoNLL-U, label = {tag}")
            self.roles = Roles(("form",), tag, holds="words", form="conllu")
            return read_conllu(source.label, text, self.gate, tag=tag)
        word, tag = self.columns.text, self.columns.label
        if same is not None:
            word, tag = word or same.texts[-1], tag or same.label
        tag = tag if self.labelled is not False else ""
        rows = read_conll(source.label, text, self.gate, word=word, tag=tag, labelled=self.labelled is not False)
        self.roles = Roles((word or "1",), tag, holds="words", form="conll")
        said = f"{source.label}: a word a line, word = column {word or '1'}"
        self.said.append(said + (f", tag = {tag or 'the last'}" if self.labelled is not False else ""))
        return rows

    def _see_none(self, where: str, *names: str) -> None:
        """See that the user names no column that such a file has not. Other parts of a data set may be of another kind than
        the training data, whose columns are named."""
        for name in names if self.roles_before is None else ():
            if getattr(self.columns, name):
                raise UserError(
                    "such a file has no column to name so", where=f"{where} (--{name})", mend="leave it out"
                )

    def _whole(self, file: str, label: str) -> Raw:
        text = read_text(list_sources([file])[0], self.encoding_errors)
        return Raw((text.strip(),), label, file, id=os.path.basename(file))

    def _table(self, source: Any, kind: Any) -> list[Raw]:
        names = [*vars(self.columns).values()]
        if self.roles_before is not None:
            names += [*self.roles_before.texts, *self.roles_before.choices]
        choices = NUMBERED if self.task is not None and self.task.output == "choice" else ()
        known = [*KNOWN, *choices, *(normal(name) for name in names if name and not name.isdigit())]
        how: dict[str, Any] = {"header": self.header, "known": known, "encoding_errors": self.encoding_errors}
        table = read_table(source, kind, self.gate, guess=not self.asking, **how)
        output = self.task.output if self.task else self.output
        roles = self._roles(table, output)
        if roles.label and self.labelled is not True and self._withheld(table, roles.label):
            self.said.append(f"{source.label}: {roles.label} is -1 everywhere, so that labels are withheld")
            roles = replace(roles, label="")
        classes = table.classes.get(roles.label, ())
        if classes and roles.holds in ("", "words") and output not in ("score", "choice"):
            table = named_classes(table, roles.label, classes)
            roles = replace(roles, classes=classes)
        roles = replace(roles, form="table")
        self.roles = roles
        self.said.append(f"{source.label}: {roles.said}" + ("" if table.header else " (columns by number, no header)"))
        if self.labelled and not roles.label:
            mend = f"name the label's column with --label; there are {', '.join(table.columns[:20])}"
            raise UserError("no column looks like a label", where=f"{table.label}:1", mend=mend)
        if roles.holds == "choices":
            return self._choices(table.rows, roles)
        found = [self._row(row, roles) for row in table.rows]
        return [raw for raw in found if raw is not None]

    def _roles(self, table: Table, output: str) -> Roles:
        """What the columns of a table are: as in the training data, where it has the same ones; else by what is seen."""
        before, inputs = self.roles_before, self.task.inputs - (output == "choice") if self.task else 0
        if self.asking:
            return asked_roles(table, self.columns, output, inputs, before, labelled=self.labelled is not False)
        read = {*before.texts, *before.choices} if before is not None else set()
        if before is not None and read and read <= {*table.columns}:
            ids = [before.id, *(column for column in table.columns if normal(column) in IDS)]
            name = next((column for column in ids if column in table.columns), "")
            return replace(before, label=before.label if before.label in table.columns else "", id=name)
        columns = self.columns
        if self.labelled is not True and columns.label not in table.columns:
            columns = replace(columns, label="")
        return choose_roles(table, columns, output, inputs, labelled=self.labelled is True)

    def _withheld(self, table: Table, label: str) -> bool:
        """Whether nothing but -1 stands in a column, where that is no label of the task."""
        task = self.task
        known = task is not None and ("-1" in task.labels or (task.output == "score" and task.low <= -1))
        return not known and all(row.values.get(label) in WITHHELD for row in table.rows)

    def _row(self, row: Row, roles: Roles) -> Raw | None:
        values, wanted = row.values, roles.label if self.labelled is not False else ""
        name = _text(values.get(roles.id)) if roles.id else ""
        words = roles.texts[-1] if roles.holds == "words" else ""
        texts = []
        for column in roles.texts[:-1] if words else roles.texts:
            value = values.get(column)
            if value is not None and not isinstance(value, str | int | float):
                self.gate.refuse(f"{column!r} holds a {type(value).__name__}, not a text", row.where, "give a text")
                return None
            if column not in values:
                self.gate.refuse(f"no field {column!r}", row.where, "fill it in")
                return None
            texts.append(_text(value))
        if words:
            return _beside(texts, words_of_row(values, words, wanted, row.where, self.gate, name))
        label = values.get(wanted) if wanted else None
        if roles.holds == "entities":
            marks = label if label is not None or self.labelled is not True else []
            found = _beside(texts[:-1], words_of_marks(texts[-1], marks, row.where, self.gate, name))
            unknown = label is None and self.labelled is not True
            return replace(found, label=None) if found is not None and unknown else found
        if roles.holds == "answers":
            return _beside(texts[:-1], question_of("", texts[-1], label, row.where, self.gate, name))
        return Raw(tuple(texts), label, row.where, id=name)

    def _choices(self, rows: Iterable[Row], roles: Roles) -> list[Raw]:
        found = []
        for row in rows:
            raw = self._row(row, replace(roles, holds=""))
            given, called = _offered([row.values.get(column) for column in roles.choices])
            odd = next((at for at, one in enumerate(given, 1) if one in (None, "") or isinstance(one, list | dict)), 0)
            if len(given) < 2:
                self.gate.refuse("fewer than two choices", row.where, "give two or more")
            elif odd:
                self.gate.refuse(f"choice {odd} is no text", row.where, "fill it in")
            elif raw is not None:
                found.append(replace(raw, choices=tuple(map(_text, given)), called=called))
        self.roles = roles
        return found

    def numbered(self, rows: list[Raw]) -> list[Raw]:
        """Rows of all files whose labels are those of choices as numbers from 0, counted alike in all of them."""
        chosen = [raw for raw in rows if raw.choices]
        if not chosen:
            return rows
        roles = self.roles
        first = roles.first if roles.first is not None else first_choice(chosen)
        if first == TEXTS and roles.first is None:
            self.said.append(f"{roles.label} is a choice's own text, though it is a number")
        self.roles = replace(roles, first=first)
        numbers = iter(number_choices(chosen, first or 0))
        return [replace(raw, label=next(numbers)) if raw.choices else raw for raw in rows]


def _offered(values: list[Any]) -> tuple[list[Any], tuple[str, ...]]:
    """A row's choices and, where all have some, their names: of a column for each, or of one that holds a list of texts, of
    objects with text and label, or an object with a list of each. Those left empty at the end are none."""
    given: Any = values
    called: Any = []
    if len(values) == 1:
        given = values[0]
        if isinstance(given, dict):
            given, called = given.get("text"), given.get("label")
    if isinstance(given, list) and given and all(isinstance(one, dict) and "text" in one for one in given):
        called = [one["label"] for one in given if "label" in one]
        given = [one["text"] for one in given]
    if not isinstance(given, list):
        return [], ()
    count = max((at for at, one in enumerate(given, 1) if one not in (None, "")), default=0)
    named = isinstance(called, list) and len(called) >= count
    return given[:count], tuple(map(str, called[:count])) if named else ()


TABBED = (".tsv", ".tab")
WITHHELD = (-1, "-1", "-1.0")
"""What stands in every row of test data whose labels nobody is to know, where that is not nothing."""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def read_splits(
    path: Paths,
    task: Task | None = None,
    *,
    dev: str | Path | None = None,
    test: str | Path | None = None,
    **reading: Any,
) -> Splits:
    """The training, development and test data of a data set.

    Args:
        path: a folder with parts, or files, named train, dev and test (or alike); what is not so named is for training.
        dev, test: files that go before those of the folder.
        reading: see `read_examples`.

    Raises:
        UserError: as `read_examples`; a label of the development data that training has not.
    """
    parts: dict[str, Any] = {**files_by_part(path)}
    parts |= {name: os.fspath(given) for name, given in (("dev", dev), ("test", test)) if given is not None}
    train = read_examples(parts.pop("train"), task, **reading)
    rest = {**reading, "roles": train.roles}
    others: dict[str, Labelled] = {}
    passed = passed_over(parts)
    for name, where in parts.items():
        may_lack = True if name == "dev" else None
        others[name] = read_examples(where, train.task, **{**rest, "labelled": may_lack})
    said = [line for part in (train, *others.values()) for line in part.said]
    said += passed
    said.append(f"task: {train.task}")
    held = others.pop("dev", None)
    if held is None:
        kept, taken = split_by_hash(train.examples, train.task)
        said.append(f"no development data: {len(taken):,} of {len(train):,} rows are held out, by a hash of their text")
        held, train = replace(train, examples=taken, said=()), replace(train, examples=kept)
    return Splits(train, held, others.pop("test", None), others, tuple(dict.fromkeys(said)))


def split_by_hash(
    examples: Sequence[Example], task: Task, share: float = 0.1, most: int = 2000
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Part examples in two by a hash of their text (questions: of their context), so that neither order nor other rows
    matter and equal texts stay together. Whatever class has no example left for training stays whole.

    Returns:
        those to train with, and those held out: about `share` of them, at most about `most`, at least one.

    Raises:
        UserError: all examples have the same text.
    """
    keys = [_key(example.texts[-1:] if task.output == "span" else example.texts) for example in examples]
    if task.output == "choice" and len(set(keys)) == 1:  # no question, or one
        keys = [_key(example.choices) for example in examples]
    counts = Counter(keys)
    wanted = min(most, max(1, round(share * len(examples))))
    held: set[bytes] = set()
    size = 0
    for key in sorted(counts):
        if size >= wanted:
            break
        held.add(key)
        size += counts[key]
    kept = {key for key in counts if key not in held}
    if not kept:
        raise UserError("all rows have one text, nothing can be held out", mend="give development data with --dev")
    if task.output in ("class", "classes"):
        left = {name for key, e in zip(keys, examples, strict=True) if key in kept for name in _classes(e)}
        for key, example in zip(keys, examples, strict=True):
            if key in held and len(held) > 1 and not left.issuperset(_classes(example)):
                held.discard(key)
                left.update(_classes(example))
    train = tuple(e for key, e in zip(keys, examples, strict=True) if key not in held)
    return train, tuple(e for key, e in zip(keys, examples, strict=True) if key in held)


def _key(texts: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _classes(example: Example) -> tuple[int, ...]:
    return example.label if isinstance(example.label, tuple) else (example.label,)


def _beside(texts: Sequence[str], raw: Raw | None) -> Raw | None:
    """A row whose words or answers are in its last text, with the texts that are read before that."""
    return None if raw is None else replace(raw, texts=(*texts, raw.texts[-1]))
