"""The three matrix products of a linear layer, forward and back.

In bfloat16, where the processor has dot products for it, they go through the kernel of `gemm.hpp`, or, forward and with few
rows, as when a text is written token by token, through that of `thin.hpp`; otherwise, and where a matrix is too thin for
the kernel's tiles, through torch. All sum in float32 and round once.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkin.models import kernels

THIN = 32
"""Fewer rows, columns or terms than this are left to torch."""
BEND, TIMES_SLOPE = 1, 2


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [rows, in], [out, in] to [rows, out], which may be given (where there is no bias)."""
    if len(x) < THIN and out is None and _thin(x, weight, bias):
        y = x.new_empty(len(x), len(weight))
        _library().bk_thin(*_sizes(x, weight), x.data_ptr(), weight.data_ptr(), _at(bias), y.data_ptr())
        return y
    if not _ours(x, weight, bias):
        return F.linear(x, weight, bias) if out is None else torch.mm(x, weight.t(), out=out)
    y = x.new_empty(len(x), len(weight)) if out is None else out
    _product(y, x, False, weight, False, bias=bias)
    return y


def forward_bent(
    x: Tensor, weight: Tensor, bias: Tensor | None, kind: int, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """The same, and what one of `kernels.BENDS` makes of it while it is in cache, in its place if it need not be kept. Only
    where `usable`."""
    y = x.new_empty(len(x), len(weight))
    bent = torch.empty_like(y) if keep else y
    _product(y, x, False, weight, False, bias=bias, then=BEND, kind=kind, other=bent)
    return y, bent


def input_gradient(g: Tensor, weight: Tensor, *, bent_from: Tensor | None = None, kind: int = 0) -> Tensor:
    """`g @ weight`: [rows, out], [out, in] to [rows, in]; times the slope of a bend at `bent_from` [rows, in], if given
    (only where `usable`)."""
    if not _ours(g, weight):
        return g @ weight
    dx = g.new_empty(len(g), weight.shape[1])
    then = 0 if bent_from is None else TIMES_SLOPE
    _product(dx, g, False, weight, True, then=then, kind=kind, other=bent_from)
    return dx


def weight_gradient(g: Tensor, x: Tensor, *, into: Tensor | None = None, sums: Tensor | None = None) -> Tensor:
    """`g.T @ x`: [rows, out], [rows, in] to [out, in], added to `into` if given; `sums`, float32 [out], receives those of
    g's columns, the gradient of a bias."""
    if not _ours(g, x):
        library = kernels.get() if kernels.usable(g) else None
        if sums is not None and library is not None:
            library.bk_column_sum(kernels.TYPES[g.dtype], g.data_ptr(), sums.data_ptr(), *g.shape)
        elif sums is not None:
            torch.sum(g, 0, dtype=torch.float32, out=sums)
        return g.t() @ x if into is None else into.addmm_(g.t(), x)
    dw = g.new_empty(g.shape[1], x.shape[1]) if into is None else into
    _product(dw, g, True, x, True, add=into is not None, sums=sums)
    return dw


def exponentials(
    hidden: Tensor, table: Tensor, targets: Tensor, shift: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the logits `hidden @ table.T`, e to the power of each less the `shift` (float32 [rows]) of its row, into `out`
    [rows, vocab]; and in float32 [rows] the targets' logits, the sum of each row's powers and its largest logit. Only where
    `usable`."""
    (rows, k), vocab = hidden.shape, len(table)
    own = torch.empty(rows, dtype=torch.float32)
    sums = torch.zeros(rows, -(-vocab // 256))
    tops = torch.full_like(sums, -torch.inf)
    arguments = (hidden, table, targets, shift, out, own, sums, tops)
    _library().bk_exponentials(rows, vocab, k, *(x.data_ptr() for x in arguments))
    return own, sums.sum(1), tops.amax(1)


def usable(x: Tensor, *weights: Tensor) -> bool:
    """Whether the kernel takes all products of layers with these weights [out, in] after the other, from x [rows, in] on."""
    return all(_ours(x, weight) for weight in weights) and len(x) >= THIN


def _thin(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel for few rows takes these."""
    if x.dtype != torch.bfloat16 or not x.is_cpu or not x.is_contiguous() or x.ndim != 2 or not len(x):
        return False
    if weight.dtype != x.dtype or not weight.is_contiguous() or len(weight) < 4:
        return False
    return (bias is None or (bias.dtype == x.dtype and bias.is_contiguous())) and kernels.has_dots()


def _library() -> CDLL:
    library = kernels.get()
    assert library is not None
    return library


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return len(x), *weight.shape


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        return False
    return _fits(x) and _fits(weight) and kernels.has_dots()


def _fits(m: Tensor) -> bool:
    return m.dtype is torch.bfloat16 and m.is_cpu and m.ndim == 2 and min(m.shape) >= THIN and m.is_contiguous()


def _product(
    c: Tensor,
    a: Tensor,
    a_down: bool,
    b: Tensor,
    b_down: bool,
    *,
    bias: Tensor | None = None,
    add: bool = False,
    sums: Tensor | None = None,
    then: int = 0,
    kind: int = 0,
    other: Tensor | None = None,
) -> None:
    """c = a b, each of a and b with the summed dimension down its rows or along them."""
    (m, n), k = c.shape, a.shape[0 if a_down else 1]
    left, right = (a.data_ptr(), a.shape[1], a_down), (b.data_ptr(), b.shape[1], b_down)
    out = (c.data_ptr(), _at(bias), add, _at(sums))
    _library().bk_product(m, n, k, *left, *right, *out, then, kind, _at(other))
