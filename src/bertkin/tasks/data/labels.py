"""From what a file says to what a task means: which task rows are of, and their labels as numbers.

guess_task(rows, ...)       the task, from the labels' values
to_example(raw, task)       a row with its label as the task counts it
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bertkin.errors import UserError
from bertkin.tasks.data.columns import TARGETS, Roles
from bertkin.tasks.data.files import Gate, Table, is_count, is_number, normal
from bertkin.tasks.data.raw import Raw
from bertkin.tasks.data.schemes import as_called, faults, guess_scheme, parts
from bertkin.tasks.task import Example, Task

MOST_NUMBERED = 30
"""Distinct whole numbers up to which they are taken for classes, and above for scores."""
MOST_CLASSES = 1000
"""Distinct labels up to which they are taken for classes where they do not repeat much."""
NO_LABEL = (None, "", "?")
"""What stands where a label is missing."""
UNDECIDED = "-"
"""How SNLI and MNLI mark a pair on which people did not agree."""

WORDS = "give a word and its tag on each line, rows with lists of both, or texts with entities"
FAULTY = "sentences whose tags break their scheme, read as conlleval reads them"


def name_of(value: Any) -> str:
    """A label as text: 1 for 1.0 and "1", "true" for True."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def missing(value: Any) -> bool:
    """Whether a cell has no label in it."""
    value = value.strip() if isinstance(value, str) else value
    return value in NO_LABEL or (isinstance(value, float) and math.isnan(value))


def listed(value: Any) -> list[str]:
    """Several labels: a list, or text with |, ; or , between them."""
    parts = value if isinstance(value, list | tuple) else re.split(r"[|;,]", str(value))
    return [name_of(part) for part in parts if not missing(part)]


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in order: numbers by size, then words by the alphabet; "-" before "+"."""

    def key(name: str) -> tuple[int, float, str]:
        number = float(name) if is_number(name) and not math.isnan(float(name)) else 0.0
        return (0 if is_number(name) else 1, number, {"-": "", "+": "\0"}.get(name, name))

    return tuple(sorted(set(names), key=key))


def named_classes(table: Table, column: str, names: Sequence[str]) -> Table:
    """A table whose column holds the numbers of classes, with their names instead."""
    undecided = UNDECIDED if "entailment" in names else None  # -1, in copies of SNLI and MNLI
    rows = [
        replace(row, values={**row.values, column: _named(row.values.get(column), names, undecided)})
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


def _named(value: Any, names: Sequence[str], otherwise: Any) -> Any:
    """A class by its name, or a list of them. A number that is none is no label, as is a list of such numbers alone; what is
    no number stays as it is."""
    if isinstance(value, list):
        withheld = bool(value) and all(isinstance(one, int) and not 0 <= one < len(names) for one in value)
        return None if withheld else [_named(one, names, one) for one in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else otherwise


# Which task.


def guess_task(
    rows: Sequence[Raw], roles: Roles, label: str, *, output: str = "", scheme: str = "", inputs: int = 0
) -> Task:
    """The task that labelled rows are of.

    Args:
        rows: of the training data.
        roles: of their columns.
        label: name of the file, for messages.
        output, scheme: what the user says; "" to find out.

    Raises:
        UserError: no label at all, one class only, or labels that cannot be told.
    """
    inputs = inputs or max((len(raw.texts) for raw in rows), default=1)
    values = [raw.label for raw in rows if raw.label is not None]
    if output == "sequence" and roles.holds == "answers":
        return Task("sequence", inputs)
    if output == "span" or roles.holds == "answers":
        return Task("span", inputs, unanswerable=any(raw.label == () and not raw.answers for raw in rows))
    if not values:
        mend = "name the label's column with --label" if not roles.label else "give rows with labels"
        raise UserError("no row has a label", where=label, mend=mend)
    if output == "tokens" or any(raw.places for raw in rows):
        return _tokens([raw.label for raw in rows if raw.places and raw.label is not None], label, scheme, inputs)
    if output == "choice" or roles.holds == "choices":
        return Task("choice", inputs + 1)
    values = [value for value in values if not missing(value)]
    if "entailment" in values:
        values = [value for value in values if value != UNDECIDED]
    declared = "class" if roles.classes and not any(isinstance(value, list) for value in values) else ""
    output = output or declared or _output(values, roles.label, label)
    if output == "classes":
        names = ordered(name for value in values for name in listed(value))
        if not names:
            raise UserError("no row has any class", where=label, mend="give rows that have some")
        return Task("classes", inputs, names)
    if output == "score":
        numbers = [float(name) for name in map(name_of, values) if is_number(name) and math.isfinite(float(name))]
        low, high = min(numbers, default=0.0), max(numbers, default=0.0)
        if high - low >= 1:  # 0 to 5, not 0.2 to 4.8
            low, high = math.floor(low), math.ceil(high)
        return Task("score", inputs, low=low, high=high)
    if output == "sequence":
        return Task("sequence", inputs)
    names = ordered(map(name_of, values))
    if set(names) <= set(roles.classes):
        names = tuple(name for name in roles.classes if name in names)
    if len(names) < 2:
        only = names[0] if names else "none"
        raise UserError(f"every row has the label {only!r}", where=label, mend="give rows of at least two classes")
    return Task("class", inputs, names)


def _output(values: Sequence[Any], column: str, label: str) -> str:
    """class, classes, score or sequence, by the values of a label's column."""
    if any(isinstance(value, list) for value in values):
        return "classes"
    names = [name_of(value) for value in values]
    distinct = len(set(names))
    numbers = [name for name in names if is_number(name)]
    if len(numbers) >= 0.9 * len(names):
        flags = {*numbers} == {"0.0", "1.0"}  # as pandas writes 0 and 1 where a column has gaps
        whole = sum(float(name).is_integer() and (flags or "." not in name) for name in numbers)
        return "class" if whole >= 0.9 * len(names) and distinct <= MOST_NUMBERED else "score"
    words = sum(len(name.split()) + len(name) // 12 for name in names) / len(names)
    unlike = distinct > 0.5 * len(names)
    if (normal(column) in TARGETS and unlike and len(names) > 3) or (words > 4 and unlike and len(names) >= 10):
        return "sequence"
    if distinct > MOST_CLASSES or (unlike and len(names) >= 20):
        what = f"{distinct:,} different labels in {len(names):,} rows of column {column!r}"
        raise UserError(what, where=label, mend="name the label's column with --label, or the task with --task")
    return "class"


def _tokens(values: Sequence[Sequence[str]], label: str, scheme: str, inputs: int) -> Task:
    """Tags; of entities all that IOB2 has for the types there are, "O" first."""
    scheme = scheme or guess_scheme(values)
    if not scheme:
        names = ordered(tag for tags in values for tag in tags)
        if not names:
            raise UserError("no words with tags", where=label, mend=WORDS)
        if len(names) < 2:
            raise UserError(f"every word has the tag {names[0]!r}", where=label, mend="give at least two tags")
        return Task("tokens", inputs, names)
    types = ordered(parts(tag)[1] for tags in values for tag in tags if tag != "O")
    names = ("O", *(f"{letter}-{kind}" if kind else letter for kind in types for letter in "BI"))
    return Task("tokens", inputs, names, scheme=scheme)


# Which label.


def whole_characters(raw: Raw, gate: Gate) -> bool:
    """Whether a row has no half of a character (a lone surrogate, which JSON may write), in its texts or its label."""
    label = raw.label if isinstance(raw.label, list | tuple) else [raw.label]
    told = (one for one in (*raw.texts, *raw.choices, *raw.answers, raw.id, *label) if isinstance(one, str))
    try:
        "".join(told).encode()
    except UnicodeEncodeError:
        gate.refuse("half a character (a lone surrogate)", raw.where, "correct the text")
        return False
    return True


def to_example(
    raw: Raw, task: Task, numbers: dict[str, int], gate: Gate, *, labelled: bool | None = True
) -> Example | None:
    """A row as the task sees it; None where it is left out.

    Args:
        numbers: the task's labels to their index.
        labelled: True where a missing label is a mistake, None where it may be missing, False where none is wanted.

    Raises:
        UserError: by way of `gate`.
    """
    value = None if labelled is False or missing(raw.label) else raw.label
    if value is None:
        if labelled:
            gate.refuse("no label", raw.where, "fill it in")
            return None
        return Example(raw.texts, None, raw.choices, raw.id, raw.where, raw.answers, raw.places)
    answer: Any
    if task.output == "tokens":
        answer = _tagged(raw, task, numbers, gate)
    elif task.output == "span":
        answer = value
    elif task.output == "choice":
        answer = _chosen(raw, gate)
    elif task.output == "score":
        answer = _number(raw, gate)
    elif task.output == "sequence":
        answer = _written(raw, gate)
    elif task.output == "classes":
        found = [_index(name, raw, numbers, gate) for name in listed(value)]
        answer = None if None in found else tuple(sorted({at for at in found if at is not None}))
    elif name_of(value) == UNDECIDED and "entailment" in numbers:
        gate.left_out.append((raw.where, 'people did not agree (label "-")'))
        answer = None
    else:
        answer = _index(name_of(value), raw, numbers, gate)
    return None if answer is None else Example(raw.texts, answer, raw.choices, raw.id, raw.where, raw.answers)


def _written(raw: Raw, gate: Gate) -> str | None:
    """An answer as it is to be written; of a question with spans the first one's text."""
    if isinstance(raw.label, tuple):
        places = (raw.texts[-1][start:end] for start, end in raw.label)
        return next(iter(raw.answers), None) or next(places, "")
    if isinstance(raw.label, list | dict):
        gate.refuse(f"the answer is a {type(raw.label).__name__}, not a text", raw.where, "give a text")
        return None
    return raw.label if isinstance(raw.label, str) else name_of(raw.label)


def _index(name: str, raw: Raw, numbers: dict[str, int], gate: Gate) -> int | None:
    """A label's index. A label of whole numbers may be written 1 or 1.0."""
    if name in numbers:
        return numbers[name]
    if is_number(name) and math.isfinite(float(name)) and name_of(float(name)) in numbers:
        return numbers[name_of(float(name))]
    if is_number(name) and f"{name}.0" in numbers:
        return numbers[f"{name}.0"]
    known = ", ".join(list(numbers)[:12]) + (", …" if len(numbers) > 12 else "")
    gate.refuse(f"the label {name!r} is not in the training data", raw.where, f"correct it (known are {known})")
    return None


def _tagged(raw: Raw, task: Task, numbers: dict[str, int], gate: Gate) -> tuple[tuple[int, int, int], ...] | None:
    if not raw.places:
        gate.refuse("no words with tags", raw.where, WORDS)
        return None
    tags = as_called(raw.label, task.labels) if task.scheme else raw.label
    if task.scheme and faults(raw.label, task.scheme):
        gate.note(FAULTY, raw.where)
    found = [_index(tag, raw, numbers, gate) for tag in tags]
    if None in found:
        return None
    return tuple((start, end, at) for (start, end), at in zip(raw.places, found, strict=True) if at is not None)


def _number(raw: Raw, gate: Gate) -> float | None:
    text = str(raw.label).strip()
    if is_number(text) and math.isfinite(float(text)):
        return float(text)
    gate.refuse(f"the score {text!r} is not a number", raw.where, "write it in digits, such as 3.5")
    return None


def _chosen(raw: Raw, gate: Gate) -> int | None:
    """Which choice a row's label means; by then it is a number from 0 (see `choice_label`)."""
    if isinstance(raw.label, int) and 0 <= raw.label < len(raw.choices):
        return raw.label
    gate.refuse(f"the label {name_of(raw.label)!r} is none of {len(raw.choices)} choices", raw.where, "correct it")
    return None


TEXTS = -1
"""In the place of the first choice's number: labels that look like numbers are the choices' own texts."""


def first_choice(rows: Sequence[Raw]) -> int | None:
    """What number the first choice has where labels are numbers: 0 if any of them is, else 1; TEXTS where they are none, but
    texts of their rows' choices; None where none is one."""
    told = [(raw, name_of(raw.label)) for raw in rows if not missing(raw.label)]
    numbers = {label for _, label in told if is_count(label)}
    if not numbers:
        return None
    lowest = int("0" not in numbers)
    texts = sum(label in raw.choices for raw, label in told)
    places = sum(is_count(label) and int(label) - lowest < len(raw.choices) for raw, label in told)
    return TEXTS if texts == len(told) or texts > places else lowest


def number_choices(rows: Sequence[Raw], first: int) -> list[Any]:
    """Each row's label as the number of a choice from 0: given as a number, a letter, a name, or the text itself.

    Args:
        rows: with choices.
        first: the number that the first choice has in the file, or TEXTS.

    Returns:
        a number a row; None where there is no label; the label itself where it means none.
    """
    labels = [None if missing(raw.label) else name_of(raw.label) for raw in rows]
    found: list[Any] = []
    for raw, label in zip(rows, labels, strict=True):
        if label is None:
            found.append(None)
        elif label in raw.called:
            found.append(raw.called.index(label))
        elif first != TEXTS and is_count(label):
            found.append(int(label) - first)
        elif label in raw.choices:
            found.append(raw.choices.index(label))
        elif re.fullmatch(r"[A-Za-z]", label):
            found.append(ord(label.upper()) - ord("A"))
        else:
            found.append(label)
    return found
