"""Two processes under torchrun train as one does: same batches, nearly the same weights, and the same bits resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertkin.config import dump_recipe, load_recipe
from bertkin.train import pretraining
from bertkin.train.parallel import World
from bertkin.train.pretraining import pretrain
from bertkin.train.state import read_log

from .support import corpus, recipe
from .two import RICH, digest

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that two processes trained in (`two.py`), and what each of them saw."""
    folder = tmp_path_factory.mktemp("two")
    corpus(folder)
    process = torchrun(Path(__file__).with_name("two.py"), folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder, [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_batches_are_those_of_one_process(
    seen: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (first, second) = seen
    alone: list[str] = []
    real = pretraining.make_batch

    def watch(*arguments: Any, **named: Any) -> Any:
        batch = real(*arguments, **named)
        alone.append(digest(batch))
        return batch

    monkeypatch.setattr(pretraining, "make_batch", watch)
    ground = (folder / "corpus.txt", folder / "tokenizer")
    plan = recipe(ground, folder / "cache", preset="bert-tiny", optimizer="adamw")
    result = pretrain(plan, tmp_path / "one")
    for shares in (first["shares"], second["shares"]):
        assert [whole for whole, _, _ in shares if whole in alone] == alone
        assert all(rows == "4" for whole, rows, _ in shares if whole in alone), "each takes half of the rows"
    assert all(a[2] != b[2] for a, b in zip(first["shares"], second["shares"], strict=True))
    assert first["result"] == second["result"]
    assert first["result"][0] == pytest.approx(result.loss, abs=1e-3) and first["result"][2:] == [6, 6 * 256]
    one, two = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "one", folder / "plain"))
    assert all(float((one[name] - two[name]).abs().max()) < 2e-4 for name in one if not name.endswith("key.bias"))


@pytest.mark.parametrize("name", RICH)
def test_killed_and_resumed_it_ends_with_the_same_bits(seen: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    folder, _ = seen
    assert weights(folder / name) == weights(folder / f"{name}-cut")
    last = max((folder / name / "checkpoints").glob("step-*")).name
    states = [(folder / run / "checkpoints" / last / "state.safetensors").read_bytes() for run in (name, f"{name}-cut")]
    assert states[0] == states[1]


def test_the_first_process_alone_speaks_and_decides(seen: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = seen
    assert first["said"] and not second["said"]
    assert load_recipe(folder / "own" / "recipe.yaml").train.precision == "bfloat16"
    assert "one batch needs" in first["small"] and second["small"] == 2
    assert "the loss is nan at step" in first["rails"] and second["rails"] == 2
    assert not (folder / "small").exists()
    log = read_log(folder / "plain")
    assert [r["step"] for r in log if r["kind"] == "evaluation"] == [3, 6]


def test_asked_to_stop_all_processes_save_and_end_and_go_on_later(tmp_path: Path) -> None:
    """From the command line, as a person would: torchrun, Ctrl-C, torchrun again."""
    ground = corpus(tmp_path / "c")
    plan = recipe(ground, tmp_path / "cache", preset="bert-tiny", steps=300, checkpoint_every=1000, eval_every=1000)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(plan))
    run = tmp_path / "run"
    process = torchrun("-m", "bertkin", "pretrain", "--config", tmp_path / "recipe.yaml", "--out", run)
    until = time.monotonic() + 200
    while not any(r["kind"] == "step" for r in read_log(run)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=250)
    stopped = max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=None)
    assert stopped is not None and stopped < 300, said
    assert said.count("stopping after this step") == 1 and said.count("go on with: bertkin resume") == 1, said
    process = torchrun("-m", "bertkin", "resume", run)
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert said.count(f"going on from step {stopped}") == 1
    assert max((run / "checkpoints").glob("step-*")).name == "step-00000300"


def test_a_world_of_one_asks_nobody() -> None:
    world = World()
    assert world.first and world.sum([1.0, 2.0]) == [1.0, 2.0] and world.agree(3.0) == 3.0
    assert world.lead(lambda: "done") == "done"
    world.barrier()
