"""Adaptive masking hides what is predicted badly more often, and what it knows adds up from shares of a batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.config import Objective
from bertkin.errors import UserError
from bertkin.objectives.adaptive import MEMORY, Difficulty, Tally
from bertkin.objectives.make import check_objective, make_batch
from bertkin.objectives.masking import choose, quota
from bertkin.text.shuffle import mix, noise
from memory_split import realistic, seeds, specials_of

rates = st.floats(0.05, 0.95)


@given(seeds, rates)
def test_weights_that_are_all_alike_change_nothing(seed: int, rate: float) -> None:
    groups, row_starts = np.arange(400) // 2, np.arange(11) * 40
    bits, maskable = noise(mix(seed), np.arange(400)), np.random.default_rng(seed).random(400) < 0.9
    plain = choose(groups, maskable, row_starts, rate, bits)
    assert np.array_equal(choose(groups, maskable, row_starts, rate, bits, np.ones(400)), plain)


@given(seeds, rates)
def test_every_row_asks_its_share_whatever_the_weights(seed: int, rate: float) -> None:
    generator = np.random.default_rng(seed)
    maskable, row_starts = generator.random(400) < 0.9, np.arange(11) * 40
    weights = 1 + 50 * generator.random(400) ** 4
    asked = choose(np.arange(400), maskable, row_starts, rate, noise(mix(seed), np.arange(400)), weights)
    assert asked.reshape(10, 40).sum(1).tolist() == quota(rate, maskable.reshape(10, 40).sum(1)).tolist()
    assert not asked[~maskable].any()


@pytest.mark.parametrize("weight", [2.0, 5.0])
def test_one_of_many_is_drawn_in_proportion_to_its_weight(weight: float) -> None:
    n = 20_000
    weights = np.tile([weight, *[1.0] * 9], n)
    bits = noise(mix(3), np.arange(10 * n))
    asked = choose(np.arange(10 * n), np.ones(10 * n, np.bool_), np.arange(n + 1) * 10, 0.1, bits, weights)
    assert asked.reshape(n, 10).mean(0)[0] == pytest.approx(weight / (weight + 9), abs=0.01)


def test_a_unit_has_the_mean_weight_of_its_tokens() -> None:
    n = 20_000
    weights = np.tile([0.5, 1.5, 1.0, 1.0, 3.0, 3.0], n)
    bits, groups = noise(mix(4), np.arange(6 * n)), np.arange(6 * n) // 2
    asked = choose(groups, np.ones(6 * n, np.bool_), np.arange(n + 1) * 6, 1 / 3, bits, weights)
    assert asked.reshape(n, 3, 2)[:, :, 0].mean(0) == pytest.approx([0.2, 0.2, 0.6], abs=0.01)


@given(seeds, st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
def test_what_was_right_adds_up_from_any_shares(seed: int, n: int, cuts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    targets, correct = generator.integers(0, 12, n), generator.random(n) < 0.5
    whole = Tally(targets)
    whole.add(targets, correct)
    parts = Tally(targets)
    for share in np.split(np.arange(n), sorted(min(cut, n) for cut in cuts)):
        parts.add(targets[share], correct[share])
    assert parts.right.tolist() == whole.right.tolist() == [int(correct[targets == i].sum()) for i in whole.ids]
    assert whole.asked.tolist() == [int((targets == i).sum()) for i in whole.ids]


def test_the_share_of_errors_is_a_running_mean() -> None:
    known = Difficulty(4)
    assert known.errors.tolist() == [1, 1, 1, 1], "what was never asked may well be hard"
    for _ in range(500):
        known.learn(np.array([1, 2]), np.array([4, 1]), [3, 1])
    assert known.errors == pytest.approx([1, 0.25, (1 - 1 / MEMORY) ** 500, 1], abs=1e-5)
    assert known.weights(4.0) == pytest.approx(1 + 4 * known.errors)
    once, often = Difficulty(1), Difficulty(1)
    once.learn(np.array([0]), np.array([6]), [0])
    for right in (1, 0, 1):
        often.learn(np.array([0]), np.array([2]), [right])
    assert once.errors[0] == 1 > often.errors[0] > 0.5


def test_hard_tokens_are_hidden_more_often_and_the_share_stays() -> None:
    split, ids = realistic(100), specials_of(2000)
    objective = Objective(unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
    known = Difficulty(2000)
    known.errors[::2] = 0.0
    shares = []
    for strength in (0.0, 3.0):
        weighted = dataclasses.replace(ids, weights=known.weights(strength))
        batch = make_batch(split, weighted, seed=0, first_row=0, n_rows=64, length=128, objective=objective)
        shares.append((batch.targets % 2).mean())
        assert len(batch.asked) / batch.n_tokens == pytest.approx(0.15, abs=0.01)
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[1] == pytest.approx(0.77, abs=0.05)  # about 4 to 1, less what a row runs out of


@pytest.mark.parametrize(
    ("fields", "family", "message"),
    [
        ({"kind": "causal"}, "gpt2", "causal hides no tokens"),
        ({"kind": "masked", "static": True}, "bert", "static masks are drawn once"),
    ],
)
def test_what_cannot_adapt_is_refused(fields: dict[str, object], family: str, message: str) -> None:
    objective = Objective(unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none", adaptive=1.0)
    with pytest.raises(UserError, match=message):
        check_objective(dataclasses.replace(objective, **fields), family)  # type: ignore[arg-type]
