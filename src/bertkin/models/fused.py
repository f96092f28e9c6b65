"""The fused kernels as differentiable functions: the fast bodies of `ops` on the CPU (`looks` has attention's). The loss over a
vocabulary, which is there for memory's sake as well, works on GPUs, too.

Each class is one operation with its own backward pass, in float32 or bfloat16. They are called only where
`kernels.usable` says so; `ops` holds the eager twin that the tests compare with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bertkin.models import kernels, products, touched

CHUNK, GPU_CHUNK = 64 << 20, 1 << 30
"""Bytes of logits that are in memory at a time."""
FARTHEST = 1e20
"""Sums of powers of e above this are left to the cross entropy that looks for the largest logit first."""


def _call(name: str, like: Tensor, *arguments: Any) -> Any:
    """Call a kernel for the type of `like`; tensors become pointers."""
    library = kernels.get()
    assert library is not None
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    return getattr(library, f"bk_{name}")(kernels.TYPES[like.dtype], *plain)


class AddNorm(Function):
    """(residual + x, layer norm or root mean square norm of that), one pass over memory each way."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
    ) -> tuple[Tensor, Tensor]:
        rows, cols = residual.shape
        total = residual if x is None else torch.empty_like(residual)
        out = torch.empty_like(residual)
        mean, scale = (torch.empty(rows, dtype=torch.float32) for _ in range(2))
        _call("add_norm", residual, residual, x, weight, bias, total, out, mean, scale, rows, cols, eps, rms)
        ctx.save_for_backward(total, weight, mean, scale)
        ctx.has_x, ctx.has_bias, ctx.rms = x is not None, bias is not None, rms
        if x is None:
            # An input handed back as an output must be a new tensor for autograd.
            total = residual.view_as(residual)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_total, d_out = gradients
        total, weight, mean, scale = ctx.saved_tensors
        rows, cols = total.shape
        if d_out is None:
            return d_total, d_total if ctx.has_x else None, None, None, None, None
        d_in = torch.empty_like(total)
        d_weight = torch.empty(cols, dtype=torch.float32)
        d_bias = torch.empty(cols, dtype=torch.float32) if ctx.has_bias else None
        d_out = d_out.contiguous()
        d_total = None if d_total is None else d_total.contiguous()
        sizes = rows, cols, ctx.rms
        _call("add_norm_backward", total, d_out, d_total, total, weight, mean, scale, d_in, d_weight, d_bias, *sizes)
        d_bias = None if d_bias is None else d_bias.to(weight.dtype)
        return d_in, d_in if ctx.has_x else None, d_weight.to(weight.dtype), d_bias, None, None


class Linear(Function):
    """x @ weight.T + bias, the bias's gradient summed along with the weight's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen weight needs no gradient, and so what it read need not be kept.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return products.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = gradients[0].contiguous()
        dx = products.input_gradient(g, weight) if ctx.needs_input_grad[0] else None
        return dx, *_parameter_gradients(g, x, *ctx.needs_input_grad[1:])


class FeedForward(Function):
    """bend(x @ up.T + up_bias) @ down.T + down_bias; bent, each way, strip by strip as the products leave the cache."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, kind: int
    ) -> Tensor:
        ctx.kind = kind
        wide, bent = products.forward_bent(x, up, up_bias, kind)
        _, wants_up, _, wants_down, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_up else None, up, down, wide, bent if wants_down else None)
        return products.forward(bent, down, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, wide, bent = ctx.saved_tensors
        g = gradients[0].contiguous()
        d_wide = products.input_gradient(g, down, bent_from=wide, kind=ctx.kind)
        dx = products.input_gradient(d_wide, up) if ctx.needs_input_grad[0] else None
        of_up = _parameter_gradients(d_wide, x, *ctx.needs_input_grad[1:3])
        return dx, *of_up, *_parameter_gradients(g, bent, *ctx.needs_input_grad[3:5]), None


def _parameter_gradients(g: Tensor, x: Tensor | None, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """Those of the weight and of the bias, if wanted, of a layer that read x [rows, in] and was told g [rows, out]."""
    if not weight:
        return None, g.sum(0) if bias else None
    assert x is not None
    sums = torch.empty(g.shape[1], dtype=torch.float32) if bias else None
    return products.weight_gradient(g, x, sums=sums), None if sums is None else sums.to(g.dtype)


class Bend(Function):
    """One of `kernels.BENDS`, of any shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        y = torch.empty_like(x)
        _call("bend", x, kind, x, y, x.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call("bend_backward", x, ctx.kind, gradients[0].contiguous(), x, dx, x.numel())
        return dx, None


def choice(share: float) -> tuple[int, int, float]:
    """What decides which numbers are dropped, so that they can be told again: a seed (of torch's own generator), the bits
    below which one is, and the factor of the others."""
    return int(torch.randint(1 << 62, ())), min(round(share * (1 << 32)), (1 << 32) - 1), 1 / (1 - share)


class Drop(Function):
    """Zeros where chance says so; which, is drawn again from the same seed on the way back, and so never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.choice = choice(share)
        out = torch.empty_like(x)
        _call("drop", x, x, out, x.numel(), *ctx.choice)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        dx = torch.empty_like(gradients[0], memory_format=torch.contiguous_format)
        _call("drop", dx, gradients[0].contiguous(), dx, dx.numel(), *ctx.choice)
        return dx, None


class Gate(Function):
    """The first half, bent, times the second: [rows, 2 * cols] to [rows, cols]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        rows, cols = x.shape[0], x.shape[1] // 2
        y = x.new_empty(rows, cols)
        _call("gate", x, kind, x, y, rows, cols)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call("gate_backward", x, ctx.kind, gradients[0].contiguous(), x, dx, x.shape[0], x.shape[1] // 2)
        return dx, None


class Embed(Function):
    """Rows of a table; the gradient is added row by row in token order."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table
        return table[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None]:
        (ids,) = ctx.saved_tensors
        table, kept = ctx.table, None
        if table.is_leaf:
            # A table shared with the vocabulary head already holds that gradient (see `VocabularyLoss`): add to it.
            kept = touched.begin(table) if table.grad is None else touched.of(table)
        into = table.grad if table.is_leaf else torch.zeros_like(table)
        marks = None if kept is None else kept.marks
        _call("scatter_add", table, ids, gradients[0].contiguous(), into, marks, len(ids), table.shape[1])
        return None, None if table.is_leaf else into


class VocabularyLoss(Function):
    """Logits, cross entropy and its gradients in one, some rows at a time: all logits of a causal model's batch together
    would be the largest thing in memory by far.

    The gradients are made along with the loss, for the logits are gone afterwards. The table's goes straight into
    `table.grad`: as it is by far the largest one, handing it to autograd to be added to that of the embedding would cost
    two more passes over it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, z_loss: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.table, wanted = table, ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if any(wanted) else None
        d_table: Tensor | None = None
        sums = hidden.new_zeros(len(table), dtype=torch.float32) if bias is not None and wanted[2] else None
        total = hidden.new_zeros((), dtype=torch.float64)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        chunk = CHUNK if hidden.is_cpu else GPU_CHUNK
        rows = min(max(chunk // (len(table) * table.element_size()), products.THIN), len(hidden))
        room = hidden.new_empty(rows, len(table))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            x, aims, g = hidden[part], targets[part], room[: len(hidden) - start]
            loss, right[part], read, factor = _cross_entropy(x, table, bias, aims, z_loss, scale, g, any(wanted))
            total = total + loss.sum(dtype=torch.float64)
            if d_hidden is None:
                continue
            dx = products.input_gradient(g, table)
            d_hidden[part] = dx if factor is None else dx * factor
            if wanted[1]:
                more = None if sums is None else torch.empty_like(sums)
                d_table = products.weight_gradient(g, read, into=d_table, sums=more)
                sums = None if sums is None or more is None else sums.add_(more)
            elif sums is not None:
                sums += g.sum(0, dtype=torch.float32)
        ctx.d_hidden, ctx.d_table, ctx.d_bias = d_hidden, d_table, None if sums is None else sums.to(table.dtype)
        ctx.mark_non_differentiable(right)
        return total.float() * scale, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table, factor = ctx.table, float(gradients[0])
        found = [ctx.d_hidden, ctx.d_table, ctx.d_bias]
        ctx.d_hidden = ctx.d_table = ctx.d_bias = None
        if found[0] is None:
            raise RuntimeError("the gradients of a vocabulary loss can be taken once")
        if factor != 1.0:
            found = [None if x is None else x.mul_(factor) for x in found]
        if found[1] is not None and table.is_leaf:
            table.grad = found[1] if table.grad is None else table.grad.add_(found[1])
            found[1] = None
        return *found, None, None, None


def _cross_entropy(
    x: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    scale: float,
    g: Tensor,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of some rows: the losses (not scaled) and whether the target has the largest logit. If wanted, `g` receives the
    gradient of the logits but for a factor to each row; x times that factor, and the factor [rows, 1], or None for 1."""
    n, vocab = len(x), len(table)
    if bias is None and products.usable(x, table):
        # Powers of e need a shift that keeps them in range: the target's own logit, as the loss tells how far it is from
        # the top. They are never normed, which would be another pass over them; their row's factor stands beside them.
        shift = (x.float() * table[targets].float()).sum(1)
        own, sums, tops = products.exponentials(x, table, targets, shift, g)
        if bool((sums < FARTHEST).all()):
            partition = sums.log() + shift
            loss = partition - own + z_loss * partition.square()
            tilt = 1 + 2 * z_loss * partition
            factor = (scale * tilt / sums)[:, None]
            if wanted:
                g[torch.arange(n), targets] = ((own - shift).exp() - sums / tilt).to(g.dtype)
            return loss, own >= tops, (x * factor).to(x.dtype), factor
    products.forward(x, table, out=g)  # the kernel adds the bias: one pass over the logits less
    if not x.is_cpu:
        return *_cross_entropy_by_torch(g, bias, targets, z_loss, scale, wanted), x, None
    loss, correct = torch.empty(n, dtype=torch.float32), torch.empty(n, dtype=torch.uint8)
    _call("cross_entropy", g, g, bias, targets, loss, correct, n, vocab, z_loss, scale, int(wanted))
    return loss, correct, x, None


def _cross_entropy_by_torch(
    g: Tensor, bias: Tensor | None, targets: Tensor, z_loss: float, scale: float, wanted: bool
) -> tuple[Tensor, Tensor]:
    """What the kernel does with logits [rows, vocab], where there is none."""
    logits = g.float() if bias is None else g.float() + bias
    loss, right, partition = cross_entropies(logits, targets, z_loss)
    if wanted:
        p = logits.sub_(partition[:, None]).exp_().mul_((scale * (1 + 2 * z_loss * partition))[:, None])
        p[torch.arange(len(p), device=p.device), targets] -= scale
        g.copy_(p)
    return loss, right


def cross_entropies(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [rows, vocab] in float32: losses, whether the target has the largest, log-partitions; each [rows]."""
    partition, own = logits.logsumexp(1), logits.gather(1, targets[:, None]).squeeze(1)
    loss = partition - own
    if z_loss:
        loss = loss + z_loss * partition.square()
    return loss, own >= logits.amax(1), partition


class SplitHeads(Function):
    """[n, parts * heads * dim] as views [n, heads, dim]; gradients that lie side by side already are not copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        return x.view(len(x), parts, heads, -1).unbind(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        base = gradients[0]._base
        if base is not None and base.ndim == 4 and base.is_contiguous():
            side_by_side = all(
                g._base is base and g.data_ptr() == base[:, i].data_ptr() for i, g in enumerate(gradients)
            )
            if side_by_side and base.shape[1] == len(gradients):
                return base.flatten(1), None, None
        return torch.stack(gradients, dim=1).flatten(1), None, None
