"""Who writes from the left, wholly or in part: causal, prefix, hybrid and UniLM's mixture.

    causal    every token is asked for at the one before it (Radford et al. 2018, 2019)
    prefix    likewise after a beginning of random length that is seen from both sides (Liu et al. 2018, Raffel et al. 2020)
    hybrid    some sequences causal; in the others tokens are hidden, and asked for at the one before too (GPT-BERT:
              Charpentier and Samuel 2024), so that the same weights write and fill blanks
    unilm     hidden tokens are asked for in their own places, under three ways of seeing by turns (Dong et al. 2019)

A sequence is [CLS] w1 … wn [SEP]: [CLS] begins it and asks for w1, wn asks for the [SEP] that ends it. The [SEP] that
only a cut brings is no target: the document goes on there.

Who sees whom is written in the layout's `reach`, so any stack with the one attention serves all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bertkin.config import Objective
from bertkin.objectives.masked import hide
from bertkin.text.batches import Batch, Bools, Ints, Pieces, Specials, SplitLike, ends_document, lay, marks_of
from bertkin.text.layout import Layout
from bertkin.text.shuffle import Bits, below, mix, noise, unit


def causal(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Each token sees itself and those before, and every next one is asked for; see `masked` for the arguments."""
    original, layout, row_starts = lay(split, pieces, ids)
    asked = np.flatnonzero(answerable(split, ids, pieces, original, layout)) - 1
    return _batch(original, original, layout, row_starts, asked, asked + 1, layout.positions + 1)


def prefix(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """A beginning is read, the rest is written: from [CLS] alone up to all but the last token of text, evenly."""
    original, layout, row_starts = lay(split, pieces, ids)
    read = np.repeat(_beginnings(pieces, keys), layout.lengths)
    wanted = answerable(split, ids, pieces, original, layout) & (layout.positions >= read)
    asked = np.flatnonzero(wanted) - 1
    return _batch(original, original, layout, row_starts, asked, asked + 1, np.maximum(layout.positions + 1, read))


def hybrid(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """A share objective.causal_share of the sequences is causal, the rest seen from both sides with tokens hidden.

    Both ask at the token before. Each asked token weighs the same, so a causal sequence, which asks all its tokens,
    weighs 1 / rate as much as a masked one.
    """
    original, layout, row_starts = lay(split, pieces, ids)
    left = np.repeat(unit(_draws(pieces, keys, 6)) < objective.causal_share, layout.lengths)
    maskable, marks = ids.ordinary[original] & ~left, marks_of(split, pieces)
    seen, hidden = hide(original, layout, row_starts, ids, keys, objective, rate, maskable, marks)
    wanted = answerable(split, ids, pieces, original, layout) & left
    wanted[hidden] = True
    asked = np.flatnonzero(wanted) - 1
    reach = np.where(left, layout.positions + 1, np.repeat(layout.lengths, layout.lengths))
    return _batch(seen, original, layout, row_starts, asked, asked + 1, reach)


def unilm(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Each sequence is seen from both sides, from the left, or as a beginning and what follows, a third each.

    Tokens are hidden as in `masked` under all three, in the beginnings too.
    """
    original, layout, row_starts = lay(split, pieces, ids)
    maskable, marks = ids.ordinary[original], marks_of(split, pieces)
    seen, hidden = hide(original, layout, row_starts, ids, keys, objective, rate, maskable, marks)
    least = np.choose(below(_draws(pieces, keys, 6), 3), [layout.lengths, 0, _beginnings(pieces, keys)])
    reach = np.maximum(layout.positions + 1, np.repeat(least, layout.lengths))
    return _batch(seen, original, layout, row_starts, hidden, hidden, reach)


def _draws(pieces: Pieces, keys: Bits, purpose: int) -> Bits:
    """[sequences]: uniform bits for each sequence, from its row's key and its place in the row."""
    return noise(mix(keys, purpose)[pieces.row], np.arange(len(pieces.row)) - np.searchsorted(pieces.row, pieces.row))


def _beginnings(pieces: Pieces, keys: Bits) -> Ints:
    """[sequences]: how many tokens are seen from both sides, uniform from 1 to as many as there are tokens of text."""
    return 1 + below(_draws(pieces, keys, 7), pieces.count)


def answerable(split: SplitLike, ids: Specials, pieces: Pieces, original: Ints, layout: Layout) -> Bools:
    """[tokens]: whether the token is one that a writer should write: text, or the [SEP] at a document's own end.

    Never the first of a sequence. pieces are whole sequences, as `bertkin.text.batches.cut` makes them.
    """
    wanted: Bools = ids.written[original]
    wanted[layout.starts[1:] - 1] = ends_document(split, pieces)
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
