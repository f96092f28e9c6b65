"""Masked language modelling (Devlin et al. 2019): tokens are hidden where they stand, and asked for there."""

from __future__ import annotations

import numpy as np

from bertkin.config import Objective
from bertkin.objectives.masking import choose, corrupt, edges_of, units
from bertkin.objectives.sentence import pair_up
from bertkin.text.batches import Batch, Bools, Ints, Marks, Pieces, Specials, SplitLike, lay, marks_of, rows_of
from bertkin.text.layout import Layout
from bertkin.text.shuffle import Bits, mix, noise


def masked(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Every sequence is seen from both sides, and the hidden tokens are asked at their own places.

    Args:
        pieces: as `bertkin.text.batches.cut` makes them.
        keys: uint64 [rows], all that is random in a row.
        rate: share of the tokens that are asked.

    Raises:
        UserError: next sentence prediction on a single document.
    """
    none = np.zeros(0, np.int64)
    paired, labels = none, none
    if objective.sentence in ("next", "order"):
        pieces, paired, labels = pair_up(split, pieces, objective.sentence, mix(keys, 4))
    original, layout, row_starts = lay(split, pieces, ids)
    maskable, marks = ids.ordinary[original], marks_of(split, pieces)
    seen, hidden = hide(original, layout, row_starts, ids, keys, objective, rate, maskable, marks)
    return Batch(
        ids=seen,
        layout=layout,
        asked=hidden,
        targets=original[hidden],
        pairs=layout.starts[paired].astype(np.int64),
        pair_labels=labels,
        row_starts=row_starts,
        edges=edges_of(hidden) if objective.boundary else None,
    )


def hide(
    original: Ints,
    layout: Layout,
    row_starts: Ints,
    ids: Specials,
    keys: Bits,
    objective: Objective,
    rate: float,
    maskable: Bools,
    marks: Marks | None = None,
) -> tuple[Ints, Ints]:
    """Hide a share of each row's maskable tokens.

    Args:
        original: [tokens], the text.
        keys: uint64 [rows].
        maskable: [tokens], whether the token may be hidden.
        marks: see `units`.

    Returns:
        The text with what is hidden replaced, [tokens], and the hidden positions, [n], sorted.
    """
    row = rows_of(row_starts)
    place = np.arange(len(original)) - row_starts[row]
    bits = noise(mix(keys, 1)[row], place)

    spans = noise(mix(keys, 2)[row], place) if objective.unit == "span" else None
    begins, mean = layout.starts[:-1], objective.span_mean
    groups = units(original, begins, ids, objective.unit, bits=spans, span_mean=mean, marks=marks)
    weights = None if ids.weights is None else ids.weights[original]
    hidden = np.flatnonzero(choose(groups, maskable, row_starts, rate, bits, weights))
    decider = np.searchsorted(groups, groups[hidden]) if spans is not None else hidden  # a span shares one fate
    seen = corrupt(
        original,
        hidden,
        ids,
        fates=noise(mix(keys, 3)[row[decider]], place[decider]),
        draws=noise(mix(keys, 5)[row[hidden]], place[hidden]),
        mask_share=objective.mask_share,
        random_share=objective.random_share,
    )
    return seen, hidden
