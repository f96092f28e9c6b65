"""Pairs are labelled truthfully: what is said to follow follows, what is said to be swapped or foreign is."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.objectives.sentence import check_sentences, pair_up
from bertkin.text.batches import Ints, Specials, cut, lay, plan
from bertkin.text.layout import Layout
from memory_split import MemorySplit, distinct, document_lengths, long_lengths, realistic, seeds, specials_of, split_of

Kind = Literal["next", "order"]
kinds: st.SearchStrategy[Kind] = st.sampled_from(["next", "order"])


class Read:
    """Rows with pairs, laid out."""

    def __init__(
        self, split: MemorySplit, ids: Specials, kind: Kind, seed: int, *, n_rows: int = 6, length: int = 64
    ) -> None:
        starts, keys = plan(split, seed=seed, first_row=0, n_rows=n_rows, length=length)
        self.plain = cut(split, starts, length)
        self.pieces, self.pairs, self.labels = pair_up(split, self.plain, kind, keys)
        self.tokens: Ints
        self.layout: Layout
        self.tokens, self.layout, self.row_starts = lay(split, self.pieces, ids)
        self.ids = ids

    def parts(self, sequence: int) -> list[np.ndarray]:
        """Offsets in the split of each part of the sequence (tokens are numbered through)."""
        begin, end = self.layout.starts[sequence : sequence + 2]
        tokens = self.tokens[begin:end]
        assert tokens[0] == self.ids.cls
        assert tokens[-1] == self.ids.sep
        ends = np.flatnonzero(tokens == self.ids.sep)
        parts = [part[:-1] - 5 for part in np.split(tokens[1:], ends)[: len(ends)]]
        if len(parts) == 2:
            expected = np.repeat([0, 1], [len(parts[0]) + 2, len(parts[1]) + 1])
            assert np.array_equal(self.layout.segments[begin:end], expected)
        return parts


def contiguous(offsets: np.ndarray) -> bool:
    return bool((np.diff(offsets) == 1).all())


@given(document_lengths, seeds, kinds)
def test_pairing_keeps_the_length_of_every_sequence(documents: list[int], seed: int, kind: Kind) -> None:
    split, ids = distinct([*documents, 30])
    if split.n_documents < 2:
        return
    read = Read(split, ids, kind, seed)
    _, plain, row_starts = lay(split, read.plain, ids)
    assert np.array_equal(read.layout.starts, plain.starts)
    assert np.array_equal(read.row_starts, row_starts)


@given(long_lengths, seeds)
def test_a_positive_pair_follows_and_breaks_at_a_sentence(documents: list[int], seed: int) -> None:
    split, ids = distinct(documents)
    read = Read(split, ids, "next", seed)
    for sequence in read.pairs[read.labels == 0]:
        a, b = read.parts(sequence)
        assert contiguous(np.concatenate([a, b]))
        assert b[0] in split.sentences
        assert split.documents[np.searchsorted(split.documents, a[0], side="right")] > b[-1]


@given(long_lengths, seeds)
def test_a_negative_pair_has_no_token_of_its_own_document(documents: list[int], seed: int) -> None:
    split, ids = distinct(documents)
    read = Read(split, ids, "next", seed)
    for sequence in read.pairs[read.labels == 1]:
        a, b = read.parts(sequence)
        assert contiguous(a)
        assert contiguous(b)
        mine = np.searchsorted(split.documents, a, side="right")
        theirs = np.searchsorted(split.documents, b, side="right")
        assert len(set(mine)) == 1
        assert mine[0] not in theirs


@given(long_lengths, seeds)
def test_an_ordered_pair_is_swapped_exactly_when_its_label_says_so(documents: list[int], seed: int) -> None:
    split, ids = distinct(documents)
    read = Read(split, ids, "order", seed)
    for sequence, label in zip(read.pairs, read.labels, strict=True):
        first, second = read.parts(sequence)
        a, b = (second, first) if label else (first, second)
        assert contiguous(np.concatenate([a, b]))
        assert b[0] in split.sentences


@given(document_lengths, seeds, kinds)
def test_a_sequence_is_a_pair_exactly_when_it_has_a_boundary_inside(
    documents: list[int], seed: int, kind: Kind
) -> None:
    split, ids = distinct([*documents, 9])
    read = Read(split, ids, kind, seed)
    for sequence, (first, count, document) in enumerate(
        zip(read.plain.first, read.plain.count, read.plain.document, strict=True)
    ):
        inside = ((split.sentences > first) & (split.sentences < first + count)).any()
        assert (sequence in read.pairs) == bool(inside and count >= 3 and document >= 0)


@pytest.mark.parametrize("kind", ["next", "order"])
def test_labels_are_balanced_and_do_not_follow_the_length_of_the_parts(kind: Kind) -> None:
    split, ids = realistic(400), specials_of(2000)
    read = Read(split, ids, kind, 1, n_rows=1500, length=128)
    assert len(read.pairs) > 1500
    assert abs(read.labels.mean() - 0.5) < 0.05
    seconds = read.pieces.count[read.pieces.segment == 1]
    middle = np.median(seconds)
    assert abs(read.labels[seconds <= middle].mean() - read.labels[seconds > middle].mean()) < 0.08


def test_a_foreign_part_begins_a_sentence_of_one_document_where_there_is_room() -> None:
    split, ids = distinct([300] * 12)
    read = Read(split, ids, "next", 5, n_rows=50)
    negatives = read.pairs[read.labels == 1]
    assert len(negatives) > 10
    for sequence in negatives:
        _, b = read.parts(sequence)
        assert b[0] in split.sentences
        assert len(set(np.searchsorted(split.documents, b, side="right"))) == 1


def test_short_documents_still_give_foreign_parts() -> None:
    split, ids = distinct([200, *[9] * 40])
    read = Read(split, ids, "next", 5, n_rows=20)
    assert read.labels.mean() > 0.3


def test_a_pair_depends_on_its_row_alone() -> None:
    split, ids = distinct([80] * 30)
    starts, keys = plan(split, seed=2, first_row=0, n_rows=5, length=64)
    together, _, row_starts = lay(split, pair_up(split, cut(split, starts, 64), "next", keys)[0], ids)
    for i in range(5):
        own = slice(i, i + 1)
        alone, _, _ = lay(split, pair_up(split, cut(split, starts[own], 64), "next", keys[own])[0], ids)
        assert np.array_equal(alone, together[row_starts[i] : row_starts[i + 1]])


def test_what_cannot_be_asked_is_refused_with_the_mend() -> None:
    one = split_of([100])
    with pytest.raises(UserError, match=r"single one.*choose order"):
        check_sentences(one, "next")
    starts, keys = plan(one, seed=0, first_row=0, n_rows=1, length=32)
    with pytest.raises(UserError, match="single one"):
        pair_up(one, cut(one, starts, 32), "next", keys)
    check_sentences(one, "order")
    lines = split_of([5, 6, 7], sentence=10**9)
    for kind in ("next", "order"):
        with pytest.raises(UserError, match=r"no document .* two sentences"):
            check_sentences(lines, kind)
    check_sentences(lines, "none")
