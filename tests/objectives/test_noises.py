"""Noise spoils as much as it should, and every way of doing so is as likely as the others."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.objectives.make import make_batch
from bertkin.objectives.noises import PARTERS, SPOILERS, Text
from bertkin.text.shuffle import mix
from memory_split import N_SPECIAL, distinct, seeds
from memory_split import specials_of as plain_specials
from unframed import asking, sequences, source_of, unframed, with_sentinels


@pytest.mark.parametrize("rate", [0.15, 0.3])
@pytest.mark.parametrize(
    ("noise", "length"),  # in short pieces spans hides at least one token, as T5 does, and so more than the rate
    [*itertools.product(["masking", "deletion", "infilling", "drop"], [9, 400]), ("spans", 400)],
)
def test_the_share_that_is_spoilt_is_the_rate(noise: str, rate: float, length: int) -> None:
    split, plain = distinct([length] * (20_000 // length))
    ids = with_sentinels(plain, 200)
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=32, length=512, objective=asking(noise, rate=rate))
    text = source_text = 0
    for source, written in unframed(batch, ids):
        visible = sum(ids.ordinary[source])
        whole = len(written) if noise in SPOILERS else visible + sum(ids.ordinary[written])
        assert noise == "spans" or abs(whole - visible - rate * whole) < 1
        text, source_text = text + whole, source_text + visible
    assert 1 - source_text / text == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("mean", [1.0, 3.0, 6.0])
def test_infilled_spans_have_the_mean_length(mean: float) -> None:
    split, ids = distinct([600] * 60)
    objective = asking("infilling", span_mean=mean)
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=64, length=512, objective=objective)
    pairs = unframed(batch, ids)
    masks = sum(source.count(ids.mask) for source, _ in pairs)
    hidden = sum(len(written) - len(source) + source.count(ids.mask) for source, written in pairs)
    assert hidden / masks == pytest.approx(mean, rel=0.06)


def test_infilling_inserts_masks_where_nothing_is_missing() -> None:
    split, ids = distinct([600] * 60)
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=64, length=512, objective=asking("infilling", rate=0.05))
    alone = empty = 0
    for source, text in unframed(batch, ids):
        place = {token: i for i, token in enumerate(text)}
        for before, mark, after in zip(source, source[1:], source[2:], strict=False):
            if mark == ids.mask and ids.mask not in (before, after):
                alone, empty = alone + 1, empty + (place[after] == place[before] + 1)
    assert empty / alone == pytest.approx(np.exp(-3), abs=0.03)  # a Poisson number of mean 3 is 0


@given(st.integers(2, 300), seeds, st.sampled_from([0.15, 0.5]), st.sampled_from([1.0, 3.0]), st.integers(1, 20))
def test_spans_are_counted_as_t5_counts_them(n: int, seed: int, rate: float, mean: float, sentinels: int) -> None:
    split, plain = distinct([n])
    ids = with_sentinels(plain, sentinels)
    objective = asking("spans", rate=rate, span_mean=mean)
    batch = make_batch(split, ids, seed=seed, first_row=0, n_rows=1, length=n + 2, objective=objective)
    for source, written in unframed(batch, ids):
        marks_used = [token for token in written if token in set(ids.sentinels.tolist())]
        size = len(source) + len(written) - 2 * len(marks_used)
        hidden = min(max(int(rate * size + 0.5), 1), size - 1)
        assert len(written) - len(marks_used) == hidden
        assert (
            len(marks_used) == min(max(int(hidden / mean + 0.5), 1), hidden, size - hidden, sentinels) if hidden else 1
        )
        if hidden:
            assert source[0] not in ids.sentinels and source[-1] in ids.sentinels


def counted(noise: str, n: int, sentences: list[int], **fields: Any) -> Counter[tuple[int, ...]]:
    """What the encoder reads over many draws of one text of n tokens, numbered from 0; a mark is -1."""
    ids = with_sentinels(plain_specials(n + N_SPECIAL))
    numbers = np.searchsorted(sentences, np.arange(n), side="right")
    draws = 6000
    text = Text(np.tile(np.arange(n) + N_SPECIAL, draws), np.full(draws, n), np.tile(numbers, draws))
    options = (mix(np.arange(draws)), ids, fields.get("rate", 0.3), fields.get("span_mean", 3.0))
    source = SPOILERS[noise](text, *options) if noise in SPOILERS else PARTERS[noise](text, *options)[0]
    shown = np.where(ids.ordinary[source.tokens], source.tokens - N_SPECIAL, -1)
    return Counter(map(tuple, sequences(shown, np.append(source.starts, len(shown)))))


def is_even(found: Counter[tuple[int, ...]], kinds: int) -> bool:
    """Whether as many different ones were seen, equally often (within five standard deviations)."""
    mean = sum(found.values()) / kinds
    return len(found) == kinds and all(abs(count - mean) < 5 * np.sqrt(mean) for count in found.values())


def test_every_order_turn_and_division_is_equally_likely() -> None:
    assert is_even(counted("permutation", 6, [2, 3]), 6)
    assert is_even(counted("rotation", 7, []), 7)
    assert is_even(counted("mass", 8, []), 5)
    assert is_even(counted("prefix", 6, []), 5)
    assert is_even(counted("spans", 8, [], rate=0.5, span_mean=2.0), 9)  # 4 seen and 4 hidden, each in two: 3 x 3
    assert is_even(counted("deletion", 5, [], rate=0.4), 10)
    assert is_even(counted("drop", 5, [], rate=0.4), 10)
    assert is_even(counted("masking", 5, [], rate=0.4), 10)


def test_repeated_noises_draw_anew() -> None:
    split, ids = distinct([400] * 50)
    batch = make_batch(
        split, ids, seed=0, first_row=0, n_rows=32, length=512, objective=asking("deletion+masking", rate=0.5)
    )
    pairs = unframed(batch, ids)
    assert sum(len(source) for source, _ in pairs) / sum(len(text) for _, text in pairs) == pytest.approx(0.5, abs=0.01)
    halves = [[token != ids.mask for token in source] for source, _ in pairs]
    first = [half[: len(half) // 2] for half in halves]
    assert sum(map(sum, first)) / sum(map(len, first)) == pytest.approx(0.5, abs=0.03)
    twice = make_batch(
        split, ids, seed=0, first_row=0, n_rows=32, length=512, objective=asking("deletion+deletion", rate=0.5)
    )
    pairs = unframed(twice, ids)
    assert sum(len(source) for source, _ in pairs) / sum(len(text) for _, text in pairs) == pytest.approx(
        0.25, abs=0.01
    )


def test_repeated_turns_are_not_the_same_turn() -> None:
    split, ids = distinct([400] * 50)
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=64, length=32, objective=asking("rotation+rotation"))
    turned = [source.index(text[0]) for source, text in unframed(batch, ids) if len(text) == 30]
    assert {turn % 2 for turn in turned} == {0, 1}  # twice the same turn of an even length is even


def test_a_mixture_hits_its_shares() -> None:
    split, ids = distinct([200] * 200)
    mixed = asking("deletion:0.7, rotation:0.2, prefix:0.1")
    batch = make_batch(split, ids, seed=0, first_row=0, n_rows=3000, length=32, objective=mixed)
    read, written = np.diff(source_of(batch).row_starts), np.diff(batch.row_starts)
    assert np.mean(written < 32) == pytest.approx(0.1, abs=0.02)
    assert np.mean((written == 32) & (read == 32)) == pytest.approx(0.2, abs=0.025)
    assert np.mean((written == 32) & (read < 32)) == pytest.approx(0.7, abs=0.03)
