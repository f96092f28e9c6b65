"""Projected attention layers (Stickland & Murray 2019, "BERT and PALs"): beside each layer of a stock, an attention that
is narrow enough for every task to have its own.

For a layer that reads h, attends, and ends in a norm,

    a  = norm(h + attention(h))
    h' = norm(a + feed_forward(a) + up(small attention(down(h))))

Down and up belong to the task: one of each serves all layers of a stack. Each layer has its own queries, keys and values
in the small width, and no matrix after the heads, whose place `up` takes. A pre-norm layer has no norm at its end: there,
the small attention reads the same normed states as the layer's own, and what it gives is added to the stream together with
what feed-forward gives. `up` begins as zeros, so that a model begins as the stock was.
"""

from __future__ import annotations

import typing

import torch
from torch import Tensor, nn

from bertkin.models.attention import Rule, attention
from bertkin.models.linear import Linear
from bertkin.models.ops import split_heads
from bertkin.models.transformer import Attention, Block, Stack
from bertkin.text.layout import Layout


class Projected(nn.Module):
    """Down, attention in few dimensions, and up: [tokens, hidden] to the same.

    Who sees whom is as in the layer's own attention; positions are in what it reads already, and enter no second time.

    Args:
        beside: the layer's own attention.
        down, up: of the task, [hidden to size] and back; shared with the other layers.
        heads: of the small attention; must divide the size.
    """

    def __init__(self, beside: Attention, down: Linear, up: Linear, heads: int) -> None:
        super().__init__()
        assert beside.rule is not None
        self.heads, self.rule, self.dropout = heads, Rule(beside.rule.window, beside.rule.causal), beside.dropout
        self.down, self.up = down, up
        self.qkv = Linear(down.out_features, 3 * down.out_features)

    def forward(self, x: Tensor, layout: Layout, asked: Tensor | None = None) -> Tensor:
        """For all tokens, or for the asked ones (sorted flat positions, int64 [n]) alone."""
        q, k, v = split_heads(self.qkv(self.down(x)), 3, self.heads)
        q = q if asked is None else q[asked]
        dropout = self.dropout if self.training else 0.0
        mixed: Tensor = self.up(attention(q, k, v, layout, self.rule, queries=asked, dropout=dropout))
        return mixed


def put_beside(stack: Stack, size: int, heads: int, generator: torch.Generator) -> None:
    """A small attention beside every layer of a stack, in place; layers that share weights share it too.

    Args:
        size: width of the attention.
    """
    like, hidden = stack.embeddings.tokens, stack.architecture.hidden
    down, up = Linear(hidden, size), Linear(size, hidden)
    made = []
    for block in typing.cast(list[Block], list(stack.layers)):
        block.aside = Projected(block.attention, down, up, heads)
        made.append(block.aside.qkv)
    with torch.no_grad():
        for module in (down, up, *made):
            module.bias.zero_()
            if module is up:
                up.weight.zero_()
            else:  # numbers that leave what is read about as large as it was
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
    stack.to(like.device, like.dtype)
