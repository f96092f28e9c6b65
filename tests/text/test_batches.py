"""Rows hold every token of the corpus once an epoch, are full, and never mix documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.text.batches import (
    Ints,
    Specials,
    check_enough,
    cut,
    fill,
    lay,
    plan,
    rows_per_epoch,
    stream_length,
)
from bertkin.text.layout import Layout
from memory_split import MemorySplit, distinct, document_lengths, realistic, seeds, specials_of, split_of

lengths_of_rows = st.integers(3, 40)


def read(
    split: MemorySplit, ids: Specials, *, seed: int, first_row: int, n_rows: int, length: int, static: bool = False
) -> tuple[Ints, Layout, Ints]:
    starts, _ = plan(split, seed=seed, first_row=first_row, n_rows=n_rows, length=length, static=static)
    return lay(split, cut(split, starts, length), ids)


@given(document_lengths, lengths_of_rows, seeds, st.integers(0, 5), st.booleans())
def test_an_epoch_holds_every_token(documents: list[int], length: int, seed: int, epoch: int, static: bool) -> None:
    split, ids = distinct(documents)
    rows = rows_per_epoch(split, length)
    tokens, _, _ = read(split, ids, seed=seed, first_row=epoch * rows, n_rows=rows, length=length, static=static)
    assert set(split.tokens.tolist()) <= set(tokens.tolist())


@given(document_lengths, lengths_of_rows, seeds)
def test_an_epoch_repeats_little(documents: list[int], length: int, seed: int) -> None:
    split, ids = distinct(documents)
    rows = rows_per_epoch(split, length)
    tokens, _, _ = read(split, ids, seed=seed, first_row=0, n_rows=rows, length=length)
    text = int(ids.ordinary[tokens].sum())
    assert text <= split.n_tokens + 2 * rows + length


@given(document_lengths, lengths_of_rows, seeds, st.integers(0, 10**6))
def test_every_row_has_exactly_its_length(documents: list[int], length: int, seed: int, first_row: int) -> None:
    split, ids = distinct(documents)
    tokens, layout, row_starts = read(split, ids, seed=seed, first_row=first_row, n_rows=7, length=length)
    size = min(length, stream_length(split))
    assert np.diff(row_starts).tolist() == [size] * 7
    assert layout.row_length == size
    assert len(tokens) == layout.n_tokens == 7 * size
    assert np.isin(row_starts, layout.starts).all()


@given(document_lengths, lengths_of_rows, seeds, st.integers(0, 10**6))
def test_a_sequence_is_a_run_of_one_document(documents: list[int], length: int, seed: int, first_row: int) -> None:
    split, ids = distinct(documents)
    tokens, layout, _ = read(split, ids, seed=seed, first_row=first_row, n_rows=7, length=length)
    for begin, end in zip(layout.starts[:-1], layout.starts[1:], strict=True):
        sequence = tokens[begin:end]
        if sequence[0] == ids.pad:
            assert len(sequence) <= 2
            assert (sequence == ids.pad).all()
            continue
        assert sequence[0] == ids.cls
        assert sequence[-1] == ids.sep
        offsets = sequence[1:-1] - 5  # tokens are numbered through
        assert len(offsets) >= 1
        assert (np.diff(offsets) == 1).all()
        owners = np.searchsorted(split.documents, offsets, side="right")
        assert (owners == owners[0]).all()


@given(document_lengths, lengths_of_rows, seeds, st.integers(0, 1000), st.integers(1, 9), st.booleans())
def test_a_row_depends_on_its_number_alone(
    documents: list[int], length: int, seed: int, first_row: int, n_rows: int, static: bool
) -> None:
    split, ids = distinct(documents)
    starts, keys = plan(split, seed=seed, first_row=first_row, n_rows=n_rows, length=length, static=static)
    for i in reversed(range(n_rows)):
        start, key = plan(split, seed=seed, first_row=first_row + i, n_rows=1, length=length, static=static)
        assert start[0] == starts[i]
        assert key[0] == keys[i]
        alone, _, _ = lay(split, cut(split, start, length), ids)
        together, _, row_starts = lay(split, cut(split, starts, length), ids)
        assert np.array_equal(alone, together[row_starts[i] : row_starts[i + 1]])


def test_epochs_are_cut_and_ordered_differently_but_static_ones_only_ordered() -> None:
    split = split_of([500] * 20)
    rows = rows_per_epoch(split, 64)

    def epoch(number: int, static: bool) -> tuple[Ints, np.ndarray]:
        return plan(split, seed=3, first_row=number * rows, n_rows=rows, length=64, static=static)

    (one, keys), (two, other_keys) = epoch(0, False), epoch(1, False)
    assert not set(one.tolist()) & set(two.tolist())
    assert not set(keys.tolist()) & set(other_keys.tolist())
    (one, keys), (two, other_keys) = epoch(0, True), epoch(1, True)
    assert not np.array_equal(one, two)
    assert dict(zip(one, keys, strict=True)) == dict(zip(two, other_keys, strict=True))


def test_seeds_and_lengths_have_rows_of_their_own() -> None:
    split = split_of([500] * 20)
    starts = [
        plan(split, seed=seed, first_row=0, n_rows=50, length=length)[0].tolist()
        for seed, length in ((0, 64), (1, 64), (0, 66))
    ]
    assert starts[0] != starts[1] != starts[2] != starts[0]


@pytest.mark.parametrize(("mean", "least"), [(6.5, 0.9999), (4.5, 0.999), (2.5, 0.99)])
def test_rows_are_full_of_text_whatever_the_documents(mean: float, least: float) -> None:
    split, ids = realistic(4000, mean=mean), specials_of(2000)
    tokens, layout, _ = read(split, ids, seed=0, first_row=0, n_rows=400, length=128)
    assert np.mean(tokens != ids.pad) >= least
    if mean > 6:  # an encyclopedia's: almost nothing but text
        assert layout.n_sequences < 600


def test_a_row_may_be_longer_than_many_documents() -> None:
    split, ids = distinct([1] * 50)
    tokens, layout, _ = read(split, ids, seed=0, first_row=0, n_rows=20, length=31)
    assert layout.max_length == 3
    assert layout.n_sequences >= 20 * 10
    assert np.mean(tokens == ids.pad) <= 1 / 31


def test_a_corpus_smaller_than_a_batch_is_refused_with_the_size_that_fits() -> None:
    split = split_of([30] * 10)  # 320 tokens with [CLS] and [SEP]
    check_enough(split, 32, 10)
    with pytest.raises(UserError, match=r"320 tokens.*352 \(11 rows of 32\).*--train.batch_tokens to 320"):
        check_enough(split, 32, 11)
    with pytest.raises(UserError, match=r"--train.length below 320"):
        check_enough(split, 512, 1)
    with pytest.raises(UserError, match=r"--train.length"):
        check_enough(split, 2, 1)


def test_reading_a_row_of_a_great_corpus_touches_little_of_it() -> None:
    class Counting:
        """A column that counts what is read of it, as a memory map's pages would be."""

        def __init__(self, of: np.ndarray) -> None:
            self.of, self.read = of, 0

        def __len__(self) -> int:
            return len(self.of)

        def __getitem__(self, index: Any) -> Any:
            found = self.of[index]
            self.read += np.size(found)
            return found

    inner = realistic(5000)
    columns = {name: Counting(getattr(inner, name)) for name in ("tokens", "documents", "sentences")}

    split = MemorySplit(**columns)  # type: ignore[arg-type]
    tokens, _, _ = read(split, specials_of(2000), seed=0, first_row=10**7, n_rows=8, length=128)
    assert columns["tokens"].read == len(tokens)
    assert columns["documents"].read < 1000


def test_fill_counts_what_is_not_padding() -> None:
    from bertkin.config import Objective
    from bertkin.objectives.make import make_batch

    split, ids = realistic(100), specials_of(2000)
    objective = Objective(unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=8, length=64, objective=objective)
    assert fill([batch], ids) == 1 - np.mean(batch.ids == ids.pad)
