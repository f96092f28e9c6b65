"""The attention kernels as functions of tensors: the fast bodies of `attention`, on the CPU.

They are called only where `usable` or `reads` says so; `attention` holds the eager twins that the tests compare with.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bertkin.models import fused, kernels

if TYPE_CHECKING:
    from bertkin.models.attention import Rotary, Rule

_HEADS = ("q", "k", "v")
_TABLES = ("key_starts", "query_starts", "position", "query_position", "reach", "cosine", "sine", "distances")
_SIZES = ("sequences", "heads", "kv_heads", "dim", "window", "causal", "across", "longest")


class Looks(ctypes.Structure):
    """What is looked at, by whom: `Looks` of attention.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _HEADS),
        *((f"{name}_stride", ctypes.c_int64) for name in _HEADS),
        *((name, ctypes.c_void_p) for name in _TABLES),
        ("queries", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("least", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("more", ctypes.c_float),
    )


class Attention(Function):
    """Attention inside each sequence or from others into it, scores kept in cache; q, k, v are views [n, heads, dim] whose
    heads lie together. See `attention.attention`; `starts` are of the keys and of the queries, `places` likewise."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        distances: Tensor | None,
        starts: tuple[Tensor, Tensor],
        places: tuple[Tensor, Tensor],
        reach: Tensor | None,
        rule: Rule | None,
        rotary: Rotary | None,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """`rule` is None where others look, at all there is."""
        n, heads, dim = q.shape
        out = q.new_empty(n, heads * dim)
        wanted = any(ctx.needs_input_grad[:4])
        lse = torch.empty(heads, n, dtype=torch.float32) if wanted else None
        wide = None if distances is None else distances.float().contiguous()
        ctx.starts, ctx.places, ctx.reach, ctx.rule, ctx.rotary, ctx.scale = starts, places, reach, rule, rotary, scale
        ctx.choice = fused.choice(dropout) if dropout else (0, 0, 1.0)
        _call("attention", kernels.TYPES[q.dtype], _looks(q, k, v, wide, ctx), out, lse)
        ctx.save_for_backward(q, k, v, wide, out, lse)
        ctx.type = None if distances is None else distances.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, distances, out, lse = ctx.saved_tensors
        n, heads, dim = q.shape
        # The gradients lie as the projections do, so that taking them apart and together again copies nothing.
        if n == len(k) and heads == k.shape[1] and ctx.rule is not None:
            dq, dk, dv = q.new_empty(n, 3, heads, dim).unbind(1)
        else:
            dq = q.new_empty(n, heads, dim)
            dk, dv = k.new_empty(len(k), 2, k.shape[1], dim).unbind(1)
        shares = None
        if distances is not None:
            shares = distances.new_empty(len(ctx.starts[0]) - 1, *distances.shape)
        read = kernels.TYPES[q.dtype], _looks(q, k, v, distances, ctx), out, gradients[0].contiguous(), lse
        _call("attention_backward", *read, dq, dk, dv, dq.stride(0), dk.stride(0), shares)
        return dq, dk, dv, None if shares is None else shares.sum(0).to(ctx.type), *(None,) * 7


class Kept(ctypes.Structure):
    """Who looks at what has been kept: `Kept` of thin.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lengths", "distances")),
        *((name, ctypes.c_int64) for name in ("q_row", "row", "step")),
        *((n, ctypes.c_int32) for n in ("n", "heads", "kv_heads", "dim", "window", "longest", "type", "capacity")),
        ("scale", ctypes.c_float),
    )


def look(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float | None,
    window: int | None,
    distances: Tensor | None,
) -> Tensor:
    """The fast body of `attention.cached_attention`, called at every layer of every step: nothing is checked here."""
    n, heads, dim = q.shape
    wide = None if distances is None else distances.float().contiguous()
    out = q.new_empty(n, heads * dim)
    sizes = n, heads, keys.shape[2], dim, -1 if window is None else window
    last = 0 if wide is None else wide.shape[1] // 2 + 1, kernels.TYPES[q.dtype], keys.shape[1]
    factor = dim**-0.5 if scale is None else scale
    strides = q.stride(0), keys.stride(0), keys.stride(1)
    kept = Kept(*_addresses(q, keys, values, out, lengths, wide), *strides, *sizes, *last, factor)
    _call("look", kept)
    return out


def reads(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> bool:
    """Whether the kernel of `look` reads these: on the CPU, of one type, heads together, of a width divisible by 32, and
    with no gradient wanted."""
    if q.dtype not in kernels.TYPES or q.dtype != keys.dtype or q.shape[2] % 32 or not kernels.has_dots():
        return False
    if not q.is_cpu or lengths.dtype != torch.int32 or keys.stride() != values.stride() or q.dtype != values.dtype:
        return False
    if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad or values.requires_grad):
        return False
    together = keys.stride(3) == 1 and keys.stride(2) == keys.shape[3]
    return together and q.stride(2) == 1 and q.stride(1) == q.shape[2] and lengths.is_contiguous()


def _looks(q: Tensor, k: Tensor, v: Tensor, distances: Tensor | None, ctx: Any) -> Looks:
    seed, least, more = ctx.choice
    rule, (cosine, sine) = ctx.rule, ctx.rotary or (None, None)
    window = -1 if rule is None or rule.window is None else rule.window
    longest = 0 if distances is None else distances.shape[1] // 2 + 1
    return Looks(
        *_addresses(q, k, v),
        *(x.stride(0) for x in (q, k, v)),
        *_addresses(*ctx.starts, *ctx.places, ctx.reach, cosine, sine, distances),
        len(q),
        len(ctx.starts[0]) - 1,
        *(q.shape[1], k.shape[1], q.shape[2]),
        *(window, rule is not None and rule.causal, rule is None, longest),
        *(ctx.scale, least, seed, more),
    )


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if x is None else x.data_ptr() for x in tensors]


def _call(name: str, *arguments: Any) -> None:
    library = kernels.get()
    assert library is not None
    getattr(library, f"bk_{name}")(*(_plain(x) for x in arguments))


def _plain(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.data_ptr()
    return ctypes.byref(x) if isinstance(x, ctypes.Structure) else x


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether an attention kernel reads these: on the CPU, of a type it is there for, heads together, of one width, divisible
    by 32."""
    if q.device.type != "cpu" or q.shape[2] % 32 or not kernels.attends(q.dtype):
        return False
    if k.shape != v.shape or k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        return False
    return all(t.dtype == q.dtype and t.stride(2) == 1 and t.stride(1) == t.shape[2] for t in (q, k, v))
