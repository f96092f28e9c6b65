"""What a writer is asked, what it sees, and that nothing it is asked for is in sight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.config import Objective
from bertkin.objectives.make import evaluation_batches, make_batch
from bertkin.objectives.masking import quota
from bertkin.text.batches import Batch, Ints, Specials, cut, lay, plan, rows_per_epoch
from memory_split import MemorySplit, distinct, document_lengths, long_lengths, realistic, seeds, specials_of

MASKS: dict[str, Any] = {"unit": "token", "rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "sentence": "none"}
KINDS = ["causal", "prefix", "hybrid", "unilm"]
kinds = st.sampled_from(KINDS)
shares = st.sampled_from([0.0, 0.3, 1.0])


def objective_of(kind: Any, **fields: Any) -> Objective:
    return Objective(kind=kind, **(MASKS | fields))


def batch_of(split: MemorySplit, ids: Specials, objective: Objective, *, seed: int = 0, row: int = 0) -> Batch:
    return make_batch(split, ids, seed=seed, first_row=row, n_rows=4, length=32, objective=objective)


def text_of(split: MemorySplit, ids: Specials, *, seed: int = 0, row: int = 0) -> Ints:
    """What the rows of `batch_of` say before anything is hidden."""
    starts, _ = plan(split, seed=seed, first_row=row, n_rows=4, length=32)
    return lay(split, cut(split, starts, 32), ids)[0]


def seen_from(batch: Batch) -> str:
    """How each sequence is seen, a letter a sequence: both sides, left only, or a prefix (short ones may be any)."""
    letters = []
    for begin, end in zip(batch.layout.starts[:-1], batch.layout.starts[1:], strict=True):
        reach, own = batch.layout.reach[begin:end], np.arange(1, end - begin + 1)
        letters.append("b" if (reach == end - begin).all() else "l" if (reach == own).all() else "p")
    return "".join(letters)


def drawn(kind: str, **fields: Any) -> tuple[MemorySplit, Specials, list[Batch]]:
    split, ids = realistic(300), specials_of(2000)
    objective = objective_of(kind, **fields)
    made = [
        make_batch(split, ids, seed=0, first_row=32 * i, n_rows=32, length=128, objective=objective) for i in range(8)
    ]
    return split, ids, made


# All of them


@given(document_lengths, kinds, seeds, st.integers(0, 200))
def test_targets_are_what_the_text_says(documents: list[int], kind: str, seed: int, row: int) -> None:
    split, ids = distinct(documents)
    batch = batch_of(split, ids, objective_of(kind), seed=seed, row=row)
    text = text_of(split, ids, seed=seed, row=row)
    ahead = 0 if kind == "unilm" else 1
    assert np.array_equal(batch.targets, text[batch.asked + ahead])
    assert np.array_equal(batch.asked, np.unique(batch.asked))
    same_sequence = batch.layout.sequence_ids()
    assert np.array_equal(same_sequence[batch.asked], same_sequence[batch.asked + ahead])
    changed = np.flatnonzero(batch.ids != text)
    assert ids.ordinary[text[changed]].all(), "no special token is ever hidden"
    assert np.isin(changed, batch.asked + ahead).all(), "what is hidden is asked"


@given(document_lengths, kinds, seeds, shares)
def test_reach_never_falls_nor_leaves_its_sequence(documents: list[int], kind: str, seed: int, share: float) -> None:
    split, ids = distinct(documents)
    layout = batch_of(split, ids, objective_of(kind, causal_share=share), seed=seed).layout
    assert layout.reach.dtype == np.int32
    assert (layout.reach >= layout.positions + 1).all(), "everyone sees itself and what came before"
    assert (layout.reach <= np.repeat(layout.lengths, layout.lengths)).all()
    assert (np.diff(layout.reach)[np.diff(layout.sequence_ids()) == 0] >= 0).all()


@given(document_lengths, st.sampled_from(["causal", "prefix", "hybrid"]), seeds, shares)
def test_nobody_sees_what_it_is_asked_for(documents: list[int], kind: str, seed: int, share: float) -> None:
    """All tokens are distinct here, so that a token in sight can be told by its number."""
    split, ids = distinct(documents)
    batch = batch_of(split, ids, objective_of(kind, causal_share=share, mask_share=1.0, random_share=0.0), seed=seed)
    first = batch.layout.starts[batch.layout.sequence_ids()]
    for place, target in zip(batch.asked, batch.targets, strict=True):
        sight = batch.ids[first[place] : first[place] + batch.layout.reach[place]]
        assert target == ids.sep or target not in sight


@given(long_lengths, kinds, seeds, st.integers(2, 4))
def test_a_slice_of_a_batch_is_the_batch_of_its_rows(documents: list[int], kind: str, seed: int, world: int) -> None:
    split, ids = distinct(documents)
    objective = objective_of(kind)
    whole = make_batch(split, ids, seed=seed, first_row=3, n_rows=world, length=32, objective=objective)
    for rank in range(world):
        share = whole.slice(rank, world)
        alone = make_batch(split, ids, seed=seed, first_row=3 + rank, n_rows=1, length=32, objective=objective)
        for name in ("ids", "asked", "targets", "row_starts"):
            assert np.array_equal(getattr(share, name), getattr(alone, name)), name
        assert np.array_equal(share.layout.reach, alone.layout.reach)
        assert np.array_equal(share.layout.starts, alone.layout.starts)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_does_not_depend_on_how_it_is_batched(kind: str) -> None:
    split, ids = realistic(60), specials_of(2000)

    def read(batch_rows: int, **fields: Any) -> list[list[int]]:
        objective = objective_of(kind, **fields)
        made = list(evaluation_batches(split, ids, length=64, n_rows=50, batch_rows=batch_rows, objective=objective))
        columns = [[b.ids for b in made], [b.targets for b in made], [b.layout.reach for b in made]]
        return [np.concatenate(column).tolist() for column in columns]

    assert read(50) == read(7) == read(7, rate=0.4, unit="span", mask_share=1.0)


# Causal


@given(document_lengths, seeds, st.integers(0, 200))
def test_causal_asks_for_every_token_of_text_and_for_true_ends(documents: list[int], seed: int, row: int) -> None:
    split, ids = distinct(documents)
    batch = batch_of(split, ids, objective_of("causal"), seed=seed, row=row)
    text = text_of(split, ids, seed=seed, row=row)
    last_tokens = split.tokens[split.documents[1:] - 1]
    ends = (text[1:] == ids.sep) & np.isin(text[:-1], last_tokens)
    assert np.array_equal(batch.asked, np.flatnonzero(ids.ordinary[text[1:]] | ends))
    assert np.array_equal(batch.ids, text)
    assert np.array_equal(batch.layout.reach, batch.layout.positions + 1)


@given(long_lengths, seeds)
def test_an_epoch_asks_for_each_token_once_but_for_the_edges_of_rows(documents: list[int], seed: int) -> None:
    split, ids = distinct(documents)
    n = rows_per_epoch(split, 32)
    batch = make_batch(split, ids, seed=seed, first_row=0, n_rows=n, length=32, objective=objective_of("causal"))
    times = np.bincount(batch.targets, minlength=ids.vocab_size)
    assert (times[split.tokens] >= 1).all() and times[ids.sep] >= split.n_documents
    assert times.sum() <= split.n_tokens + split.n_documents + 2 * n + 32


def test_a_token_that_is_special_is_not_asked_for() -> None:
    """What the tokenizer could not read is nothing that a model should learn to write."""
    split, ids = distinct([40, 30])
    split.tokens[[3, 17, 50]] = 1
    for kind in KINDS:
        assert 1 not in batch_of(split, ids, objective_of(kind)).targets


# Prefix


@given(document_lengths, seeds, st.integers(0, 200))
def test_prefix_asks_for_all_that_follows_the_beginning(documents: list[int], seed: int, row: int) -> None:
    split, ids = distinct(documents)
    batch = batch_of(split, ids, objective_of("prefix"), seed=seed, row=row)
    every = batch_of(split, ids, objective_of("causal"), seed=seed, row=row)
    layout = batch.layout
    begin = layout.reach[layout.starts[:-1]][layout.sequence_ids()]
    assert np.array_equal(layout.reach, np.maximum(begin, layout.positions + 1))
    assert np.array_equal(
        batch.asked, every.asked[every.asked + 1 >= (layout.starts[:-1][layout.sequence_ids()] + begin)[every.asked]]
    )
    text = layout.sequence_ids()[np.flatnonzero(ids.ordinary[batch.ids])]
    assert set(text) <= set(layout.sequence_ids()[batch.asked]), "a token of text is left for every sequence"


def test_beginnings_are_of_every_length_alike() -> None:
    _, _, made = drawn("prefix")
    shares = []
    for batch in made:
        long = batch.layout.lengths > 60
        shares.append((batch.layout.reach[batch.layout.starts[:-1]] / batch.layout.lengths)[long])
    counts = np.histogram(np.concatenate(shares), bins=4, range=(0, 1))[0]
    n = counts.sum()
    assert n > 200 and (np.abs(counts - n / 4) < 4 * np.sqrt(n * 3 / 16)).all()


# Hybrid


@pytest.mark.parametrize(("share", "rate"), [(0.0, 0.15), (0.25, 0.3), (0.5, 0.15), (1.0, 0.15)])
def test_hybrid_keeps_its_share_and_its_rate(share: float, rate: float) -> None:
    split, ids, made = drawn("hybrid", causal_share=share, rate=rate)
    letters = "".join(seen_from(batch) for batch in made)
    n = len(letters)
    assert set(letters) <= {"b", "l"}
    assert abs(letters.count("l") - share * n) <= 4 * np.sqrt(share * (1 - share) * n)
    for i, batch in enumerate(made):
        starts, _ = plan(split, seed=0, first_row=32 * i, n_rows=32, length=128)
        text = lay(split, cut(split, starts, 128), ids)[0]
        masked = np.repeat(np.array(list(seen_from(batch))) == "b", batch.layout.lengths)
        ordinary = np.add.reduceat(ids.ordinary[text] & masked, batch.row_starts[:-1])
        asked = np.bincount(batch.asked[masked[batch.asked]] // 128, minlength=32)
        assert np.array_equal(asked, quota(rate, ordinary)), "of each row's masked part"


@given(document_lengths, seeds, shares)
def test_the_causal_part_of_a_hybrid_is_whole_and_the_masked_part_asks_the_token_before(
    documents: list[int], seed: int, share: float
) -> None:
    split, ids = distinct(documents)
    batch = batch_of(
        split, ids, objective_of("hybrid", causal_share=share, mask_share=1.0, random_share=0.0), seed=seed
    )
    every = batch_of(split, ids, objective_of("causal"), seed=seed)
    text = text_of(split, ids, seed=seed)
    layout = batch.layout
    left = np.repeat(np.array([letter == "l" for letter in seen_from(batch)]), layout.lengths)
    assert np.array_equal(batch.ids[left], text[left])
    assert np.array_equal(batch.asked[left[batch.asked]], every.asked[left[every.asked]])
    assert np.array_equal(batch.asked[~left[batch.asked]] + 1, np.flatnonzero(batch.ids == ids.mask))


# UniLM


def test_unilm_sees_in_three_ways_a_third_each_and_asks_at_its_rate() -> None:
    _, ids, made = drawn("unilm")
    letters = "".join(
        letter
        for batch in made
        for letter, length in zip(seen_from(batch), batch.layout.lengths, strict=True)
        if length > 20  # a beginning of one token is as good as none
    )
    n = len(letters)
    for letter in "blp":
        assert abs(letters.count(letter) - n / 3) < 4 * np.sqrt(n * 2 / 9) + n / 20
    for batch in made:
        text = batch.ids.copy()
        text[batch.asked] = batch.targets
        ordinary = np.add.reduceat(ids.ordinary[text], batch.row_starts[:-1])
        asked = np.add.reduceat(np.isin(np.arange(len(text)), batch.asked), batch.row_starts[:-1])
        assert np.array_equal(asked, quota(0.15, ordinary))
