"""The few operations that a step spends its time in, each a plain function of tensors.

Here are their bodies in PyTorch; a faster body for a machine is a branch in the function, never a second function
that layers would have to know.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkin.models import fused, kernels, products

Kind = Literal["gelu", "gelu-tanh", "relu", "geglu", "geglu-tanh", "swiglu"]
"""How a feed-forward block bends what it made wider. The last three are gated (Shazeer 2020): the first half of the
width is bent, by GELU, its tanh form or SiLU, and multiplies the second."""


GATED: dict[str, str] = {"geglu": "gelu", "geglu-tanh": "gelu-tanh", "swiglu": "silu"}
"""What bends the first half in each gated kind."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [tokens, in] to [tokens, out]."""
    if torch.is_grad_enabled() and kernels.usable(x, weight, bias):
        return fused.Linear.apply(x, weight, bias)
    return products.forward(x, weight, bias)


def add_norm(
    residual: Tensor, x: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, *, rms: bool = False
) -> tuple[Tensor, Tensor]:
    """The residual sum and its norm, both [tokens, hidden]; `x` may be None for nothing to add.

    The norm is layer norm (Ba et al. 2016) or, with `rms`, root mean square norm (Zhang & Sennrich 2019): no mean taken
    off and no bias.
    """
    if kernels.usable(residual, x, weight, bias):
        return fused.AddNorm.apply(residual, x, weight, bias, eps, rms)
    total = residual if x is None else residual + x
    if rms:
        # In float32 up to the weight: squares of bfloat16 numbers summed as such would lose the small ones.
        wide = total.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return total, (wide * scale * weight.float()).to(total.dtype)
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit in its exact form (Hendrycks & Gimpel 2016)."""
    return bend(x, "gelu")


def bend(x: Tensor, kind: Kind) -> Tensor:
    """What stands between the two products of a feed-forward block: [tokens, wide] to [tokens, f], where wide is f, or
    2 * f if the kind is gated."""
    if kernels.usable(x):
        which = kernels.BENDS[GATED.get(kind, kind)]
        return fused.Gate.apply(x, which) if kind in GATED else fused.Bend.apply(x, which)
    value, gate = x.chunk(2, dim=-1) if kind in GATED else (x, None)
    match GATED.get(kind, kind):
        case "relu":
            value = F.relu(value)
        case "silu":
            value = F.silu(value)
        case name:
            value = F.gelu(value, approximate="tanh" if name == "gelu-tanh" else "none")
    return value if gate is None else value * gate


def dropout(x: Tensor, share: float) -> Tensor:
    """Each number zero with a chance, and the others made larger so that the mean stays (Srivastava et al. 2014).

    Random by torch's own generator: seed it for the same zeros.

    Args:
        share: the chance, from 0 up to 1.
    """
    if share and kernels.usable(x):
        return fused.Drop.apply(x, share)
    return F.dropout(x, share) if share else x


def feed_forward(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, *, kind: Kind
) -> Tensor:
    """Wider, bent, and back: [tokens, hidden] to the same; `up` has twice the rows where the kind is gated."""
    if kind not in GATED and kernels.usable(x, up, up_bias, down, down_bias) and products.usable(x, up, down):
        which = kernels.BENDS[kind]
        if torch.is_grad_enabled():
            return fused.FeedForward.apply(x, up, up_bias, down, down_bias, which)
        return products.forward(products.forward_bent(x, up, up_bias, which, keep=False)[1], down, down_bias)
    return linear(bend(linear(x, up, up_bias), kind), down, down_bias)


def embed(ids: Tensor, table: Tensor) -> Tensor:
    """The rows of a table [rows, hidden] that `ids` [tokens] name: [tokens, hidden]."""
    if torch.is_grad_enabled() and kernels.usable(table):
        return fused.Embed.apply(ids.long(), table)
    return F.embedding(ids, table)


def vocabulary_loss(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of `hidden @ table.T + bias` against `targets`, in float32.

    Args:
        hidden: [n, hidden], the asked positions alone.
        table: [vocab, hidden].
        targets: int64 [n].
        z_loss: weight of the squared log-partition, which keeps the logits from drifting (Chowdhery et al. 2022).
        scale: factor on the sum; given here because a factor put on later costs another pass over the gradient.

    Returns:
        The loss summed over the n targets, in nats, times the scale; and which targets no other logit exceeds, bool [n].
    """
    if len(targets) and (kernels.usable(hidden, table, bias) or hidden.is_cuda):
        return fused.VocabularyLoss.apply(hidden, table, bias, targets, z_loss, scale)
    losses, right, _ = fused.cross_entropies(F.linear(hidden, table, bias).float(), targets, z_loss)
    return losses.sum() * scale, right


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[tokens, parts * heads * dim] to as many views [tokens, heads, dim]."""
    if x.requires_grad and kernels.usable(x):
        return fused.SplitHeads.apply(x, parts, heads)
    return x.view(len(x), parts, heads, -1).unbind(1)
