"""Masks hide the share that was asked for, in whole units, and never a special token."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.objectives.masking import (
    LONGEST_PHRASE,
    LONGEST_SPAN,
    LONGEST_WORD,
    Unit,
    choose,
    corrupt,
    edges_of,
    quota,
    rate_at,
    units,
)
from bertkin.text.batches import BEGINS, GOES_ON, Bools, Ints, Specials, rows_of
from bertkin.text.shuffle import mix, noise
from memory_split import seeds, specials_of

VOCAB = 300
kinds: st.SearchStrategy[Unit] = st.sampled_from(["token", "word", "span"])
rates = st.floats(0.01, 1.0)


def rows(seed: int, n_rows: int = 6, length: int = 40, sequences: int = 3) -> tuple[Ints, Ints, Ints, Specials]:
    """Random rows of a few sequences each: ids, sequence starts, row starts, specials."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, VOCAB, (n_rows, length))
    starts = []
    for row in range(n_rows):
        cuts = np.sort(generator.choice(np.arange(3, length - 3, 4), sequences - 1, replace=False))
        begins = np.append(0, cuts)
        ids[row, begins], ids[row, np.append(cuts, length) - 1] = 2, 3
        starts.append(begins + row * length)
    ids[generator.random(ids.shape) < 0.03] = 1  # [UNK]
    return ids.ravel(), np.concatenate(starts), np.arange(n_rows + 1) * length, specials_of(VOCAB)


def replace(seed: int, ids: Ints, where: Ints, specials: Specials, *, hide: float, swap: float) -> Ints:
    fates, draws = noise(mix(seed, 3), where), noise(mix(seed, 4), where)
    return corrupt(ids, where, specials, fates, draws, mask_share=hide, random_share=swap)


def mask(seed: int, kind: Unit, rate: float) -> tuple[Ints, Ints, Ints, Ints, Specials, Bools]:
    ids, sequence_starts, row_starts, specials = rows(seed)
    where = np.arange(len(ids))
    groups = units(ids, sequence_starts, specials, kind, bits=noise(mix(seed, 1), where))
    asked = choose(groups, specials.ordinary[ids], row_starts, rate, noise(mix(seed, 2), where))
    return ids, sequence_starts, row_starts, groups, specials, asked


@given(seeds, kinds, rates)
def test_special_tokens_are_never_asked(seed: int, kind: Unit, rate: float) -> None:
    ids, *_, specials, asked = mask(seed, kind, rate)
    assert not np.isin(ids[asked], specials.special_ids).any()


@given(seeds, rates)
def test_single_tokens_are_asked_at_exactly_the_rate_in_every_row(seed: int, rate: float) -> None:
    ids, _, row_starts, _, specials, asked = mask(seed, "token", rate)
    row = rows_of(row_starts)
    maskable = np.bincount(row[specials.ordinary[ids]])
    assert np.bincount(row[asked], minlength=len(maskable)).tolist() == quota(rate, maskable).tolist()


@given(seeds, kinds, rates)
def test_no_row_asks_more_than_its_share_nor_leaves_out_a_unit_that_fits(seed: int, kind: Unit, rate: float) -> None:
    ids, _, row_starts, groups, specials, asked = mask(seed, kind, rate)
    maskable = specials.ordinary[ids]
    row = rows_of(row_starts)
    share = quota(rate, np.bincount(row[maskable]))
    room = share - np.bincount(row[asked], minlength=len(share))
    assert (room >= 0).all()
    sizes = np.bincount(groups[maskable], minlength=groups[-1] + 1)
    free = maskable & ~asked
    assert (sizes[groups[free]] > room[row[free]]).all()


@given(seeds, kinds, rates)
def test_units_are_asked_whole(seed: int, kind: Unit, rate: float) -> None:
    ids, _, _, groups, specials, asked = mask(seed, kind, rate)
    maskable = specials.ordinary[ids]
    for unit in np.unique(groups[asked]):
        assert asked[(groups == unit) & maskable].all()


@given(seeds)
def test_a_word_runs_from_its_start_to_the_next(seed: int) -> None:
    ids, sequence_starts, _, specials = rows(seed)
    groups = units(ids, sequence_starts, specials, "word")
    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    lengths = np.diff(np.append(heads, len(ids)))
    assert lengths.max() <= LONGEST_WORD
    inside = np.setdiff1d(np.arange(len(ids)), heads)
    assert not specials.word_starts[ids[inside]].any()
    assert not np.isin(inside, sequence_starts).any()
    assert not np.isin(ids[inside], specials.special_ids).any()
    for head, before in zip(heads[1:], lengths, strict=False):  # no word ends without a reason
        reasons = (
            specials.word_starts[ids[head]],
            not specials.ordinary[ids[head]],
            not specials.ordinary[ids[head - 1]],
            head in sequence_starts,
            before == LONGEST_WORD,
        )
        assert any(reasons)


@given(seeds, st.floats(1.0, 6.0))
def test_a_span_is_whole_words_of_one_sequence(seed: int, mean: float) -> None:
    ids, sequence_starts, _, specials = rows(seed)
    words = units(ids, sequence_starts, specials, "word")
    spans = units(ids, sequence_starts, specials, "span", bits=noise(mix(seed), np.arange(len(ids))), span_mean=mean)
    sequence = np.searchsorted(sequence_starts, np.arange(len(ids)), side="right")
    for number in range(spans[-1] + 1):
        inside = spans == number
        assert len(set(sequence[inside])) == 1
        assert len(set(words[inside])) <= LONGEST_SPAN
        assert np.isin(words, words[inside]).sum() == inside.sum()
        assert inside.sum() == 1 or specials.ordinary[ids[inside]].all()


@pytest.mark.parametrize("mean", [1.5, 3.0, 3.8, 8.0])
def test_spans_have_the_mean_length_they_were_asked_for(mean: float) -> None:
    lengths = np.bincount(spans_of_words(60_000, mean))
    assert abs(lengths.mean() - mean) < 0.1
    assert lengths.max() == LONGEST_SPAN


def test_spans_of_mean_3_8_are_spanberts_geometric_ones() -> None:
    lengths = np.bincount(spans_of_words(200_000, 3.8))
    published = 0.2 * 0.8 ** np.arange(LONGEST_SPAN)  # p = 0.2, cut off at 10
    found = np.bincount(lengths, minlength=LONGEST_SPAN + 1)[1:] / len(lengths)
    assert np.abs(found - published / published.sum()).max() < 0.01


def spans_of_words(n: int, mean: float) -> Ints:
    ids, specials = np.full(n, 7), specials_of(VOCAB, word_start=1.0)
    return units(ids, np.array([0]), specials, "span", bits=noise(mix(1), np.arange(n)), span_mean=mean)


@given(seeds, st.sampled_from(["word", "phrase", "entity"]), rates)
def test_what_is_marked_as_one_is_hidden_as_one(seed: int, kind: Unit, rate: float) -> None:
    ids, sequence_starts, row_starts, specials = rows(seed)
    marks = np.random.default_rng(seed).choice(np.array([0, GOES_ON, BEGINS], np.uint8), len(ids), p=[0.3, 0.6, 0.1])
    groups = units(ids, sequence_starts, specials, kind, marks=marks)
    begins = np.append(True, np.diff(groups) > 0)
    words = np.append(True, np.diff(units(ids, sequence_starts, specials, "word")) > 0)
    ordinary = specials.ordinary[ids]
    apart = ~ordinary | np.append(True, ~ordinary[:-1])
    apart[sequence_starts] = True
    assert begins[apart].all()
    since = np.arange(len(ids)) - np.flatnonzero(begins)[groups]
    assert since.max() < LONGEST_PHRASE
    whole = since < LONGEST_PHRASE - 1  # beyond, a unit is divided
    assert np.array_equal(
        begins[1:][whole[:-1]], (words & (apart | (marks != GOES_ON)) | (marks == BEGINS))[1:][whole[:-1]]
    )
    hidden = choose(groups, ordinary, row_starts, rate, noise(mix(seed, 2), np.arange(len(ids))))
    joined = np.flatnonzero(~begins & ordinary)
    assert np.array_equal(hidden[joined], hidden[joined - 1])


@given(seeds, st.floats(1.0, 6.0), rates)
def test_the_edges_of_a_hidden_span_are_the_seen_tokens_beside_it(seed: int, mean: float, rate: float) -> None:
    ids, sequence_starts, row_starts, specials = rows(seed)
    where = np.arange(len(ids))
    groups = units(ids, sequence_starts, specials, "span", bits=noise(mix(seed, 1), where), span_mean=mean)
    hidden = choose(groups, specials.ordinary[ids], row_starts, rate, noise(mix(seed, 2), where))
    asked = np.flatnonzero(hidden)
    edges = edges_of(asked)
    assert edges.shape == (len(asked), 2)
    sequence = np.searchsorted(sequence_starts, where, side="right")
    for position, (before, after) in zip(asked, edges, strict=True):
        assert before < position < after
        assert hidden[before + 1 : after].all()
        assert not hidden[before] and not hidden[after]
        assert sequence[before] == sequence[position] == sequence[after]


def test_chosen_spans_side_by_side_have_edges_outside_both() -> None:
    assert edges_of(np.array([3, 4, 5, 8])).tolist() == [[2, 6], [2, 6], [2, 6], [7, 9]]
    assert edges_of(np.zeros(0, np.int64)).shape == (0, 2)


@given(seeds, kinds)
def test_words_and_spans_come_near_the_rate(seed: int, kind: Unit) -> None:
    ids, _, _, _, specials, asked = mask(seed, kind, 0.3)
    assert abs(asked.sum() / specials.ordinary[ids].sum() - 0.3) < 0.08  # the rows are short


@given(seeds, kinds, rates)
def test_a_rows_mask_does_not_depend_on_its_neighbours(seed: int, kind: Unit, rate: float) -> None:
    ids, _, row_starts, groups, specials, asked = mask(seed, kind, rate)
    bits = noise(mix(seed, 2), np.arange(len(ids)))
    for begin, end in pairwise(row_starts):
        own = slice(begin, end)
        alone = choose(groups[own], specials.ordinary[ids[own]], np.array([0, end - begin]), rate, bits[own])
        assert np.array_equal(alone, asked[own])


def test_every_token_is_equally_likely_to_be_asked() -> None:
    n = 2000
    maskable = np.ones(n * 20, np.bool_)
    bits = noise(mix(5), np.arange(n * 20))
    asked = choose(np.arange(n * 20), maskable, np.arange(n + 1) * 20, 0.15, bits).reshape(n, 20)
    assert np.abs(asked.mean(0) - 0.15).max() < 0.04


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_the_quota_is_the_nearest_number_and_never_none_of_some(rate: float, tokens: int) -> None:
    count = int(quota(rate, tokens))
    assert 0 <= count <= tokens
    assert abs(count - rate * tokens) <= 0.5 + 1e-9 or (count == 1 and rate * tokens < 0.5)
    assert count > 0 or rate == 0 or tokens == 0


def test_nothing_is_asked_at_rate_zero_or_of_a_row_without_text() -> None:
    specials = specials_of(VOCAB)
    ids, row_starts = np.array([2, 9, 9, 3, 2, 1, 1, 3]), np.array([0, 4, 8])
    bits = noise(mix(0), np.arange(8))
    maskable = specials.ordinary[ids]
    assert not choose(np.arange(8), maskable, row_starts, 0.0, bits).any()
    assert np.flatnonzero(choose(np.arange(8), maskable, row_starts, 1.0, bits)).tolist() == [1, 2]


def test_the_rate_goes_linearly_to_its_end() -> None:
    assert rate_at(0.7, 0.15) == 0.15
    assert [round(rate_at(p, 0.3, 0.15), 4) for p in (-1, 0, 0.5, 1, 2)] == [0.3, 0.3, 0.225, 0.15, 0.15]


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_only_asked_tokens_change_and_never_into_a_special_one(seed: int, hide: float, swap: float) -> None:
    ids, *_, specials, asked = mask(seed, "token", 0.3)
    where = np.flatnonzero(asked)
    before = ids.copy()
    seen = replace(seed, ids, where, specials, hide=hide, swap=min(swap, 1 - hide))
    assert np.array_equal(ids, before)
    assert np.array_equal(seen[~asked], ids[~asked])
    assert np.isin(seen[where], np.append(specials.ordinary_ids, specials.mask)).all()


@pytest.mark.parametrize(("hide", "swap"), [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_of_the_replacement_rules_are_kept(hide: float, swap: float) -> None:
    specials = specials_of(5000)
    ids = np.full(50_000, 9)
    where = np.arange(50_000)
    seen = replace(9, ids, where, specials, hide=hide, swap=swap)
    masked, kept = seen == specials.mask, seen == 9
    assert abs(masked.mean() - hide) < 0.01
    assert abs(1 - masked.mean() - kept.mean() - swap) < 0.01
    if swap:
        drawn = seen[~masked & ~kept]
        assert len(np.unique(drawn)) > 0.6 * min(len(drawn), 5000)


def test_tokens_with_the_same_fate_share_their_rule_but_not_their_random_token() -> None:
    ids, where, specials = np.full(290, 9), np.arange(290), specials_of(VOCAB)
    fates, draws = np.repeat(noise(mix(4), np.arange(29)), 10), noise(mix(5), where)
    seen = corrupt(ids, where, specials, fates, draws, mask_share=0.5, random_share=0.5).reshape(29, 10)
    hidden = seen == specials.mask
    assert 0 < hidden.mean() < 1
    for part, gone in zip(seen, hidden, strict=True):
        assert gone.all() or (not gone.any() and len(set(part)) > 5)
