"""What a training will cost, said before it starts: parameters, tokens, FLOPs, memory, minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bertkin.config import Recipe
from bertkin.models import kernels
from bertkin.models.architecture import Architecture
from bertkin.models.presets import generator
from bertkin.objectives.make import make_batch
from bertkin.text.batches import Specials, SplitLike
from bertkin.train.machine import product_rate

SAMPLE = 16
"""Rows that tell how much is read, written and asked."""


def efficiency(device: str) -> float:
    """Share of the machine's matrix-product rate that a training step reaches, as measured in benchmarks/pretraining.py; beside
    matrix tiles all else in a step counts for more."""
    return 0.22 if device == "cpu" and kernels.has_tiles() else 0.6


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


def bytes_of(parameters: int, trained: int) -> int:
    """Memory of a fine-tuning in float32 (in bfloat16 it is half of the weights more): the weights; of those that are trained
    a gradient, AdamW's two moments, and two copies of weights and moments, of a best evaluation that waits to be written and
    of a checkpoint that is being written; and some room to work in."""
    return 4 * parameters + 36 * trained + 300 * 2**20


def spoken(minutes: float) -> str:
    """A duration for people."""
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def flops_per_token(a: Architecture, length: int, rate: float, written: float = 1.0) -> float:
    """Floating-point operations of a training step for each token of a row: two for each weight forward, four backward.

    The last layer and the vocabulary head work for the asked share of tokens alone (`bertkin.models.transformer`).

    Args:
        rate: share of the tokens of the stack that answers that are asked.
        written: share of all tokens that the stack that answers reads; less than 1 where an encoder reads the others.
    """
    head = a.hidden * a.row_width * (a.head == "transform") + a.row_width * a.vocab_size
    if a.generator:  # ELECTRA: a small model fills the blanks, then the model looks at every token
        found = replace(a, generator=0.0)
        return flops_per_token(generator(a), length, rate) + 6.0 * (_stack(found, a.layers, length, 1.0) + a.hidden**2)
    if not a.both:
        return 6.0 * (_stack(a, a.layers, length, rate) + rate * head)
    read = 1 - written
    keys = 2 * a.hidden * a.key_heads * a.head_dim  # each decoder layer projects the encoder's output
    looking = 2 * a.hidden * a.heads * a.head_dim + 2 * length * a.hidden
    answering = _stack(a, a.decoder_layers, length, rate) + a.decoder_layers * looking + rate * head
    return 6.0 * (read * (_stack(a, a.layers, length, 1.0) + a.decoder_layers * keys) + written * answering)


def _stack(a: Architecture, layers: int, length: int, asked: float) -> float:
    """Multiplications of one token's way through a stack whose last layer answers for the asked share alone.

    A layer that is used several times (ALBERT) is counted as often.
    """
    keys = 2 * a.hidden * a.key_heads * a.head_dim
    rest = 2 * a.hidden * a.heads * a.head_dim + (3 if a.gated else 2) * a.hidden * a.intermediate
    spans = [min(length, a.window(i) or length) for i in range(layers)] if layers == a.layers else [length] * layers
    mixing = sum(2 * span * a.hidden for span in spans[:-1]) + asked * 2 * spans[-1] * a.hidden
    return (layers - 1) * (keys + rest) + keys + asked * rest + mixing


def estimate(
    recipe: Recipe,
    a: Architecture,
    parameters: int,
    split: SplitLike,
    ids: Specials,
    *,
    device: str,
    dtype: torch.dtype,
    threads: int,
) -> Price:
    """The price of a recipe whose budget and model are resolved; what a few rows of it ask is looked up."""
    t = recipe.train
    sample = make_batch(
        split, ids, seed=t.seed, first_row=0, n_rows=SAMPLE, length=t.length, objective=recipe.objective
    )
    asked, written = len(sample.asked) / len(sample.ids), len(sample.ids) / sample.n_tokens
    wide = sample.n_tokens / (sample.n_rows * t.length)  # an encoder–decoder reads a row and writes (part of) it again
    per_token = flops_per_token(a, t.length, asked, written)
    rate = product_rate(dtype, device) * efficiency(device) / per_token
    step_tokens = max(1, int(t.batch_tokens * wide))
    if t.steps:
        tokens = t.steps * step_tokens
    elif t.tokens:
        tokens = t.tokens
    elif t.epochs:
        tokens = int(t.epochs * split.n_tokens * wide)
    else:
        tokens = int(t.minutes * 60 * rate)
    size = 2 if dtype == torch.bfloat16 else 4
    # Weights, gradients, masters and two moments; then what each layer keeps for its backward pass.
    weights = parameters * (2 * size + 12)
    depth = (1 - written) * a.layers + written * (a.decoder_layers or a.layers)
    kept = int(step_tokens // t.accumulate * depth * (10 * a.hidden + 3 * a.intermediate) * size)
    logits = int(step_tokens // t.accumulate * written * asked * a.vocab_size * size)
    return Price(
        parameters=parameters,
        tokens=tokens,
        steps=max(1, tokens // step_tokens),
        flops=tokens * per_token,
        bytes=weights + kept + logits + 300 * 2**20,
        minutes=t.minutes if t.minutes else tokens / rate / 60,
        corpus_tokens=split.n_tokens,
        precision="bfloat16" if dtype == torch.bfloat16 else "float32",
        threads=threads,
    )
