"""What a strategy of fine-tuning is: how much of a pretrained model is trained, as a value that is told and saved."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

from bertkin.config import AUTO
from bertkin.errors import UserError, nearest

Kind = Literal["full", "frozen", "last", "layers", "adapter", "lora", "bias", "prefix", "pals"]
Matrix = Literal["query", "key", "value", "out", "up", "down"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
MATRICES: tuple[Matrix, ...] = typing.get_args(Matrix)
TOGETHER: tuple[Kind, ...] = ("layers", "pals")
"""What can be trained together with the stock."""


@dataclass(frozen=True)
class Strategy:
    """What of a pretrained model is trained, and what is put around it. The head of a task always is."""

    kind: Kind = "full"
    """full: all. frozen: the head alone. last: the last layers. layers: shares of all layers' states in what the head
    reads (Peters et al. 2018). adapter: bottlenecks after the blocks (Houlsby et al. 2019). lora: low-rank changes to
    matrices (Hu et al. 2021). bias: biases (Ben Zaken et al. 2022). prefix: keys and values before each sequence (Li &
    Liang 2021). pals: a small attention beside each layer (Stickland & Murray 2019)."""
    last: int = 1
    """last: how many layers, from the top."""
    frozen: bool = AUTO
    """layers, pals: whether the stock stays as it is; by default it does with layers, and learns with pals."""
    size: int = 64
    """adapter, pals: width of the bottleneck."""
    heads: int = 2
    """pals: of the attention; must divide the size."""
    where: Literal["both", "feed-forward"] = "both"
    """adapter: after attention and feed-forward, with the norms trained too (Houlsby et al. 2019), or after feed-forward
    alone (Pfeiffer et al. 2021)."""
    rank: int = 8
    """lora: of each change."""
    alpha: float = 16.0
    """lora: a change is multiplied by alpha / rank."""
    dropout: float = 0.0
    """lora: share of what a change reads that is dropped."""
    matrices: tuple[Matrix, ...] = ("query", "value")
    """lora: what is changed; up is both halves of a gated block."""
    length: int = 16
    """prefix: keys and values before each sequence."""
    seed: int = 0
    """Of what is drawn at the start."""

    @property
    def light(self) -> bool:
        """Whether what is trained is so little that it is saved alone, beside the stock."""
        if self.kind in TOGETHER:
            return self.frozen is True or (self.frozen is AUTO and self.kind == "layers")
        return self.kind != "full"


OF: dict[str, tuple[Kind, ...]] = {
    "last": ("last",),
    "frozen": TOGETHER,
    "size": ("adapter", "pals"),
    "heads": ("pals",),
    "where": ("adapter",),
    "rank": ("lora",),
    "alpha": ("lora",),
    "dropout": ("lora",),
    "matrices": ("lora",),
    "length": ("prefix",),
}
"""Which strategies a field is of."""


def check(strategy: Strategy, where: str = "strategy.") -> Strategy:
    """The strategy itself, if it makes sense.

    Raises:
        UserError: naming the field, what it holds and what it could.
    """
    s = strategy
    if s.kind not in KINDS:
        raise UserError(f"{s.kind!r} is not a strategy", where=f"{where}kind", mend=nearest(str(s.kind), KINDS))
    for name in ("last", "size", "heads", "rank", "length"):
        value = getattr(s, name)
        if type(value) is not int or value < 1:
            raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"{where}{name}")
    if s.kind == "pals" and s.size % s.heads:
        raise UserError(f"{s.size} numbers cannot be shared by {s.heads} heads", where=f"{where}heads")
    if type(s.alpha) not in (int, float) or not 0 < s.alpha < math.inf:
        raise UserError(f"expected a number above 0, found {s.alpha!r}", where=f"{where}alpha")
    if type(s.dropout) not in (int, float) or not 0 <= s.dropout < 1:
        raise UserError(f"expected a share from 0 up to 1, found {s.dropout!r}", where=f"{where}dropout")
    if s.where not in ("both", "feed-forward"):
        raise UserError(f"{s.where!r} is no place of adapters", where=f"{where}where", mend="both or feed-forward")
    for matrix in s.matrices:
        if matrix not in MATRICES:
            mend = nearest(str(matrix), MATRICES)
            raise UserError(f"{matrix!r} is not a matrix of a layer", where=f"{where}matrices", mend=mend)
    if s.kind == "lora" and not s.matrices:
        raise UserError("no matrix to change", where=f"{where}matrices", mend=f"choose of {', '.join(MATRICES)}")
    return s


def see_used(strategy: Strategy, where: str = "strategy.") -> Strategy:
    """The strategy itself, if a person who asks for it says nothing that it does not use.

    Raises:
        UserError: naming the field and the strategies that it is of.
    """
    for name, kinds in OF.items():
        if strategy.kind not in kinds and getattr(strategy, name) != getattr(Strategy(), name):
            what = f"of {' and '.join(kinds)}, but the strategy is {strategy.kind}"
            raise UserError(what, where=f"{where}{name}", mend="choose another strategy, or leave it out")
    return strategy
