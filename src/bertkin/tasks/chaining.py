"""Which tags may follow which: what a CRF's choice is bound by.

allowed(labels)           beginnings, pairs and ends that make entities of a scheme
chain_of(model, task)     what a model with a CRF has learnt of pairs, within that
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bertkin.models.crf import Chain
from bertkin.models.task_heads import TaskModel
from bertkin.tasks.data.schemes import is_scheme, parts
from bertkin.tasks.task import Task

Allowed = NDArray[np.bool_]


def allowed(labels: Sequence[str]) -> tuple[Allowed, Allowed, Allowed]:
    """Which tags may begin, which may follow which ([tag, next tag]), and which may end a sequence.

    In IOB2 an I goes on with an entity of its own type. Where there is an E or S, as in BIOES and BMES, an entity that has
    begun must also end: after a B, I or M comes an I, M or E of its type. Tags of no scheme, such as parts of speech, may
    stand anywhere.
    """
    count = len(labels)
    first, between, last = np.ones(count, np.bool_), np.ones((count, count), np.bool_), np.ones(count, np.bool_)
    if not is_scheme(labels):
        return first, between, last
    tags = [parts(label) for label in labels]
    closes = any(letter in "ES" for letter, _ in tags)
    for at, (letter, kind) in enumerate(tags):
        inside = letter in "IME"
        first[at] = not inside
        opened = letter in "BIM"
        last[at] = not (closes and opened)
        for to, (next_letter, next_kind) in enumerate(tags):
            goes_on = next_letter in "IME"
            if goes_on:
                between[at, to] = opened and kind == next_kind
            elif closes:
                between[at, to] = not opened
    return first, between, last


def chain_of(model: TaskModel, task: Task) -> Chain | None:
    """What a model's tags are chosen with; None where it has no CRF, and each is chosen by itself."""
    return None if model.crf is None else Chain.of(model.crf, *allowed(task.labels))
