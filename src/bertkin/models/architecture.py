"""What a model is, whole and resolved: the one description that every module is built from.

`bertkin.config.Model` is what a person asks for; `Architecture` is what is built, saved and loaded. Every member of the
family, from BERT to T5, is a setting of its fields, readable in `bertkin.models.presets`.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

from bertkin.errors import UserError, nearest


@dataclass(frozen=True)
class Architecture:
    """The shape of a Transformer with what answers: an encoder, a decoder, or both."""

    family: Literal["bert", "roberta", "modern", "albert", "electra", "gpt2", "llama", "bart", "t5"]
    """Which names the weights have on disk."""
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    """Width inside the feed-forward block (of one half, where it is gated)."""
    max_length: int
    """Longest sequence, in tokens."""
    decoder_layers: int = 0
    """Layers of a decoder that reads the encoder's `layers` by cross attention; 0 where there is one stack only."""
    causal: bool = False
    """A token sees only itself and those before it, unless a layout says otherwise (`Layout.reach`)."""
    kv_heads: int = 0
    """Heads of keys and values, each shared by a group of query heads (Ainslie et al. 2023); 0 for as many as heads."""
    head_width: int = 0
    """Width of a head; 0 for hidden / heads."""
    embedding: int = 0
    """Width of the token rows, projected to the hidden width (Lan et al. 2020); 0 for the same."""
    groups: int = 0
    """Layers with weights of their own, each used several times in a row (Lan et al. 2020); 0 for all."""
    norm: Literal["post", "pre"] = "post"
    """Norm after each residual sum (BERT) or before each block (pre-norm, with one more at the end)."""
    rms: bool = False
    """Norms divide by the root mean square alone (Zhang & Sennrich 2019): no mean taken off, no bias."""
    first_norm: bool = True
    """Whether a pre-norm stack norms what its first layer reads (not ModernBERT, whose embeddings are normed)."""
    embedding_norm: bool = True
    """Whether embeddings are normed."""
    feed_forward: Literal["gelu", "gelu-tanh", "relu", "geglu", "geglu-tanh", "swiglu"] = "gelu"
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = "learned"
    """relative: an offset learnt for each bucket of distances, added to the scores (Raffel et al. 2020)."""
    buckets: int = 32
    """Of relative positions."""
    farthest: int = 128
    """Distance in tokens from which on relative positions make no difference."""
    scaled: bool = True
    """Whether attention scores are divided by the root of the head's width (T5's are not)."""
    position_offset: int = 0
    """Rows at the top of the learned table that are never used (RoBERTa: its padding id + 1; BART: 2)."""
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
    head: Literal["transform", "plain", "detect"] = "transform"
    """What answers: a dense layer, bend and norm before the token table (BERT); the table alone (GPT); or whether each
    token was replaced (ELECTRA)."""
    head_bias: bool = True
    """Bias of the dense layer in the head."""
    decoder_bias: bool = True
    """Bias of each token of the vocabulary."""
    pooling: Literal["first", "mean"] = "first"
    """What stands for a whole sequence in a head that transformers puts on (ModernBERT's says which)."""
    tied: bool = True
    """Whether the token table answers too (Press & Wolf 2017), or another of its size."""
    logit_scale: float = 1.0
    """Factor on what is compared with the token table (T5, where tied: the root of 1 / hidden)."""
    generator: float = 0.0
    """Width of ELECTRA's generator as a share of this model's; 0 where there is none."""
    norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pad_id: int = 0
    """Ids of special tokens: nothing here reads them, but a transformers configuration names them."""
    cls_id: int = 2
    sep_id: int = 3
    start_id: int = 0
    """What a decoder reads first."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.hidden // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def row_width(self) -> int:
        """Width of a row of the token table."""
        return self.embedding or self.hidden

    @property
    def both(self) -> bool:
        """Whether it is an encoder with a decoder."""
        return self.decoder_layers > 0

    @property
    def one_table(self) -> bool:
        """Whether an encoder and its decoder read one table of words (BART, T5); of other families each has its own."""
        return self.family in ("bart", "t5")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block multiplies two halves."""
        return self.feed_forward in ("geglu", "geglu-tanh", "swiglu")

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
    counts = ("decoder_layers", "kv_heads", "head_width", "embedding", "groups", "position_offset", "segments")
    for name, least in (sizes | dict.fromkeys((*counts, "pad_id", "cls_id", "sep_id", "start_id"), 0)).items():
        value = getattr(a, name)
        if type(value) is not int or value < least:
            raise UserError(f"expected a whole number of at least {least}, found {value!r}", where=f"{where}{name}")
    for name in ("norm_eps", "global_theta", "local_theta", "logit_scale"):
        value = getattr(a, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"expected a number above 0, found {value!r}", where=f"{where}{name}")
    for name in ("dropout", "attention_dropout", "generator"):
        value = getattr(a, name)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"expected a share from 0 up to 1, found {value!r}", where=f"{where}{name}")
    for name in ("family", "norm", "feed_forward", "positions", "head", "pooling"):
        known = typing.get_args(typing.get_type_hints(Architecture)[name])
        value = getattr(a, name)
        if value not in known:
            raise UserError(f"{value!r} is not a choice", where=f"{where}{name}", mend=nearest(str(value), known))
    if a.hidden % a.heads and not a.head_width:
        divisors = [n for n in range(1, a.hidden + 1) if a.hidden % n == 0]
        below, above = max(n for n in divisors if n < a.heads), min((n for n in divisors if n > a.heads), default=None)
        raise UserError(
            f"{a.heads} heads do not divide the width of {a.hidden} (model.hidden)",
            where=f"{where}heads",
            mend=f"choose {below} heads" + (f" or {above}" if above else ""),
        )
    if a.heads % a.key_heads:
        raise UserError(
            f"{a.heads} heads cannot share {a.kv_heads} heads of keys and values evenly",
            where=f"{where}kv_heads",
            mend=f"choose a divisor of {a.heads}",
        )
    if a.groups and a.layers % a.groups:
        raise UserError(
            f"{a.layers} layers do not fall into {a.groups} groups of one size",
            where=f"{where}groups",
            mend=f"choose a divisor of {a.layers}",
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
