"""What a model is, whole and resolved: the one description that every module is built from.

`bertkin.config.Model` is what a person asks for; `Architecture` is what is built, saved and loaded. BERT, RoBERTa and
ModernBERT are three settings of its fields, readable in `bertkin.models.presets`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bertkin.errors import UserError, nearest


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder with its masked-language-model head."""

    family: Literal["bert", "roberta", "modern"]
    """Which names the weights have on disk, and which head answers."""
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    """Width inside the feed-forward block (of one half, for geglu)."""
    max_length: int
    """Longest sequence, in tokens."""
    norm: Literal["post", "pre"] = "post"
    """Layer norm after each residual sum (BERT) or before each block (pre-norm, with one more at the end)."""
    feed_forward: Literal["gelu", "geglu"] = "gelu"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    position_offset: int = 0
    """Rows at the top of the learned table that are never used (RoBERTa: its padding id + 1)."""
    segments: int = 2
    """Rows of the segment table; 0 for none."""
    windows: tuple[int | None, ...] = ()
    """For each layer, the full width of its sliding window in tokens, or None where it sees the whole sequence."""
    global_theta: float = 10_000.0
    """Base of the rotary frequencies of layers that see the whole sequence."""
    local_theta: float = 10_000.0
    """Base of the rotary frequencies of layers with a window."""
    attention_bias: bool = True
    feed_forward_bias: bool = True
    norm_bias: bool = True
    head_bias: bool = True
    """Bias of the dense layer in the head."""
    decoder_bias: bool = True
    """Bias of each token of the vocabulary."""
    norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pad_id: int = 0
    """Ids of special tokens: nothing here reads them, but a transformers configuration names them."""
    cls_id: int = 2
    sep_id: int = 3

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def window(self, layer: int) -> int | None:
        """The full width of the window of a layer, in tokens, or None."""
        return self.windows[layer] if self.windows else None


def check(architecture: Architecture, where: str = "model.") -> Architecture:
    """The architecture itself, if it can be built.

    Args:
        where: what the name of a field is put after in a message.

    Raises:
        UserError: naming the field, what it holds and what it could.
    """
    a = architecture
    sizes = dict.fromkeys(("vocab_size", "hidden", "layers", "heads", "intermediate", "max_length"), 1)
    for name, least in (
        sizes | dict.fromkeys(("position_offset", "segments", "pad_id", "cls_id", "sep_id"), 0)
    ).items():
        value = getattr(a, name)
        if type(value) is not int or value < least:
            raise UserError(f"expected a whole number of at least {least}, found {value!r}", where=f"{where}{name}")
    for name in ("norm_eps", "global_theta", "local_theta"):
        value = getattr(a, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"expected a number above 0, found {value!r}", where=f"{where}{name}")
    for name in ("dropout", "attention_dropout"):
        value = getattr(a, name)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"expected a share from 0 up to 1, found {value!r}", where=f"{where}{name}")
    choices = {
        "family": ("bert", "roberta", "modern"),
        "norm": ("post", "pre"),
        "feed_forward": ("gelu", "geglu"),
        "positions": ("learned", "sinusoidal", "rotary"),
    }
    for name, known in choices.items():
        value = getattr(a, name)
        if value not in known:
            raise UserError(f"{value!r} is not a choice", where=f"{where}{name}", mend=nearest(str(value), known))
    if a.hidden % a.heads:
        divisors = [n for n in range(1, a.hidden + 1) if a.hidden % n == 0]
        below, above = max(n for n in divisors if n < a.heads), min((n for n in divisors if n > a.heads), default=None)
        raise UserError(
            f"{a.heads} heads do not divide the width of {a.hidden} (model.hidden)",
            where=f"{where}heads",
            mend=f"choose {below} heads" + (f" or {above}" if above else ""),
        )
    if a.positions == "rotary" and a.head_dim % 2:
        raise UserError(
            f"rotary positions turn pairs of numbers, but a head is {a.head_dim} wide ({a.hidden} / {a.heads})",
            where=f"{where}heads",
            mend="choose heads of an even width",
        )
    if a.windows and len(a.windows) != a.layers:
        raise UserError(f"{len(a.windows)} windows for {a.layers} layers", where=f"{where}windows")
    for window in a.windows:
        if window is not None and (type(window) is not int or window < 2):
            problem = f"a window of {window!r} tokens sees no neighbour"
            raise UserError(problem, where=f"{where}local_window", mend="choose at least 2")
    return a
