"""From rows to what a model is asked: batch = f(split, seed, row), whatever the objective.

`make_batch` is what training reads, `evaluation_batches` what every run is measured on. Both say which rows, cut them
out of the corpus, and leave the rest to the maker of the objective's kind, a function

    maker(split, ids, pieces, keys, objective, rate) -> Batch

    masked, replaced         objectives/masked.py
    causal, prefix           objectives/causal.py
    hybrid, unilm            objectives/causal.py
    denoise                  objectives/denoise.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bertkin.config import Objective
from bertkin.objectives.causal import causal
from bertkin.objectives.masked import masked
from bertkin.text.batches import Batch, Pieces, Specials, SplitLike, cut, plan, stream_length
from bertkin.text.shuffle import Bits, mix

Maker = Callable[[SplitLike, Specials, Pieces, Bits, Objective, float], Batch]

EVALUATION = Objective(kind="masked", unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
"""What every evaluation of a masked model asks: BERT's own 15% of tokens, 80% hidden, 10% replaced, 10% as they are."""
_EVALUATION_SEED = 15


def make_batch(
    split: SplitLike,
    ids: Specials,
    *,
    seed: int,
    first_row: int,
    n_rows: int,
    length: int,
    objective: Objective,
    rate: float | None = None,
) -> Batch:
    """Rows first_row … first_row + n_rows - 1 of training, with what is asked of them.

    A row depends on its number (and split, seed, length, objective) alone: batches of any size, made in any order by
    any process, hold the same rows.

    Args:
        first_row: counts on over the epochs, for each length apart (see `bertkin.text.batches.plan`).
        objective: with every field resolved.
        rate: share of the tokens that are asked at this point of training; by default objective.rate.

    Raises:
        UserError: next sentence prediction on a single document.
    """
    starts, keys = plan(split, seed=seed, first_row=first_row, n_rows=n_rows, length=length, static=objective.static)
    pieces, maker = cut(split, starts, length), _maker(objective)
    return maker(split, ids, pieces, keys, objective, objective.rate if rate is None else rate)


def evaluation_batches(
    split: SplitLike, ids: Specials, *, length: int, n_rows: int, batch_rows: int, objective: Objective = EVALUATION
) -> Iterator[Batch]:
    """n_rows rows spread evenly over a split, in batches of batch_rows, the same and asked the same every time.

    A split too small for n_rows gives as many as it has, and one row, however short, at the least.

    Args:
        objective: the run's own; `measured` says what is asked for it.
    """
    objective = measured(objective)
    maker, around = _maker(objective), stream_length(split)
    n_rows = min(n_rows, max(1, around // length))
    for first in range(0, n_rows, batch_rows):
        number = np.arange(first, min(first + batch_rows, n_rows))
        starts = number * around // n_rows
        keys = mix(5, _EVALUATION_SEED, length, number)
        yield maker(split, ids, cut(split, starts, length), keys, objective, objective.rate)


def measured(objective: Objective) -> Objective:
    """What runs of an objective are measured on: as little of the recipe as can be, so that runs compare.

    masked, replaced: `EVALUATION`. causal, prefix: every token. hybrid, unilm: their own mixture, with EVALUATION's
    masks where something is masked; of the recipe, only causal_share. denoise: its own noise, rate and span_mean.
    """
    if objective.kind == "denoise":
        return objective
    kind = "masked" if objective.kind in (None, "replaced") else objective.kind
    return replace(EVALUATION, kind=kind, causal_share=objective.causal_share)


def _maker(objective: Objective) -> Maker:
    if objective.kind == "denoise":
        from bertkin.objectives.denoise import denoise

        return denoise
    return {"causal": causal}.get(objective.kind, masked)
