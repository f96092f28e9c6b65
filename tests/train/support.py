"""A corpus of a few thousand words, a tokenizer for it, recipes that train on it within a second; and a way to die."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertkin.config import Data, Model, Objective, Recipe, Train
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.loop import Result, Training

KILLED = 9

SUBJECTS = ["the cat", "a dog", "the old king", "my sister", "their teacher", "a small bird", "the river", "one ship"]
VERBS = ["sees", "follows", "remembers", "finds", "leaves", "crosses", "carries", "forgets"]
OBJECTS = ["the garden", "a stone", "the green hill", "an open door", "his letter", "the last train", "some bread"]
PLACES = ["in the morning", "near the sea", "at night", "under the bridge", "before the war", "after dinner"]


def text(documents: int = 120, *, seed: int = 0) -> str:
    """Documents of 3 to 9 short sentences, with a blank line between them: easy to learn something from."""
    draw = random.Random(seed)
    blocks = []
    for _ in range(documents):
        lines = [
            f"{draw.choice(SUBJECTS).capitalize()} {draw.choice(VERBS)} {draw.choice(OBJECTS)} {draw.choice(PLACES)}."
            for _ in range(draw.randint(3, 9))
        ]
        blocks.append(" ".join(lines))
    return "\n\n".join(blocks) + "\n"


def corpus(folder: Path, *, documents: int = 120, seed: int = 0, sentinels: int = 0) -> tuple[Path, Path]:
    """A corpus, and a tokenizer trained on it, with so many sentinels: (text file, tokenizer folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.txt"
    path.write_text(text(documents, seed=seed))
    tokenizer = train_tokenizer(path.read_text().splitlines(), vocab_size=160 + sentinels, sentinels=sentinels)
    tokenizer.save(folder / "tokenizer")
    return path, folder / "tokenizer"


def recipe(
    corpus_and_tokenizer: tuple[Path, Path],
    cache: Path,
    *,
    preset: str = "modern-tiny",
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **train: Any,
) -> Recipe:
    """One layer of width 64, eight rows of 32 tokens a step, float32; six steps, saved every other, evaluated twice."""
    path, tokenizer = corpus_and_tokenizer
    if not {"steps", "tokens", "epochs", "minutes"} & train.keys():
        train["steps"] = 6
    plain: dict[str, Any] = {"batch_tokens": 256, "length": 32, "precision": "float32", "threads": 1}
    plain |= {"eval_rows": 8, "eval_every": 0.5, "checkpoint_every": 2}
    return Recipe(
        preset=preset,
        data=Data(corpus=(str(path),), tokenizer=str(tokenizer), heldout=0.1, workers=1, cache=str(cache)),
        model=Model(**({"layers": 1, "hidden": 64, "heads": 2} | (model or {}))),
        objective=Objective(**(objective or {})),
        train=Train(**(plain | train)),
    )


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def killed_at(step: int, run: Callable[[], Result]) -> None:
    """Run until `step` steps are done, then die without a word."""
    real = Training.step

    def dying(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == step:
            raise Killed
        return real(self, progress)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "step", dying)
        run()


def bits(run: Path) -> dict[str, bytes]:
    """All that a run has learnt: the model's file, and the tensors of its last checkpoint."""
    last = max((run / "checkpoints").glob("step-*"))
    return {
        "model": (run / "model" / "model.safetensors").read_bytes(),
        "state": (last / "state.safetensors").read_bytes(),
        "step": last.name.encode(),
    }


def checkpoints(run: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))


def in_a_child_killed_at(boundary: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that dies, as by kill -9, just before its `boundary`-th file operation; whether it died.

    What was written but not yet flushed is lost by half, as a power cut would.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    left = boundary
    flush = os.fsync

    def count(event: str, _arguments: object) -> None:
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left < 0:
                os._exit(KILLED)

    def count_flush(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            if os.fstat(handle).st_mode & 0o100000:  # a file, not a folder
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os._exit(KILLED)
        flush(handle)

    try:
        os.fsync = count_flush
        sys.addaudithook(count)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)
