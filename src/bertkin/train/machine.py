"""What this machine is good at: measured, not assumed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import time

import torch

from bertkin.errors import UserError


def pick_device(wanted: str) -> str:
    """cpu or cuda.

    Raises:
        UserError: CUDA was asked for and is not there, or the name is unknown.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here", where="--train.device", mend="use cpu or auto")
    if wanted not in ("cpu", "cuda"):
        raise UserError(f"unknown device {wanted!r}", where="--train.device", mend="choose cpu, cuda or auto")
    return wanted


@functools.cache
def product_rate(dtype: torch.dtype, device: str = "cpu", size: int = 1024) -> float:
    """Floating-point operations a second of a matrix product of this type: the best of a few, about 0.1 s in all.

    A processor without bfloat16 products works them out number by number, some seventy times as slowly as float32's:
    there a smaller one tells as much, and no command begins with a quarter of a minute of silence.
    """
    small = min(size, 256)
    if _product_seconds(dtype, device, small) * (size / small) ** 3 > 1:
        size = small
    return 4 * size**3 / _product_seconds(dtype, device, size, in_all=0.15)


def _product_seconds(dtype: torch.dtype, device: str, size: int, in_all: float = 0.0) -> float:
    """The shortest of three products or more, [2 size, size] by [size, size]."""
    a = torch.randn(2 * size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    times: list[float] = []
    while len(times) < 3 or sum(times) < in_all:  # on a busy machine the first alone may take longer than that
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def pick_precision(wanted: str, device: str = "cpu") -> torch.dtype:
    """The type to compute in: as asked, or bfloat16 where its products are at least 1.3 times as fast as float32's."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    gain = product_rate(torch.bfloat16, device) / product_rate(torch.float32, device)
    return torch.bfloat16 if gain >= 1.3 else torch.float32


def settle_threads(wanted: int | None, local_processes: int = 1) -> int:
    """Share the processor's cores out among the processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = wanted or max(1, cores // local_processes)
    torch.set_num_threads(threads)
    return threads


def keep_memory() -> None:
    """Ask the C library to keep freed memory instead of handing it back: a step frees and takes the same tensors again,
    and every page handed back must be cleared before the next use (about a tenth of a step on glibc)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            m_trim_threshold, m_mmap_threshold = -1, -3
            library.mallopt(m_mmap_threshold, 1 << 30)
            library.mallopt(m_trim_threshold, (1 << 31) - 1)
