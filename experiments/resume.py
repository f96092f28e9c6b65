"""Kill -9 at random moments: does every resumed run end with the bits of the undisturbed one?

    python experiments/resume.py
    python experiments/resume.py --kills 5 --processes 1 --threads 1

The corpus is the documentation in this Python. An undisturbed run is measured first. Then, for each kill, the same run
is started anew, all of its processes are killed at once, `bertkin resume` goes on, and what it ends with is compared:
the model's file and the tensors of the last checkpoint. Checkpoints are written every few steps, so that much of the
time is spent inside a write; most moments are drawn evenly over the time that the undisturbed run took, the others wait
for a checkpoint being written and strike in the middle. The outcome goes into resume.json beside this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from bertkin import __version__
from bertkin.models.kernels import status
from bertkin.tasks.documentation import collect
from bertkin.text.cache import tokenizer_for
from bertkin.train.machine import pick_precision

WORDS = 150_000
AIMED = 0.3
"""Share of the kills that wait for a checkpoint being written."""
PRESET = "modern-tiny"
FIELDS = {
    "steps": 60,
    "checkpoint_every": 2,
    "eval_every": 15,
    "eval_rows": 16,
    "batch_tokens": 1024,
    "length": 64,
}

OUT = Path(__file__).with_suffix(".json")

app = App(help=__doc__)


@dataclass
class Kill:
    """One run that was killed, and what became of it."""

    processes: int
    aimed: bool
    moment: float
    """Seconds after the run folder was there."""
    checkpoint: int
    """Step of the newest whole checkpoint that the kill left; 0 if none."""
    inside: str
    """What was being written: checkpoint, model, or nothing."""
    equal: bool
    """Whether the resumed run ended with the same bits."""
    seconds: float
    """Time that resuming took."""


class Runs:
    """Starts, kills and compares runs of one recipe."""

    def __init__(self, folder: Path, processes: int, options: list[str]) -> None:
        self.folder, self.processes, self.options = folder, processes, options
        self.whole = folder / f"whole-{processes}"
        self.duration = 0.0

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A bertkin command in a session of its own, on one process or under torchrun; dead afterwards in any case."""
        command = [sys.executable, "-m"]
        if self.processes > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        with open(self.folder / "output.txt", "wb") as log:
            process = subprocess.Popen(
                [*command, "bertkin", *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                slay(process, descendants(process.pid))

    def undisturbed(self) -> None:
        """Run once to the end; how long that takes from the run folder's appearance on is `duration`."""
        with self.started("pretrain", *self.options, "--out", str(self.whole)) as process:
            begun = wait_for(process, self.whole / "recipe.yaml")
            self.finish(process)
        self.duration = time.monotonic() - begun

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end, which must be a good one."""
        if process.wait() != 0:
            sys.exit((self.folder / "output.txt").read_text(errors="replace"))

    def kill(self, out: Path, draw: random.Random, *, aimed: bool) -> Kill:
        """Start, kill, look, resume and compare; a run that was faster than thought and has ended is begun again."""
        while (struck := self.struck(out, self.duration * draw.random(), aimed=aimed)) is None:
            shutil.rmtree(out)
        found = sorted((out / "checkpoints").glob("step-*"))
        inside, newest = writing(out) or "nothing", int(found[-1].name[5:]) if found else 0
        begun = time.monotonic()
        with self.started("resume", str(out)) as process:
            self.finish(process)
        seconds, equal = time.monotonic() - begun, bits(out) == bits(self.whole)
        return Kill(self.processes, aimed, round(struck, 3), newest, inside, equal, round(seconds, 1))

    def struck(self, out: Path, moment: float, *, aimed: bool) -> float | None:
        """Begin a run and kill it; the moment it was struck, or None if it had ended before."""
        with self.started("pretrain", *self.options, "--out", str(out)) as process:
            begun = wait_for(process, out / "recipe.yaml")
            family = descendants(process.pid)  # known beforehand, so that the blow falls at once
            while process.poll() is None and (time.monotonic() - begun < moment or (aimed and not writing(out))):
                time.sleep(0.0002)
            struck = time.monotonic() - begun
            if process.poll() is None:
                slay(process, family)
                return struck
        self.duration = min(self.duration, struck)
        return None


def wait_for(process: subprocess.Popen[bytes], path: Path) -> float:
    """The moment a file is there."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)
    return time.monotonic()


def writing(run: Path) -> str | None:
    """What lies set aside in a run folder: half of something."""
    for name, what in (("checkpoints", "checkpoint"), ("model", "model")):
        if any((run / name).glob(".*")):
            return what
    return None


def slay(process: subprocess.Popen[bytes], family: list[int]) -> None:
    """Kill -9 for a process and all that came from it: what torchrun starts has a session of its own."""
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def descendants(parent: int) -> list[int]:
    """Processes started by this one, and by those, the youngest first."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(above) for pid, above in (line.split() for line in listed.splitlines())}
    found = [parent]
    for pid in found:  # grows as it is gone through
        found += [child for child, above in parents.items() if above == pid]
    return found[:0:-1]


def bits(run: Path) -> dict[str, str]:
    """What a run ended with: hashes of the model's weights and of the last checkpoint's tensors."""
    last = max((run / "checkpoints").glob("step-*"))
    files = {"model": run / "model" / "model.safetensors", last.name: last / "state.safetensors"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@app.default
def main(
    *,
    kills: int = 20,
    processes: Annotated[list[int] | None, Parameter(negative="")] = None,
    threads: int | None = None,
    seed: int = 0,
    out: Path = OUT,
) -> None:
    """Kill runs and compare what they end with.

    Parameters
    ----------
    kills
        For each number of processes.
    processes
        Numbers of processes; by default 1 and 2.
    threads
        Of each process; by default the cores are shared out.
    seed
        Of the moments.
    out
        Where the outcome goes.
    """
    precision = str(pick_precision("auto")).split(".")[1]  # measured once, so that all runs compute alike
    draw, outcome = random.Random(seed), list[Kill]()
    undisturbed: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bertkin-resume-") as scratch:
        folder = Path(scratch)
        corpus = str(collect(words=WORDS, cache=folder / "cache").path)
        tokenizer_for([corpus], vocab_size=4096, cache=folder / "cache").save(folder / "tokenizer")
        options = [corpus, "--preset", PRESET, "--data.tokenizer", str(folder / "tokenizer"), "--quiet"]
        options += ["--data.cache", str(folder / "cache"), "--train.precision", precision]
        options += [part for name, value in FIELDS.items() for part in (f"--train.{name}", str(value))]
        options += ["--train.threads", str(threads)] if threads else []
        print("processes  aimed  moment  checkpoint  inside      equal  resumed in")
        for number in processes or [1, 2]:
            runs = Runs(folder, number, options)
            runs.undisturbed()
            undisturbed[str(number)] = {"seconds": round(runs.duration, 2), **bits(runs.whole)}
            for i in range(kills):
                aimed = i < round(AIMED * kills)
                kill = runs.kill(folder / "cut", draw, aimed=aimed)
                outcome.append(kill)
                shutil.rmtree(folder / "cut")
                said = f"{number:9}  {'yes' if aimed else 'no':5}  {kill.moment:5.2f} s  {kill.checkpoint:10}"
                print(f"{said}  {kill.inside:10}  {'yes' if kill.equal else 'NO':5}  {kill.seconds:.1f} s", flush=True)
    equal, inside = sum(kill.equal for kill in outcome), sum(kill.inside != "nothing" for kill in outcome)
    print(f"{equal} of {len(outcome)} resumed runs ended with the same bits; {inside} were killed inside a write")
    result = {
        "versions": {"bertkin": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "recipe": {
            "preset": PRESET,
            "precision": precision,
            "kernels": status(),
            "words": WORDS,
            "threads": threads,
            **FIELDS,
        },
        "seed": seed,
        "undisturbed": undisturbed,
        "equal": equal,
        "inside_a_write": inside,
        "kills": [asdict(kill) for kill in outcome],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    if equal < len(outcome):
        sys.exit(1)


if __name__ == "__main__":
    app()
