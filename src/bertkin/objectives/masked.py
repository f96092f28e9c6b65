"""Masked language modelling: batch = f(split, seed, row).

`make_batch` is what training reads, `evaluation_batches` what every run is measured on: the same rows and the same
masks whatever the recipe, so that runs compare.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bertkin.config import Objective
from bertkin.objectives.masking import choose, corrupt, units
from bertkin.objectives.sentence import pair_up
from bertkin.text.batches import Batch, Pieces, Specials, SplitLike, cut, lay, plan, rows_of, stream_length
from bertkin.text.shuffle import Bits, mix, noise

EVALUATION = Objective(unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
"""What every evaluation asks: BERT's own 15% of tokens, 80% hidden, 10% replaced, 10% as they are."""
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
    """Rows first_row … first_row + n_rows - 1 of training, masked.

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
    return _masked(split, ids, cut(split, starts, length), keys, objective, objective.rate if rate is None else rate)


def evaluation_batches(
    split: SplitLike, ids: Specials, *, length: int, n_rows: int, batch_rows: int
) -> Iterator[Batch]:
    """n_rows rows spread evenly over a split, in batches of batch_rows, masked the same way every time.

    A split too small for n_rows gives as many as it has, and one row, however short, at the least.
    """
    around = stream_length(split)
    n_rows = min(n_rows, max(1, around // length))
    for first in range(0, n_rows, batch_rows):
        number = np.arange(first, min(first + batch_rows, n_rows))
        starts = number * around // n_rows
        keys = mix(5, _EVALUATION_SEED, length, number)
        yield _masked(split, ids, cut(split, starts, length), keys, EVALUATION, EVALUATION.rate)


def _masked(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Lay the pieces out and mask them; keys are [rows]."""
    none = np.zeros(0, np.int64)
    paired, labels = none, none
    if objective.sentence in ("next", "order"):
        pieces, paired, labels = pair_up(split, pieces, objective.sentence, mix(keys, 4))
    original, layout, row_starts = lay(split, pieces, ids)
    row = rows_of(row_starts)
    place = np.arange(len(original)) - row_starts[row]
    bits = noise(mix(keys, 1)[row], place)

    spans = noise(mix(keys, 2)[row], place) if objective.unit == "span" else None
    groups = units(original, layout.starts[:-1], ids, objective.unit, bits=spans, span_mean=objective.span_mean)
    asked = np.flatnonzero(choose(groups, ids.ordinary[original], row_starts, rate, bits))
    decider = np.searchsorted(groups, groups[asked]) if spans is not None else asked  # a span shares one fate
    seen = corrupt(
        original,
        asked,
        ids,
        fates=noise(mix(keys, 3)[row[decider]], place[decider]),
        draws=noise(mix(keys, 5)[row[asked]], place[asked]),
        mask_share=objective.mask_share,
        random_share=objective.random_share,
    )
    return Batch(
        ids=seen,
        layout=layout,
        asked=asked,
        targets=original[asked],
        pairs=layout.starts[paired].astype(np.int64),
        pair_labels=labels,
        row_starts=row_starts,
    )
