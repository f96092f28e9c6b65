"""Feed-forward blocks of a finished model in products of bytes.

Two thirds of a BERT's arithmetic are in them, and products of bytes take half the time of bfloat16's where a processor has
dot products and no tiles. Weights are rounded with a scale for each output, what they are multiplied with anew for each token,
from its smallest number to its largest. Attention stays in bfloat16: its projections lose as much as the rest together.
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

import torch
from torch import Tensor, nn

from bertkin.errors import UserError
from bertkin.models import kernels
from bertkin.models.linear import Linear
from bertkin.models.steps import Packed, packed
from bertkin.models.transformer import Block, FeedForward

Model = TypeVar("Model", bound=nn.Module)


class Int8FeedForward(nn.Module):
    """Wider, bent, and back: bfloat16 [tokens, hidden] to the same, for reading alone: nothing is learnt through it."""

    def __init__(self, block: FeedForward) -> None:
        super().__init__()
        self.bend = kernels.BENDS[block.kind]
        self.kept: list[Tensor] = []
        with torch.no_grad():
            self.up, self.down = (self._packed(one) for one in (block.up, block.down))

    @staticmethod
    def usable(block: nn.Module) -> bool:
        """Whether a block can be one: it has one matrix up and one down, which no strategy has wrapped, of whole vectors."""
        if type(block) is not FeedForward or block.gated or block.kind not in kernels.BENDS:
            return False
        plain = type(block.up) is Linear and type(block.down) is Linear
        return plain and not any(size % 64 for size in block.up.weight.shape) and kernels.has_dots()

    def forward(self, x: Tensor) -> Tensor:
        library = kernels.get()
        assert library is not None and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()
        x, y = x.contiguous(), torch.empty_like(x)
        both = ctypes.addressof(self.up), ctypes.addressof(self.down)
        library.bk_feed_forward_bytes(x.data_ptr(), len(x), *both, self.bend, y.data_ptr())
        return y

    def _packed(self, layer: nn.Module) -> Packed:
        assert isinstance(layer, Linear)
        bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)
        told, kept = packed(layer.weight, bias, int8=True)
        self.kept += kept
        return told


def in_bytes(model: Model) -> Model:
    """A model whose feed-forward blocks multiply bytes, and which is bfloat16 otherwise. What was float32 is rounded once.

    Raises:
        UserError: this processor has no such products, or the model no such blocks.
    """
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    chosen = [block for block in blocks if Int8FeedForward.usable(block.feed_forward)]
    if not chosen and not any(isinstance(block.feed_forward, Int8FeedForward) for block in blocks):
        model_needs = "feed-forward blocks that are not gated, of widths that are multiples of 64"
        what = f"int8 needs a processor with bfloat16 products, a C++ compiler, and {model_needs}"
        raise UserError(what, where="--precision", mend="choose auto")
    for block in chosen:
        block.feed_forward = Int8FeedForward(block.feed_forward)  # type: ignore[assignment,arg-type]
    return model.to(torch.bfloat16)
