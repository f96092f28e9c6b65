"""What changes over a training: rate, masking, row length and batch size, each a function of progress from 0 to 1."""

from __future__ import annotations

import math

from bertkin.config import Train
from bertkin.errors import UserError


def rate_factor(train: Train, progress: float) -> float:
    """The learning rate at this point, as a share of its peak.

    Warm-up rises from nothing to the peak over `train.warmup`; then the schedule falls to nothing at the end: in a
    line, as half a cosine, or (wsd: warm-up, stable, decay; Hu et al. 2024) only over the last `train.decay`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < train.warmup:
        return (progress + 1e-3) / (train.warmup + 1e-3)
    left = (1.0 - progress) / max(1.0 - train.warmup, 1e-9)
    if train.schedule == "linear":
        return left
    if train.schedule == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    if train.schedule == "wsd":
        return min(1.0, (1.0 - progress) / max(train.decay, 1e-9))
    return 1.0


def parse_lengths(train: Train) -> list[tuple[int, float]]:
    """The length curriculum as (tokens a row, share of the budget), in order.

    Raises:
        UserError: not length:share pairs, or shares that do not add up to 1.
    """
    if not train.lengths:
        return [(train.length, 1.0)]
    try:
        stages = [(int(a), float(b)) for a, b in (part.split(":") for part in train.lengths.split(","))]
    except ValueError:
        raise UserError(
            f"{train.lengths!r} is not length:share pairs", where="--train.lengths", mend="write it as 128:0.7,256:0.3"
        ) from None
    total = sum(share for _, share in stages)
    if not abs(total - 1.0) <= 1e-6 or not all(share > 0 and length >= 8 for length, share in stages):  # nor nan
        raise UserError(
            f"{train.lengths!r} will not do: lengths must be 8 or more, and their shares above 0 with a sum of 1",
            where="--train.lengths",
        )
    return stages


def length_at(stages: list[tuple[int, float]], progress: float) -> int:
    """Tokens a row at this point of the curriculum."""
    end = 0.0
    for length, share in stages:
        end += share
        if progress < end - 1e-12:
            return length
    return stages[-1][0]


def rows_at(train: Train, length: int, progress: float) -> int:
    """Rows a step at this point: the batch keeps its tokens whatever the length, and ramps up from a quarter."""
    full = max(1, train.batch_tokens // length)
    if train.batch_ramp <= 0 or progress >= train.batch_ramp:
        return full
    return max(1, round(full * (0.25 + 0.75 * progress / train.batch_ramp)))
