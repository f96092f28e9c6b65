"""Write a field of a record given others of its fields (Grover: Zellers et al. 2019).

writer = open_writer("runs/news")
record = write_fields(writer, {"title": "A cat is found", "date": "2019-04-01"}, ["body"])[0]
print(record.fields["body"])

The prompt is the given fields in the order they are given in, each between its marks, then the mark that opens the wanted
one; writing stops at the mark that closes it. See `bertkin.text.fields` for how a model is taught this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertkin.errors import UserError, nearest
from bertkin.models.generate import Decoding
from bertkin.tasks.generate import Truncate, Writer, generate
from bertkin.text.fields import CLOSE, OPEN, frames_of, text_of
from bertkin.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Record:
    """Fields that were given, and fields that were written."""

    given: dict[str, str]
    written: dict[str, str]
    ended: bool
    """Whether the model closed every field it wrote; otherwise one ends because there was no room for more."""

    @property
    def fields(self) -> dict[str, str]:
        """All of them, the given ones first."""
        return self.given | self.written

    def __str__(self) -> str:
        if len(self.written) == 1:
            return next(iter(self.written.values()))
        return "\n".join(f"{name}: {text}" for name, text in self.written.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"given": self.given, "written": self.written, "ended": self.ended}


def parse_given(text: str, known: Sequence[str]) -> dict[str, str]:
    """Read title=A cat, found,date=2019: a comma ends a text only where a field's name and = follow.

    Raises:
        UserError: what is no name of a field, or one there twice.
    """
    if not text.strip():
        return {}
    given: dict[str, str] = {}
    begins = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    for part in re.split(rf",\s*(?=(?:{begins})\s*=)", text):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"{part!r} has no =", where="--fields", mend="write them as title=…,date=…")
        _know(name, known, "--fields")
        if name in given:
            raise UserError(f"{name} is given twice", where="--fields", mend="give it once")
        given[name] = value.strip()
    return given


def write_given(
    writer: Writer,
    given: str,
    want: str | None = None,
    how: Decoding = Decoding(),  # noqa: B008
    *,
    lines: Sequence[str] | None = None,
    num: int = 1,
    truncate: Truncate = None,
) -> list[Record]:
    """`write_records` of what a command line says: title=…,date=… and body, or title,body.

    Args:
        lines: records in JSON, of each of which the fields named by `given` (as title,date) are given; by default all
            that it has and the model knows, but those that are wanted. An empty field counts as none, as in training.

    Raises:
        UserError: as `parse_given` and `write_records`, or a line that is no record.
    """
    known = known_fields(writer.tokenizer)
    names = _names(want)
    if lines is None:
        return write_fields(writer, parse_given(given, known), names, how, num=num, truncate=truncate)
    records = []
    for number, line in enumerate(lines, start=1):
        records.append(_record(line, f"line {number}", _names(given), names, known))
        try:
            check_fields(writer, records[-1], names)
        except UserError as error:
            raise UserError(error.what, where=f"line {number}", mend=error.mend) from None
    return write_records(writer, records, names, how, num=num, truncate=truncate)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _record(line: str, where: str, given: Sequence[str], want: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The given fields of a line of JSON."""
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            "not a record in JSON", where=where, mend='write one on each line, as {"title": "A cat is found"}'
        )
    for name in given:
        _know(name, known, "--fields")
    asked = given or [name for name in values if name in known and name not in want]
    texts = {name: text_of(values.get(name), name, where).strip() for name in asked}
    empty = next((name for name in given if not texts[name]), None)
    if empty is not None:
        raise UserError(f"the record has no field {empty!r}", where=where, mend="leave it out of --fields, or add it")
    return {name: text for name, text in texts.items() if text}


def _know(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise UserError(f"the model knows no field {name!r}", where=where, mend=nearest(name, known))


def known_fields(tokenizer: Tokenizer) -> list[str]:
    """The fields that a model with this tokenizer was taught.

    Raises:
        UserError: there are none.
    """
    known = list(frames_of(tokenizer))
    if not known:
        mend = "train one: bertkin pretrain records.jsonl --fields title,body"
        raise UserError("this model was not trained on fields", where="--fields", mend=mend)
    return known


def prompt_for(tokenizer: Tokenizer, given: Mapping[str, str], want: str) -> str:
    """What a model goes on from to write the field `want`.

    Raises:
        UserError: a field that the model does not know, that is given and wanted at once, or holds a field's mark.
    """
    known = known_fields(tokenizer)
    _know(want, known, "--want")
    if want in given:
        raise UserError(f"{want} is given and wanted", where="--want", mend="leave it out of one of them")
    prompt = ""
    for name, value in given.items():
        _know(name, known, "--fields")
        mark = next((m.format(k) for k in known for m in (OPEN, CLOSE) if m.format(k) in value), None)
        if mark:
            raise UserError(
                f"the text of {name} holds {mark}, which frames a field", where="--fields", mend="remove it"
            )
        prompt += OPEN.format(name) + _as_trained(tokenizer, name, value) + CLOSE.format(name)
    return prompt + OPEN.format(want)


def _as_trained(tokenizer: Tokenizer, name: str, value: str) -> str:
    """The text with a blank before it, where it takes that to be cut as it is when it stands alone."""
    alone = tokenizer.encode(value)
    for lead in ("", " "):
        if tokenizer.encode(f"{OPEN.format(name)}{lead}{value}")[1:] == alone:
            return lead + value
    return value


def check_fields(writer: Writer, given: Mapping[str, str], want: Sequence[str] = ()) -> list[str]:
    """The names of the fields that are wanted of a writer, by default all that are not given.

    Raises:
        UserError: as `write_fields`.
    """
    known = known_fields(writer.tokenizer)
    want = list(want) or [name for name in known if name not in given]
    if not want:
        raise UserError("every field is given", where="--want", mend="leave one out of --fields")
    if len(set(want)) < len(want):
        raise UserError(f"a field is wanted twice in {','.join(want)}", where="--want", mend="name each once")
    if not writer.goes_on or writer.manner.blank is not None:
        what = "an encoder–decoder writes a text for another, and does not go on with fields"
        if writer.goes_on:
            what = "unilm hides words alone, so this model was never asked for the mark that closes a field"
        raise UserError(what, where=writer.folder, mend="give a gpt2 or llama trained with --fields")
    for name in want:
        prompt_for(writer.tokenizer, given, name)  # whatever is wrong is said before anything is written
    return want


def write_fields(
    writer: Writer,
    given: Mapping[str, str],
    want: Sequence[str] = (),
    how: Decoding = Decoding(),  # noqa: B008
    *,
    num: int = 1,
    truncate: Truncate = None,
) -> list[Record]:
    """Write the wanted fields of a record, one after the other, each given those before it.

    Args:
        writer: from `bertkin.tasks.generate.open_writer`; a model that goes on with a text.
        want: names of fields; by default all that are not given.
        num: records, by chance.
        truncate: "left" lets given fields that are too long lose their beginning; otherwise they are refused.

    Raises:
        UserError: a field that the model does not know, none that is wanted, or a model that was not taught to close one.
    """
    return write_records(writer, [given], want, how, num=num, truncate=truncate)


def write_records(
    writer: Writer,
    givens: Sequence[Mapping[str, str]],
    want: Sequence[str] = (),
    how: Decoding = Decoding(),  # noqa: B008
    *,
    num: int = 1,
    truncate: Truncate = None,
) -> list[Record]:
    """`write_fields` of several records, written side by side; the `num` of each lie next to each other."""
    wanted = [check_fields(writer, given, want) for given in givens for _ in range(num)]
    records = [Record(dict(given), {}, True) for given in givens for _ in range(num)]
    known = known_fields(writer.tokenizer)
    marks = re.compile("|".join(re.escape(mark.format(name)) for name in known for mark in (OPEN, CLOSE)))
    for turn in range(max(map(len, wanted), default=0)):
        for name in dict.fromkeys(names[turn] for names in wanted if turn < len(names)):
            mine = [i for i, names in enumerate(wanted) if turn < len(names) and names[turn] == name]
            prompts = [prompt_for(writer.tokenizer, records[i].fields, name) for i in mine]
            alike, stop = len(givens) == 1 and len(set(prompts)) == 1, [CLOSE.format(name)]
            asked, each = (prompts[:1], num) if alike else (prompts, 1)
            texts = generate(writer, asked, how, num=each, stop=stop, truncate=truncate)
            for i, text in zip(mine, texts, strict=True):
                own, *strayed = marks.split(text.text, maxsplit=1)  # a young model opens a field inside another
                closed = records[i].ended and text.ended == "stop" and not strayed
                records[i] = Record(records[i].given, records[i].written | {name: own.strip()}, closed)
    return records
