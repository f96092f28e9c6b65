"""The kernels of processors with bfloat16 dot products and matrix tiles, tried on any: their instructions emulated.

The compiler of `emulated/` builds them as they are, and the tests that this machine would skip run with it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertkin.models import kernels

HERE = Path(__file__).parent


def _version() -> int:
    """The first number of g++'s version; 0 without one."""
    found = shutil.which("g++")
    return int(subprocess.check_output([found, "-dumpversion"], text=True).split(".")[0]) if found else 0


X86 = platform.machine() in ("x86_64", "AMD64") and sys.platform.startswith("linux")

pytestmark = [
    pytest.mark.skipif(not X86, reason="emulates x86 on Linux"),
    pytest.mark.skipif(_version() < 11, reason="needs g++ 11 or newer, which knows tiles"),
    pytest.mark.skipif(kernels.has_tiles(), reason="has tiles itself, and tests them as they are"),
]


@pytest.mark.timeout(960)
def test_kernels_hold_on_processors_with_dot_products_and_tiles(tmp_path: Path) -> None:
    tests = [str(HERE / name) for name in ("test_gemm.py", "test_int8.py", "test_ops.py", "test_steps.py")]
    own = {"CXX": str(HERE / "emulated" / "compiler"), "BERTKIN_CACHE": str(tmp_path), "OMP_NUM_THREADS": "2"}
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "BERTKIN_"))}
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests],
        env=usual | own,
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    assert "skipped" not in told.stdout  # each ran: with dot products, and with tiles
