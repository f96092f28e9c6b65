"""A file of rows in, a file of answers out: what a fine-tuned model says of a whole table.

    rows = read_rows(reader, "reviews.csv")       tables, JSON lines, CoNLL, CoNLL-U, SQuAD's format
    found = reader.asked(rows.examples)           an answer for each
    measured(reader, rows, found, labelled)       how well the answers that the file has were met
    write_answers("answers.csv", told, [reader])  .jsonl, .csv, .tsv; tags as .conll; answers to questions as .json

Columns are those of the table the model was trained on, where the file has them; otherwise they are known by their names, or
are as many as the model reads.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertkin.errors import UserError, nearest
from bertkin.tasks.answering import Prediction
from bertkin.tasks.data.columns import Columns
from bertkin.tasks.data.files import KINDS, suffix_of
from bertkin.tasks.data.schemes import NAMES, convert
from bertkin.tasks.metrics import measure
from bertkin.tasks.predict import Reader, in_words
from bertkin.tasks.reading import Labelled, read_examples
from bertkin.tasks.task import Example
from bertkin.train.state import write_text

FORMS = (".jsonl", ".csv", ".tsv", ".conll", ".json")
"""How a file of answers may end."""


def is_sheet(path: str | Path) -> bool:
    """Whether a file's name says that it holds rows with columns, and not a text a line."""
    return suffix_of(str(path)) in KINDS


def read_rows(
    reader: Reader,
    path: str | Path,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    header: bool | None = None,
    labelled: bool = False,
    skip_bad: bool = False,
) -> Labelled:
    """The rows of a file as the model's task has them.

    Args:
        columns: what the user says of the columns; goes before those that the model was trained on.
        header: whether the first line of a table names its columns; by default it is told by names that are known.
        labelled: whether answers are read, too, where a row has one; else they are passed over, right or wrong.
        skip_bad: leave unusable rows out, instead of stopping at the first.

    Raises:
        UserError: as `bertkin.tasks.reading.read_examples`; or a row has more or fewer texts than the task takes.
    """
    task = replace(reader.task, inputs=2) if columns.text2 and reader.takes(2) else reader.task
    how: dict[str, Any] = {"columns": columns, "header": header, "skip_bad": skip_bad}
    rows = read_examples(
        [str(path)], task, roles=reader.columns, labelled=None if labelled else False, asking=True, **how
    )
    reads = task.inputs - (task.output == "choice")
    for example in rows.examples:
        if not (len(example.texts) == reads or reader.takes(len(example.texts))):
            what = f"{len(example.texts)} texts, where the model reads {reads}"
            raise UserError(what, where=example.where, mend="give it such rows, or name their columns with --text")
        if task.output == "choice" and len(example.choices) < 2:
            mend = "call their columns choice1, choice2, …, or give a list `choices`"
            raise UserError("no choices", where=example.where, mend=mend)
    if task.output == "tokens":
        rows = replace(rows, examples=tuple(map(in_words, rows.examples)))
    return rows


def measured(
    reader: Reader, rows: Labelled, found: Sequence[Prediction], labelled: Labelled
) -> tuple[dict[str, float], int]:
    """How well the answers that a file has were met, and how many there are.

    Args:
        rows, found: all rows, and what was answered to each.
        labelled: the same file, read with its answers. Where that changes what is asked (the edges of entities part words),
            it is asked again.

    Raises:
        UserError: the file has no answers.
    """
    words = reader.task.output == "tokens"

    def asked(example: Example) -> Hashable:
        """What tells one question from another."""
        return example.where, example.id, example.texts, example.choices, example.spans if words else ()

    known = [example for example in labelled.examples if example.label is not None]
    answers = {asked(example): one.answer for example, one in zip(rows.examples, found, strict=True)}
    anew = [example for example in known if asked(example) not in answers]
    answers |= (
        {asked(example): one.answer for example, one in zip(anew, reader.asked(anew), strict=True)} if anew else {}
    )
    return measure(reader.task, known, [answers[asked(example)] for example in known]), len(known)


# Writing.


def see_form(path: Path | None, readers: Sequence[Reader], scheme: str = "", read: str | Path | None = None) -> None:
    """Refuse a file of answers that could not be written, before anything is computed.

    Args:
        path: None where answers go into no file.
        read: the file that questions come from.

    Raises:
        UserError: an ending that is none, or none for this task or for several models; a scheme that is none, or for what
            has no entities; a folder, or in one that is not there; or what is read.
    """
    if scheme and scheme not in NAMES:
        raise UserError(f"no scheme {scheme!r}", where="--scheme", mend=nearest(scheme, NAMES))
    if path is None:
        if scheme:
            raise UserError("is of tags in a file", where="--scheme", mend="name an --out that ends in .conll")
        return
    if read is not None and path.resolve() == Path(read).resolve():
        raise UserError("is what is read", where=path, mend="choose another --out")
    form = path.suffix.lower()
    if path.is_dir():
        raise UserError("a folder", where=path, mend="name a file, such as answers.jsonl")
    if not path.parent.is_dir():
        raise UserError("no such folder", where=path.parent, mend="make it, or name another file")
    if form not in FORMS:
        raise UserError(f"answers are not written as {form or 'a file without an ending'}", where=path, mend=_end())
    if form in (".conll", ".json"):
        if len(readers) > 1:
            raise UserError(f"{form} is for the answers of one model", where=path, mend=_end(".conll", ".json"))
        if form == ".conll" and readers[0].task.output != "tokens":
            raise UserError("a CoNLL file is of tags, which this model does not give", where=path, mend=_end(form))
        if form == ".json" and readers[0].task.output != "span":
            raise UserError("a JSON of answers by question is of spans", where=path, mend=_end(form))
    if scheme and form != ".conll":
        raise UserError(
            "a scheme is of tags in a CoNLL file", where="--scheme", mend="name an --out that ends in .conll"
        )
    if scheme and not readers[0].task.scheme:
        raise UserError("this model's tags are of no entities", where="--scheme", mend="leave it out")


def _end(*but: str) -> str:
    return f"end its name in {', '.join(form for form in FORMS if form not in but)}"


def see_rows(path: Path | None, examples: Sequence[Example]) -> None:
    """Refuse rows whose answers such a file could not tell apart, before anything is computed.

    Raises:
        UserError: as JSON, questions without an id, or two with one; as CoNLL, a row without words.
    """
    form = path.suffix.lower() if path is not None else ""
    if path is not None and form == ".json":
        _see_ids(path, [example.id for example in examples])
    for example in examples if form == ".conll" else ():
        if not example.spans:
            raise UserError("a row without words", where=example.where, mend="leave it out, or write .jsonl")


def _see_ids(path: Path, names: Sequence[str]) -> None:
    mend = "write .jsonl, or give each question an id"
    if "" in names:
        raise UserError("questions without an id", where=path, mend=mend)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} questions have the id {name!r}", where=path, mend=mend)


def write_answers(path: Path, told: Sequence[dict[str, Any]], readers: Sequence[Reader], *, scheme: str = "") -> None:
    """Write answers to a file, whole or not at all.

    Args:
        told: from `Reader.told` or `Reader.said`.
        readers: whose answers they are.
        scheme: how a .conll file writes entities (iob1, iob2, bioes, bmes); by default as the training data did.

    Raises:
        UserError: as `see_form`; or the disk refuses.
    """
    see_form(path, readers, scheme)
    form = path.suffix.lower()
    if form == ".jsonl":
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told)
    elif form == ".json":  # as SQuAD's own evaluation takes them
        _see_ids(path, [one.get("id", "") for one in told])
        text = json.dumps({one["id"]: one["answer"] for one in told}, ensure_ascii=False, indent=1) + "\n"
    elif form == ".conll":
        scheme = scheme or readers[0].task.scheme
        text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in _tagged(one, scheme)) for one in told)
    else:
        text = _table(told, form)
    write_text(path, text)


def _tagged(one: dict[str, Any], scheme: str) -> list[tuple[str, str]]:
    words, tags = [word for word, _ in one["words"]], [tag for _, tag in one["words"]]
    return list(zip(words, convert(tags, scheme) if scheme in NAMES else tags, strict=True))


def _table(told: Sequence[dict[str, Any]], form: str) -> str:
    """A row for each answer: model, id, texts, and the answer; words and tags are parted by blanks, labels by commas."""
    rows = [_cells(one) for one in told]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    if form == ".csv":
        out = csv.writer(stream, lineterminator="\n")
        out.writerow(names)
        out.writerows([row.get(name, "") for name in names] for row in rows)
    else:  # as it is: tabs part columns, and quotation marks mean nothing
        for cells in (names, *([str(row.get(name, "")) for name in names] for row in rows)):
            stream.write("\t".join(" ".join(cell.split()) for cell in cells) + "\n")
    return stream.getvalue()


def _cells(one: dict[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {name: one[name] for name in ("model", "id") if name in one}
    cells |= {f"text{number if number > 1 else ''}": text for number, text in enumerate(one["texts"], 1)}
    if "words" in one:
        return cells | {name: " ".join(pair[at] for pair in one["words"]) for at, name in enumerate(("words", "tags"))}
    if "labels" in one:
        return cells | {"labels": ",".join(one["labels"])}
    return cells | {name: one[name] for name in ("label", "score", "answer", "probability") if name in one}
