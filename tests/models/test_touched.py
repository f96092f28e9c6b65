"""The gradient of a table of embeddings: dense and right for everybody, cheap for the optimiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertkin.config import Train
from bertkin.models import kernels, ops, touched
from bertkin.train.optim import Optimizer

pytestmark = pytest.mark.skipif(kernels.get() is None, reason="needs the kernels")
ROWS, COLS = 37, 24


class Reader(nn.Module):
    """A table whose gradient is looked after, or an ordinary parameter."""

    def __init__(self, dtype: torch.dtype, *, kept: bool) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(1)).to(dtype))
        self.kept = kept

    def learn(self, ids: torch.Tensor) -> None:
        rows = ops.embed(ids, self.embeddings) if self.kept else self.embeddings[ids]
        (rows.float() * torch.arange(1, COLS + 1)).square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@given(
    steps=st.lists(
        st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=9), min_size=1, max_size=3), max_size=6
    )
)
@settings(max_examples=25, deadline=None)
def test_what_is_learnt_is_that_of_a_whole_gradient(
    dtype: torch.dtype, optimizer: str, steps: list[list[list[int]]]
) -> None:
    """Whatever rows a step names, in one part of a batch or several, and whatever it named before."""
    train = Train(steps=9, lr=0.1, beta2=0.999, clip=0.5, weight_decay=0.1, optimizer=optimizer)  # type: ignore[arg-type]
    sides = [Reader(dtype, kept=kept) for kept in (True, False)]
    optimizers = [Optimizer(side, train) for side in sides]
    for parts in steps:
        norms = []
        for side, one in zip(sides, optimizers, strict=True):
            for ids in parts:
                side.learn(torch.tensor(ids))
            norms.append(one.gradient_norm())
        ours, theirs = (side.embeddings.grad for side in sides)
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
        assert norms[0] == pytest.approx(norms[1], rel=0.01 if dtype == torch.bfloat16 else 1e-5)
        sides[
            1
        ].embeddings.grad = ours.clone()  # sums of bfloat16 numbers round otherwise: let both learn from the same
        for side, one in zip(sides, optimizers, strict=True):
            one.step(1.0, norms[0])
            assert side.embeddings.grad is None
        assert torch.equal(optimizers[0].slots[0].master, optimizers[1].slots[0].master)


def test_the_next_step_has_the_same_memory_with_nothing_in_it() -> None:
    side = Reader(torch.float32, kept=True)
    one = Optimizer(side, Train(steps=9, lr=0.1, beta2=0.999, weight_decay=0.0, optimizer="adamw"))
    side.learn(torch.tensor([3, 5, 3]))
    kept = touched.of(side.embeddings)
    assert kept is not None and kept.marks.nonzero().flatten().tolist() == [3, 5]
    one.step(1.0, one.gradient_norm())
    assert not kept.gradient.any() and not kept.marks.any()
    side.learn(torch.tensor([7]))
    assert touched.of(side.embeddings) is kept and kept.marks.nonzero().flatten().tolist() == [7]


def test_a_gradient_that_somebody_changed_is_read_as_a_whole() -> None:
    """Clipped, summed with another, filled with noise: torch counts, and the marks are no longer believed."""
    side = Reader(torch.float32, kept=True)
    one = Optimizer(side, Train(steps=9, lr=0.1, beta2=0.999, weight_decay=0.0, optimizer="adamw"))
    side.learn(torch.tensor([3]))
    assert side.embeddings.grad is not None
    side.embeddings.grad.add_(1.0)
    assert touched.of(side.embeddings) is None
    assert one.gradient_norm() == pytest.approx(float(side.embeddings.grad.norm()))
    before = side.embeddings.detach().clone()
    one.step(1.0, 1.0)
    assert (side.embeddings != before).any(1).all()
    side.learn(torch.tensor([4]))
    assert side.embeddings.grad.any(1).nonzero().flatten().tolist() == [4]


def test_a_gradient_that_nobody_cleared_is_left_to_whoever_has_it() -> None:
    """As with another optimiser: the next gradient does not overwrite the last one."""
    side = Reader(torch.float32, kept=True)
    side.learn(torch.tensor([3]))
    first = side.embeddings.grad
    assert first is not None
    copy = first.clone()
    side.embeddings.grad = None
    side.learn(torch.tensor([4]))
    assert torch.equal(first, copy) and side.embeddings.grad is not first
