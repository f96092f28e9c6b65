"""The products of a linear layer: right at any size, to the bit whatever the threads, and torch's where ours are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from bertkin.models import fused, kernels, ops, products

pytestmark = pytest.mark.usefixtures("multiplied_by")

sizes = st.integers(products.THIN, 200) | st.sampled_from([256, 257, 383, 640])
needs_kernel = pytest.mark.skipif(not kernels.has_dots(), reason="needs AVX-512 with bf16 dot products")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(found: Tensor, exact: Tensor) -> bool:
    """Within a rounding to bfloat16 of the exact numbers, or of the size of what float32 sums lose."""
    lost = 1e-6 * float(exact.abs().max())
    return bool(((found.double() - exact).abs() <= exact.abs() * 2**-8 + lost).all())


@settings(deadline=None, max_examples=60)
@given(rows=sizes, out=sizes, into=sizes)
@example(rows=100, out=3001, into=64)  # a vocabulary
@example(rows=1153, out=65, into=33)  # k in steps, as are the next two
@example(rows=33, out=65, into=2001)
@example(rows=33, out=1999, into=1500)
@example(rows=362, out=384, into=1536)  # two blocks and a half of what is usual
def test_products_are_those_of_float64_rounded_once(rows: int, out: int, into: int) -> None:
    x, w, g, bias, start = draw(rows, into), draw(out, into), draw(rows, out), draw(out), draw(out, into)
    wide = [t.double() for t in (x, w, g, bias, start)]
    sums = torch.empty(out)
    assert close(products.forward(x, w), wide[0] @ wide[1].T)
    assert close(products.forward(x, w, bias), wide[0] @ wide[1].T + wide[3])
    assert close(products.input_gradient(g, w), wide[2] @ wide[1])
    assert close(products.weight_gradient(g, x, sums=sums), wide[2].T @ wide[0])
    assert torch.allclose(sums.double(), wide[2].sum(0), rtol=1e-5, atol=1e-4)
    assert close(products.weight_gradient(g, x, into=start.clone()), wide[2].T @ wide[0] + wide[4])


@needs_kernel
def test_products_are_the_same_to_the_bit_whatever_the_number_of_threads() -> None:
    x, w, g = draw(1300, 161), draw(391, 161), draw(1300, 391)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            found.append((products.forward(x, w), products.input_gradient(g, w), products.weight_gradient(g, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_kernel
@pytest.mark.parametrize("vocab", [33, 300, 384, 700, 704])
def test_powers_of_logits_are_made_inside_their_product(vocab: int) -> None:
    x, table, rows = 0.3 * draw(70, 64), 0.3 * draw(vocab, 64), torch.arange(70)
    targets, logits = rows % vocab, products.forward(x, table)
    shift, powers = logits[rows, targets].float() + 0.5, torch.empty_like(logits)
    own, sums, tops = products.exponentials(x, table, targets, shift, powers)
    exact = (logits.double() - shift[:, None]).exp()
    assert torch.equal(own, logits[rows, targets].float())
    assert torch.equal(tops, logits.float().amax(1))
    assert torch.allclose(sums.double(), exact.sum(1), rtol=1e-5)
    assert close(powers, exact)


@needs_kernel
def test_what_lies_after_an_odd_row_is_never_read_into_it() -> None:
    room = torch.full((40 * 33 + 1,), float("nan"), dtype=torch.bfloat16)
    x, w = room[:-1].view(40, 33), draw(50, 33)
    x.copy_(draw(40, 33, seed=1))
    assert products.forward(x, w).isfinite().all()


@needs_kernel
def test_feed_forward_bends_as_its_parts_would() -> None:
    x, up, down, b1, b2 = (draw(*s).requires_grad_() for s in [(70, 64), (130, 64), (64, 130), (130,), (64,)])
    assert products.usable(x, up, down)
    ours = fused.FeedForward.apply(x, up, b1, down, b2, kernels.BENDS["gelu"])
    theirs = ops.linear(ops.gelu(ops.linear(x, up, b1)), down, b2)
    assert torch.equal(ours, theirs)
    g = draw(70, 64, seed=2)
    for a, b in zip(*(torch.autograd.grad(y, (x, up, down, b1, b2), g) for y in (ours, theirs)), strict=True):
        assert torch.equal(a, b)
    exact = gelu(x.double() @ up.double().T + b1.double()) @ down.double().T + b2.double()
    assert (ours.double() - exact).norm() < 0.01 * exact.norm()


def test_a_frozen_weight_gets_no_gradient_but_its_bias_does() -> None:
    x, w, bias = draw(40, 64), draw(48, 64), draw(48).requires_grad_()
    ops.linear(x, w, bias).sum().backward()
    assert w.grad is None and bias.grad is not None and torch.equal(bias.grad, torch.full_like(bias, 40))
