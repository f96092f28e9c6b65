"""One stack for every family.

Flat tokens [tokens, hidden], no padding anywhere; post-norm or pre-norm; layer norm or root mean square; GELU, ReLU or a
gated block; biases or none; learned, sinusoidal, rotary or relative positions; layers that see the whole sequence, what
came before, or a window; layers of their own or shared; a second sequence to look at, for decoders that have one; one
fused projection for queries, keys and values; and a last layer that works only for the tokens somebody asked about.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from bertkin.models.architecture import Architecture
from bertkin.models.attention import Rotary, Rule, attention, attention_weights, layout_of, rotary_tables
from bertkin.models.cache import Cache
from bertkin.models.embeddings import Embeddings
from bertkin.models.linear import Linear
from bertkin.models.ops import add_norm, bend, dropout, feed_forward, linear, split_heads
from bertkin.text.layout import Layout

Memory = tuple[Tensor, Layout]
"""What a decoder looks at beside its own sequence: hidden states [tokens of the source, hidden] and their layout."""

Kept = tuple[Cache, int]
"""What was read before, and the number of the layer that asks."""


@dataclass(frozen=True)
class Places:
    """What positions bring to a layer's attention: tables to turn queries and keys with, or offsets of the scores."""

    rotary: Rotary | None = None
    distances: Tensor | None = None
    """[heads, 2 * longest - 1], see `bertkin.models.attention.attention`."""


NOWHERE = Places()


class Attention(nn.Module):
    """Queries, keys and values in one projection; then attention; then the way back: [tokens, hidden] to the same.

    Args:
        rule: who sees whom; None where it looks at another sequence (cross attention).
    """

    def __init__(self, a: Architecture, rule: Rule | None) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim, self.dropout = a.heads, a.key_heads, a.head_dim, a.attention_dropout
        self.rule = rule
        self.scale = None if a.scaled else 1.0
        self.parts = a.heads // a.key_heads + 2
        """Matrices of the keys' size that lie stacked in the projection."""
        self.qkv = Linear(a.hidden, self.parts * self.key_heads * self.head_dim, bias=a.attention_bias)
        self.out = Linear(a.heads * self.head_dim, a.hidden, bias=a.attention_bias)

    def forward(
        self, x: Tensor, layout: Layout, places: Places, asked: Tensor | None, kept: Kept | None = None
    ) -> Tensor:
        """Each token looks at its own sequence; with `asked` (sorted flat positions) only those tokens do."""
        q, k, v = self.project(x, asked)
        dropout = self.dropout if self.training else 0.0
        assert self.rule is not None
        if kept is not None:
            cache, layer = kept
            if cache.stepping:
                mixed = cache.look(layer, q, k, v, layout, places, self.rule, self.scale)
                return self._out(mixed)
            cache.keep(layer, k, v, layout, places)
        mixed = attention(
            q, k, v, layout, self.rule, queries=asked, rotary=places.rotary, distances=places.distances,
            scale=self.scale, dropout=dropout,
        )  # fmt: skip
        return self._out(mixed)

    def across(self, x: Tensor, memory: Memory | None, asking: Layout, kept: Kept | None = None) -> Tensor:
        """Each token of x, laid out as `asking`, looks at the whole sequence of the memory that goes with its own."""
        q = self.queries(x)
        if kept is not None and kept[0].stepping:
            return self._out(kept[0].look_across(kept[1], q, self.scale))
        assert memory is not None
        hidden, layout = memory
        k, v = self.keys_values(hidden)
        if kept is not None:
            kept[0].keep_crossed(kept[1], k, v, layout)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(q, k, v, layout, Rule(), asking=asking, scale=self.scale, dropout=dropout)
        return self._out(mixed)

    def project(self, x: Tensor, asked: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the asked tokens (of all by default), keys and values of all: views [n, heads, head_dim]."""
        if asked is None and self.parts == 3:
            q, k, v = split_heads(self.qkv(x), 3, self.heads)
            return q, k, v
        return self.queries(x if asked is None else x[asked]), *self.keys_values(x)

    def queries(self, x: Tensor) -> Tensor:
        """[n, hidden] to [n, heads, head_dim]."""
        q = self.qkv(x, slice(self.heads * self.head_dim))
        return q.view(len(x), self.heads, self.head_dim)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, hidden] to twice [n, key heads, head_dim]."""
        k, v = split_heads(self.qkv(x, slice(self.heads * self.head_dim, None)), 2, self.key_heads)
        return k, v

    def _out(self, mixed: Tensor) -> Tensor:
        found: Tensor = self.out(mixed)
        return found


class FeedForward(nn.Module):
    """Wider, bent, and back: [tokens, hidden] to the same. A gated block multiplies the bent half by a second one."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.kind, self.gated = a.feed_forward, a.gated
        width = a.intermediate * (2 if self.gated else 1)
        self.up = Linear(a.hidden, width, bias=a.feed_forward_bias)
        self.down = Linear(a.intermediate, a.hidden, bias=a.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        if type(up) is not Linear or type(down) is not Linear:  # one of them is wrapped, and has more to do
            wrapped: Tensor = down(bend(up(x), self.kind))
            return wrapped
        return feed_forward(x, up.weight, up.bias, down.weight, down.bias, kind=self.kind)


class Block(nn.Module):
    """A layer: attention, a look at the memory where there is one, and feed-forward, each with its sum and norm.

    What goes from layer to layer is the residual `stream` and an `update` not yet added to it, so that in a pre-norm
    stack every sum is done together with the norm that follows. In a post-norm stack the update is always None.

    Args:
        causal: whether a token sees only itself and those before it.
        looks: whether it looks at a memory.
    """

    def __init__(self, a: Architecture, layer: int, *, causal: bool, looks: bool = False) -> None:
        super().__init__()
        self.pre, self.eps, self.rms, self.dropout = a.norm == "pre", a.norm_eps, a.rms, a.dropout
        window = a.window(layer)
        self.theta = a.global_theta if window is None else a.local_theta
        self.attention = Attention(a, Rule(window=None if window is None else window // 2, causal=causal))
        skipped = self.pre and layer == 0 and not a.first_norm
        self.attention_norm = None if skipped else _norm(a)
        self.cross = Attention(a, None) if looks else None
        self.cross_norm = _norm(a) if looks else None
        self.feed_forward = FeedForward(a)
        self.feed_forward_norm = _norm(a)
        self.aside: nn.Module | None = None
        """Reads what attention reads, and adds to what feed-forward gives, where a strategy put it (`models.pals`)."""

    def forward(
        self,
        stream: Tensor,
        update: Tensor | None,
        layout: Layout,
        places: Places,
        asked: Tensor | None = None,
        memory: Memory | None = None,
        asking: Layout | None = None,
        kept: Kept | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments are as for `Stack.forward`; `asking` is the layout of the asked tokens, where they look at a memory."""
        stream, x = self.read(stream, update)
        more = None if self.aside is None else self.aside(x, layout, asked)
        y = self._drop(self.attention(x, layout, places, asked, kept))
        stream = stream if asked is None else stream[asked]
        if self.cross is not None:
            assert asking is not None
            stream, x = self._then(stream, y, self.cross_norm if self.pre else self.attention_norm)
            y = self._drop(self.cross.across(x, memory, asking, kept))
        elif not self.pre:
            stream, x = self._then(stream, y, self.attention_norm)
        if self.pre:
            stream, x = self._then(stream, y, self.feed_forward_norm)
            return stream, self._last(x, more)
        if self.cross is not None:
            stream, x = self._then(stream, y, self.cross_norm)
        return self._then(stream, self._last(x, more), self.feed_forward_norm)[0], None

    def _last(self, x: Tensor, more: Tensor | None) -> Tensor:
        """What the layer adds last: [n, hidden]."""
        y = self._drop(self.feed_forward(x))
        return y if more is None else y + more

    def read(self, stream: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream with the update added, and what attention reads of it."""
        if self.pre and self.attention_norm is not None:
            return self._then(stream, update, self.attention_norm)
        return stream, stream

    def _then(self, stream: Tensor, update: Tensor | None, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
        """What the next part adds to, and what it reads: the sum and its norm, or, post-norm, the norm for both."""
        assert norm is not None
        total, x = add_norm(stream, update, norm.weight, norm.bias, self.eps, rms=self.rms)
        return (total, x) if self.pre else (x, x)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training else x


def _norm(a: Architecture) -> nn.LayerNorm:
    return nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias)


@dataclass
class Trace:
    """What happened inside: hidden states [tokens, hidden], one more than layers (the embeddings first, the last one
    normed); attention weights [sequences, heads, longest, longest] of each layer, padded."""

    hidden: list[Tensor]
    attention: list[Tensor]


class Stack(nn.Module):
    """Ids [tokens] and their layout to hidden states [tokens, hidden].

    Args:
        a: what to build.
        encoder: of an encoder–decoder, build the half that reads; otherwise the half, or the only stack, that answers.
    """

    def __init__(self, a: Architecture, *, encoder: bool = False) -> None:
        super().__init__()
        self.architecture = a
        self.writes = a.both and not encoder
        self.embeddings = Embeddings(a)
        self.project = nn.Linear(a.row_width, a.hidden) if a.row_width != a.hidden else None
        self.depth = a.decoder_layers if self.writes else a.layers
        causal = a.causal or self.writes
        own = min(a.groups or self.depth, self.depth)
        self.layers = nn.ModuleList([Block(a, layer, causal=causal, looks=self.writes) for layer in range(own)])
        self.distances = nn.Parameter(torch.empty(a.buckets, a.heads)) if a.positions == "relative" else None
        self.norm = _norm(a) if a.norm == "pre" else None
        self.before = 0
        """Keys that stand before each sequence, where a strategy put some (`bertkin.models.wraps.Prefixed`)."""

    def forward(
        self,
        ids: Tensor,
        layout: Layout,
        asked: Tensor | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states of all tokens, or, with `asked` (sorted flat positions, int64 [n]), of those alone: [n, hidden].

        The numbers are the same either way; with `asked`, the last layer computes keys and values for all tokens but
        everything else for the asked ones only.

        Args:
            memory: what a decoder looks at: sequence s of it belongs to sequence s of the layout.
            cache: keeps what is read here, and is looked at instead of the memory once it holds something: then there is
                one token of each of its sequences, laid out as `Cache.next` says.
        """
        stream, update = self.embed(ids, layout), None
        places = self.places(layout, 0 if cache is None else cache.capacity)
        kept: list[Kept | None] = [None if cache is None else (cache, layer) for layer in range(self.depth)]
        for layer, had in zip(self.blocks[:-1], kept[:-1], strict=True):
            stream, update = layer(stream, update, layout, places(layer), None, memory, layout, had)
        asking = layout if asked is None or memory is None else layout_of(asked, layout)
        last = self.blocks[-1]
        stream, update = last(stream, update, layout, places(last), asked, memory, asking, kept[-1])
        if cache is not None and not cache.stepping:
            cache.read(layout)
        return self._finish(stream, update)

    def look_at(self, memory: Memory, cache: Cache) -> None:
        """Let a cache keep the keys and values of a memory, for a decoder that has read nothing yet."""
        for number, layer in enumerate(self.blocks):
            assert layer.cross is not None
            cache.keep_crossed(number, *layer.cross.keys_values(memory[0]), memory[1])

    def embed(self, ids: Tensor, layout: Layout) -> Tensor:
        """What the first layer reads: [tokens, hidden]."""
        x: Tensor = self.embeddings(ids, layout)
        return x if self.project is None else linear(x, self.project.weight, self.project.bias)

    def states(
        self, ids: Tensor, layout: Layout, asked: Tensor | None = None, memory: Memory | None = None
    ) -> list[Tensor]:
        """What `forward` gives, and the same of the embeddings and of every layer before the last: one more than layers,
        each [n, hidden] and, where the stack ends in a norm, normed by it."""
        stream, update = self.embed(ids, layout), None
        places, found = self.places(layout), [self._finish(*_picked(asked, stream, None))]
        for layer in self.blocks:
            stream, update = layer(stream, update, layout, places(layer), None, memory, layout)
            found.append(self._finish(*_picked(asked, stream, update)))
        return found

    def trace(self, ids: Tensor, layout: Layout, memory: Memory | None = None) -> Trace:
        """All hidden states and attention weights, for looking inside; slower than `forward`."""
        stream, update = self.embed(ids, layout), None
        trace, places = Trace([stream], []), self.places(layout)
        for layer in self.blocks:
            _, x = layer.read(stream, update)
            q, k, _ = layer.attention.project(x)
            here, rule = places(layer), layer.attention.rule
            assert rule is not None
            trace.attention.append(
                attention_weights(
                    q, k, layout, rule, rotary=here.rotary, distances=here.distances, scale=layer.attention.scale
                )
            )
            stream, update = layer(stream, update, layout, here, None, memory, layout)
            trace.hidden.append(stream if update is None else stream + update)
        trace.hidden[-1] = self._finish(stream, update)
        return trace

    @property
    def blocks(self) -> list[Block]:
        """The layers in the order they are gone through; a shared one several times."""
        own = typing.cast(list[Block], list(self.layers))
        return [own[layer * len(own) // self.depth] for layer in range(self.depth)]

    def places(self, layout: Layout, longest: int = 0) -> typing.Callable[[Block], Places]:
        """What positions bring to each layer, for sequences up to the layout's longest (or `longest`, if that is more)."""
        a, longest = self.architecture, max(layout.max_length, longest) + self.before
        if self.distances is not None:
            bucket = buckets(longest, a.buckets, a.farthest, not self.writes, layout.starts.device)
            offsets = Places(distances=self.distances[bucket].t())
            return lambda _: offsets
        if a.positions == "rotary":
            length = min(a.max_length, 1 << max(longest - 1, 0).bit_length())
            device = layout.starts.device
            return lambda layer: Places(rotary_tables(length, a.head_dim, layer.theta, device))
        return lambda _: NOWHERE

    def _finish(self, stream: Tensor, update: Tensor | None) -> Tensor:
        if self.norm is None:
            return stream
        return add_norm(stream, update, self.norm.weight, self.norm.bias, self.norm.eps, rms=self.architecture.rms)[1]


def _picked(asked: Tensor | None, stream: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (stream, update) if asked is None else (stream[asked], None if update is None else update[asked])


@lru_cache(maxsize=64)
def buckets(longest: int, count: int, farthest: int, both_sides: bool, device: torch.device) -> Tensor:
    """T5's bucket of each distance key - query, from 1 - longest up to longest - 1: int64 [2 * longest - 1].

    Half of a side's buckets hold one distance each, the others ranges that grow by a constant factor up to `farthest`,
    and the last all beyond (Raffel et al. 2020). A decoder has buckets for the left side alone.
    """
    with torch.inference_mode(False), torch.no_grad():  # whoever asks first, training may ask next
        away = torch.arange(1 - longest, longest)
        side = count // 2 if both_sides else count
        first = torch.where(away > 0, side, 0) if both_sides else torch.zeros_like(away)
        size = away.abs() if both_sides else (-away).clamp(min=0)
        exact = side // 2
        wide = (size.float() / exact).clamp(min=1).log() / math.log(farthest / exact) * (side - exact)
        far = (exact + wide.long()).clamp(max=side - 1)
        return (first + torch.where(size < exact, size, far)).to(device)
