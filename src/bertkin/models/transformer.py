"""One stack for every family.

Flat tokens [tokens, hidden], no padding anywhere; post-norm or pre-norm; GELU or GEGLU; biases or none; learned,
sinusoidal or rotary positions; layers that see the whole sequence or a window; one fused projection for queries, keys and
values; and a last layer that works only for the tokens somebody asked about.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from bertkin.models.architecture import Architecture
from bertkin.models.attention import Rotary, Rule, attention, attention_weights, rotary_tables
from bertkin.models.embeddings import Embeddings
from bertkin.models.ops import add_norm, feed_forward, linear, split_heads
from bertkin.text.layout import Layout


class SelfAttention(nn.Module):
    """Queries, keys and values in one projection; then attention; then the way back: [tokens, hidden] to the same."""

    def __init__(self, a: Architecture, layer: int) -> None:
        super().__init__()
        self.heads, self.dropout = a.heads, a.attention_dropout
        window = a.window(layer)
        self.rule = Rule(window=None if window is None else window // 2)
        self.qkv = nn.Linear(a.hidden, 3 * a.hidden, bias=a.attention_bias)
        self.out = nn.Linear(a.hidden, a.hidden, bias=a.attention_bias)

    def forward(self, x: Tensor, layout: Layout, rotary: Rotary | None, asked: Tensor | None) -> Tensor:
        q, k, v = self.project(x, asked)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(q, k, v, layout, self.rule, queries=asked, rotary=rotary, dropout=dropout)
        return linear(mixed, self.out.weight, self.out.bias)

    def project(self, x: Tensor, asked: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the asked tokens (of all by default), keys and values of all: views [n, heads, head_dim]."""
        weight, bias, width = self.qkv.weight, self.qkv.bias, x.shape[-1]
        if asked is None:
            q, k, v = split_heads(linear(x, weight, bias), 3, self.heads)
            return q, k, v
        q = linear(x[asked], weight[:width], None if bias is None else bias[:width])
        kv = linear(x, weight[width:], None if bias is None else bias[width:])
        k, v = split_heads(kv, 2, self.heads)
        return q.view(len(asked), self.heads, width // self.heads), k, v


class FeedForward(nn.Module):
    """Wider, bent, and back: [tokens, hidden] to the same. GEGLU multiplies the bent half by a second one."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.gated = a.feed_forward == "geglu"
        width = a.intermediate * (2 if self.gated else 1)
        self.up = nn.Linear(a.hidden, width, bias=a.feed_forward_bias)
        self.down = nn.Linear(a.intermediate, a.hidden, bias=a.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        return feed_forward(x, up.weight, up.bias, down.weight, down.bias, gated=self.gated)


class Block(nn.Module):
    """A layer: attention and feed-forward, each with its residual sum and norm.

    What goes from layer to layer is the residual `stream` and an `update` not yet added to it, so that in a pre-norm
    stack every sum is done together with the norm that follows. In a post-norm stack the update is always None.
    """

    def __init__(self, a: Architecture, layer: int) -> None:
        super().__init__()
        self.pre, self.eps, self.dropout = a.norm == "pre", a.norm_eps, a.dropout
        self.theta = a.global_theta if a.window(layer) is None else a.local_theta
        self.attention = SelfAttention(a, layer)
        # ModernBERT's first layer reads the embeddings, which have just been normed.
        first = self.pre and layer == 0
        self.attention_norm = None if first else nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias)
        self.feed_forward = FeedForward(a)
        self.feed_forward_norm = nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias)

    def forward(
        self, stream: Tensor, update: Tensor | None, layout: Layout, rotary: Rotary | None, asked: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if self.pre:
            stream, x = self.read(stream, update)
            y = self._drop(self.attention(x, layout, rotary, asked))
            stream, x = self._norm(stream if asked is None else stream[asked], y, self.feed_forward_norm)
            return stream, self._drop(self.feed_forward(x))
        y = self._drop(self.attention(stream, layout, rotary, asked))
        _, x = self._norm(stream if asked is None else stream[asked], y, self.attention_norm)
        _, x = self._norm(x, self._drop(self.feed_forward(x)), self.feed_forward_norm)
        return x, None

    def read(self, stream: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream with the update added, and what attention reads of it."""
        if self.pre and self.attention_norm is not None:
            return self._norm(stream, update, self.attention_norm)
        return stream, stream

    def _norm(self, stream: Tensor, update: Tensor | None, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
        assert norm is not None
        return add_norm(stream, update, norm.weight, norm.bias, self.eps)

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self.dropout) if self.training and self.dropout else x


@dataclass
class Trace:
    """What happened inside: hidden states [tokens, hidden], one more than layers (the embeddings first, the last one
    normed); attention weights [sequences, heads, longest, longest] of each layer, padded."""

    hidden: list[Tensor]
    attention: list[Tensor]


class Encoder(nn.Module):
    """Ids [tokens] and their layout to hidden states [tokens, hidden]."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.architecture = a
        self.embeddings = Embeddings(a)
        self.layers = nn.ModuleList([Block(a, layer) for layer in range(a.layers)])
        self.norm = nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias) if a.norm == "pre" else None

    def forward(self, ids: Tensor, layout: Layout, asked: Tensor | None = None) -> Tensor:
        """Hidden states of all tokens, or, with `asked` (sorted flat positions, int64 [n]), of those alone: [n, hidden].

        The numbers are the same either way; with `asked`, the last layer computes keys and values for all tokens but
        everything else for the asked ones only.
        """
        stream, update = self.embeddings(ids, layout), None
        for layer in self.blocks[:-1]:
            stream, update = layer(stream, update, layout, self.rotary(layer, layout))
        last = self.blocks[-1]
        stream, update = last(stream, update, layout, self.rotary(last, layout), asked)
        return self._finish(stream, update)

    def trace(self, ids: Tensor, layout: Layout) -> Trace:
        """All hidden states and attention weights, for looking inside; slower than `forward`."""
        stream, update = self.embeddings(ids, layout), None
        trace = Trace([stream], [])
        for layer in self.blocks:
            _, x = layer.read(stream, update)
            q, k, _ = layer.attention.project(x)
            rotary = self.rotary(layer, layout)
            trace.attention.append(attention_weights(q, k, layout, layer.attention.rule, rotary=rotary))
            stream, update = layer(stream, update, layout, rotary)
            trace.hidden.append(stream if update is None else stream + update)
        trace.hidden[-1] = self._finish(stream, update)
        return trace

    @property
    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return typing.cast(list[Block], list(self.layers))

    def rotary(self, layer: Block, layout: Layout) -> Rotary | None:
        """The tables that a layer turns its queries and keys with, about as long as the longest sequence."""
        a = self.architecture
        if a.positions != "rotary":
            return None
        length = min(a.max_length, 1 << max(layout.max_length - 1, 0).bit_length())
        return rotary_tables(length, a.head_dim, layer.theta, layout.starts.device)

    def _finish(self, stream: Tensor, update: Tensor | None) -> Tensor:
        if self.norm is None:
            return stream
        return add_norm(stream, update, self.norm.weight, self.norm.bias, self.norm.eps)[1]


def initialise(
    model: nn.Module,
    a: Architecture,
    generator: torch.Generator | None = None,
    names: Collection[str] | None = None,
) -> None:
    """Draw every weight of a model anew (or those in `names`), one after the other, so that a seed gives one model.

    | what                                     | bert, roberta          | modern                                  |
    |------------------------------------------|------------------------|-----------------------------------------|
    | tables (tokens, positions, segments)     | 0.02                   | 0.02                                    |
    | projections in (qkv, up)                 | 0.02                   | 0.02                                    |
    | projections out (attention out, down)    | 0.02                   | 0.02 / sqrt(2 layers)                   |
    | head and pooler                          | 0.02                   | 0.02 / sqrt(2 layers)                   |
    | biases                                   | 0                      | 0                                       |
    | norm weights                             | 1                      | 1                                       |

    Numbers are standard deviations of a normal distribution cut off at twice them (Devlin et al. 2019). The scaled
    outputs keep the residual stream of a pre-norm stack at one size whatever its depth (Radford et al. 2019).
    """
    scaled = 0.02 / math.sqrt(2 * a.layers) if a.norm == "pre" else 0.02
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names is not None and name not in names:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                outward = name.endswith(("out.weight", "down.weight", "dense.weight"))
                std = scaled if outward else 0.02
                nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
