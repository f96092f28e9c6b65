"""ONE attention(q, k, v, layout, rule): who may see whom is data, and every faster path is behind it.

Tokens are flat and tight. `Layout` says where each sequence starts, and nothing is ever seen across sequences; `Rule`
says what is seen inside one, and `Layout.reach`, where given, how far each token sees. Positions enter by turning queries
and keys (rotary, Su et al. 2021), or by a number for each distance that is added to the scores (Raffel et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bertkin.models import looks
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
    asking: Layout | None = None,
    rotary: Rotary | None = None,
    distances: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) inside each sequence of the layout, or from another into it.

    Args:
        q: [n, heads, head_dim], a row for each token, or for each of `queries`; may be a strided view.
        k, v: [tokens, kv_heads, head_dim]; may be strided views. Where kv_heads are fewer, each serves as many query
            heads in a row as go into it (Ainslie et al. 2023).
        layout: of the tokens that are seen. Its `reach`, if any, stands in for the causal part of the rule.
        queries: int64 [n], sorted flat positions of the tokens that ask; None when all do.
        asking: of the tokens that ask, where they are not those that are seen (cross attention): sequence s of it sees
            all of sequence s of `layout`, whatever the rule and the reach. No rotary tables or distances then.
        rotary: tables to turn q and k with, or None.
        distances: [heads, 2 * longest - 1], added to the scaled scores: column longest - 1 + d where a key stands d
            places after the query.
        scale: factor on the scores; None for head_dim ** -0.5.
        dropout: share of the weights dropped.

    Returns:
        [n, heads * head_dim].
    """
    if asking is not None and asking.n_sequences != layout.n_sequences:
        raise ValueError(f"{asking.n_sequences} sequences ask, {layout.n_sequences} are asked")
    owners = layout if asking is None else asking
    asked = owners.n_tokens if queries is None else len(queries)
    if (len(q), len(k), len(v)) != (asked, layout.n_tokens, layout.n_tokens):
        raise ValueError(
            f"{len(q)} queries, {len(k)} keys and {len(v)} values, where {asked} ask {layout.n_tokens} tokens"
        )
    if distances is not None and distances.shape[1] // 2 < layout.max_length - 1:
        raise ValueError(f"{distances.shape[1]} offsets are too few for sequences of {layout.max_length} tokens")
    if dropout < 1 and looks.usable(q, k, v):
        starts = layout.starts, (owners if queries is None else layout_of(queries, owners)).starts
        places, reach = owners.positions, layout.reach if asking is None else None
        if queries is not None:
            places, reach = places[queries], None if reach is None else reach[queries]
        seen = (layout.positions, places), reach, rule if asking is None else None
        factor = q.shape[2] ** -0.5 if scale is None else scale
        return looks.Attention.apply(q, k, v, distances, starts, *seen, rotary, factor, dropout)
    tiles = layout if asking is not None else tiles_of(layout)
    rectangles = _rectangles(q, k, layout, rule, queries, asking, rotary, distances, tiles)
    values = tiles.padded(_each(v, q), 0).transpose(1, 2)
    if _torchs_own(q):
        left, right, mask = rectangles.left, rectangles.right, _mask(rectangles)
        mixed = F.scaled_dot_product_attention(left, right, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    else:
        mixed = F.dropout(_weights(rectangles, scale), dropout).to(v.dtype) @ values
    return rectangles.asked.flat(mixed.transpose(1, 2)).flatten(1)


def attention_weights(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    rule: Rule,
    *,
    queries: Tensor | None = None,
    asking: Layout | None = None,
    rotary: Rotary | None = None,
    distances: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights themselves, float32 [sequences, heads, longest queries, longest sequence], padded.

    Arguments are as for `attention`. Rows of padding hold nothing of meaning.
    """
    return _weights(_rectangles(q, k, layout, rule, queries, asking, rotary, distances, layout), scale)


@dataclass(frozen=True)
class _Rectangles:
    """What attention is made of where sequences are padded: a rectangle of queries and keys for each of them."""

    left: Tensor
    """Queries [tiles, heads, queries, head_dim], turned where positions are rotary."""
    right: Tensor
    """Keys [tiles, heads, keys, head_dim], likewise."""
    offsets: Tensor | None
    """What is added to the scaled scores, float32 [tiles, heads, queries, keys]."""
    hidden: Tensor | None
    """What may not be seen, bool [tiles, 1, queries (or 1 for all), keys]."""
    asked: Layout
    """Of the queries."""


def _rectangles(
    q: Tensor,
    k: Tensor,
    layout: Layout,
    rule: Rule,
    queries: Tensor | None,
    asking: Layout | None,
    rotary: Rotary | None,
    distances: Tensor | None,
    tiles: Layout,
) -> _Rectangles:
    asked = tiles if asking is None else asking
    asked = asked if queries is None else layout_of(queries, asked)
    positions = (layout if asking is None else asking).positions
    positions = positions if queries is None else positions[queries]
    if rotary is not None:
        q, k = rotate(q, positions, rotary), rotate(k, layout.positions, rotary)
    left, right = (x.transpose(1, 2) for x in (asked.padded(q, 0), tiles.padded(_each(k, q), 0)))
    offsets = None
    if distances is not None:
        middle = distances.shape[1] // 2
        ahead = tiles.padded(layout.positions, 0)[:, None] - asked.padded(positions, 0)[:, :, None]
        offsets = distances.float()[:, ahead + middle].transpose(0, 1)
    hidden = _beyond(layout, asking) if asking is not None else _hidden(layout, rule, queries, tiles, asked)
    return _Rectangles(left, right, offsets, None if hidden is None else hidden[:, None], asked)


def _weights(r: _Rectangles, scale: float | None) -> Tensor:
    scores = (r.left @ r.right.transpose(2, 3)).float() * (r.left.shape[-1] ** -0.5 if scale is None else scale)
    if r.offsets is not None:
        scores = scores + r.offsets
    if r.hidden is not None:
        # Not minus infinity: a row of padding may see nothing, and must not turn into NaN.
        scores = scores.masked_fill(r.hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def _mask(r: _Rectangles) -> Tensor | None:
    """What torch's own attention takes: what is seen, or what is added. A row of padding sees all rather than nothing."""
    hidden = None if r.hidden is None else r.hidden & ~r.hidden.all(-1, keepdim=True)
    if r.offsets is None:
        return None if hidden is None else ~hidden
    offsets = r.offsets.to(r.left.dtype)
    return offsets if hidden is None else offsets.masked_fill(hidden, torch.finfo(offsets.dtype).min)


def _torchs_own(q: Tensor) -> bool:
    """Whether torch's fused attention takes these: on a GPU, where it does not write the scores down."""
    return q.is_cuda


def _each(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [tokens, kv_heads, head_dim] with a head for each of q's."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _beyond(layout: Layout, asking: Layout) -> Tensor | None:
    """The padding of what is seen by others: bool [sequences, 1, keys]; None where there is none."""
    if layout.uniform:
        return None
    places = torch.arange(layout.max_length, device=layout.starts.device)
    hidden: Tensor = places >= layout.lengths[:, None]
    return hidden[:, None]


def _hidden(layout: Layout, rule: Rule, queries: Tensor | None, tiles: Layout, asked: Layout) -> Tensor | None:
    """What may not be seen: bool [tiles, queries, keys]; None where all may."""
    local = rule.window is not None and rule.window < layout.max_length - 1
    hidden = None
    if tiles is not layout or not layout.uniform:
        owner = layout.sequence_ids()
        mine = asked.padded(owner if queries is None else owner[queries], -2)
        hidden = mine[:, :, None] != tiles.padded(owner, -1)[:, None]
    if local or rule.causal or layout.reach is not None:
        places = layout.positions if queries is None else layout.positions[queries]
        seen = tiles.padded(layout.positions, 0)[:, None]
        if rule.window is not None and local:
            hidden = _either(hidden, (asked.padded(places, 0)[:, :, None] - seen).abs() > rule.window)
        if layout.reach is not None or rule.causal:
            reach = places + 1 if layout.reach is None else layout.reach if queries is None else layout.reach[queries]
            hidden = _either(hidden, seen >= asked.padded(reach, 1)[:, :, None])
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


def cached_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    *,
    window: int | None = None,
    distances: Tensor | None = None,
) -> Tensor:
    """One new token of each sequence looks at all that its sequence has so far: a step of generation.

    Args:
        q: [n, heads, head_dim], turned already where positions are rotary.
        keys, values: [n, capacity, kv_heads, head_dim], each sequence's own in order of position (turned already); may
            be views of a longer cache.
        lengths: int32 [n], how many of them there are, at least 1; what lies after them is not read.
        scale: factor on the scores; None for head_dim ** -0.5.
        window: the last of them sees those at most this many places before it; None for all.
        distances: as for `attention`, with longest at least the capacity.

    Returns:
        [n, heads * head_dim].
    """
    if looks.reads(q, keys, values, lengths):
        return looks.look(q, keys, values, lengths, scale, window, distances)
    n, heads, dim = q.shape
    kv_heads = keys.shape[2]
    scale = dim**-0.5 if scale is None else scale
    grouped = q.view(n, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("nghd,ncgd->nghc", grouped, keys).float() * scale
    ahead = torch.arange(keys.shape[1], device=q.device) - lengths[:, None] + 1
    beyond = ahead > 0 if window is None else (ahead > 0) | (ahead < -window)
    if distances is not None:
        offsets = distances.float()[:, (ahead + distances.shape[1] // 2).clamp(max=distances.shape[1] - 1)]
        scores = scores + offsets.transpose(0, 1).view_as(scores)
    weights = scores.masked_fill(beyond[:, None, None], -torch.inf).softmax(dim=-1)
    # What was never written may be anything, and nothing times NaN is NaN.
    clean = values.masked_fill(beyond[:, :, None, None], 0)
    return torch.einsum("nghc,ncgd->nghd", weights.to(q.dtype), clean).reshape(n, heads * dim)


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
