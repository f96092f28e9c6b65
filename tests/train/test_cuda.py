"""On a GPU every member learns and is gone on with; so is a fine-tuning.

Bits are not promised there, as torch's sums on a GPU are not in a fixed order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertkin.tasks.finetune import finetune
from bertkin.tasks.predict import open_reader
from bertkin.tasks.tuning import Tuning
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.state import read_log

from .support import corpus, killed_at, recipe
from .test_family import MEMBERS, members

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], Path]:
    folder = tmp_path_factory.mktemp("cuda")
    return corpus(folder, sentinels=20), folder / "cache"


@members
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_member_learns(
    ground: tuple[tuple[Path, Path], Path], tmp_path: Path, preset: str, objective: dict[str, Any], precision: str
) -> None:
    plan = recipe(
        *ground, preset=preset, objective=objective, steps=80, lr=5e-3, eval_every=10, checkpoint_every=100,
        device="cuda", precision=precision, model={"dropout": 0.05, "attention_dropout": 0.05},
    )  # fmt: skip
    result = pretrain(plan, tmp_path / "run")
    losses = [record["loss"] for record in read_log(tmp_path / "run") if record["kind"] == "evaluation"]
    assert result.step == 80 and losses[-1] < losses[0] - 0.15


@pytest.mark.parametrize("name", ["bert, masked", "modern", "electra", "gpt2, causal", "bart", "t5"])
def test_killed_and_resumed_it_ends_as_one_that_was_not(
    ground: tuple[tuple[Path, Path], Path], tmp_path: Path, name: str
) -> None:
    preset, objective = MEMBERS[name]
    plan = recipe(*ground, preset=preset, objective=objective, device="cuda", precision="auto")
    pretrain(plan, tmp_path / "whole")
    killed_at(3, lambda: pretrain(plan, tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert [line["step"] for line in read_log(tmp_path / "cut") if line["kind"] == "resumed"] == [2]
    states = [
        load_file(max((tmp_path / run / "checkpoints").glob("step-*")) / "state.safetensors")
        for run in ("whole", "cut")
    ]
    for name, whole in states[0].items():
        if name.startswith(("weight/", "first/")):
            assert float((states[1][name] - whole).norm()) < 0.02 * float(whole.norm()) + 1e-6, name


def test_a_model_grown_there_is_fine_tuned_there_and_asked_here(
    ground: tuple[tuple[Path, Path], Path], tmp_path: Path
) -> None:
    pretrain(recipe(*ground, preset="bert-tiny", device="cuda", steps=20), tmp_path / "stock")
    rows = [f"the {'cat sees' if i % 2 else 'dog follows'} number {i},{'yes' if i % 2 else 'no'}" for i in range(80)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    plan = recipe(*ground, device="cuda", lr=2e-3, steps=30)
    finetune(Tuning(model=str(tmp_path / "stock"), data=(str(table),), train=plan.train), tmp_path / "run")
    reader = open_reader(tmp_path / "run")
    assert len(reader.predict([("the cat sees",), ("the dog follows",)])) == 2
