"""What every benchmark here does: each side in a process of its own, in turn, and medians written down with the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bertkin.config import AUTO, Data
from bertkin.errors import UserError
from bertkin.models import kernels
from bertkin.train.progress import QuietListener
from bertkin.train.setup import Materials


def in_process(file: str, *arguments: str) -> Any:
    """Run a hidden command of a benchmark's file in a process of its own; what it prints last is the answer, in JSON."""
    done = subprocess.run([sys.executable, "-W", "ignore", file, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"a measurement ended with exit code {done.returncode}", where=" ".join(arguments[:3]))
    return json.loads(done.stdout.strip().splitlines()[-1])


def source() -> str:
    """Hash of our code: what was measured with other code is measured again."""
    import bertkin

    digest = hashlib.sha256()
    files = (path for path in Path(bertkin.__file__).parent.rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write(path: Path, part: str, figures: dict[str, Any]) -> None:
    """Join one part into the record, with what it was measured on."""
    record = json.loads(path.read_text()) if path.exists() else {}
    machine: dict[str, Any] = {"processor": platform.processor() or platform.machine()}
    machine |= {"threads": torch.get_num_threads()}
    if figures.get("device") == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers")}
    record[part] = {
        **figures,
        "machine": machine | _flags(),
        "versions": versions | {"python": platform.python_version()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _flags() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = {flag: flag in text for flag in ("avx512f", "avx512_bf16", "amx_bf16")}
    return {"model": name, **flags, "tiles": kernels.has_tiles()}


def wikipedia(corpus: tuple[str, ...], vocab_size: int, words: int = AUTO) -> Data:
    """The corpus that was named, or the English Wikipedia of BERTKIN_DATA; its tokenizer is trained on it."""
    if not corpus:
        folder = os.environ.get("BERTKIN_DATA")
        if not folder:
            raise UserError("no corpus", mend="name some text, or set BERTKIN_DATA")
        corpus = (str(Path(folder) / "text" / "enwiki.jsonl.gz"),)
    return Data(corpus=corpus, vocab_size=vocab_size, tokenizer_kind="wordpiece", max_words=words)


WARM = 3
"""Steps of a measurement that do not count."""


def our_steps(materials: Materials, count: int, device: str = "cpu") -> list[float]:
    """Seconds of each of `count` pretraining steps of ours, after those that do not count."""
    from bertkin.train.pretraining import Pretraining

    return timed_steps(lambda out: Pretraining(materials, out, device), count, device)


def done(device: str) -> float:
    """The clock, when all that a device was told to do is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def timed_steps(work: Callable[[Path], Any], count: int, device: str = "cpu") -> list[float]:
    """Seconds of each of `count` steps of our loop at some work, after those that do not count."""
    from bertkin.train.loop import Training
    from bertkin.train.parallel import World

    took = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        training = Training(work(out), out, QuietListener(), World(), device)
        for _ in range(WARM + count):
            begun = done(device)
            training.step(training.progress())
            took.append(done(device) - begun)
    return took[WARM:]
