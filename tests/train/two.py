"""What each of two processes does in `test_parallel`: several trainings one after the other. Started by torchrun."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does for the tests it collects

from bertkin.errors import UserError
from bertkin.text.batches import Batch
from bertkin.train import loop, pretraining
from bertkin.train.loop import Training
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.progress import QuietListener
from train.support import recipe

RICH: dict[str, dict[str, Any]] = {
    "plain": {},
    "rich": {"precision": "bfloat16", "ema": 0.9, "accumulate": 2, "optimizer": "muon"},
    "dropout": {"model": {"dropout": 0.1}, "objective": {"sentence": "next"}},
}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Telling(QuietListener):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def main(folder: Path) -> None:
    """Every training; what this process saw of them goes into seen-RANK.json."""
    told, seen = Telling(), {}

    def plan(**fields: Any) -> Any:
        given = {"preset": "bert-tiny", "optimizer": "adamw"} | fields
        return recipe((folder / "corpus.txt", folder / "tokenizer"), folder / "cache", **given)

    share, real = Batch.slice, Training.step
    shares: list[list[str]] = []

    def watch(self: Batch, rank: int, world: int) -> Batch:
        part = share(self, rank, world)
        if world > 1:
            shares.append([digest(self), str(part.n_rows), digest(part)])
        return part

    Batch.slice = watch
    result = pretrain(plan(), folder / "plain", listener=told)
    Batch.slice = share
    seen["shares"], seen["result"] = shares, [result.loss, result.accuracy, result.step, result.tokens]

    def dying(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == 3:
            raise Killed
        return real(self, progress)

    for name, fields in RICH.items():
        if name != "plain":
            pretrain(plan(**fields), folder / name)
        Training.step = dying
        with contextlib.suppress(Killed):
            pretrain(plan(**fields), folder / f"{name}-cut")
        Training.step = real
        resume(folder / f"{name}-cut")

    # A tokenizer of its own, and a precision measured by each: the first process decides.
    alone = plan(steps=1, precision="auto")
    pretraining.pick_precision = loop.pick_precision = lambda wanted, _device="cpu": (
        MEASURED[rank()] if wanted == "auto" else PRECISIONS[wanted]
    )
    pretrain(alone, folder / "own")

    for name, fields in {"small": {"batch_tokens": 1 << 20}, "rails": {"lr": 9e8, "steps": 20}}.items():
        try:
            pretrain(plan(**fields), folder / name)
        except UserError as error:
            seen[name] = str(error)
        except SystemExit as error:
            seen[name] = error.code
    seen["said"] = told.said
    (folder / f"seen-{rank()}.json").write_text(json.dumps(seen))


def rank() -> int:
    return int(os.environ["RANK"])


def digest(batch: Batch) -> str:
    return hashlib.sha256(batch.ids.tobytes() + batch.asked.tobytes() + batch.targets.tobytes()).hexdigest()


if __name__ == "__main__":
    import torch

    PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    MEASURED = [torch.bfloat16, torch.float32]
    main(Path(sys.argv[1]))
