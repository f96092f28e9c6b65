"""The verb that looks labelled data over before anything is trained: `bertkin check data`. See `bertkin.cli`."""

from __future__ import annotations

import json as plain
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from bertkin.errors import UserError
from bertkin.terminal import Flag

Quietly = Parameter(show_default=False)

check = App(name="check", help="Look data over before training on it.")


@check.command(name="data")
def check_data(
    *files: str,
    dev: Path | None = None,
    test: Path | None = None,
    task: Literal["class", "classes", "score", "choice", "tokens", "span", "sequence"] | None = None,
    text: Annotated[str, Quietly] = "",
    text2: Annotated[str, Quietly] = "",
    label: Annotated[str, Quietly] = "",
    scheme: Literal["iob1", "iob2", "bioes", "bmes"] | None = None,
    header: bool | None = None,
    tokenizer: Path | None = None,
    max_length: int = 512,
    encoding_errors: Literal["strict", "replace"] = "strict",
    show: int = 5,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Find duplicates, leaks, skewed labels and unusable rows: bertkin check data train.csv dev.csv

    Faults are rows that cannot be used, and make it end with 2; warnings are rows that can.

    Parameters
    ----------
    files
        Labelled files (.csv .tsv .jsonl .parquet, CoNLL, CoNLL-U, SQuAD's JSON), told apart by train, dev or test in their
        names, or a folder of them.
    dev
        The development data, whatever its name.
    test
        The test data, whatever its name; labels may be missing.
    task
        What is answered: a class, several, a score, the best of some choices, a tag for each word, a span, or a text.
    text
        Column of the text, by name or number from 1. [default: guessed]
    text2
        Column of the second text. [default: guessed]
    label
        Column of the label. [default: guessed]
    scheme
        How entities are written. [default: told by the tags]
    header
        Whether the first line names the columns. [default: looked at]
    tokenizer
        A folder with the tokenizer that counts tokens. [default: words and signs are counted]
    max_length
        Tokens above which a row is overlong.
    encoding_errors
        Stop at bytes that are not UTF-8, or replace them.
    show
        Places shown of each finding; 0 for all.
    json
        Write one JSON object, with all places.
    """
    from bertkin.api import check_data as look_over
    from bertkin.tasks.reading import Columns

    checked = look_over(
        list(files),
        dev=dev,
        test=test,
        tokenizer=tokenizer,
        max_length=max_length,
        columns=Columns(text, text2, label),
        output=task or "",
        scheme=scheme or "",
        header=header,
        encoding_errors=encoding_errors,
    )
    print(plain.dumps(checked.to_mapping(), ensure_ascii=False) if json else "\n".join(checked.lines(show)))
    if checked.faults:
        count, first = sum(len(fault.places) for fault in checked.faults), checked.faults[0]
        what = f"{count:,} row{'s' * (count != 1)} cannot be used ({first.what})"
        raise UserError(what, where=first.places[0], mend="mend them, or leave them out of training with --skip-bad")
