"""What a fine-tuning is cooked from: labelled examples as rows, the stock and its tokenizer, nothing left open.

gather(tuning, device)    all of it, or one line on what is wrong
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bertkin.errors import UserError
from bertkin.models.configs import read_config
from bertkin.models.pretrained import find_folder
from bertkin.tasks.completing import complete
from bertkin.tasks.data.columns import Columns, Roles
from bertkin.tasks.encoding import Rows, encode
from bertkin.tasks.fingerprints import VERSION, fingerprint_of
from bertkin.tasks.frames import Frame
from bertkin.tasks.metrics import metric
from bertkin.tasks.reading import Splits, read_splits
from bertkin.tasks.settling import settle
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision


@dataclass(frozen=True)
class Gathered:
    """A recipe with nothing left open, and what it is cooked from."""

    tuning: Tuning
    task: Task
    train: Rows
    dev: Rows
    test: Rows
    tokenizer: Tokenizer
    stock: Path
    said: tuple[str, ...]
    roles: Roles
    """What the columns of the training data were taken for."""
    frame: Frame | None = None
    """Of a task whose answer is written: how it is laid out."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all examples and of the model that is begun with."""
        return self.like(VERSION)

    def like(self, fingerprint: str) -> str:
        """The same, of the kind of one that was written down."""
        parts = self.train.examples, self.dev.examples, self.test.examples
        return fingerprint_of(parts, self.stock, fingerprint)


def read_data(tuning: Tuning) -> Splits:
    """The labelled data of a recipe, its task with the metric that was asked for.

    Raises:
        UserError: anything about the data, or a metric that is none of the task's.
    """
    splits = read_splits(
        list(tuning.data) if len(tuning.data) != 1 else tuning.data[0],
        dev=tuning.dev,
        test=tuning.test,
        output=tuning.task or "",
        columns=Columns(tuning.text, tuning.text2, tuning.label),
        header=tuning.header,
        scheme=tuning.scheme or "",
        skip_bad=tuning.skip_bad,
        encoding_errors=tuning.encoding_errors,
    )
    found = splits.train.task
    if tuning.scheme and found.output != "tokens":
        raise UserError(f"of tags, and this is a task of {found.output}", where="--scheme", mend="leave it out")
    task = replace(found, metric=tuning.metric or found.metric, positive=tuning.positive or found.positive)
    counted = metric(task.metric, task)
    if task.output == "sequence":
        counted.rows(task, [Example(("",), "a")], ["a"])  # a library that is missing is said before anything slow
    return replace(splits, train=replace(splits.train, task=task))


def gather(tuning: Tuning, device: str) -> Gathered:
    """Read the data and the model's shape, and fill in the recipe.

    Raises:
        UserError: as `read_data`; a task that the model cannot do, or a folder whose parts disagree.
    """
    stock = find_folder(tuning.model)
    a, _ = read_config(stock / "config.json")
    splits = read_data(tuning)
    task = splits.train.task
    tuning = complete(tuning, task, len(splits.train.examples), a, stock)
    precision: Any = str(pick_precision(tuning.train.precision, device)).split(".")[1]
    tuning = replace(tuning, train=replace(tuning.train, precision=precision))
    tokenizer = Tokenizer.load(stock, a.vocab_size)
    test = splits.test.examples if splits.test is not None else ()
    known = [example for example in test if example.label is not None]
    long: dict[str, Any] = {"max_length": tuning.length, "stride": tuning.stride, "windows": tuning.windows}
    encoded: Callable[[Sequence[Example]], Rows] = partial(encode, task=task, tokenizer=tokenizer, **long)
    frame = None
    if task.output == "sequence":
        tuning, frame = settle(tuning, a, stock, tokenizer, splits.train.examples)
        encoded = partial(frame.encode, task=task)
    train, dev, last = (encoded(examples) for examples in (splits.train.examples, splits.dev.examples, known))
    return Gathered(tuning, task, train, dev, last, tokenizer, stock, splits.said, splits.train.roles, frame)
