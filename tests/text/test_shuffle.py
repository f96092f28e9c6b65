"""Draws are hashes of what they are for: the same always, and as good as random."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bertkin.text.shuffle import below, mix, noise, permute, unit

seeds = st.integers(0, 2**63 - 1)


@given(st.integers(1, 3000), seeds)
def test_a_permutation_reaches_every_place_once(size: int, seed: int) -> None:
    places = permute(np.arange(size), size, mix(seed))
    assert np.array_equal(np.sort(places), np.arange(size))


@given(st.integers(2, 10**12), seeds, st.data())
def test_one_element_of_a_permutation_needs_none_of_the_others(size: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = permute(index, size, mix(seed))
    assert together.min() >= 0
    assert together.max() < size
    assert np.array_equal(together, [permute(index[i : i + 1], size, mix(seed))[0] for i in range(len(index))])


def test_permutations_of_different_epochs_differ_and_do_not_keep_neighbours() -> None:
    one, two = (permute(np.arange(10_000), 10_000, mix(7, epoch)) for epoch in (0, 1))
    assert np.mean(one == two) < 0.01
    assert np.mean(np.abs(np.diff(one)) == 1) < 0.01
    assert abs(np.corrcoef(one, np.arange(10_000))[0, 1]) < 0.05


def test_keys_may_differ_within_one_call() -> None:
    index, epochs = np.arange(300) % 100, np.arange(300) // 100
    mixed = permute(index, 100, mix(3, epochs))
    for epoch in range(3):
        assert np.array_equal(mixed[epochs == epoch], permute(np.arange(100), 100, mix(3, epoch)))


@given(seeds, seeds)
def test_keys_depend_on_the_order_of_their_parts(a: int, b: int) -> None:
    assert (mix(a, b) == mix(b, a)).all() == (a == b)


def test_noise_is_uniform_and_neighbouring_counters_are_independent() -> None:
    draws = unit(noise(mix(1), np.arange(100_000)))
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02


@given(st.integers(1, 2**50), seeds)
def test_below_stays_below(n: int, seed: int) -> None:
    draws = below(noise(mix(seed), np.arange(50)), n)
    assert draws.min() >= 0
    assert draws.max() < n
    assert below(np.array([2**64 - 1], np.uint64), n)[0] == n - 1
