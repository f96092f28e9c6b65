"""Feed-forward blocks in products of bytes: what their numbers are, which models have them, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, relu

from bertkin.errors import UserError
from bertkin.models import kernels
from bertkin.models.int8 import Int8FeedForward, in_bytes
from bertkin.models.presets import build
from bertkin.models.transformer import FeedForward
from bertkin.text.layout import Layout

from .support import lively, shape

needs_dots = pytest.mark.skipif(not kernels.has_dots(), reason="no bfloat16 products here")


def block(hidden: int, wide: int, kind: Any = "gelu") -> FeedForward:
    torch.manual_seed(0)
    made = FeedForward(
        replace(build(shape("bert", hidden=hidden, heads=2, intermediate=wide)).architecture, feed_forward=kind)
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def by_row(x: Tensor) -> Tensor:
    """Each row in 256 steps, from its smallest number to its largest."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = ((high - low) / 255).clamp(min=1e-30)
    return ((x - low) / scale).round() * scale + low


def by_output(w: Tensor) -> Tensor:
    """Each output of a weight in 255 steps about zero."""
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / scale).round() * scale


@needs_dots
@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 60),
    hidden=st.sampled_from([64, 128]),
    wide=st.sampled_from([64, 192]),
    kind=st.sampled_from(["gelu", "relu"]),
    shift=st.sampled_from([0.0, -3.0, 40.0]),
)
def test_numbers_are_those_of_rounded_weights_and_rows(
    rows: int, hidden: int, wide: int, kind: str, shift: float
) -> None:
    """However many rows there are, and wherever their numbers lie."""
    exact = block(hidden, wide, kind)
    x = (torch.randn(rows, hidden, generator=torch.Generator().manual_seed(rows)) + shift).bfloat16()
    with torch.no_grad():
        found = Int8FeedForward(exact)(x)
        first, second = (bias.bfloat16().float() for bias in (exact.up.bias, exact.down.bias))
        bent = (gelu if kind == "gelu" else relu)(by_row(x.float()) @ by_output(exact.up.weight).T + first)
        aim = by_row(bent.bfloat16().float()) @ by_output(exact.down.weight).T + second
    # A number near the middle of two steps may go to the other one, where sums differ in their last bit.
    torch.testing.assert_close(found.float(), aim, rtol=0.01, atol=0.01 * float(aim.abs().max()))


@needs_dots
def test_rows_are_the_same_to_the_bit_whatever_stands_beside_them_and_whatever_the_threads() -> None:
    made, x, before = Int8FeedForward(block(64, 128)), torch.randn(101, 64).bfloat16(), torch.get_num_threads()
    with torch.no_grad():
        whole = made(x)
        assert torch.equal(torch.cat([made(x[:1]), made(x[1:50]), made(x[50:])]), whole)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(made(x), whole)
        finally:
            torch.set_num_threads(before)


@needs_dots
def test_what_is_no_number_stays_none() -> None:
    """A damaged model is seen as such, and does not answer with numbers that look like some."""
    made, x = Int8FeedForward(block(64, 64)), torch.zeros(3, 64, dtype=torch.bfloat16)
    x[0, 5], x[2, 60] = float("nan"), float("inf")
    with torch.no_grad():
        found = made(x)
    assert not found[0].isfinite().any() and found[1].isfinite().all() and not found[2].isfinite().any()


@needs_dots
@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "gpt2", "bart"])
def test_states_are_near_those_of_float32(family: str) -> None:
    exact = lively(build(shape(family, hidden=64, heads=2, intermediate=256))).eval()
    model = in_bytes(copy.deepcopy(exact))
    blocks = [module for module in model.modules() if isinstance(module, Int8FeedForward)]
    assert len(blocks) == sum(isinstance(module, FeedForward) for module in exact.modules())
    ids, layout = torch.arange(5, 29), Layout.from_lengths([9, 15]).to("cpu")
    stacks = [one.stack if one.source is None else one.source for one in (exact, model)]
    with torch.inference_mode():
        aim, found = (stack(ids, layout).float() for stack in stacks)
    assert float(torch.cosine_similarity(aim, found).min()) > 0.99


@pytest.mark.parametrize("sizes", [{"family": "modern"}, {"hidden": 48}], ids=["gated", "narrow"])
def test_a_model_without_such_blocks_is_refused(sizes: dict[str, Any]) -> None:
    family = sizes.pop("family", "bert")
    with pytest.raises(UserError, match="int8 needs"):
        in_bytes(build(shape(family, **({"hidden": 64, "heads": 2, "intermediate": 128} | sizes))))
