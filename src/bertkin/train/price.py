"""What a training will cost, said before it starts: parameters, tokens, FLOPs, memory, minutes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bertkin.config import Recipe
from bertkin.models.architecture import Architecture
from bertkin.train.machine import product_rate

EFFICIENCY = 0.6
"""Share of the machine's matrix-product rate that a training step reaches, as measured in benchmarks/pretraining.py."""


@dataclass(frozen=True)
class Price:
    """The estimate, and what it was made from."""

    parameters: int
    tokens: int
    steps: int
    flops: float
    bytes: int
    minutes: float
    corpus_tokens: int
    precision: str
    threads: int

    def lines(self) -> list[str]:
        """The estimate for people, a fact a line."""
        epochs = self.tokens / max(self.corpus_tokens, 1)
        return [
            f"parameters  {self.parameters:,}",
            f"tokens      {self.tokens:,} ({epochs:.2g} epochs of {self.corpus_tokens:,}), about {self.steps:,} steps",
            f"compute     {self.flops:.2e} FLOPs in {self.precision} on {self.threads} threads",
            f"memory      about {self.bytes / 2**30:.2g} GiB",
            f"time        about {spoken(self.minutes)}",
        ]


def spoken(minutes: float) -> str:
    """A duration for people."""
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def flops_per_token(a: Architecture, length: int, rate: float) -> float:
    """Floating-point operations of a training step for each token of a row: two for each weight forward, four backward.

    The last layer and the vocabulary head work for the asked share of tokens alone (`bertkin.models.transformer`).
    """
    hidden, wide = a.hidden, a.intermediate
    feed_forward = (3 if a.feed_forward == "geglu" else 2) * hidden * wide
    layer = 4 * hidden * hidden + feed_forward
    last = 2 * hidden * hidden + rate * (2 * hidden * hidden + feed_forward)
    head = rate * (hidden * hidden + hidden * a.vocab_size)
    spans = [min(length, window) if (window := a.window(i)) else length for i in range(a.layers)]
    mixing = sum(2 * span * hidden for span in spans[:-1]) + rate * 2 * spans[-1] * hidden
    return 6.0 * ((a.layers - 1) * layer + last + head + mixing)


def estimate(
    recipe: Recipe,
    a: Architecture,
    parameters: int,
    corpus_tokens: int,
    *,
    device: str,
    dtype: torch.dtype,
    threads: int,
) -> Price:
    """The price of a recipe whose budget and model are resolved."""
    t = recipe.train
    per_token = flops_per_token(a, t.length, recipe.objective.rate)
    rate = product_rate(dtype, device) * EFFICIENCY / per_token
    if t.steps:
        tokens = t.steps * t.batch_tokens
    elif t.tokens:
        tokens = t.tokens
    elif t.epochs:
        tokens = int(t.epochs * corpus_tokens)
    else:
        tokens = int(t.minutes * 60 * rate)
    size = 2 if dtype == torch.bfloat16 else 4
    # Weights, gradients, masters and two moments; then what each layer keeps for its backward pass.
    weights = parameters * (2 * size + 12)
    kept = t.batch_tokens // t.accumulate * a.layers * (10 * a.hidden + 3 * a.intermediate) * size
    logits = int(t.batch_tokens // t.accumulate * recipe.objective.rate * a.vocab_size * size)
    return Price(
        parameters=parameters,
        tokens=tokens,
        steps=max(1, tokens // t.batch_tokens),
        flops=tokens * per_token,
        bytes=weights + kept + logits + 300 * 2**20,
        minutes=t.minutes if t.minutes else tokens / rate / 60,
        corpus_tokens=corpus_tokens,
        precision="bfloat16" if dtype == torch.bfloat16 else "float32",
        threads=threads,
    )
