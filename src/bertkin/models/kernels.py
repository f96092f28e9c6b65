"""The fused CPU kernels of `kernels.cpp`: compiled once for this processor, loaded with ctypes, absent without a compiler.

`get()` answers the library or None; everything that uses it has an eager torch body beside it, so that a machine without
a C++ compiler does the same thing slower. Set BERTKIN_KERNELS=0 to do without, BERTKIN_TILES=0 to multiply by dot products
where the processor has matrix tiles (AMX) too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
INCLUDED = sorted(SOURCE.parent.glob("*.hpp"))
# Not -ffast-math: it would switch the whole process to flushing subnormal numbers to zero when the library is loaded.
FLAGS = ["-O3", "-march=native", "-fassociative-math", "-freciprocal-math", "-fno-signed-zeros", "-fno-trapping-math"]
FLAGS += ["-fno-math-errno", "-std=c++17", "-fPIC", "-shared", "-fopenmp"]
TYPES = {torch.float32: 0, torch.bfloat16: 1}
BENDS = {"gelu": 0, "gelu-tanh": 1, "relu": 2, "silu": 3}

P, I, L, F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float  # noqa: E741
U32, U64 = ctypes.c_uint32, ctypes.c_uint64
SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "bk_has_dots": ([], I),
    "bk_add_norm": ([I, P, P, P, P, P, P, P, P, L, I, F, I], None),
    "bk_add_norm_backward": ([I, P, P, P, P, P, P, P, P, P, L, I, I], None),
    "bk_bend": ([I, I, P, P, L], None),
    "bk_bend_backward": ([I, I, P, P, P, L], None),
    "bk_gate": ([I, I, P, P, L, I], None),
    "bk_gate_backward": ([I, I, P, P, P, L, I], None),
    "bk_drop": ([I, P, P, L, U64, U32, F], None),
    "bk_column_sum": ([I, P, P, L, I], None),
    "bk_cross_entropy": ([I, P, P, P, P, P, L, I, F, F, I], None),
    "bk_scatter_add": ([I, P, P, P, P, L, I], None),
    "bk_clear": ([P, P, L, L, I], None),
    "bk_adamw": ([P, L, F, F, F, F], None),
    "bk_muon_momentum": ([I, P, P, P, L, F, F], None),
    "bk_muon_apply": ([I, P, P, P, L, F, F], None),
    "bk_square_sum": ([P, L], ctypes.c_double),
    "bk_attention": ([I, P, P, P], None),
    "bk_attention_backward": ([I, P, P, P, P, P, P, P, L, L, P], None),
}
DOT_SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "bk_tiles": ([], I),
    "bk_use_tiles": ([I], None),
    "bk_product": ([L, L, L, P, L, I, P, L, I, P, P, I, P, I, I, P], None),
    "bk_exponentials": ([L, L, L, P, P, P, P, P, P, P, P], None),
    "bk_thin": ([L, L, L, P, P, P, P], None),
    "bk_look": ([P], None),
    "bk_feed_forward_bytes": ([P, L, P, P, I, P], None),
    "bk_step": ([P, P, P, P], None),
}


@functools.cache
def get() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are switched off or cannot be compiled."""
    if os.environ.get("BERTKIN_KERNELS") == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
        signatures = dict(SIGNATURES)
        if library.bk_has_dots():
            signatures |= DOT_SIGNATURES
        for name, (arguments, result) in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        if library.bk_has_dots():
            library.bk_use_tiles(os.environ.get("BERTKIN_TILES") != "0")
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return library


def status() -> str:
    """One line for people: whether the kernels are in use, and if not, what would bring them."""
    if get() is not None:
        return "fused CPU kernels in use" + (", products by matrix tiles" if has_tiles() else "")
    if os.environ.get("BERTKIN_KERNELS") == "0":
        return "fused CPU kernels switched off (BERTKIN_KERNELS=0): slower"
    return "no working C++ compiler, so no fused CPU kernels: slower; install g++ to have them"


def has_dots() -> bool:
    """Whether the kernels of bfloat16's attention and products were compiled: they need AVX-512 with bf16 dot products."""
    return get() is not None and _has_dots()


def attends(dtype: torch.dtype) -> bool:
    """Whether there is a kernel of attention for this type: of float32 on any processor."""
    return get() is not None if dtype == torch.float32 else dtype == torch.bfloat16 and has_dots()


def has_tiles() -> bool:
    """Whether products go by matrix tiles: the processor has them, the system hands them out, and nobody said otherwise."""
    library = get()
    return bool(library and has_dots() and library.bk_tiles())


def use_tiles(wanted: bool) -> None:
    """Multiply by matrix tiles, where there are any, or by dot products, from now on."""
    library = get()
    if library is not None and has_dots():
        library.bk_use_tiles(wanted)


@functools.cache
def _has_dots() -> bool:
    library = get()
    return bool(library and library.bk_has_dots())


def usable(*tensors: torch.Tensor | None) -> bool:
    """Whether all tensors are of one type that the kernels read, on the CPU and contiguous, and the kernels are there."""
    first = tensors[0]
    assert first is not None
    if first.device.type != "cpu" or first.dtype not in TYPES or get() is None:
        return False
    return all(t is None or (t.dtype == first.dtype and t.is_contiguous()) for t in tensors)


def _compiled(compiler: str) -> Path:
    """The shared library for this source, compiler and processor, compiled on first use and renamed into place."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30).stdout.split("\n")[0]
    sources = [path.read_text() for path in (SOURCE, *INCLUDED)]
    key = "\n".join([*sources, " ".join(FLAGS), version, platform.machine(), _processor()])
    name = f"kernels-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}.so"
    home = Path(os.environ.get("BERTKIN_CACHE") or Path.home() / ".cache" / "bertkin") / "kernels"
    try:
        home.mkdir(parents=True, exist_ok=True)
        return _built(compiler, home, name)
    except OSError:
        # A home that cannot be written. Not a common folder by name: somebody else could have laid a library there.
        return _built(compiler, Path(tempfile.mkdtemp(prefix="bertkin-")), name)


def _built(compiler: str, folder: Path, name: str) -> Path:
    """The library `name` in a folder, compiled aside and renamed if it is not there yet."""
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(folder / name)
    return folder / name


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
