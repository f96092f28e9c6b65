"""ONE attention(q, k, v, layout, rule): who may see whom is data, and every faster path is behind it.

Tokens are flat and tight. `Layout` says where each sequence starts, and nothing is ever seen across sequences; `Rule`
says what is seen inside one. Positions enter, where they are rotary, by turning queries and keys (Su et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from bertkin.models import fused
from bertkin.text.layout import Layout

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each float32 [max_length, head_dim / 2]."""


@dataclass(frozen=True)
class Rule:
    """Who may see whom inside a sequence.

    Args:
        window: a token sees those at most this many places away; None for all. (ModernBERT's `local_attention` is
            twice this: 128 tokens are 64 to each side.)
        causal: a token sees only itself and those before it.
    """

    window: int | None = None
    causal: bool = False


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    rule: Rule,
    *,
    queries: Tensor | None = None,
    rotary: Rotary | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) inside each sequence of the layout.

    Args:
        q: [n, heads, head_dim], a row for each token, or for each of `queries`; may be a strided view.
        k, v: [tokens, heads, head_dim]; may be strided views.
        queries: int64 [n], sorted flat positions of the tokens that ask; None when all do.
        rotary: tables to turn q and k with, or None.
        dropout: share of the weights dropped.

    Returns:
        [n, heads * head_dim].
    """
    asked = layout if queries is None else layout_of(queries, layout)
    if not dropout and fused.attention_usable(q, k, v):
        places = layout.positions if queries is None else layout.positions[queries]
        starts = (layout.starts, asked.starts)
        return fused.Attention.apply(q, k, v, starts, (layout.positions, places), rule, rotary)
    weights = drop(attention_weights(q, k, layout, rule, queries=queries, rotary=rotary), dropout)
    mixed = weights.to(v.dtype) @ layout.padded(v, 0).transpose(1, 2)
    return asked.flat(mixed.transpose(1, 2)).flatten(1)


def attention_weights(
    q: Tensor, k: Tensor, layout: Layout, rule: Rule, *, queries: Tensor | None = None, rotary: Rotary | None = None
) -> Tensor:
    """The weights themselves, float32 [sequences, heads, longest queries, longest sequence], padded; arguments as for
    `attention`. Rows of padding hold nothing of meaning."""
    asked = layout if queries is None else layout_of(queries, layout)
    positions = layout.positions if queries is None else layout.positions[queries]
    if rotary is not None:
        q, k = rotate(q, positions, rotary), rotate(k, layout.positions, rotary)
    left = asked.padded(q, 0).transpose(1, 2)
    right = layout.padded(k, 0).permute(0, 2, 3, 1)
    scores = (left @ right).float() * q.shape[-1] ** -0.5
    visible = visibility(layout, rule, asked.padded(positions, 0))
    if visible is not None:
        # Not minus infinity: a row of padding may see nothing, and must not turn into NaN.
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def visibility(layout: Layout, rule: Rule, positions: Tensor) -> Tensor | None:
    """Who sees whom: bool [sequences, queries, keys] for queries at `positions` [sequences, queries]; None for all."""
    keys = torch.arange(layout.max_length, device=positions.device)
    distance = positions[:, :, None] - keys
    terms = []
    if not layout.uniform:
        lengths = (layout.starts[1:] - layout.starts[:-1])[:, None, None]
        terms.append((keys < lengths).expand_as(distance))
    if rule.window is not None and rule.window < layout.max_length - 1:
        terms.append(distance.abs() <= rule.window)
    if rule.causal:
        terms.append(distance >= 0)
    return torch.stack(terms).all(dim=0) if terms else None


def layout_of(queries: Tensor, layout: Layout) -> Layout:
    """The layout of the queries alone: how many of them each sequence owns."""
    owner = torch.searchsorted(layout.starts[1:].to(queries.dtype), queries, right=True)
    counts = torch.bincount(owner, minlength=len(layout.starts) - 1)
    return Layout.from_lengths(counts.cpu().numpy()).to(queries.device)


def rotary_tables(max_length: int, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of the angles that position p turns pair i by: p / theta ** (2 i / head_dim)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(max_length).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Turn [n, heads, head_dim] by position: pair i is numbers i and i + head_dim / 2, in float32 inside."""
    cos, sin = (table[positions][:, None] for table in rotary)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
