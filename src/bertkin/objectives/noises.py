"""What an encoder–decoder has to repair: ways of spoiling text, as functions of arrays.

    masking, deletion, infilling, permutation, rotation     a spoilt text; what is to be written is the whole original
                                                            (BART: Lewis et al. 2020), so they may follow each other
    mass, spans, drop, prefix                               a source, and a text of its own that is to be written
                                                            (Song et al. 2019; Raffel et al. 2020)

Every piece of text is spoilt by itself, with a key of its own: what happens to it depends on nothing beside it. Marks
that stand in the text ([UNK] and the like) are never hidden, dropped or deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkin.text.batches import Bools, Ints, Specials
from bertkin.text.shuffle import Bits, below, mix, noise, unit


@dataclass(frozen=True)
class Text:
    """Pieces of text, one after the other without a gap."""

    tokens: Ints
    """[n]."""
    lengths: Ints
    """[pieces], tokens of each; 0 is allowed."""
    sentences: Ints
    """[n]: any number that the tokens of a sentence share, and that differs from its neighbours'."""

    @cached_property
    def starts(self) -> Ints:
        """[pieces]."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def piece(self) -> Ints:
        """[n]: the piece of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def places(self) -> Ints:
        """[n]: the place of each token in its piece."""
        return np.arange(len(self.tokens)) - self.starts[self.piece]

    def only(self, kept: Bools) -> Text:
        """The text without the tokens that are not kept."""
        return Text(self.tokens[kept], self.count(kept), self.sentences[kept])

    def count(self, marked: Bools) -> Ints:
        """[pieces]: how many of its tokens are marked."""
        return np.bincount(self.piece[marked], minlength=len(self.lengths))

    def moved(self, index: Ints) -> Text:
        """The text with its tokens in another order, each within its piece."""
        return replace(self, tokens=self.tokens[index], sentences=self.sentences[index])


Spoiler = Callable[[Text, Bits, Specials, float, float], Text]
Parter = Callable[[Text, Bits, Specials, float, float], tuple[Text, Text]]


# What is repaired whole. All take the text, a key for each piece, the tokenizer's marks, the share of tokens to spoil
# and the mean length of a span, and give the text spoilt.


def masking(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> Text:
    """A share of the tokens, here and there, becomes [MASK] each."""
    return replace(text, tokens=np.where(_some(text, keys, ids, rate), ids.mask, text.tokens))


def deletion(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> Text:
    """A share of the tokens, here and there, is gone without a trace."""
    return text.only(~_some(text, keys, ids, rate))


def infilling(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> Text:
    """Spans of Poisson length (of this mean) become a single [MASK] each; a span of no token inserts one.

    Together the spans cover the share of tokens, exactly but for rounding by lot: the last one is cut to fit. All
    arrangements of spans among the other tokens are equally likely. An insertion is left out where the text would
    outgrow the original.
    """
    amount = _amount(text, keys, ids, rate)
    piece, width = _poisson_spans(amount, keys, mean)
    n_spans = np.bincount(piece, minlength=len(amount))
    slots = text.lengths - _totals(piece, width, len(amount)) + n_spans  # what stays, and the spans between
    slot_piece = np.repeat(np.arange(len(slots)), slots)
    lots = noise(mix(keys, 2)[slot_piece], np.arange(len(slot_piece)) - (np.cumsum(slots) - slots)[slot_piece])
    spans = chosen(slot_piece, n_spans, lots)
    sizes = np.ones(len(slot_piece), np.int64)
    sizes[spans] = width
    is_span = np.zeros(len(slot_piece), np.bool_)
    is_span[spans] = True

    slot = np.repeat(np.arange(len(sizes)), sizes)
    hidden = is_span[slot] & ids.ordinary[text.tokens]
    heads = hidden & ~np.append(False, hidden[:-1] & (slot[1:] == slot[:-1])) if len(hidden) else hidden
    spoilt = replace(text, tokens=np.where(hidden, ids.mask, text.tokens)).only(~hidden | heads)

    empty = np.flatnonzero(is_span & (sizes == 0))
    room = text.lengths - spoilt.lengths
    empty = empty[_rank(slot_piece[empty]) < room[slot_piece[empty]]]
    if not len(empty):
        return spoilt
    before = (np.cumsum(sizes) - sizes)[empty]  # tokens of the original before it
    where = np.append(0, np.cumsum(~hidden | heads))[before]
    at_end = before == (text.starts + text.lengths)[slot_piece[empty]]
    return Text(
        np.insert(spoilt.tokens, where, ids.mask),
        spoilt.lengths + np.bincount(slot_piece[empty], minlength=len(amount)),
        np.insert(spoilt.sentences, where, text.sentences[before - at_end]),
    )


def permutation(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> Text:
    """The sentences of each piece in random order."""
    if not len(text.tokens):
        return text
    first = np.append(True, (np.diff(text.sentences) != 0) | (np.diff(text.piece) != 0))
    begins = np.flatnonzero(first)
    sizes = np.diff(np.append(begins, len(text.tokens)))
    piece = text.piece[begins]
    order = in_order(piece, noise(keys[piece], _rank(piece)))
    return text.moved(ranges(begins[order], sizes[order]))


def rotation(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> Text:
    """Each piece begins at a random token, and what stood before it comes after the end."""
    turn = below(noise(keys, 0), np.maximum(text.lengths, 1))
    piece = text.piece
    return text.moved(text.starts[piece] + (text.places + turn[piece]) % text.lengths[piece])


# What is repaired in part. All give the source and what is to be written.


def mass(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> tuple[Text, Text]:
    """Half of the tokens, in one stretch, are [MASK] in the source; the stretch is written.

    Its positions count from 0 in the decoder; Song et al. keep those of the text.
    """
    half = np.maximum(text.lengths // 2, 1)
    begin = below(noise(keys, 0), np.maximum(text.lengths - half + 1, 1))
    inside = (text.places >= begin[text.piece]) & (text.places < (begin + half)[text.piece])
    hidden = inside & ids.ordinary[text.tokens]
    return replace(text, tokens=np.where(hidden, ids.mask, text.tokens)), text.only(inside)


def spans(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> tuple[Text, Text]:
    """T5's span corruption: each hidden span is a sentinel in the source, and is written after the same sentinel.

    As many tokens as the rate says (at least one, never all) are divided in round(tokens / mean) spans, no more than
    there are sentinels, and the rest in as many stretches before each of them; all divisions are equally likely. So
    every piece begins with a token that is seen and ends with a hidden one, as in T5. A piece of one token is left.
    """
    n = text.lengths
    hide = np.minimum(np.maximum(_round(n * rate), 1), np.maximum(n - 1, 0))
    n_spans = np.minimum(np.maximum(_round(hide / mean), 1), np.minimum(hide, n - hide))
    n_spans = np.maximum(np.minimum(n_spans, len(ids.sentinels)), 1)  # one of no token, where nothing is hidden
    seen, lost = _divided(n - hide, n_spans, mix(keys, 1)), _divided(hide, n_spans, mix(keys, 2))
    turns = np.tile([False, True], len(seen))
    hidden = np.repeat(turns, np.stack([seen, lost], axis=1).reshape(-1)) & ids.ordinary[text.tokens]

    heads = hidden & ~np.append(False, hidden[:-1])  # a piece begins with a token that is seen
    number = np.cumsum(heads) - 1
    number -= (np.append(0, np.cumsum(heads)))[text.starts][text.piece]
    hidden &= number < len(ids.sentinels)  # marks in the text may have broken a span in two
    heads &= hidden
    sentinel = ids.sentinels[number[heads]]

    marked = text.tokens.copy()
    marked[heads] = sentinel
    source = replace(text, tokens=marked).only(~hidden | heads)
    times = hidden.astype(np.int64) + heads
    index = np.repeat(np.arange(len(times)), times)
    written = text.tokens[index]
    written[(np.cumsum(times) - times)[heads]] = sentinel
    return source, Text(written, text.count(hidden) + text.count(heads), text.sentences[index])


def drop(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> tuple[Text, Text]:
    """A share of the tokens, here and there, is missing from the source; they are written, in their order."""
    gone = _some(text, keys, ids, rate)
    return text.only(~gone), text.only(gone)


def prefix(text: Text, keys: Bits, ids: Specials, rate: float, mean: float) -> tuple[Text, Text]:
    """A beginning of random length, at least one token and never all, is read, and the rest is written."""
    read = 1 + below(noise(keys, 0), np.maximum(text.lengths - 1, 1))
    early = text.places < read[text.piece]
    return text.only(early), text.only(~early)


SPOILERS: dict[str, Spoiler] = {
    "masking": masking,
    "deletion": deletion,
    "infilling": infilling,
    "permutation": permutation,
    "rotation": rotation,
}
PARTERS: dict[str, Parter] = {"mass": mass, "spans": spans, "drop": drop, "prefix": prefix}


# Arrays of groups.


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """starts[0] … starts[0] + lengths[0] - 1, then the same of the next, and so on."""
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))


def in_order(group: Ints, lots: Bits) -> Ints:
    """The positions sorted by group, then by lot; group is non-negative, below 2**24 and never falls."""
    return np.argsort(group.astype(np.uint64) << np.uint64(40) | lots >> np.uint64(24), kind="stable")


def chosen(group: Ints, amount: Ints, lots: Bits) -> Ints:
    """amount[g] members of each group g, those of the lowest lots: their positions by group, then by lot."""
    return in_order(group, lots)[_rank(group) < amount[group]]


def _totals(group: Ints, size: Ints, n_groups: int) -> Ints:
    """[n_groups]: the sizes of each group's members together."""
    return np.bincount(group, weights=size, minlength=n_groups).astype(np.int64)


def _rank(group: Ints) -> Ints:
    """How many members of the same group stand before each; group never falls."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def _round(x: NDArray[np.floating[Any]]) -> Ints:
    whole: Ints = np.floor(x + 0.5).astype(np.int64)
    return whole


def _amount(text: Text, keys: Bits, ids: Specials, rate: float) -> Ints:
    """[pieces]: how many tokens of text are to be spoilt, rounded up or down by lot, so that the share holds even where
    pieces are short."""
    return np.floor(rate * text.count(ids.ordinary[text.tokens]) + unit(mix(keys, 3))).astype(np.int64)


def _some(text: Text, keys: Bits, ids: Specials, rate: float) -> Bools:
    """[n]: tokens of text, drawn one by one."""
    able = np.flatnonzero(ids.ordinary[text.tokens])
    piece = text.piece[able]
    picked = chosen(piece, _amount(text, keys, ids, rate), noise(mix(keys, 1)[piece], text.places[able]))
    some = np.zeros(len(text.tokens), np.bool_)
    some[able[picked]] = True
    return some


def _poisson_spans(amount: Ints, keys: Bits, mean: float) -> tuple[Ints, Ints]:
    """Spans of Poisson length until each piece has its amount of tokens: their pieces and lengths, in drawing order."""
    tries = np.where(amount > 0, 2 * amount + 8, 0)  # of mean length 1 or more, so this is nearly always enough
    piece = np.repeat(np.arange(len(tries)), tries)
    starts = np.cumsum(tries) - tries
    length = np.searchsorted(_poisson(mean), unit(noise(mix(keys, 1)[piece], np.arange(len(piece)) - starts[piece])))
    total = np.append(0, np.cumsum(length))
    before = total[:-1] - total[starts][piece]
    taken = before < amount[piece]
    return piece[taken], np.minimum(length, amount[piece] - before)[taken]


def _poisson(mean: float) -> NDArray[np.float64]:
    """The distribution function at 0, 1, 2 …, up to where nothing is left."""
    k = np.arange(1, int(mean + 12 * np.sqrt(mean) + 20))
    return np.cumsum(np.exp(np.append(0.0, np.cumsum(np.log(mean / k))) - mean))


def _divided(total: Ints, parts: Ints, keys: Bits) -> Ints:
    """Lengths of the parts, none empty, into which each total is divided, all divisions equally likely.

    Args:
        total: [pieces]; 0 where there is but one part.
        parts: [pieces], from 1 up to total.
    """
    gaps = np.maximum(total - 1, 0)
    piece = np.repeat(np.arange(len(gaps)), gaps)
    place = np.arange(len(piece)) - (np.cumsum(gaps) - gaps)[piece]
    cuts = chosen(piece, parts - 1, noise(keys[piece], place))
    begin = np.cumsum(total) - total
    starts = np.sort(np.append(begin, begin[piece[cuts]] + place[cuts] + 1))
    return np.diff(np.append(starts, total.sum()))
