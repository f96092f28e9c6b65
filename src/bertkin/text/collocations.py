"""Phrases of a corpus, found by how much more often their words stand side by side than chance would have it.

Two words are joined where their normalised pointwise mutual information (Bouma 2009) is high enough,

    npmi(a, b) = ln(p(ab) / (p(a) p(b))) / -ln p(ab)        from -1 (never together) to 1 (never apart),

and they stand together often enough. Then the same is done once more with what was joined (as Mikolov et al. 2013 do),
so a phrase has up to four words. No phrase runs over the end of a sentence, or has a word without a letter or digit.

The tokens are read a block at a time, and every table is bounded: memory does not grow with the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkin.text.batches import Bools, Ints, SplitLike
from bertkin.text.shuffle import Bits, noise

BLOCK = 1 << 21
"""Tokens read at a time."""
MOST_TOKENS = 1 << 26
"""Tokens that phrases are looked for in; of a larger corpus, blocks spread evenly."""
MOST_KEYS = 1 << 22
"""Words or pairs counted at once; beyond, the rarest half is forgotten (as in Manku and Motwani 2002)."""
ROUNDS = 2
LEAST_NPMI = 0.4
LEAST_COUNT = 5
"""A phrase stands in the corpus at least so often, and more often in a large one: once in every million words."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Words:
    """What of a tokenizer tells where words begin and end; all [vocab]."""

    begins: Bools
    """A word begins with this token."""
    ends: Bools
    """The word that holds this token ends with it, whatever follows."""
    letters: Bools
    """The token has a letter or a digit."""

    def starts(self, tokens: Ints) -> Bools:
        """Which of some tokens [n] begin a word; the first does."""
        starts: Bools = self.begins[tokens]
        starts[1:] |= self.ends[tokens[:-1]]
        starts[0] = True
        return starts


@dataclass(frozen=True)
class Phrase:
    """A phrase of the corpus."""

    tokens: tuple[int, ...]
    count: int
    score: float
    """Normalised pointwise mutual information of its two halves."""


def blocks(split: SplitLike, size: int = BLOCK) -> list[tuple[int, int]]:
    """The split in stretches of about `size` tokens, [first, last), cut between documents, or else between sentences."""
    found, first = [], 0
    while first < split.n_tokens:
        last = min(first + size, split.n_tokens)
        for cuts in (split.documents, split.sentences):
            cut = int(cuts[np.searchsorted(cuts, last, side="right") - 1]) if last < split.n_tokens else last
            if cut > first:
                last = cut
                break
        found.append((first, last))
        first = last
    return found


def find_phrases(
    split: SplitLike, words: Words, *, least_npmi: float = LEAST_NPMI, progress: Progress | None = None
) -> list[Phrase]:
    """The phrases of a split, most frequent first; the same for the same split.

    Args:
        least_npmi: how strongly words must hang together, from -1 to 1.
        progress: called with blocks done and blocks in all.
    """
    every = blocks(split)
    step = max(1, -(-split.n_tokens // MOST_TOKENS))
    chosen = every[::step]
    done = 0

    def read() -> Iterator[_Units]:
        nonlocal done
        for first, last in chosen:
            yield _read(split, words, first, last)
            done += 1
            if progress:
                progress(done, (ROUNDS + 2) * len(chosen))

    counter, n_words = _Counter(), 0
    for units in read():
        counter.add(units.names[units.lettered])
        n_words += len(units.names)
    least = max(LEAST_COUNT, n_words // 1_000_000)
    names = counter.keys[counter.counts >= least]
    joins: list[Bits] = []
    scores: list[NDArray[np.float64]] = []
    for _ in range(ROUNDS):
        joined, score = _joins(read(), names, joins, least, least_npmi)
        joins.append(joined)
        scores.append(score)
    return _phrases(split, read(), names, joins, np.concatenate(scores), least)


@dataclass(frozen=True)
class _Units:
    """The words of a block, or what they were joined to; all [units]."""

    first: Ints
    """Offset of its first token in the split."""
    last: Ints
    """… and just past its last."""
    apart: Bools
    """It begins a sentence."""
    lettered: Bools
    names: Bits
    """A hash of its tokens."""
    number: Ints
    """What it is: the place of its name among the names, then of the joins; -1 for a rare word or none."""

    def take(self, index: Any, number: Ints, last: Ints) -> _Units:
        return _Units(
            self.first[index], last[index], self.apart[index], self.lettered[index], self.names[index], number[index]
        )


def _read(split: SplitLike, words: Words, first: int, last: int) -> _Units:
    tokens = np.asarray(split.tokens[first:last]).astype(np.int64)
    sentences = np.asarray(split.sentences[slice(*np.searchsorted(split.sentences, [first, last]))]) - first
    starts = words.starts(tokens)
    starts[sentences] = True
    at = np.flatnonzero(starts)
    apart = np.zeros(len(tokens), np.bool_)
    apart[sentences] = True
    return _Units(
        first=first + at,
        last=first + np.append(at[1:], len(tokens)),
        apart=apart[at],
        lettered=np.logical_or.reduceat(words.letters[tokens], at),
        names=np.add.reduceat(noise(tokens.astype(np.uint64), np.arange(len(tokens)) - at[np.cumsum(starts) - 1]), at),
        number=np.full(len(at), -1),
    )


def _numbered(units: _Units, names: Bits, joins: list[Bits]) -> _Units:
    """The units with their numbers, joined as far as has been decided."""
    number = np.where(units.lettered, _find(names, units.names), -1)
    units = units.take(slice(None), number, units.last)
    base = len(names)
    for keys in joins:
        found = _find(keys, _pairs(units))
        hit = np.append(found >= 0, False)
        since = np.arange(len(hit)) - np.maximum.accumulate(np.where(hit, -1, np.arange(len(hit))))
        hit &= since % 2 == 1  # of words that could all be joined, the first and second are, the third and fourth …
        at = np.flatnonzero(hit)
        number, last = units.number.copy(), units.last.copy()
        number[at], last[at] = base + found[at], units.last[at + 1]
        units = units.take(~np.append(False, hit[:-1]), number, last)
        base += len(keys)
    return units


def _pairs(units: _Units) -> Bits:
    """One key for each unit and the next; 2**64 - 1 where they cannot be joined."""
    a, b = units.number[:-1], units.number[1:]
    keys = a.astype(np.uint64) << np.uint64(32) | b.astype(np.uint64)
    keys[(a < 0) | (b < 0) | units.apart[1:]] = np.uint64(2**64 - 1)
    return keys


def _find(table: Bits, keys: Bits) -> Ints:
    """The place of each key in a sorted table, -1 where it is not there."""
    if not len(table):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, at, -1)


def _joins(
    read: Iterator[_Units], names: Bits, joins: list[Bits], least: int, least_npmi: float
) -> tuple[Bits, NDArray[np.float64]]:
    """Which pairs hang together: their keys, sorted, and how much."""
    counter, n = _Counter(), 0
    counts = np.zeros(len(names) + sum(map(len, joins)), np.int64)
    for plain in read:
        units = _numbered(plain, names, joins)
        pairs = _pairs(units)
        counter.add(pairs[pairs != np.uint64(2**64 - 1)])
        counts += np.bincount(units.number[units.number >= 0], minlength=len(counts))
        n += len(units.number)
    often = counter.counts >= least
    keys, together = counter.keys[often], counter.counts[often]
    first, second = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(2**32 - 1)).astype(np.int64)
    expected = counts[first] * (counts[second] / max(n, 1))
    score = np.log(together / expected) / -np.log(together / max(n, 2))
    kept = score >= least_npmi
    return keys[kept], score[kept]


def _phrases(
    split: SplitLike, read: Iterator[_Units], names: Bits, joins: list[Bits], scores: NDArray[np.float64], least: int
) -> list[Phrase]:
    """The phrases as they stand in the text once everything is joined."""
    counts = np.zeros(len(scores), np.int64)
    places: dict[int, tuple[int, int]] = {}
    for plain in read:
        units = _numbered(plain, names, joins)
        number = units.number - len(names)
        found, at = np.unique(number[number >= 0], return_index=True)
        at = np.flatnonzero(number >= 0)[at]
        counts += np.bincount(number[number >= 0], minlength=len(counts))
        for one, first, last in zip(found.tolist(), units.first[at].tolist(), units.last[at].tolist(), strict=True):
            places.setdefault(one, (first, last))
    kept = [one for one in places if counts[one] >= least and math.isfinite(scores[one])]
    kept.sort(key=lambda one: (-counts[one], places[one]))
    return [
        Phrase(tuple(map(int, split.tokens[slice(*places[one])])), int(counts[one]), float(scores[one])) for one in kept
    ]


class _Counter:
    """How often each of many numbers came, in bounded memory."""

    def __init__(self) -> None:
        self.keys: Bits = np.zeros(0, np.uint64)
        self.counts: Ints = np.zeros(0, np.int64)

    def add(self, keys: Bits) -> None:
        new, more = np.unique(keys, return_counts=True)
        both, counts = np.append(self.keys, new), np.append(self.counts, more)
        order = np.argsort(both, kind="stable")
        both, counts = both[order], counts[order]
        heads = np.flatnonzero(np.append(True, both[1:] != both[:-1])) if len(both) else order
        self.keys, self.counts = both[heads], np.add.reduceat(counts, heads) if len(heads) else counts
        if len(self.keys) > MOST_KEYS:
            floor = np.partition(self.counts, -MOST_KEYS // 2)[-MOST_KEYS // 2]
            self.keys, self.counts = self.keys[self.counts > floor], self.counts[self.counts > floor]
