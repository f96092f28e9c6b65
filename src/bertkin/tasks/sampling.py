"""Which of several tasks a step of training is of.

A task with N examples is drawn in proportion to N ** alpha. With 1 the large tasks are nearly all there is, with 0 all are
alike; Stickland & Murray (2019) begin with 1 and end with 0.2, so that at the end, where the rates are small and what is
learnt stays, no task is drowned.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bertkin.text.shuffle import mix, unit

Sampling = Literal["annealed", "proportional", "sqrt", "uniform"]
SAMPLINGS: tuple[Sampling, ...] = typing.get_args(Sampling)
POWERS = {"proportional": 1.0, "sqrt": 0.5, "uniform": 0.0}
FALL = 0.8
"""How much alpha falls from the first epoch to the last."""


def exponent(sampling: Sampling, progress: float, epochs: float | None = None) -> float:
    """Alpha, when a share `progress` (from 0, below 1) of the training is done.

    Annealed, it is 1 - 0.8 (e - 1) / (E - 1) in epoch e of E, each counted from 1: 1 where there is but one. A training
    whose budget is not in epochs has no such steps: 1 - 0.8 * progress.

    Args:
        epochs: E, if the budget is in epochs; a part of one counts as one.
    """
    if sampling != "annealed":
        return POWERS[sampling]
    if epochs is None:
        return 1 - FALL * progress
    whole = math.ceil(epochs)
    epoch = min(math.floor(progress * epochs + 1e-9), whole - 1)
    return 1 - FALL * epoch / max(whole - 1, 1)


def chances(sizes: Sequence[int], alpha: float) -> NDArray[np.float64]:
    """Each task's chance of being drawn, one together: [tasks]."""
    raised = (np.asarray(sizes, np.float64) / max(sizes)) ** alpha
    shares: NDArray[np.float64] = raised / raised.sum()
    return shares


def drawn(chances: NDArray[np.float64], seed: int, step: int) -> int:
    """The task of a step: the same whenever it is asked for."""
    at = float(unit(mix(12, seed, step))[0])
    return min(int(np.searchsorted(np.cumsum(chances), at, side="right")), len(chances) - 1)
