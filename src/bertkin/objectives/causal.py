"""Who writes from the left: each token is asked for at the one before it (Radford et al. 2018, 2019).

A sequence is [CLS] w1 … wn [SEP]: [CLS] begins it and asks for w1, wn asks for the [SEP] that ends it. The [SEP] that
only a cut brings is no target: the document goes on there.

Who sees whom is written in the layout's `reach`, so that any stack with one attention serves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bertkin.config import Objective
from bertkin.text.batches import Batch, Bools, Ints, Pieces, Specials, SplitLike, lay
from bertkin.text.layout import Layout
from bertkin.text.shuffle import Bits


def causal(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Each token sees itself and those before, and every next one is asked for; see `masked` for the arguments."""
    original, layout, row_starts = lay(split, pieces, ids)
    asked = np.flatnonzero(answerable(split, ids, pieces, original, layout)) - 1
    return _batch(original, original, layout, row_starts, asked, asked + 1, layout.positions + 1)


def answerable(split: SplitLike, ids: Specials, pieces: Pieces, original: Ints, layout: Layout) -> Bools:
    """[tokens]: whether the token is one that a writer should write: text, or the [SEP] at a document's own end.

    Never the first of a sequence. pieces are whole sequences, as `bertkin.text.batches.cut` makes them.
    """
    wanted: Bools = ids.ordinary[original]
    document = np.maximum(pieces.document, 0)
    whole = (pieces.document >= 0) & (pieces.first + pieces.count == np.asarray(split.documents[document + 1]))
    wanted[layout.starts[1:] - 1] = whole
    return wanted


def _batch(
    seen: Ints, original: Ints, layout: Layout, row_starts: Ints, asked: Ints, answers: Ints, reach: Ints
) -> Batch:
    """A batch without pairs; `answers` are the positions of the targets in `original`, `asked` where they are asked."""
    none = np.zeros(0, np.int64)
    return Batch(
        ids=seen,
        layout=replace(layout, reach=reach.astype(np.int32)),
        asked=asked,
        targets=original[answers],
        pairs=none,
        pair_labels=none,
        row_starts=row_starts,
    )
