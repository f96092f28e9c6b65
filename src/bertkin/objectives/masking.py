"""What is hidden: unit, share and replacement rule, as functions of arrays.

    groups = units(...)          what is hidden at once: a token, a word, a span of words
    asked  = choose(...)         which of them, so that each row asks the same share
    seen   = corrupt(...)        what stands there instead

Nothing here draws a random number: whoever calls brings `noise`, uniform uint64 [tokens], so that a row's mask can
depend on the row alone (see `bertkin.text.shuffle`).
"""

from __future__ import annotations

from functools import cache
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from bertkin.text.batches import BEGINS, GOES_ON, Bools, Ints, Marks, Specials
from bertkin.text.shuffle import Bits, below, unit

Unit = Literal["token", "word", "span", "phrase", "entity"]

LONGEST_WORD = 8
"""Longer runs without a word start (text written without spaces, numbers, links) are hidden in parts this long."""
LONGEST_SPAN = 10
"""Words in the longest span, as in SpanBERT."""
LONGEST_PHRASE = 16
"""Tokens of a phrase, entity or segmented word that are hidden at once; longer ones are hidden in parts."""


def rate_at(progress: float, rate: float, rate_end: float | None = None) -> float:
    """The share that is asked when `progress` (0 … 1) of the budget is spent: linear from rate to rate_end."""
    return rate if rate_end is None else rate + (rate_end - rate) * min(max(progress, 0.0), 1.0)


def quota(rate: float, tokens: int | Ints) -> Ints:
    """How many of a row's tokens of text are asked: the nearest whole number, at least one if there are any."""
    tokens = np.asarray(tokens, np.int64)
    count = np.floor(rate * tokens + 0.5).astype(np.int64)
    return cast(Ints, np.minimum(np.maximum(count, 1 if rate > 0 else 0), tokens))


def units(
    ids: Ints,
    sequence_starts: Ints,
    specials: Specials,
    kind: Unit,
    *,
    bits: Bits | None = None,
    span_mean: float = 3.0,
    marks: Marks | None = None,
) -> Ints:
    """The unit each token belongs to, [tokens]: numbers that begin at 0 and grow by one where a unit begins.

    token: each token is a unit. word: from a token that starts a word up to the next one; a special token, or the
    beginning of a sequence, ends a word too. phrase, entity: what is marked as one, and the words between (ERNIE: Sun
    et al. 2019). span: consecutive words, their number geometric with mean span_mean and no more than `LONGEST_SPAN`
    (SpanBERT: Joshi et al. 2020, who sample overlapping spans; here the text is divided in spans, which gives the same
    lengths and lets the share be exact).

    Args:
        sequence_starts: [sequences], the position of each sequence's first token.
        bits: uint64 [tokens], uniform; needed for spans alone.
        span_mean: mean words in a span; SpanBERT's geometric with p = 0.2 has 3.8.
        marks: uint8 [tokens], for units that the tokens do not tell: phrases, entities, words of a text without spaces.
            `GOES_ON` with what began before it, `BEGINS` a unit, or 0: as the token tells.
    """
    if kind == "token":
        return np.arange(len(ids))
    ordinary = specials.ordinary[ids]
    starts = _word_starts(ordinary, specials.word_starts[ids], sequence_starts)
    if marks is not None:
        apart = ~ordinary | np.append(True, ~ordinary[:-1])
        apart[sequence_starts] = True
        starts = _divided(starts & (apart | (marks != GOES_ON)) | (marks == BEGINS), LONGEST_PHRASE)
    if kind == "span":
        if bits is None:
            raise ValueError("spans need noise")
        words = np.flatnonzero(starts)
        first_words = np.searchsorted(words, sequence_starts)
        starts[words[~_span_starts(ordinary[words], first_words, bits[words], span_mean)]] = False
    return np.cumsum(starts) - 1


def _word_starts(ordinary: Bools, starts: Bools, sequence_starts: Ints) -> Bools:
    """Where a word begins: at its own start, at a special token and after it, in a new sequence, and when too long."""
    starts = starts | ~ordinary
    starts[1:] |= ~ordinary[:-1]
    starts[sequence_starts] = True
    starts[0] = True
    return _divided(starts, LONGEST_WORD)


def _span_starts(ordinary: Bools, first_words: Ints, bits: Bits, mean: float) -> Bools:
    """Which words begin a span; all arrays are [words]. Special tokens stand alone."""
    starts = ~ordinary
    starts[1:] |= ~ordinary[:-1]
    starts[first_words] = True
    starts[0] = True
    lengths = 1 + np.searchsorted(_span_chances(mean), unit(bits), side="right")
    at = np.flatnonzero(starts)
    end = np.append(at[1:], len(starts))
    while len(at):  # a span further in every stretch of text at once
        at = at + lengths[at]
        at, end = at[at < end], end[at < end]
        starts[at] = True
    return starts


@cache
def _span_chances(mean: float) -> NDArray[np.float64]:
    """The chances that a span has at most 1, 2, … `LONGEST_SPAN` - 1 words: a geometric distribution cut off there, its
    ratio found by halving so that the mean is the one asked for."""
    words = np.arange(1, LONGEST_SPAN + 1)
    low, high = -40.0, 40.0  # of the ratio's logarithm
    for _ in range(60):
        middle = (low + high) / 2
        chances = np.exp((words - LONGEST_SPAN * (middle > 0)) * middle)
        chances /= chances.sum()
        low, high = (middle, high) if chances @ words < mean else (low, middle)
    return cast(NDArray[np.float64], np.cumsum(chances)[:-1])


def _divided(starts: Bools, longest: int) -> Bools:
    """The starts, and more of them wherever `longest` have gone by without one."""
    since = np.arange(len(starts)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    starts[since % longest == 0] = True
    return starts


def edges_of(hidden: Ints) -> Ints:
    """Of each hidden position [n], sorted, the positions just before and just after its run of hidden ones: [n, 2].

    Two units that were both chosen and stand side by side are one run, so an edge is never hidden itself. A sequence
    begins with [CLS] and ends with [SEP], which are never hidden, so an edge is of the same sequence.
    """
    begins, ends = np.diff(hidden, prepend=-2) > 1, np.diff(hidden, append=1 << 62) > 1
    run = np.cumsum(begins) - 1
    before, after = hidden[begins] - 1, hidden[ends] + 1
    return np.stack([before[run], after[run]], axis=1)


def choose(
    groups: Ints,
    maskable: Bools,
    row_starts: Ints,
    rate: float,
    bits: Bits,
    weights: NDArray[np.float64] | None = None,
) -> Bools:
    """Which tokens are asked, [tokens].

    Each row asks `quota(rate, its maskable tokens)` tokens: its units are gone through in random order, and each that
    still fits is taken whole. So a row never asks more; it asks fewer only where no unit left is small enough, which
    does not happen with single tokens.

    Args:
        groups: [tokens], the unit each token belongs to (see `units`); no unit crosses a row.
        maskable: [tokens], whether the token may be asked; the others are left out of their unit.
        row_starts: [rows + 1].
        rate: share of the maskable tokens.
        bits: uint64 [tokens], uniform.
        weights: [tokens], above 0: how readily a token is asked, beside the others of its row; a unit has the mean of
            its tokens' weights. None for all alike.
    """
    n_rows = len(row_starts) - 1
    if not len(groups) or rate <= 0:
        return np.zeros(len(groups), np.bool_)
    if n_rows >= 1 << 20 or np.max(np.diff(row_starts)) > 1 << 16:
        raise ValueError("a batch may have at most 2**20 rows of 65,536 tokens")
    room = quota(rate, np.add.reduceat(np.append(maskable, False), row_starts[:-1], dtype=np.int64))
    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    size = np.add.reduceat(maskable, heads, dtype=np.int64)
    lots = bits[heads] >> np.uint64(36)  # 28 bits
    if weights is not None:
        weight = np.add.reduceat(np.where(maskable, weights, 0.0), heads) / np.maximum(size, 1)
        # Drawing by weight without putting back is taking the smallest of such lots (Efraimidis and Spirakis 2006).
        drawn = 1 - (1 - unit(bits[heads])) ** (1 / np.maximum(weight, 1e-9))
        lots = np.minimum(drawn * 2**28, 2**28 - 1).astype(np.uint64)
    first_unit = np.searchsorted(heads, row_starts)
    row_of = np.repeat(np.arange(n_rows), np.diff(first_unit))

    taken = np.zeros(len(heads), np.bool_)
    early = lots < (min(1.0, 1.5 * rate + 0.1) * 2**28)
    # Most rows are full before the later lots are looked at, and sorting is what costs.
    for band in (early, ~early):
        left = np.flatnonzero(band & (size > 0) & (room > 0)[row_of])
        left = _in_order(left, row_of[left], lots[left], first_unit)
        _take(left, row_of, size, room, taken)
    return np.repeat(taken, np.diff(np.append(heads, len(groups)))) & maskable


def _in_order(left: Ints, row: Ints, lots: Bits, first_unit: Ints) -> Ints:
    """The units sorted by row, then by lot.

    Sorting plain numbers is several times faster than sorting indices by them, so one number holds all three: row
    (20 bits), lot (28), place in the row (16), from which the unit is read back. `left` and `row` come in row order,
    so `row` still fits after the sort.
    """
    place = left - first_unit[row]
    keys = row.astype(np.uint64) << np.uint64(44) | lots << np.uint64(16) | place.astype(np.uint64)
    keys.sort()
    return first_unit[row] + (keys & np.uint64(0xFFFF)).astype(np.int64)


def _take(left: Ints, row_of: Ints, size: Ints, room: Ints, taken: Bools) -> None:
    """Go through the units in order and take each that still fits in its row; room and taken are brought up to date.

    Each turn takes, in every row at once, all units up to the first that does not fit, and drops those that never will.
    """
    while len(left):
        rows, sizes = row_of[left], size[left]
        total = np.append(0, np.cumsum(sizes))
        before = total[np.searchsorted(rows, np.arange(len(room)))]
        fits = total[1:] - before[rows] <= room[rows]
        taken[left[fits]] = True
        room -= np.bincount(rows[fits], weights=sizes[fits], minlength=len(room)).astype(np.int64)
        left = left[~fits & (sizes <= room[rows])]


def corrupt(
    ids: Ints, asked: Ints, specials: Specials, fates: Bits, draws: Bits, *, mask_share: float, random_share: float
) -> Ints:
    """The ids with each asked token replaced by [MASK], by a random token of text, or left as it is.

    Args:
        asked: [n], positions.
        fates: uint64 [n], uniform, decides which; tokens with the same fate share it, which is how SpanBERT replaces a
            span as one.
        draws: uint64 [n], uniform and independent of fates: the random tokens.
        mask_share: share of the asked tokens that become [MASK].
        random_share: share that become a random token, never a special one.
    """
    fate = unit(fates)
    seen = ids.copy()
    seen[asked[fate < mask_share]] = specials.mask
    swapped = (fate >= mask_share) & (fate < mask_share + random_share)
    seen[asked[swapped]] = specials.ordinary_ids[below(draws[swapped], len(specials.ordinary_ids))]
    return seen
