"""Tokens, positions and segments become vectors."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from bertkin.models.architecture import Architecture
from bertkin.models.ops import add_norm, dropout, embed
from bertkin.text.layout import Layout


class Embeddings(nn.Module):
    """The sum of a token's row, its position's and its segment's, normed: ids [tokens] to [tokens, width of a row].

    A learned table of positions is BERT's; sinusoids are those of Vaswani et al. (2017), fixed; rotary positions add
    nothing here, they turn the queries and keys (`bertkin.models.attention`).
    """

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        width = a.row_width
        self.offset, self.eps, self.dropout, self.rms = a.position_offset, a.norm_eps, a.dropout, a.rms
        self.max_length = a.max_length
        self.tokens = nn.Parameter(torch.empty(a.vocab_size, width))
        learned, self.fixed = a.positions == "learned", a.positions == "sinusoidal"
        self.positions = nn.Parameter(torch.empty(a.position_offset + a.max_length, width)) if learned else None
        self.segments = nn.Parameter(torch.empty(a.segments, width)) if a.segments else None
        self.norm = nn.LayerNorm(width, eps=a.norm_eps, bias=a.norm_bias) if a.embedding_norm else None

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        if layout.max_length > self.max_length:
            raise ValueError(f"a sequence of {layout.max_length} tokens; the model reads at most {self.max_length}")
        x = embed(ids, self.tokens)
        place = self._place(layout, x)
        if self.norm is not None:
            _, x = add_norm(x, place, self.norm.weight, self.norm.bias, self.eps, rms=self.rms)
        elif place is not None:
            x = x + place
        return dropout(x, self.dropout) if self.training else x

    def _place(self, layout: Layout, x: Tensor) -> Tensor | None:
        """What says where a token is: position and segment, [tokens, hidden]; None where nothing is added."""
        place = None
        if self.positions is not None:
            place = embed(layout.positions + self.offset, self.positions)
        elif self.fixed:
            place = sinusoids(self.max_length, x.shape[1], x.device)[layout.positions].to(x.dtype)
        if self.segments is not None:
            # RoBERTa's table has one row: it makes no difference between a pair's halves.
            alike = layout.segments is None or len(self.segments) == 1
            kind = self.segments[0] if alike else embed(layout.segments, self.segments)
            place = kind.expand_as(x) if place is None else place + kind
        return place


@lru_cache(maxsize=4)
def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Fixed positions [length, width]: sines in the first half, cosines in the second, of falling frequency.

    They are scaled to a root mean square of 0.02, the size of the token rows at the start: at the full size of one,
    a small model sees little but positions for its first thousands of steps.
    """
    with torch.inference_mode(False), torch.no_grad():  # whoever asks first, training may ask next
        half = (width + 1) // 2
        angles = torch.outer(torch.arange(length).float(), 10_000.0 ** (-torch.arange(half).float() / half))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
        return (waves * (0.02 * math.sqrt(2))).to(device)
