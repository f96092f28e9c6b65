"""What changes over a training is what its recipe says, at every point of the budget."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bertkin.config import Train
from bertkin.errors import UserError
from bertkin.train.schedule import length_at, parse_lengths, rate_factor, rows_at

SCHEDULES = ("linear", "cosine", "wsd", "constant")
shares = st.floats(0, 1)


def train(**fields: Any) -> Train:
    plain = {"schedule": "linear", "warmup": 0.1, "decay": 0.3, "length": 128, "batch_tokens": 4096}
    return Train(**(plain | fields))


# The rate


@given(schedule=st.sampled_from(SCHEDULES), warmup=st.floats(0, 0.99), progress=st.floats(-1, 2), decay=shares)
def test_the_rate_is_a_share_of_its_peak(schedule: Any, warmup: float, progress: float, decay: float) -> None:
    factor = rate_factor(train(schedule=schedule, warmup=warmup, decay=decay), progress)
    assert 0 <= factor <= 1 and math.isfinite(factor)


@given(schedule=st.sampled_from(SCHEDULES), warmup=st.floats(0.01, 0.9), a=shares, b=shares)
def test_it_rises_through_the_warm_up_and_never_rises_after(schedule: Any, warmup: float, a: float, b: float) -> None:
    t = train(schedule=schedule, warmup=warmup)
    a, b = sorted((a, b))
    if b < warmup:
        assert rate_factor(t, a) <= rate_factor(t, b)
    elif a >= warmup:
        assert rate_factor(t, a) >= rate_factor(t, b)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_step_moves_and_the_peak_is_where_the_warm_up_ends(schedule: Any) -> None:
    t = train(schedule=schedule)
    assert 0 < rate_factor(t, 0.0) < 0.02
    assert rate_factor(t, 0.05) == pytest.approx(0.5, abs=0.01)
    assert rate_factor(t, 0.1) == pytest.approx(1.0)
    assert rate_factor(train(schedule=schedule, warmup=0.0), 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_all_but_the_constant_end_at_nothing(schedule: Any) -> None:
    assert rate_factor(train(schedule=schedule), 1.0) == pytest.approx(0.0, abs=1e-12)
    assert rate_factor(train(schedule=schedule), 7.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "middle", "late"),
    [
        ("linear", 0.5, 0.25),
        ("cosine", 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)),
        ("constant", 1.0, 1.0),
        ("wsd", 1.0, 0.225 / 0.3),
    ],
)
def test_shapes_half_way_and_three_quarters_after_the_warm_up(schedule: Any, middle: float, late: float) -> None:
    t = train(schedule=schedule)
    assert rate_factor(t, 0.55) == pytest.approx(middle)
    assert rate_factor(t, 0.775) == pytest.approx(late)


def test_a_decay_of_nothing_falls_at_the_very_end() -> None:
    t = train(schedule="wsd", decay=0.0)
    assert rate_factor(t, 0.999) == 1.0 and rate_factor(t, 1.0) == 0.0


# The curriculum


@given(parts=st.lists(st.tuples(st.integers(8, 4096), st.integers(1, 50)), min_size=1, max_size=6), progress=shares)
def test_each_length_has_its_share_of_the_budget(parts: list[tuple[int, int]], progress: float) -> None:
    total = sum(weight for _, weight in parts)
    text = ",".join(f"{length}:{weight / total!r}" for length, weight in parts)
    stages = parse_lengths(train(lengths=text))
    assert [length for length, _ in stages] == [length for length, _ in parts]
    ends = [sum(weight for _, weight in parts[: i + 1]) / total for i in range(len(parts))]
    assume(all(abs(progress - end) > 1e-9 for end in ends))
    assert length_at(stages, progress) == next(
        length for (length, _), end in zip(parts, ends, strict=True) if progress < end
    )


def test_without_a_curriculum_the_length_is_the_length() -> None:
    assert parse_lengths(train()) == [(128, 1.0)]
    assert length_at([(128, 1.0)], 0.0) == length_at([(128, 1.0)], 1.0) == 128


def test_the_last_length_lasts_to_the_end_and_beyond() -> None:
    stages = parse_lengths(train(lengths="128:0.7, 256:0.3"))
    assert [length_at(stages, p) for p in (0, 0.69, 0.7, 1.0, 1.5)] == [128, 128, 256, 256, 256]


NO_CURRICULA = """128  128:  :1  128:a  a:1  128:1,  128:0.5;256:0.5  128:0.5,256:0.4  4:1  -128:1  128:0,256:1
    128:nan  128:inf  128:1.5,256:-0.5  128.0:1  128:0.5:3,256:0.5"""


@pytest.mark.parametrize("text", [*NO_CURRICULA.split(), " "])
def test_what_is_no_curriculum_is_a_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--train\.lengths") as caught:
        parse_lengths(train(lengths=text))
    assert "\n" not in str(caught.value)


@given(text=st.text(st.sampled_from("0123456789:.,-einf "), min_size=1, max_size=20))
def test_any_text_is_a_curriculum_or_a_line(text: str) -> None:
    try:
        stages = parse_lengths(train(lengths=text))
    except UserError:
        return
    assert math.isclose(sum(share for _, share in stages), 1, rel_tol=1e-5)
    assert all(length >= 8 and share > 0 for length, share in stages)


# The batch


def test_a_batch_keeps_its_tokens_whatever_the_length() -> None:
    assert [rows_at(train(), length, 0.0) for length in (64, 128, 512, 4096, 8192)] == [64, 32, 8, 1, 1]


@given(ramp=st.floats(0.01, 0.99), a=shares, b=shares, tokens=st.integers(1, 1 << 20))
def test_the_ramp_grows_from_a_quarter_to_the_whole(ramp: float, a: float, b: float, tokens: int) -> None:
    t = train(batch_ramp=ramp, batch_tokens=tokens)
    full = max(1, tokens // 128)
    a, b = sorted((a, b))
    assert 1 <= rows_at(t, 128, a) <= rows_at(t, 128, b) <= full
    assert rows_at(t, 128, 0.0) == max(1, round(full / 4))
    assert all(rows_at(t, 128, p) == full for p in (ramp, 1.0))


def test_the_ramp_is_even() -> None:
    sizes = [rows_at(train(batch_ramp=0.5, batch_tokens=100 * 128), 128, p / 100) for p in range(51)]
    assert sizes[0] == 25 and sizes[-1] == 100
    assert all(1 <= after - before <= 2 for before, after in pairwise(sizes))
