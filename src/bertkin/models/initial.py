"""How a model begins: every weight drawn from a seed, and first heads that know who their neighbours are."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from bertkin.models.architecture import Architecture
from bertkin.models.attention import Rule
from bertkin.models.transformer import Stack

FAST, SLOW = 0.95 * math.pi, 0.02
"""Radians a token of the fastest wave, and the slowest as a share of it: waves of 2 to 105 tokens."""
LOUD = 0.028
"""Root mean square of the waves. Beside a token and a segment of 0.02 they are half of what BERT's first layer reads."""


def initialise(
    model: nn.Module,
    a: Architecture,
    generator: torch.Generator | None = None,
    names: Collection[str] | None = None,
) -> None:
    """Draw every weight of a model anew (or those in `names`), one after the other, so that a seed gives one model.

    | what                                     | post-norm              | pre-norm                                |
    |------------------------------------------|------------------------|-----------------------------------------|
    | tables (tokens, positions, segments)     | 0.02                   | 0.02                                    |
    | projections in (qkv, up)                 | 0.02                   | 0.02                                    |
    | projections out (attention out, down)    | 0.02                   | 0.02 / sqrt(2 layers)                   |
    | head and pooler                          | 0.02                   | 0.02 / sqrt(2 layers)                   |
    | queries whose scores are not scaled (T5) |                        | 0.02 / sqrt(width of a head)            |
    | a task's classifier                      | 0.02, not cut off      | 0.02, not cut off                       |
    | biases                                   | 0                      | 0                                       |
    | norm weights                             | 1                      | 1                                       |

    Numbers are standard deviations of a normal distribution cut off at twice them (Devlin et al. 2019). The scaled
    outputs keep the residual stream of a pre-norm stack at one size whatever its depth (Radford et al. 2019).
    Cutting makes the deviation an eighth smaller, which a task that is trained briefly has to learn first, so its
    classifier begins as transformers' does.
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
            elif name.endswith("classifier.weight"):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                outward = name.endswith(("out.weight", "down.weight", "dense.weight"))
                std = scaled if outward else 0.02
                nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
                if name.endswith("qkv.weight") and not a.scaled:
                    parameter[: a.heads * a.head_dim] *= a.head_dim**-0.5


def look_around(model: nn.Module) -> None:
    """Let each head of the first layer begin by looking at one neighbour, in every stack that learns its positions.

    A small BERT spends its first hour finding out which positions are beside each other; until then it predicts by
    frequency alone (docs/log.md). This start knows it, in weights as any BERT has them, all of which are learnt on.
    The table's rows become waves w, sines and cosines of many speeds f, since turning each by an angle is moving all of
    them by o tokens, w(i + o) = R w(i) (Vaswani et al. 2017). A head's keys pick some of the waves, S w(j), its queries
    the same ones turned, S R w(i), so that i looks at j = i + o before all:

        q(i) . k(j) = sum of cos(f (i + o - j)) over the speeds f picked

    From both sides o is -1, +1, -2, +2 …; from the left alone -1, -2, -3 ….
    """
    with torch.no_grad():
        for stack in model.modules():
            if isinstance(stack, Stack) and stack.embeddings.positions is not None:
                _look_around(stack, stack.embeddings.positions)


def _look_around(stack: Stack, table: Tensor) -> None:
    attention, half = stack.blocks[0].attention, table.shape[1] // 2
    assert attention.rule is not None
    speeds = FAST * SLOW ** torch.linspace(0, 1, half)
    angles = torch.outer(torch.arange(len(table)).float(), speeds)
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1) * (LOUD * math.sqrt(2))
    picked, axes = attention.head_dim // 2, torch.eye(2 * half, table.shape[1])
    weights = attention.qkv.weight.view(-1, attention.head_dim, table.shape[1])
    for head in range(attention.heads):
        waves = torch.arange(head, head + attention.heads * picked, attention.heads) % half
        sines, cosines = axes[waves], axes[half + waves]
        turn = (speeds[waves] * _neighbour(head, attention.rule))[:, None]
        weights[head, :picked] = turn.cos() * sines + turn.sin() * cosines
        weights[head, picked : 2 * picked] = turn.cos() * cosines - turn.sin() * sines
        weights[attention.heads + head, : 2 * picked] = torch.cat([sines, cosines])


def _neighbour(head: int, rule: Rule) -> int:
    """How far from a token the one stands that this head begins by looking at."""
    if rule.causal:
        return -1 - head
    return (head // 2 + 1) * (1 if head % 2 else -1)
