"""ONE attention(q, k, v, layout, rule): who may see whom is data, and every faster path is behind it.

Tokens are flat and tight. `Layout` says where each sequence starts, and nothing is ever seen across sequences; `Rule`
says what is seen inside one. Positions enter, where they are rotary, by turning queries and keys (Su et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
    if not dropout and fused.attention_usable(q, k, v):
        asked = layout if queries is None else layout_of(queries, layout)
        places = layout.positions if queries is None else layout.positions[queries]
        starts = (layout.starts, asked.starts)
        return fused.Attention.apply(q, k, v, starts, (layout.positions, places), rule, rotary)
    tiles = tiles_of(layout)
    weights = drop(attention_weights(q, k, layout, rule, queries=queries, rotary=rotary, tiles=tiles), dropout)
    mixed = weights.to(v.dtype) @ tiles.padded(v, 0).transpose(1, 2)
    asked = tiles if queries is None else layout_of(queries, tiles)
    return asked.flat(mixed.transpose(1, 2)).flatten(1)


def attention_weights(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    rule: Rule,
    *,
    queries: Tensor | None = None,
    rotary: Rotary | None = None,
    tiles: Layout | None = None,
) -> Tensor:
    """The weights themselves, float32 [sequences, heads, longest queries, longest sequence], padded.

    Arguments are as for `attention`; with `tiles` (`tiles_of`), the rectangles are those instead of the sequences.
    Rows of padding hold nothing of meaning.
    """
    tiles = layout if tiles is None else tiles
    asked = tiles if queries is None else layout_of(queries, tiles)
    positions = layout.positions if queries is None else layout.positions[queries]
    if rotary is not None:
        q, k = rotate(q, positions, rotary), rotate(k, layout.positions, rotary)
    left = asked.padded(q, 0).transpose(1, 2)
    right = tiles.padded(k, 0).permute(0, 2, 3, 1)
    scores = (left @ right).float() * q.shape[-1] ** -0.5
    hidden = _hidden(layout, rule, queries, tiles, asked)
    if hidden is not None:
        # Not minus infinity: a row of padding may see nothing, and must not turn into NaN.
        scores = scores.masked_fill(hidden[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def _hidden(layout: Layout, rule: Rule, queries: Tensor | None, tiles: Layout, asked: Layout) -> Tensor | None:
    """What may not be seen: bool [tiles, queries, keys]; None where all may."""
    local = rule.window is not None and rule.window < layout.max_length - 1
    hidden = None
    if tiles is not layout or not layout.uniform:
        owner = layout.sequence_ids()
        mine = asked.padded(owner if queries is None else owner[queries], -2)
        hidden = mine[:, :, None] != tiles.padded(owner, -1)[:, None]
    if local or rule.causal:
        places = layout.positions if queries is None else layout.positions[queries]
        distance = asked.padded(places, 0)[:, :, None] - tiles.padded(layout.positions, 0)[:, None]
        if rule.window is not None and local:
            hidden = _either(hidden, distance.abs() > rule.window)
        if rule.causal:
            hidden = _either(hidden, distance < 0)
    return hidden


def _either(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a | b


def tiles_of(layout: Layout) -> Layout:
    """The rectangles that attention costs least in: the sequences, or, where many short ones share rows of one length
    with a few long ones, the rows."""
    rows = layout.n_tokens // layout.row_length if layout.row_length else 0
    if not rows or rows * layout.row_length**2 >= layout.n_sequences * layout.max_length**2:
        return layout
    return Layout.from_lengths([layout.row_length] * rows).to(layout.starts.device)


def layout_of(queries: Tensor, layout: Layout) -> Layout:
    """The layout of the queries alone: how many of them each sequence owns."""
    owner = torch.searchsorted(layout.starts[1:].to(queries.dtype), queries, right=True)
    counts = torch.bincount(owner, minlength=len(layout.starts) - 1)
    return Layout.from_lengths(counts.cpu().numpy()).to(queries.device)


@lru_cache(maxsize=16)
def rotary_tables(max_length: int, head_dim: int, theta: float, device: torch.device) -> Rotary:
    """Cosines and sines of the angles that position p turns pair i by: p / theta ** (2 i / head_dim).

    They are no part of a module, as casting a model to bfloat16 must leave them alone.
    """
    with torch.inference_mode(False), torch.no_grad():  # whoever asks first, training may ask next
        frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(max_length).float(), frequencies)
        return angles.cos().to(device), angles.sin().to(device)


def rotate(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Turn [n, heads, head_dim] by position: pair i is numbers i and i + head_dim / 2, in float32 inside."""
    cos, sin = (table[positions][:, None] for table in rotary)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
