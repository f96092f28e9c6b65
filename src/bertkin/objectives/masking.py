"""What is hidden: unit × share × replacement rule, as functions of arrays.

    groups = units(...)          what is hidden at once: a token, a word, a span of words
    asked  = choose(...)         which of them, so that each row asks the same share
    seen   = corrupt(...)        what stands there instead

Nothing here draws a random number: whoever calls brings `noise`, uniform uint64 [tokens], so that a row's mask can
depend on the row alone (see `bertkin.text.shuffle`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bertkin.text.batches import Bools, Ints, Specials, rows_of
from bertkin.text.shuffle import Bits, below, noise, unit

Unit = Literal["token", "word", "span"]

LONGEST_WORD = 8
"""Longer runs without a word start (text written without spaces, numbers, links) are hidden in parts this long."""
LONGEST_SPAN = 10
"""Words in the longest span, as in SpanBERT."""


def rate_at(progress: float, rate: float, rate_end: float | None = None) -> float:
    """The share that is asked when `progress` (0 … 1) of the budget is spent: linear from rate to rate_end."""
    return rate if rate_end is None else rate + (rate_end - rate) * min(max(progress, 0.0), 1.0)


def quota(rate: float, tokens: int | Ints) -> Ints:
    """How many of a row's tokens of text are asked: the nearest whole number, at least one if there are any."""
    tokens = np.asarray(tokens, np.int64)
    count = np.floor(rate * tokens + 0.5).astype(np.int64)
    return np.minimum(np.maximum(count, 1 if rate > 0 else 0), tokens)


def units(ids: Ints, sequence_starts: Ints, specials: Specials, kind: Unit, bits: Bits, span_mean: float = 3.0) -> Ints:
    """The unit each token belongs to, [tokens]: numbers that begin at 0 and grow by one where a unit begins.

    token: each token is a unit. word: from a token that starts a word up to the next one; a special token, or the
    beginning of a sequence, ends a word too. span: consecutive words, their number geometric with mean span_mean and
    no more than `LONGEST_SPAN` (SpanBERT: Joshi et al. 2020, who sample overlapping spans; here the text is divided in
    spans, which gives the same lengths and lets the share be exact).

    Args:
        sequence_starts: [sequences], the position of each sequence's first token.
        bits: uint64 [tokens], only used for spans.
    """
    if kind == "token":
        return np.arange(len(ids))
    ordinary = specials.ordinary[ids]
    starts = specials.word_starts[ids] | ~ordinary
    starts[1:] |= ~ordinary[:-1]
    starts[sequence_starts] = True
    starts[:1] = True
    number = np.cumsum(starts) - 1
    begins = np.flatnonzero(starts)
    starts |= (np.arange(len(ids)) - begins[number]) % LONGEST_WORD == 0
    if kind == "span":
        words = np.flatnonzero(starts)
        ends_span = unit(bits[words]) * span_mean < 1
        walls = ~ordinary[words]  # a span neither holds nor passes a special token
        ends_span |= walls
        ends_span[1:] |= walls[:-1]
        ends_span[np.searchsorted(words, sequence_starts)] = True
        ends_span[0] = True
        heads = np.flatnonzero(ends_span)
        within = np.arange(len(words)) - heads[np.cumsum(ends_span) - 1]
        ends_span |= within % LONGEST_SPAN == 0
        starts = np.zeros(len(ids), np.bool_)
        starts[words[ends_span]] = True
    return np.cumsum(starts) - 1


def choose(groups: Ints, maskable: Bools, row_starts: Ints, rate: float, bits: Bits) -> Bools:
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
    """
    n_rows = len(row_starts) - 1
    if not len(groups) or rate <= 0:
        return np.zeros(len(groups), np.bool_)
    if n_rows >= 1 << 20 or np.max(np.diff(row_starts)) > 1 << 16:
        raise ValueError("a batch may have at most 2**20 rows of 65,536 tokens")
    row = rows_of(row_starts)
    room = quota(rate, np.bincount(row[maskable], minlength=n_rows))

    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    size = np.add.reduceat(maskable.astype(np.int64), heads)
    candidates = np.flatnonzero(size)
    at = heads[candidates]
    # One number sorts by row, then at random, and says which unit it was: row (20 bits), noise (28), place (16).
    order = row[at].astype(np.uint64) << np.uint64(44) | (bits[at] >> np.uint64(36)) << np.uint64(16)
    order |= (at - row_starts[row[at]]).astype(np.uint64)
    order.sort()
    rows = (order >> np.uint64(44)).astype(np.int64)
    left = groups[row_starts[rows] + (order & np.uint64(0xFFFF)).astype(np.int64)]

    taken = np.zeros(len(heads), np.bool_)
    while len(left):
        total = np.cumsum(size[left])
        first_of_row = np.searchsorted(rows, np.arange(n_rows))
        before = np.append(0, total)[first_of_row]
        fits = total - before[rows] <= room[rows]
        taken[left[fits]] = True
        room -= np.bincount(rows[fits], weights=size[left[fits]], minlength=n_rows).astype(np.int64)
        stays = ~fits & (size[left] <= room[rows])
        left, rows = left[stays], rows[stays]
    return taken[groups] & maskable


def corrupt(
    ids: Ints, asked: Ints, specials: Specials, bits: Bits, *, mask_share: float = 0.8, random_share: float = 0.1
) -> Ints:
    """The ids with each asked token replaced by [MASK], by a random token of text, or left as it is.

    Args:
        asked: [n], positions.
        bits: uint64 [n], uniform; asked positions with the same bits get the same rule (and random token), which is
            how a span is replaced as one.
        mask_share: share of the asked tokens that become [MASK].
        random_share: share that become a random token, never a special one.
    """
    fate = unit(bits)
    seen = ids.copy()
    seen[asked[fate < mask_share]] = specials.mask
    swapped = (fate >= mask_share) & (fate < mask_share + random_share)
    where = asked[swapped]
    if len(where):
        draws = noise(bits[swapped], where)
        seen[where] = specials.ordinary_ids[below(draws, len(specials.ordinary_ids))]
    return seen
