"""The fast body of a step of writing: all of it in one call, over weights laid out for the reading (`step.hpp`).

Its twin is the stack itself with a cache, which everything here is tested against, and which serves wherever this does
not: float32, other devices, processors without bfloat16 products, and shapes that do not fall into vectors.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from bertkin.models import kernels
from bertkin.models.attention import rotary_tables
from bertkin.models.cache import Cache
from bertkin.models.embeddings import sinusoids
from bertkin.models.heads import LanguageModel
from bertkin.models.linear import Linear
from bertkin.models.ops import GATED
from bertkin.models.transformer import Attention, buckets
from bertkin.text.layout import Layout

GROUP = 64
"""Outputs that lie together, as in step.hpp."""

P, L, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Norm(ctypes.Structure):
    _fields_ = [("weight", P), ("bias", P)]


class Packed(ctypes.Structure):
    """A weight in the order that it is read in: `step::Packed` of step.hpp."""

    _fields_ = [("data", P), ("scale", P), ("sums", P), ("bias", P), ("out", L), ("inputs", L)]


def packed(weight: Tensor, bias: Tensor | None, *, int8: bool) -> tuple[Packed, list[Tensor]]:
    """A weight [out, in] and its bias [out] in the order that they are read in, and the tensors that hold them from here on.

    Args:
        int8: the weight as bytes, each output with a scale that makes its largest number 127.
    """
    out, inputs = weight.shape
    rows = nn.functional.pad(weight.detach(), (0, 0, 0, -out % GROUP))
    scale = sums = None
    if int8:
        scale = rows.float().abs().amax(dim=1).clamp(min=1e-12) / 127
        rows = (rows.float() / scale[:, None]).round().to(torch.int8)
        sums = 128 * rows.sum(dim=1, dtype=torch.int32)
    together = 4 if int8 else 2
    order = rows.view(-1, GROUP, inputs // together, together).transpose(1, 2)
    tensors = [None if x is None else x.contiguous() for x in (order, scale, sums, bias)]
    where = (None if x is None else x.data_ptr() for x in tensors)
    return Packed(*where, out, inputs), [x for x in tensors if x is not None]


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Norm) for name in ("attention_norm", "cross_norm", "feed_forward_norm")]
    _fields_ += [(name, Packed) for name in ("qkv", "out", "cross_q", "cross_out", "up", "down")]
    _fields_ += [(name, P) for name in ("keys", "values", "cross_keys", "cross_values", "cosine", "sine")]
    _fields_ += [("window", L)]


class _Step(ctypes.Structure):
    _fields_ = [("layer", P)]
    _fields_ += [(name, L) for name in ("layers", "hidden", "heads", "kv_heads", "dim", "wide", "bend", "gated", "pre")]
    _fields_ += [(name, L) for name in ("rms", "vocab", "capacity", "cross_capacity", "middle")]
    _fields_ += [(name, F) for name in ("eps", "scale", "logit_scale")]
    _fields_ += [(name, P) for name in ("tokens", "positions", "segment")]
    _fields_ += [(name, _Norm) for name in ("embedding_norm", "final_norm", "head_norm")]
    _fields_ += [("dense", Packed), ("table", Packed), ("head_bend", L)]
    _fields_ += [(name, P) for name in ("distances", "cross_lengths", "lengths")]


class _Tokens(ctypes.Structure):
    _fields_ = [("n", L), ("ids", P), ("owner", P), ("position", P), ("reach", P), ("asked", L), ("where", P)]


class Steps:
    """A model's weights as a step reads them. Matrices are copies: if the model changes, make this anew.

    Args:
        model: in bfloat16, and `usable`.
        int8: keep weights as bytes with a scale for each output (and products in bytes): half to read.
    """

    def __init__(self, model: LanguageModel, *, int8: bool = False) -> None:
        self.model, self.int8 = model, int8
        self.alive: list[Any] = []
        self.packed: dict[int, Packed] = {}
        stack, head, a = model.stack, model.head, model.architecture
        assert head is not None
        with torch.inference_mode():
            self.layers = (_Layer * stack.depth)(*[self._layer(block) for block in stack.blocks])
            self.step = _Step(
                layer=ctypes.addressof(self.layers),
                layers=stack.depth,
                hidden=a.hidden,
                heads=a.heads,
                kv_heads=a.key_heads,
                dim=a.head_dim,
                wide=a.intermediate,
                bend=kernels.BENDS[GATED.get(a.feed_forward, a.feed_forward)],
                gated=a.gated,
                pre=a.norm == "pre",
                rms=a.rms,
                vocab=a.vocab_size,
                eps=a.norm_eps,
                scale=a.head_dim**-0.5 if a.scaled else 1.0,
                logit_scale=1.0 if head.dense is not None else head.scale,
                tokens=self._kept(stack.embeddings.tokens),
                embedding_norm=self._norm(stack.embeddings.norm),
                final_norm=self._norm(stack.norm),
                head_norm=self._norm(head.norm),
                head_bend=kernels.BENDS["gelu-tanh" if head.tanh else "gelu"],
                table=self._pack(model.table, head.bias),
            )
            if head.dense is not None:
                self.step.dense = self._pack(head.dense.weight, head.dense.bias)
            self._places(stack.embeddings)

    @staticmethod
    def usable(model: LanguageModel) -> bool:
        """Whether a step of this model can be taken here, as it is now."""
        a, head = model.architecture, model.head
        if head is None or model.table.dtype != torch.bfloat16 or model.table.device.type != "cpu":
            return False
        divisors = (a.hidden, 16), (a.head_dim, 32), (a.intermediate, 32 if a.gated else 16)
        fits = all(size % divisor == 0 for size, divisor in divisors) and a.row_width == a.hidden
        wrapped = any(isinstance(module, Linear) and type(module) is not Linear for module in model.modules())
        return fits and not wrapped and kernels.has_dots()

    def bind(self, cache: Cache) -> Bound:
        """A step over what this cache keeps, once prompts have been read."""
        return Bound(self, cache)

    def _kept(self, x: Tensor | None) -> int | None:
        """The address of a tensor, which from here on stays."""
        if x is None:
            return None
        x = x.detach().contiguous()
        self.alive.append(x)
        return x.data_ptr()

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm()
        assert isinstance(norm, nn.LayerNorm)
        return _Norm(self._kept(norm.weight), self._kept(norm.bias))

    def _layer(self, block: Any) -> _Layer:
        look, across, ahead = block.attention, block.cross, block.feed_forward
        layer = _Layer(
            attention_norm=self._norm(block.attention_norm),
            cross_norm=self._norm(block.cross_norm),
            feed_forward_norm=self._norm(block.feed_forward_norm),
            qkv=self._pack(look.qkv.weight, look.qkv.bias),
            out=self._pack(look.out.weight, look.out.bias),
            up=self._pack(ahead.up.weight, ahead.up.bias, halves=ahead.gated),
            down=self._pack(ahead.down.weight, ahead.down.bias),
            window=-1 if look.rule.window is None else look.rule.window,
        )
        if across is not None:
            assert isinstance(across, Attention)
            width, bias = across.heads * across.head_dim, across.qkv.bias
            layer.cross_q = self._pack(across.qkv.weight[:width], None if bias is None else bias[:width])
            layer.cross_out = self._pack(across.out.weight, across.out.bias)
        return layer

    def _pack(self, weight: Tensor, bias: Tensor | None, *, halves: bool = False) -> Packed:
        """A weight [out, in] in the order it is read in; with `halves`, 32 outputs of the one beside the 32 of the other
        that they are multiplied with."""
        key = weight.data_ptr()
        if key not in self.packed:
            out, inputs = weight.shape
            rows = weight
            if halves:
                rows = rows.view(2, -1, GROUP // 2, inputs).transpose(0, 1).reshape(out, inputs)
                bias = None if bias is None else bias.view(2, -1, GROUP // 2).transpose(0, 1).reshape(-1)
            self.packed[key], kept = packed(rows, bias, int8=self.int8)
            self.alive += kept
        return self.packed[key]

    def _places(self, embeddings: Any) -> None:
        """What positions and segments add to a token's row."""
        a = self.model.architecture
        if embeddings.positions is not None:
            self.step.positions = self._kept(embeddings.positions[embeddings.offset :])
        elif embeddings.fixed:
            table = sinusoids(embeddings.max_length, a.hidden, torch.device("cpu"))
            self.step.positions = self._kept(table.to(torch.bfloat16))
        if embeddings.segments is not None:
            self.step.segment = self._kept(embeddings.segments[0])


class Bound:
    """`Steps` over one cache: a table of addresses, filled in once."""

    def __init__(self, steps: Steps, cache: Cache) -> None:
        library, a = kernels.get(), steps.model.architecture
        assert library is not None
        self.call, self.cache, self.steps = library.bk_step, cache, steps
        self.alive: list[Any] = []
        self.layers = type(steps.layers).from_buffer_copy(steps.layers)
        self.step = _Step.from_buffer_copy(steps.step)
        self.step.layer, self.step.capacity = ctypes.addressof(self.layers), cache.capacity
        self.step.lengths = cache.lengths.data_ptr()
        for number, (layer, block) in enumerate(zip(self.layers, steps.model.stack.blocks, strict=True)):
            layer.keys, layer.values = cache.keys[number].data_ptr(), cache.values[number].data_ptr()
            if a.positions == "rotary":
                length = min(a.max_length, 1 << max(cache.capacity - 1, 0).bit_length())
                tables = rotary_tables(length, a.head_dim, block.theta, torch.device("cpu"))
                self.alive += tables
                layer.cosine, layer.sine = (table.data_ptr() for table in tables)
            if cache.crossed is not None:
                keys, values, _ = cache.crossed
                layer.cross_keys, layer.cross_values = keys[number].data_ptr(), values[number].data_ptr()
        if cache.crossed is not None:
            self.step.cross_capacity, self.step.cross_lengths = cache.crossed[0].shape[2], cache.crossed[2].data_ptr()
        learnt = steps.model.stack.distances
        if learnt is not None:
            bucket = buckets(cache.capacity, a.buckets, a.farthest, not steps.model.stack.writes, learnt.device)
            offsets = learnt[bucket].t().float().contiguous()
            self.alive.append(offsets)
            self.step.distances, self.step.middle = offsets.data_ptr(), cache.capacity - 1
        self.best = torch.empty(len(cache.lengths), dtype=torch.int64)
        self.logits: Tensor | None = None
        self.tokens = _Tokens()
        self.pointers = ctypes.addressof(self.step), ctypes.addressof(self.tokens)

    def read(self, ids: Tensor, layout: Layout) -> Tensor:
        """Read whole prompts: the scores after each, float32 [sequences, vocab], until the next call.

        A layout without a reach is read from the left.
        """
        reach = layout.positions + 1 if layout.reach is None else layout.reach
        arrays = ids, layout.sequence_ids(), layout.positions, reach, layout.starts[1:].long() - 1
        pointers = [x.data_ptr() for x in arrays]
        tokens = _Tokens(len(ids), *pointers[:4], layout.n_sequences, pointers[4])
        scores = self._room()
        self.call(self.pointers[0], ctypes.addressof(tokens), scores.data_ptr(), self.best.data_ptr())
        self.cache.read(layout)
        return scores[: layout.n_sequences]

    def likeliest(self, ids: Tensor) -> Tensor:
        """Read one more token of each sequence (int64 [n]): the likeliest next ones, int64 [n], until the next call."""
        self.tokens.n, self.tokens.ids = self.cache.n, ids.data_ptr()
        self.call(*self.pointers, None, self.best.data_ptr())
        return self.best[: self.cache.n]

    def scores(self, ids: Tensor) -> Tensor:
        """The same, with all scores: float32 [n, vocab], until the next call."""
        scores = self._room()
        self.tokens.n, self.tokens.ids = self.cache.n, ids.data_ptr()
        self.call(*self.pointers, scores.data_ptr(), self.best.data_ptr())
        return scores[: self.cache.n]

    def _room(self) -> Tensor:
        if self.logits is None:
            self.logits = torch.empty(len(self.best), self.step.vocab)
        return self.logits
