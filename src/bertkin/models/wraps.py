"""Modules that stand where another one stood, are all that it was, and do a little more: what strategies are made of.

Each takes over the parameters of what it wraps under the same names, so that a wrapped model still fits every table of
names, and its own come beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bertkin.models.attention import attention, rotate
from bertkin.models.cache import Cache
from bertkin.models.linear import ALL, Linear
from bertkin.models.ops import dropout, gelu, linear
from bertkin.models.transformer import Attention, Kept, Memory, Places, Stack
from bertkin.text.layout import Layout

START = 0.02
"""Standard deviation of what an adapter reads with at the start."""


def take_over(made: nn.Module, base: nn.Module) -> None:
    """Make a module what another one is: its settings, parameters and children, the very same objects."""
    nn.Module.__init__(made)
    for name, value in vars(base).items():
        if name in ("_parameters", "_buffers", "_modules"):
            vars(made)[name].update(value)
        elif not name.startswith("_"):
            vars(made)[name] = value


class Low(nn.Module):
    """A change of rank `rank` to some rows of a weight: scale * b @ a, which is nothing at the start, as b is.

    Args:
        start: the first of the rows, of which there are `rows`.
    """

    def __init__(self, inputs: int, start: int, rows: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.start, self.rows, self.rank, self.alpha = start, rows, rank, alpha
        self.a = nn.Parameter(torch.zeros(rank, inputs))
        self.b = nn.Parameter(torch.zeros(rows, rank))

    @property
    def scale(self) -> float:
        """Alpha / rank (Hu et al. 2021): the size of the change hardly depends on the rank then."""
        return self.alpha / self.rank

    def draw(self, generator: torch.Generator) -> None:
        """Uniform numbers for a, of the size that a linear layer begins with (He et al. 2015)."""
        bound = self.a.shape[1] ** -0.5
        with torch.no_grad():
            self.a.uniform_(-bound, bound, generator=generator)


class LowRank(Linear):
    """A projection with low-rank changes to it (LoRA, Hu et al. 2021), each to rows of its own: one for the queries, say,
    and one for the values, though both are one product.

    Args:
        dropout: share of what the changes read that is dropped.
    """

    def __init__(self, base: Linear, lows: Mapping[str, Low], dropout: float = 0.0) -> None:
        take_over(self, base)
        self.low, self.dropped = nn.ModuleDict(lows), dropout

    @property
    def lows(self) -> list[Low]:
        """The changes."""
        return [low for low in self.low.values() if isinstance(low, Low)]

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        y = super().forward(x, rows)
        x = dropout(x, self.dropped) if self.training else x
        few = linear(x, torch.cat([low.a for low in self.lows]))
        return torch.addmm(y, few, self.outward()[rows].t())

    def outward(self) -> Tensor:
        """From all ranks to all rows, zero where a change does not reach: [out, ranks together]."""
        ends = [(low.start, len(self.weight) - low.start - low.rows) for low in self.lows]
        scaled = [low.b * low.scale for low in self.lows]
        return torch.cat([pad(b, (0, 0, *end)) for b, end in zip(scaled, ends, strict=True)], dim=1)

    def merged(self) -> Linear:
        """An ordinary projection with the same output. Its weight is its own: the old one may be another model's, too."""
        plain = Linear.__new__(Linear)
        weight = self.weight.detach().clone()
        for low in self.lows:
            change = low.b.detach().float() @ low.a.detach().float() * low.scale
            weight[low.start : low.start + low.rows] += change.to(weight.dtype)
        take_over(plain, self)
        plain.weight = nn.Parameter(weight)
        del plain.low, plain.dropped
        return plain


class Adapted(Linear):
    """A projection and a bottleneck after it (Houlsby et al. 2019): y + up(bend(down(y))), which is y at the start.

    Args:
        size: width of the bottleneck.
    """

    def __init__(self, base: Linear, size: int) -> None:
        take_over(self, base)
        width = base.out_features
        self.adapter = nn.ModuleDict({"down": Linear(width, size), "up": Linear(size, width)})

    def draw(self, generator: torch.Generator) -> None:
        """Small numbers to read with; none to write with."""
        with torch.no_grad():
            for name, parameter in self.adapter.named_parameters():
                parameter.zero_()
                if name == "down.weight":
                    parameter.normal_(0.0, START, generator=generator)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        y = super().forward(x)
        y = y + self.adapter["up"](gelu(self.adapter["down"](y)))
        return y if rows is ALL else y[:, rows]


class Prefixed(Attention):
    """Attention that also sees `length` keys and values that stand before every sequence (Li & Liang 2021), from
    everywhere, whatever the rule: a prefix comes first."""

    def __init__(self, base: Attention, length: int) -> None:
        take_over(self, base)
        self.keys = nn.Parameter(torch.zeros(length, base.key_heads, base.head_dim))
        self.values = nn.Parameter(torch.zeros(length, base.key_heads, base.head_dim))

    def forward(
        self, x: Tensor, layout: Layout, places: Places, asked: Tensor | None, kept: Kept | None = None
    ) -> Tensor:
        if kept is not None:
            raise ValueError("a prefix and a cache of what was read do not go together yet")
        q, k, v = self.project(x, asked)
        if places.rotary is not None:  # here, as a prefix stands nowhere and is not turned
            q = rotate(q, layout.positions if asked is None else layout.positions[asked], places.rotary)
            k = rotate(k, layout.positions, places.rotary)
        wide, order, own = widened(layout, len(self.keys))
        assert self.rule is not None
        mixed = attention(
            q, torch.cat([self.keys, k])[order], torch.cat([self.values, v])[order], wide, self.rule,
            queries=own if asked is None else own[asked], distances=places.distances, scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self._out(mixed)


def widened(layout: Layout, length: int) -> tuple[Layout, Tensor, Tensor]:
    """The layout of the same sequences with `length` tokens before each.

    Returns:
        The layout; for each of its tokens, its row among the `length` and, after them, the flat tokens there were; and
        where those are in it: int64 [n] each.
    """
    starts = layout.starts + length * torch.arange(layout.n_sequences + 1, device=layout.starts.device)
    owner = torch.repeat_interleave(layout.lengths + length)
    flat = torch.arange(len(owner), device=owner.device)
    positions = flat - starts[owner]
    order = torch.where(positions < length, positions, flat - owner * length)
    own = torch.arange(layout.n_tokens, device=owner.device) + (layout.sequence_ids() + 1) * length
    reach = None
    if layout.reach is not None:
        reach = torch.full_like(positions, length, dtype=layout.reach.dtype).index_copy_(0, own, layout.reach + length)
    longest = layout.max_length + length
    return Layout(starts.int(), positions.int(), max_length=longest, reach=reach), order, own


class Mixed(Stack):
    """A stack whose last states are a mean of those of all layers and of the embeddings, by shares that are learnt,
    times a number that is learnt too (Peters et al. 2018, ELMo)."""

    def __init__(self, base: Stack, rate: float | None = None) -> None:
        """
        Args:
            rate: peak rate of the shares and of the number, where it is not that of all (`bertkin.models.levels.own_rates`).
        """
        take_over(self, base)
        self.rates = {} if rate is None else {"levels": rate, "gain": rate}
        self.levels = nn.Parameter(torch.zeros(base.depth + 1))
        self.gain = nn.Parameter(torch.ones(1))

    @property
    def shares(self) -> Tensor:
        """Of the embeddings and of each layer in the mean: [layers + 1], one together."""
        return self.levels.float().softmax(0)

    def forward(
        self,
        ids: Tensor,
        layout: Layout,
        asked: Tensor | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        if cache is not None:
            raise ValueError("all layers' states and a cache of what was read do not go together yet")
        states = torch.stack(self.states(ids, layout, asked, memory))
        return torch.tensordot((self.shares * self.gain.float()).to(states.dtype), states, dims=1)
