"""What a training is of: where its batches come from, what a model is asked of one, how it is measured and saved.

The loop (`bertkin.train.loop`) knows budgets, steps, checkpoints and logs; everything else about a training is its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from bertkin.config import Train
from bertkin.train.parallel import World
from bertkin.train.price import Price
from bertkin.train.progress import Listener
from bertkin.train.state import Position


class Share(Protocol):
    """A batch, or a part of one."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def idle(self) -> bool:
        """Whether nothing is asked in it."""

    def slice(self, rank: int, world: int) -> Any:
        """The rank-th of `world` shares, which together are the whole."""

    def split(self, n: int) -> Sequence[Any]:
        """The batch in n shares."""


class Work(Protocol):
    """What the loop asks of a training. A method named for all processes is called by every one of them."""

    train: Train
    kind: str
    """What the model is asked, for the record."""

    @property
    def headline(self) -> str:
        """The score that people are told of an evaluation."""

    def first_model(self) -> nn.Module:
        """The model before its first step, the same each time."""

    def epochs(self, position: Position) -> float:
        """How often the examples have been gone through."""

    def batch(self, position: Position, progress: float) -> Any:
        """The batch at a position, whole: the same in all processes."""

    def counts(self, batch: Any) -> tuple[int, int]:
        """How much a whole batch is asked, in the first loss and in a second one."""

    def learn(self, model: Any, part: Any, counts: tuple[int, int], sums: list[float]) -> None:
        """Add a share of a batch to the gradient, and to the sums: loss, hits, second loss, second hits."""

    def learnt(self, world: World) -> None:
        """All shares of a batch are done, in all processes."""

    def advance(self, position: Position, progress: float) -> None:
        """Move past the batch that was taken at this progress."""

    def evaluate(self, model: Any, world: World) -> dict[str, float]:
        """Measure on what is held out, in all processes: at least `loss` and `accuracy`; `score` is what the best evaluation
        is told by, the higher the better, and where it is not given the loss is."""

    def show(self, finished: Any) -> list[dict[str, Any]]:
        """What the model answers to a few questions, for the log."""

    def told(self, progress: float) -> dict[str, float]:
        """What the log says of a step besides its figures."""

    def state(self) -> dict[str, Tensor]:
        """What is learnt beside the weights, by name; shares its memory, so that it can be copied into."""

    def export(self, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        """Write the model with what is known of it."""

    def opening(self, listener: Listener) -> dict[str, Any] | None:
        """Where a run begins with a trained model: what is known of it, for the log. None where it is drawn anew."""

    def price(self, model: Any, **machine: Any) -> Price:
        """What the training will cost."""

    def notes(self, model: Any) -> list[str]:
        """What people are told before it starts."""
