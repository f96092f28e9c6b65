"""A batch is a function of the split, the seed and the row number; its parts add up to the whole."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.config import Objective
from bertkin.objectives.make import evaluation_batches, make_batch
from bertkin.objectives.masking import quota
from bertkin.text.batches import IGNORED, Batch, cut, lay, plan, rows_per_epoch
from memory_split import distinct, long_lengths, realistic, seeds, specials_of, split_of

MASKED = Objective(unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
objectives = st.builds(
    Objective,
    unit=st.sampled_from(["token", "word", "span"]),
    rate=st.sampled_from([0.15, 0.3]),
    mask_share=st.sampled_from([0.8, 1.0, 0.0]),
    random_share=st.sampled_from([0.1, 0.0]),
    sentence=st.sampled_from(["none", "next", "order"]),
    static=st.booleans(),
)


def columns(batch: Batch) -> dict[str, Any]:
    layout = batch.layout
    segments = np.zeros(layout.n_tokens, np.int32) if layout.segments is None else layout.segments
    return {
        "ids": batch.ids,
        "asked": batch.asked,
        "targets": batch.targets,
        "pairs": batch.pairs,
        "pair_labels": batch.pair_labels,
        "row_starts": batch.row_starts,
        "starts": layout.starts,
        "positions": layout.positions,
        "segments": segments,
    }


def same(one: Batch, two: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(columns(one).values(), columns(two).values(), strict=True))


@given(long_lengths, objectives, seeds, st.integers(0, 500))
def test_a_batch_is_the_same_whenever_it_is_made(
    documents: list[int], objective: Objective, seed: int, row: int
) -> None:
    split, ids = distinct(documents)

    def make(first_row: int) -> Batch:
        return make_batch(split, ids, seed=seed, first_row=first_row, n_rows=4, length=32, objective=objective)

    one = make(row)
    make(row + 4)
    assert same(one, make(row))


@given(long_lengths, objectives, seeds, st.integers(1, 5))
def test_shares_add_up_to_the_batch(documents: list[int], objective: Objective, seed: int, world: int) -> None:
    split, ids = distinct(documents)
    whole = make_batch(split, ids, seed=seed, first_row=0, n_rows=5, length=32, objective=objective)
    shares = [columns(whole.slice(rank, world)) for rank in range(world)]
    offsets = np.cumsum([0, *(len(share["ids"]) for share in shares)])
    expected = columns(whole)
    for name in ("ids", "targets", "pair_labels", "positions", "segments"):
        assert np.array_equal(np.concatenate([share[name] for share in shares]), expected[name])
    for name in ("asked", "pairs"):
        moved = [share[name] + offset for share, offset in zip(shares, offsets[:-1], strict=True)]
        assert np.array_equal(np.concatenate(moved), expected[name])
    for name in ("row_starts", "starts"):
        moved = [share[name][1:] + offset for share, offset in zip(shares, offsets[:-1], strict=True)]
        assert np.array_equal(np.concatenate([[0], *moved]), expected[name])
    assert sum(part.n_rows for part in whole.split(world)) == 5


@given(long_lengths, objectives, seeds, st.integers(2, 5))
def test_a_share_is_the_batch_its_rows_would_make(
    documents: list[int], objective: Objective, seed: int, world: int
) -> None:
    split, ids = distinct(documents)
    whole = make_batch(split, ids, seed=seed, first_row=0, n_rows=world, length=32, objective=objective)
    alone = make_batch(split, ids, seed=seed, first_row=1, n_rows=1, length=32, objective=objective)
    assert np.array_equal(whole.slice(1, world).ids, alone.ids)
    assert np.array_equal(whole.slice(1, world).asked, alone.asked)


@given(long_lengths, seeds, st.sampled_from(["token", "word", "span"]), st.integers(0, 100))
def test_input_and_targets_restore_the_text(documents: list[int], seed: int, unit: Any, row: int) -> None:
    split, ids = distinct(documents)
    objective = dataclasses.replace(MASKED, unit=unit)
    batch = make_batch(split, ids, seed=seed, first_row=row, n_rows=4, length=32, objective=objective)
    restored = batch.ids.copy()
    restored[batch.asked] = batch.targets
    starts, _ = plan(split, seed=seed, first_row=row, n_rows=4, length=32)
    assert np.array_equal(restored, lay(split, cut(split, starts, 32), ids)[0])
    assert np.array_equal(batch.asked, np.unique(batch.asked))
    assert ids.ordinary[batch.targets].all()


@given(long_lengths, objectives, seeds)
def test_pairs_stand_at_the_cls_of_sequences_with_two_segments(
    documents: list[int], objective: Objective, seed: int
) -> None:
    split, ids = distinct(documents)
    batch = make_batch(split, ids, seed=seed, first_row=0, n_rows=4, length=32, objective=objective)
    segments = columns(batch)["segments"]
    two = [s for s in range(batch.layout.n_sequences) if segments[slice(*batch.layout.starts[s : s + 2])].any()]
    assert batch.pairs.tolist() == batch.layout.starts[two].tolist()
    assert (batch.ids[batch.pairs] == ids.cls).all()
    assert len(batch.pair_labels) == len(batch.pairs)
    if objective.sentence == "none":
        assert batch.layout.segments is None


@given(long_lengths, seeds, st.integers(1, 4), st.floats(0.1, 0.9))
def test_edges_are_seen_tokens_of_the_same_sequence_in_every_share(
    documents: list[int], seed: int, world: int, rate: float
) -> None:
    split, ids = distinct(documents)
    objective = dataclasses.replace(MASKED, unit="span", boundary=True, mask_share=1.0, random_share=0.0, rate=rate)
    whole = make_batch(split, ids, seed=seed, first_row=0, n_rows=4, length=32, objective=objective)
    offset, asked = 0, 0
    for share in whole.split(world):
        edges = share.edges
        assert edges is not None and edges.shape == (len(share.asked), 2)
        assert whole.edges is not None
        assert np.array_equal(edges + offset, whole.edges[asked : asked + len(edges)])
        assert (share.ids[edges] != ids.mask).all()
        assert (edges[:, 0] < share.asked).all() and (share.asked < edges[:, 1]).all()
        for before, after in edges:
            assert (share.ids[before + 1 : after] == ids.mask).all()
        sequence = np.repeat(np.arange(share.layout.n_sequences), share.layout.lengths)
        assert (sequence[edges] == sequence[share.asked][:, None]).all()
        offset, asked = offset + len(share.ids), asked + len(share.asked)


def rows_by_text(static: bool, epoch: int) -> dict[bytes, tuple[bytes, bytes]]:
    """What is asked in each row of an epoch, by the row's text."""
    split, ids = split_of([300] * 10, vocab=500), specials_of(500)
    objective = dataclasses.replace(MASKED, static=static)
    n = rows_per_epoch(split, 32)
    found = {}
    for row in range(epoch * n, epoch * n + n):
        batch = make_batch(split, ids, seed=1, first_row=row, n_rows=1, length=32, objective=objective)
        text = batch.ids.copy()
        text[batch.asked] = batch.targets
        found[text.tobytes()] = (batch.asked.tobytes(), batch.ids.tobytes())
    return found


def test_static_masks_come_back_every_epoch_and_dynamic_ones_do_not() -> None:
    assert rows_by_text(True, 0) == rows_by_text(True, 3)
    assert not set(rows_by_text(False, 0).values()) & set(rows_by_text(False, 3).values())


def test_the_rate_may_change_while_training() -> None:
    split, ids = realistic(50), specials_of(2000)
    for rate in (0.15, 0.3):
        batch = make_batch(split, ids, seed=0, first_row=0, n_rows=32, length=128, objective=MASKED, rate=rate)
        text = batch.ids.copy()
        text[batch.asked] = batch.targets
        assert len(batch.asked) / ids.ordinary[text].sum() == pytest.approx(rate, abs=0.01)
        most = 32 * int(quota(rate, 126))
        asked, targets = batch.fill_asked(most)
        assert len(asked) == len(targets) == most
        assert np.array_equal(targets[targets != IGNORED], batch.targets)
        with pytest.raises(ValueError, match="more than"):
            batch.fill_asked(len(batch.asked) - 1)


def test_evaluation_does_not_depend_on_how_it_is_batched_or_on_the_recipe() -> None:
    split, ids = realistic(60), specials_of(2000)

    def read(batch_rows: int) -> tuple[list[int], list[int]]:
        batches = list(evaluation_batches(split, ids, length=64, n_rows=50, batch_rows=batch_rows))
        assert sum(batch.n_rows for batch in batches) == 50
        return (
            np.concatenate([batch.ids for batch in batches]).tolist(),
            np.concatenate([batch.targets for batch in batches]).tolist(),
        )

    assert read(50) == read(7)


@given(long_lengths, st.integers(1, 40))
def test_evaluation_rows_share_nothing_but_their_edges(documents: list[int], n_rows: int) -> None:
    split, ids = distinct(documents)
    tokens = []
    for batch in evaluation_batches(split, ids, length=32, n_rows=n_rows, batch_rows=8):
        text = batch.ids.copy()
        text[batch.asked] = batch.targets
        tokens.append(text[ids.ordinary[text]])
    counts = np.unique(np.concatenate(tokens), return_counts=True)[1]
    assert counts.sum() - len(counts) <= 2 * n_rows


@pytest.mark.parametrize("documents", [[1], [3, 1], [5, 40]])
def test_a_tiny_held_out_split_still_gives_a_row(documents: list[int]) -> None:
    split, ids = distinct(documents)
    (batch,) = evaluation_batches(split, ids, length=128, n_rows=256, batch_rows=32)
    assert batch.n_rows == 1
    assert batch.n_tokens == sum(documents) + 2 * len(documents)
    assert len(batch.asked) >= 1


@pytest.mark.parametrize("sentence", ["none", "next", "order"])
def test_a_batch_is_made_far_faster_than_it_is_trained_on(sentence: Any) -> None:
    split, ids = realistic(2000), specials_of(2000)
    objective = dataclasses.replace(MASKED, sentence=sentence)
    times = []
    for i in range(15):
        begin = time.perf_counter()
        make_batch(split, ids, seed=0, first_row=32 * i, n_rows=32, length=128, objective=objective)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.02
