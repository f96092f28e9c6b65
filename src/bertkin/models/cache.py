"""What a stack has read, kept: the keys and values of every layer, so that the next token costs one token.

A cache is handed to `Stack.forward`, twice in its life's order: with whole prompts, flat and packed as always, which it
keeps; then, again and again, with one token of each sequence, which looks at all that is kept. The modules are the same
either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertkin.models.attention import cached_attention, rotate
from bertkin.text.layout import Layout

if TYPE_CHECKING:
    from bertkin.models.attention import Rule
    from bertkin.models.transformer import Places, Stack


class Cache:
    """Keys and values for up to `rows` sequences of up to `capacity` tokens.

    Attributes:
        n: sequences there are now; they are the first n rows.
        keys, values: [layers, rows, capacity, key heads, head_dim]; keys are turned already where positions are rotary.
        lengths: int32 [rows], tokens kept of each.
        crossed: the same for what a decoder looks at, [layers, rows, longest source, key heads, head_dim] twice, and
            int32 [rows] its lengths; None where there is nothing to look at.
    """

    def __init__(self, stack: Stack, rows: int, capacity: int) -> None:
        a, like = stack.architecture, stack.embeddings.tokens
        shape = (stack.depth, rows, capacity, a.key_heads, a.head_dim)
        self.n = 0
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=like.device)
        self.crossed: tuple[Tensor, Tensor, Tensor] | None = None
        self.capacity = capacity

    @property
    def stepping(self) -> bool:
        """Whether prompts have been read, so that what comes now is a token of each sequence."""
        return self.n > 0

    def next(self) -> Layout:
        """The layout of one more token of each sequence; from here on it counts as kept."""
        places = self.lengths[: self.n].clone()
        self.lengths[: self.n] += 1
        starts = torch.arange(self.n + 1, dtype=torch.int32, device=places.device)
        return Layout(starts=starts, positions=places, max_length=1)

    def read(self, layout: Layout) -> None:
        """Whole prompts, laid out so, have been kept by every layer."""
        self.n = layout.n_sequences
        self.lengths[: self.n] = layout.lengths

    def back(self) -> None:
        """Forget the last token of each sequence."""
        self.lengths[: self.n] -= 1

    def pick(self, rows: Tensor, *, same_source: bool = False) -> None:
        """Let row i be what row rows[i] was (int64 [n]); there may be fewer than before, or more of one.

        Args:
            same_source: each row looks across at what it looked at before.
        """
        longest, few = int(self.lengths[: self.n].max()), len(rows)
        for kept in (self.keys, self.values):
            kept[:, :few, :longest] = kept[:, rows, :longest]
        self.lengths[:few] = self.lengths[rows]
        if self.crossed is not None and not same_source:
            for part in self.crossed[:2]:
                part[:, :few] = part[:, rows]
            self.crossed[2][:few] = self.crossed[2][rows]
        self.n = few

    def drop(self, row: int) -> None:
        """Forget a sequence; the last one takes its place."""
        self.n -= 1
        if row == self.n:
            return
        length = int(self.lengths[self.n])
        for kept in (self.keys, self.values):
            kept[:, row, :length] = kept[:, self.n, :length]
        self.lengths[row] = length
        if self.crossed is not None:
            for part in self.crossed[:2]:
                part[:, row] = part[:, self.n]
            self.crossed[2][row] = self.crossed[2][self.n]

    # What a layer does.

    def keep(self, layer: int, k: Tensor, v: Tensor, layout: Layout, places: Places) -> None:
        """Keep the keys and values [tokens, key heads, head_dim] of prompts."""
        if places.rotary is not None:
            k = rotate(k, layout.positions, places.rotary)
        at = layout.sequence_ids(), layout.positions.long()
        self.keys[layer][at], self.values[layer][at] = k, v

    def look(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        places: Places,
        rule: Rule,
        scale: float | None,
    ) -> Tensor:
        """Keep one more token of each sequence and let it look at all of its own: [n, heads * head_dim]."""
        if places.rotary is not None:
            q, k = rotate(q, layout.positions, places.rotary), rotate(k, layout.positions, places.rotary)
        at = torch.arange(self.n, device=q.device), layout.positions.long()
        keys, values = self.keys[layer, : self.n], self.values[layer, : self.n]
        keys[at], values[at] = k, v
        return cached_attention(
            q, keys, values, self.lengths[: self.n], scale, window=rule.window, distances=places.distances
        )

    def keep_crossed(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Keep the keys and values [tokens of the source, key heads, head_dim] that a layer looks across at."""
        if self.crossed is None:
            depth, rows, _, heads, dim = self.keys.shape
            both = k.new_zeros(2, depth, rows, layout.max_length, heads, dim)
            lengths = torch.zeros(rows, dtype=torch.int32, device=k.device)
            lengths[: layout.n_sequences] = layout.lengths
            self.crossed = both[0], both[1], lengths
        at = layout.sequence_ids(), layout.positions.long()
        self.crossed[0][layer][at], self.crossed[1][layer][at] = k, v

    def look_across(self, layer: int, q: Tensor, scale: float | None) -> Tensor:
        """One token of each sequence looks at all of the source: [n, heads * head_dim]."""
        assert self.crossed is not None
        keys, values, lengths = self.crossed
        return cached_attention(q, keys[layer, : self.n], values[layer, : self.n], lengths[: self.n], scale)
