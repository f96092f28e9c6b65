"""How far below the answer each parameter of a model is: what layer-wise rates, gradual unfreezing and fresh top layers go by.

level   what it is of
0       heads, what a strategy put after the stack, the stack's last norm
1       the top layer
…       an encoder's layers, and its last norm with the first of them, are below those of its decoder
last    embeddings, and what stands between them and the layers
"""

from __future__ import annotations

import re

import torch
from torch import nn

from bertkin.models.architecture import Architecture
from bertkin.models.initial import initialise
from bertkin.models.transformer import Stack

PLACE = re.compile(
    r"(?P<path>.*?\b(?:stack|source))\.(?:layers\.(?P<layer>\d+)|(?P<low>embeddings|project|distances)|(?P<norm>norm))\b"
)


def levels(model: nn.Module) -> dict[str, int]:
    """The level of each parameter by its name. A layer whose weights serve several times counts as the highest of them."""
    stacks = {path: module for path, module in model.named_modules() if isinstance(module, Stack)}
    found: dict[str, int] = {}
    lowest: list[str] = []
    for name, _ in model.named_parameters():
        match = PLACE.match(name)
        stack = None if match is None else stacks.get(match["path"])
        if match is None or stack is None:
            found[name] = 0
        elif match["low"]:
            lowest.append(name)
        elif match["norm"]:
            above = _above(match["path"], stacks)
            found[name] = above + 1 if above else 0
        else:
            block = stack.layers[int(match["layer"])]
            every = ".aside.down." in name or ".aside.up." in name  # of all layers (`bertkin.models.pals`)
            times = [at for at, one in enumerate(stack.blocks) if every or one is block]
            found[name] = stack.depth - max(times) + _above(match["path"], stacks)
    return found | dict.fromkeys(lowest, max(found.values(), default=0) + 1)


def _above(path: str, stacks: dict[str, Stack]) -> int:
    """Layers of the decoder that looks at this stack, if it is an encoder's."""
    decoder = stacks.get(path.removesuffix("source") + "stack") if path.endswith("source") else None
    return 0 if decoder is None else decoder.depth


def own_rates(model: nn.Module) -> dict[str, float]:
    """Peak rates of the parameters that have one of their own, whatever that of all is: what their module says as `rates`,
    by their names in it."""
    modules = dict(model.named_modules())
    found = {}
    for name, _ in model.named_parameters():
        path, _, last = name.rpartition(".")
        rates = getattr(modules[path], "rates", {})
        if last in rates:
            found[name] = float(rates[last])
    return found


def lowest_layer(a: Architecture, *, reads: bool) -> int:
    """The level of the lowest layer.

    Args:
        reads: whether an encoder–decoder answers with its encoder alone (`TaskModel.reads`).
    """
    lowest = a.layers - a.layers // (a.groups or a.layers) + 1
    return lowest + (a.decoder_layers if a.both and not reads else 0)


def redraw(model: nn.Module, a: Architecture, count: int, seed: int) -> None:
    """Draw the top `count` layers anew, and all that is above them: what they learnt in pretraining is of no use to some
    tasks, and in the way of small ones (Zhang et al. 2021).
    """
    names = [name for name, level in levels(model).items() if level <= count]
    initialise(model, a, torch.Generator().manual_seed(seed), names)
