"""How sure a score is: an interval for one model, and the chance that two models differ by luck.

    interval(name, task, examples, predictions)       percentile bootstrap over examples (Efron 1979)
    difference(name, task, examples, one, two)        approximate randomisation (Noreen 1989), for any metric
    mcnemar(right_one, right_two)                     exact test of McNemar (1947), for right and wrong alone

They speak of the examples, not of the seeds: train several times to see how much a model's score moves by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertkin.tasks.metrics import Floats, Metric, answered, metric
from bertkin.tasks.task import Example, Task

CHUNK = 1 << 22
"""Drawn numbers that are in memory at once."""


def interval(
    name: str,
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Any],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Where a metric lies for `level` of data sets drawn, with replacement, from these examples.

    Args:
        name: a metric of the task.
        draws: data sets drawn.

    Raises:
        UserError: as `bertkin.tasks.metrics.measure`.
    """
    one = metric(name, task)
    rows = one.rows(task, *answered(task, examples, predictions))
    size, random = len(rows), np.random.default_rng(seed)
    scores: list[Floats] = []
    for count in _chunks(draws, size):
        drawn = random.integers(0, size, (count, size))
        if one.whole:
            scores.append(np.array([one.score(rows[places]) for places in drawn]))
        else:
            weights = np.stack([np.bincount(places, minlength=size) for places in drawn]).astype(np.float64)
            scores.append(np.asarray(one.of(weights @ rows)))
    low, high = np.quantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How two models compare on the same examples.

    Attributes:
        one, two: their scores.
        p: chance of a difference at least as large, either way, were both equally good.
    """

    metric: str
    one: float
    two: float
    p: float

    def __str__(self) -> str:
        said = "more than chance" if self.p < 0.05 else "may be chance"
        return f"{self.metric} {self.one:.4f} and {self.two:.4f}: {self.two - self.one:+.4f}, p = {self.p:.4f}, {said}"


def difference(
    name: str,
    task: Task,
    examples: Sequence[Example],
    one: Sequence[Any],
    two: Sequence[Any],
    *,
    rounds: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Whether two models' predictions differ by more than chance: were they equally good, it would not matter whose
    prediction is whose, so the predictions of an example are swapped by the toss of a coin, many times.

    Args:
        name: a metric of the task.
        rounds: times all coins are tossed (a tenth for metrics that need all examples at once).

    Raises:
        UserError: as `bertkin.tasks.metrics.measure`.
    """
    how = metric(name, task)
    first = how.rows(task, *answered(task, examples, one))
    second = how.rows(task, *answered(task, examples, two))
    scores = how.score(first), how.score(second)
    observed = abs(scores[0] - scores[1])
    random = np.random.default_rng(seed)
    rounds = max(1, rounds // 10) if how.whole else rounds
    as_large = 0
    for count in _chunks(rounds, len(first)):
        swapped = random.random((count, len(first))) < 0.5
        gaps = np.abs(_swapped(how, first, second, swapped))
        as_large += int((gaps >= observed - 1e-12).sum())
    return Difference(name, *scores, (as_large + 1) / (rounds + 1))


def _swapped(how: Metric, first: Floats, second: Floats, swapped: NDArray[np.bool_]) -> Floats:
    """[rounds]: what the scores differ by where predictions change hands."""
    if how.whole:
        masks = swapped[:, :, None]
        pairs = [(np.where(mask, second, first), np.where(mask, first, second)) for mask in masks]
        return np.array([how.score(a) - how.score(b) for a, b in pairs])
    moved = swapped.astype(np.float64) @ (second - first)
    return np.asarray(how.of(first.sum(0) + moved) - how.of(second.sum(0) - moved))


def _chunks(rounds: int, size: int) -> Iterator[int]:
    """How many rounds at a time, so that their numbers fit in memory."""
    most = max(1, CHUNK // max(1, size))
    while rounds > 0:
        yield min(most, rounds)
        rounds -= most


def mcnemar(right_one: ArrayLike, right_two: ArrayLike) -> float:
    """Chance that two models, equally good, disagree about who is right at least as unevenly; exact, two-sided.

    Args:
        right_one, right_two: [examples], whether each model is right.
    """
    one, two = np.asarray(right_one, bool), np.asarray(right_two, bool)
    if one.shape != two.shape:
        raise ValueError(f"{one.shape} answers of one model, but {two.shape} of the other")
    only_one, only_two = int((one & ~two).sum()), int((two & ~one).sum())
    total = only_one + only_two
    tail = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(min(only_one, only_two) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, tail)))
