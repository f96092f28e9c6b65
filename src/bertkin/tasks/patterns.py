"""What a model is told before it is asked: a task, some examples, and the input, in the words of a pattern.

    pattern = read_pattern("{input} => {output}")          or a ready one by name, or a file
    prompt(pattern, task, shots, input)                    (what stands before the answer, what stands after it)
    read_examples("examples.tsv")                          inputs and outputs
    drawn(len(examples), 4, seed=0)                        which of them are shown

The task, the examples and the input stand one under the other; where the pattern has several lines, an empty line parts
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bertkin.errors import UserError, nearest
from bertkin.tasks.data.columns import KNOWN
from bertkin.tasks.data.files import KINDS, Gate, normal, open_file, read_table, suffix_of
from bertkin.tasks.fill import BLANK
from bertkin.text.shuffle import mix, noise
from bertkin.text.sources import choose

INPUT, OUTPUT = "{input}", "{output}"
TABLES = ("csv", "tsv", "json", "parquet")


@dataclass(frozen=True)
class Pattern:
    """How an example is written."""

    before: str
    """What stands before the output, with {input} where the input comes."""
    after: str = ""
    """What stands after it."""
    blank: bool = False
    """Whether the output is a blank to be filled in, for those who can do both: written [MASK], not {output}."""

    @property
    def text(self) -> str:
        return self.before + (BLANK if self.blank else OUTPUT) + self.after

    @property
    def parting(self) -> str:
        """What stands between two examples."""
        return "\n\n" if "\n" in self.text else "\n"

    def shown(self, given: str, output: str) -> str:
        """An example with its answer."""
        before, after = self.asked(given)
        return before + output + after

    def asked(self, given: str) -> tuple[str, str]:
        """What stands before the answer and after it, for an input."""
        return self.before.replace(INPUT, given), self.after.replace(INPUT, given)


READY: Mapping[str, Pattern] = {
    "translation": Pattern("{input} => "),
    "qa": Pattern("Question: {input}\nAnswer: "),
    "summary": Pattern("{input}\nTL;DR: "),
    "classification": Pattern("Text: {input}\nLabel: "),
}
"""Translation as Brown et al. (2020) wrote it, summaries as Radford et al. (2019) did."""

WRITTEN = ("qa", "summary")
"""Ready patterns whose answers are written, and not chosen."""


def read_pattern(text: str) -> Pattern:
    r"""A ready pattern by its name, one in a file, or the text itself, in which \n is a new line.

    Raises:
        UserError: it has no {input}, or no {output} (or [MASK]), or more than one.
    """
    if text in READY:
        return READY[text]
    where = "--pattern"
    if INPUT not in text and OUTPUT not in text and BLANK not in text:
        file = Path(text).expanduser()
        if not file.is_file():
            if any(mark in text for mark in "{} \n"):
                raise _no_part(INPUT, where)
            known = nearest(text, READY)
            raise UserError(f"{text!r} is neither a ready pattern nor a file", where=where, mend=known)
        try:
            text, where = file.read_text(encoding="utf-8-sig").strip("\n"), text
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"cannot be read ({why})", where=file, mend="give a text file") from None
    else:
        text = text.replace("\\n", "\n")
    if INPUT not in text:
        raise _no_part(INPUT, where)
    blanks = text.count(OUTPUT) + text.count(BLANK)
    if not blanks:
        raise _no_part(OUTPUT, where)
    if blanks > 1:
        raise UserError(f"the pattern has {blanks} places for the output", where=where, mend="leave one of them")
    mark = OUTPUT if OUTPUT in text else BLANK
    before, after = text.split(mark)
    return Pattern(before, after, blank=mark == BLANK)


def _no_part(part: str, where: str) -> UserError:
    said = f"{OUTPUT} or {BLANK}" if part == OUTPUT else part
    mend = f'write it as "… {INPUT} … {OUTPUT}", or name one of {", ".join(READY)}'
    return UserError(f"the pattern has no {said}", where=where, mend=mend)


def prompt(pattern: Pattern, task: str, shots: Sequence[Example], given: str) -> tuple[str, str]:
    """The whole prompt for an input: what stands before the answer, and what stands after it."""
    before, after = pattern.asked(given)
    told = [task.strip()] if task.strip() else []
    told += [pattern.shown(shot.input, shot.output) for shot in shots]
    return pattern.parting.join([*told, before]), after


# Examples.


@dataclass(frozen=True)
class Example:
    """An input and its output, and where they stand ("file:line")."""

    input: str
    output: str
    where: str = ""


def read_examples(path: str | Path, columns: tuple[str, str] = ("input", "output")) -> list[Example]:
    """The rows of a .tsv, .csv, .jsonl, .json or .parquet file.

    Args:
        columns: of the input and the output. A table of two columns without a header has them in this order.

    Raises:
        UserError: it cannot be read, has no such column, no rows, or a row that lacks one of the two.
    """
    source, kind = open_file(path)
    named = KINDS.get(suffix_of(source.label))
    kind = named if named in TABLES else kind  # a name counts for more here than a look inside
    if kind not in TABLES:
        raise UserError(f"expected a table, found {kind}", where=source.label, mend="give a .tsv, .csv or .jsonl file")
    known = (*map(normal, columns), *KNOWN)
    table = read_table(source, kind, Gate(), known=known)
    names = columns if table.header or len(table.columns) != 2 else table.columns
    for name in names:
        if name not in table.columns:
            found = (
                choose(table.columns, "--columns")
                if table.header
                else 'let the first line name them, as "input<tab>output"'
            )
            raise UserError(f"no column {name!r}", where=source.label, mend=found)
    if not table.rows:
        raise UserError(
            "holds no examples", where=source.label, mend="write one a line, below the names of the columns"
        )
    return [_example(row.values, names, row.where) for row in table.rows]


def _example(values: Mapping[str, object], names: Sequence[str], where: str) -> Example:
    texts = []
    for name in names:
        value = values.get(name)
        missing = value is None or (isinstance(value, float) and math.isnan(value))  # a gap in a column of numbers
        if missing or isinstance(value, bool) or not isinstance(value, str | int | float):
            what = f"no {name!r}" if missing else f"{name!r} holds a {type(value).__name__}, not text"
            raise UserError(what, where=where, mend="give every row both")
        text = str(value).strip()
        if not text:
            raise UserError(f"{name!r} is empty", where=where, mend="give every row both")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name!r} holds half a character (a lone surrogate)", where=where) from None
        texts.append(text)
    return Example(texts[0], texts[1], where)


def drawn(n: int, shots: int, *, seed: int, but: int | None = None, row: int | None = None) -> list[int]:
    """Which of n examples are shown, in the order they are shown in.

    With one seed, fewer shots are among more of them, and leaving one out changes no more than it must.

    Args:
        but: an example that must not be among them, because it is asked.
        row: draw anew for this row.
    """
    if not shots:
        return []
    order = _order(n, seed) if row is None else np.argsort(noise(mix(seed, 22, row), np.arange(n)), kind="stable")
    return [int(i) for i in order[: shots + 1] if i != but][:shots]


@lru_cache(maxsize=16)
def _order(n: int, seed: int) -> NDArray[np.int64]:
    """The order that all rows draw from, where not each has its own."""
    return np.argsort(noise(mix(seed, 21), np.arange(n)), kind="stable")
