"""What a class counts for in the loss, and which choices of a fine-tuning go together.

weights_of(said, task, examples)    none, balanced, or numbers by name
check_choices(tuning, task, a)      one line on what does not
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bertkin.config import AUTO
from bertkin.errors import UserError, nearest
from bertkin.models.architecture import Architecture
from bertkin.models.levels import lowest_layer
from bertkin.tasks.task import ONE_ANSWER, OUTPUTS, Example, Task

if TYPE_CHECKING:
    from bertkin.tasks.tuning import Tuning

WRITTEN = ("writer", "writes", "decoder_layers")
"""Choices of models that write."""
HAVE: dict[str, tuple[str, ...]] = {
    "pooling": (*ONE_ANSWER, "choice"),
    "class_weights": ("class", "tokens"),
    "crf": ("tokens",),
    "reinit": tuple(output for output in OUTPUTS if output != "sequence"),
    "windows": ONE_ANSWER,
    "stride": (*ONE_ANSWER, "tokens", "span"),
    **dict.fromkeys(WRITTEN, ("sequence",)),
}
"""The outputs that have an option, where not all do."""


def weights_of(said: str, task: Task, examples: Sequence[Example]) -> list[float] | None:
    """The weight of each class (or tag) in the loss; None where all weigh the same.

    Args:
        said: none; balanced: n / (classes · count), by which all classes together weigh the same and an answer weighs 1 on
            average; or weights by name, as good=1,bad=4, where a class that is not named weighs 1.
        examples: to train with.

    Raises:
        UserError: a weight that is no number above 0, a class there is none of, or a task without classes.
    """
    if said == "none":
        return None
    if said != "balanced":
        named = _named(said, task)
        return [named.get(label, 1.0) for label in task.labels]
    counts = Counter[int]()
    for example in examples:
        counts.update([example.label] if task.output == "class" else [tag for *_, tag in example.label])
    total = counts.total()
    return [total / (len(counts) * counts[at]) if counts[at] else 1.0 for at in range(len(task.labels))]


def _named(said: str, task: Task) -> dict[str, float]:
    where, found = "--class-weights", {}
    for pair in said.split(","):
        label, _, number = pair.strip().rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not label or not 0 < weight < math.inf:
            what = f"{pair.strip()!r} is not CLASS=NUMBER with a number above 0"
            raise UserError(what, where=where, mend="give none, balanced, or weights as good=1,bad=4")
        if label not in task.labels:
            raise UserError(f"no class {label!r}", where=where, mend=nearest(label, task.labels))
        found[label] = weight
    return found


def check_choices(tuning: Tuning, task: Task, a: Architecture) -> None:
    """See that what was chosen is in its range, and of this task.

    Raises:
        UserError: the first that is not.
    """
    layers = lowest_layer(a, reads=task.output == "tokens")
    for name, value, right, mend in (
        ("batch", tuning.batch, tuning.batch >= 1, "choose at least 1"),
        ("windows", tuning.windows, tuning.windows >= 1, "choose at least 1"),
        ("stride", tuning.stride, (tuning.stride or 0) >= 0, "choose 0 or more"),
        ("dropout", tuning.dropout, 0 <= tuning.dropout < 1, "choose from 0 up to 1"),
        ("attention-dropout", tuning.attention_dropout, 0 <= tuning.attention_dropout < 1, "choose from 0 up to 1"),
        ("reinit", tuning.reinit, 0 <= tuning.reinit <= layers, f"choose 0 for none, or up to {layers}"),
    ):
        if not right:
            raise UserError(f"{value} is out of range", where=f"--{name}", mend=mend)
    see_windowed(tuning.windows, task)
    for name in WRITTEN:
        if getattr(tuning, name) is not AUTO and task.output not in HAVE[name]:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"a task of {task.output} writes no text", where=option, mend="leave it out")
    if tuning.stride is not AUTO and task.output not in HAVE["stride"]:
        raise UserError(f"a task of {task.output} is not read in windows", where="--stride", mend="leave it out")
    if tuning.reinit and task.output not in HAVE["reinit"]:
        raise UserError("a model that writes keeps its layers", where="--reinit", mend="leave it out")
    if tuning.reinit and tuning.strategy.light:
        what = f"{tuning.strategy.kind} leaves the layers as they are, so new ones would never learn"
        raise UserError(what, where="--reinit", mend="leave it out, or train everything")
    if tuning.crf and task.output not in HAVE["crf"]:
        raise UserError(f"a CRF is for tags, not for {task.output}", where="--crf", mend="leave it out")
    if tuning.class_weights == "none":
        return
    if task.output not in HAVE["class_weights"]:
        what = f"a task of {task.output} has no classes to weigh"
        raise UserError(what, where="--class-weights", mend="leave it out")
    if tuning.crf:
        what = "a CRF scores all tags of a sentence together, and cannot weigh some"
        raise UserError(what, where="--class-weights", mend="choose one of the two")
    weights_of(tuning.class_weights, task, ())


def see_windowed(windows: int, task: Task) -> None:
    """See that a task whose long texts are to be read in several windows gives one answer to all of a text.

    Raises:
        UserError: it does not.
    """
    if windows > 1 and task.output not in HAVE["windows"]:
        what = f"a task of {task.output} is not answered by the mean of windows"
        mend = (
            "leave it out; all of a long text is read anyway" if task.output in ("tokens", "span") else "leave it out"
        )
        raise UserError(what, where="--windows", mend=mend)
