"""A training from end to end: it learns, it stops well, and resumed it ends with the bits of one that never stopped."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertkin.config import Recipe, load_recipe
from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models import kernels
from bertkin.models.presets import build
from bertkin.models.pretrained import save_model
from bertkin.text.store import Store
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train import folder, loop, pretraining
from bertkin.train.loop import Stopped, Training
from bertkin.train.optim import Optimizer
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.progress import QuietListener
from bertkin.train.setup import complete
from bertkin.train.state import Position, read_checkpoint, read_log

from .support import bits, checkpoints, corpus, in_a_child_killed_at, killed_at, recipe, text

STEPS = 6


class Listening(QuietListener):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def step(self, record: dict[str, Any]) -> None:
        self.steps.append(record)

    def evaluation(self, record: dict[str, Any]) -> None:
        self.evaluations.append(record)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], Path]:
    """A corpus with its tokenizer, and a cache, for all tests together."""
    folder = tmp_path_factory.mktemp("ground")
    return corpus(folder), folder / "cache"


Make = Callable[..., Recipe]


@pytest.fixture
def make(ground: tuple[tuple[Path, Path], Path]) -> Make:
    """Recipes on the common corpus; see `support.recipe`."""
    return lambda **fields: recipe(*ground, **fields)


# It learns


@pytest.mark.parametrize("preset", ["bert-tiny", "modern-tiny"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls_and_the_folder_is_whole(make: Make, tmp_path: Path, preset: str, precision: str) -> None:
    run, heard = tmp_path / "run", Listening()
    train = {"steps": 60, "lr": 5e-3, "checkpoint_every": None, "eval_every": 0.25}
    result = pretrain(make(preset=preset, precision=precision, **train), run, listener=heard)
    assert result.step == 60 and result.tokens == 60 * 256 and result.run == run
    losses = [record["loss"] for record in heard.evaluations]
    assert [record["step"] for record in heard.evaluations] == [15, 30, 45, 60]
    assert losses[-1] < losses[0] < math.log(200) and losses[-1] < 4.2
    assert result.loss == pytest.approx(losses[-1], abs=1e-4) and 0 < result.accuracy < 1
    names = {path.name for path in run.iterdir()}
    assert names == {"recipe.yaml", "corpus.json", "log.jsonl", "report.html", "tokenizer", "model", "checkpoints"}
    assert not list(run.rglob(".*"))
    about = json.loads((run / "model" / "bertkin.json").read_text())
    assert about["step"] == 60 and about["heldout_loss"] == result.loss and about["heldout_accuracy"] == result.accuracy
    assert [r | {"headline": "accuracy"} for r in read_log(run) if r["kind"] == "evaluation"] == heard.evaluations


def test_the_same_recipe_gives_the_same_bits(make: Make, tmp_path: Path) -> None:
    for name in "ab":
        pretrain(make(), tmp_path / name)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    pretrain(make(seed=1), tmp_path / "c")
    assert bits(tmp_path / "a")["model"] != bits(tmp_path / "c")["model"]


def test_the_recipe_of_a_run_says_what_was_used(make: Make, tmp_path: Path) -> None:
    pretrain(make(precision="auto", steps=2), tmp_path / "run")
    used = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert used.train.precision in ("float32", "bfloat16"), "a measurement must not be made again on resuming"
    assert used.train.lr and used.objective.rate_end and used.model.intermediate and used.model.vocab_size
    assert Path(used.data.corpus[0]).is_absolute() and Path(used.data.cache).is_absolute()


@pytest.mark.parametrize(
    ("asked", "rates"),
    [
        ({}, (0.3, 0.15)),
        ({"rate": 0.4}, (0.4, 0.4)),
        ({"rate": 0.4, "rate_end": 0.2}, (0.4, 0.2)),
        ({"rate_end": 0.2}, (0.3, 0.2)),
    ],
)
def test_one_rate_alone_is_kept_to_the_end(make: Make, asked: dict[str, float], rates: tuple[float, float]) -> None:
    found = complete(make(preset="modern-tiny", objective=asked)).objective
    assert (found.rate, found.rate_end) == rates


# Resuming

VARIANTS: dict[str, dict[str, Any]] = {
    "steps": {},
    "tokens": {"tokens": STEPS * 256 - 100},
    "epochs": {"epochs": 0.3, "batch_tokens": 512},
    "adamw": {"optimizer": "adamw"},
    "lamb": {"optimizer": "lamb"},
    "muon": {"optimizer": "muon", "preset": "bert-tiny"},
    "cosine, no warm-up": {"schedule": "cosine", "warmup": 0.0},
    "average": {"ema": 0.8},
    "dropout": {"model": {"dropout": 0.2, "attention_dropout": 0.2}, "preset": "bert-tiny"},
    "curriculum and ramp": {"lengths": "16:0.5,32:0.5", "batch_ramp": 0.5},
    "static masks": {"objective": {"static": True}, "epochs": 2.0, "batch_tokens": 2048},
    "next sentence": {"objective": {"sentence": "next"}, "preset": "bert-tiny"},
    "sentence order": {"objective": {"sentence": "order", "unit": "word", "rate_end": 0.3}, "preset": "bert-tiny"},
    "spans": {"objective": {"unit": "span"}, "preset": "roberta-tiny"},
    "phrases": {"objective": {"unit": "phrase"}},
    "boundaries": {"objective": {"unit": "span", "boundary": True}},
    "adaptive": {"objective": {"adaptive": 4.0}, "accumulate": 2},
    "adaptive hybrid": {"objective": {"adaptive": 1.0, "unit": "word", "kind": "hybrid"}},
    "accumulation and z-loss": {"accumulate": 3, "z_loss": 1e-4},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, two threads": {"precision": "bfloat16", "threads": 2, "preset": "bert-tiny"},
    "two threads": {"threads": 2},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    make: Make, tmp_path: Path, fields: dict[str, Any]
) -> None:
    plan = make(**({"checkpoint_every": 3, "eval_every": 0.5} | fields))
    pretrain(plan, tmp_path / "whole")
    killed_at(4, lambda: pretrain(plan, tmp_path / "cut"))
    assert checkpoints(tmp_path / "cut")[-1] in (3, 4)
    resume(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    assert checkpoints(tmp_path / "cut")[-1] == int(bits(tmp_path / "whole")["step"][5:])


def test_without_the_kernels_too(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two threads, where a sum in parallel could come in any order."""
    monkeypatch.setattr(kernels, "get", lambda: None)
    plan = make(preset="bert-tiny", threads=2, batch_tokens=2048)
    pretrain(plan, tmp_path / "whole")
    killed_at(3, lambda: pretrain(plan, tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_killed_again_and_again_it_gets_there(make: Make, tmp_path: Path) -> None:
    """A checkpoint each step, so that every resumed run makes one step and dies in the next."""
    plan = make(checkpoint_every=1, eval_every=1)
    pretrain(plan, tmp_path / "whole")
    killed_at(1, lambda: pretrain(plan, tmp_path / "cut"))
    for step in range(2, STEPS):
        killed_at(step, lambda: resume(tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    log = read_log(tmp_path / "cut")
    assert [r["step"] for r in log if r["kind"] == "resumed"] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in log if r["kind"] == "evaluation"] == [1, 2, 3, 4, 5, 6]


def test_without_any_checkpoint_it_starts_from_the_beginning(make: Make, tmp_path: Path) -> None:
    plan, heard = make(checkpoint_every=5, eval_every=1.0 - 1e-9), Listening()
    pretrain(plan, tmp_path / "whole")
    killed_at(4, lambda: pretrain(plan, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "checkpoints").exists()
    resume(tmp_path / "cut", listener=heard)
    assert any("starting from the beginning" in said for said in heard.said)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_time_and_nothing_else(make: Make, tmp_path: Path) -> None:
    plan, heard = make(keep=1, eval_every=100), Listening()
    pretrain(plan, tmp_path / "whole")
    killed_at(5, lambda: pretrain(replace(plan, train=replace(plan.train, keep=2)), tmp_path / "cut"))
    victim = tmp_path / "cut" / "checkpoints" / "step-00000004" / "state.safetensors"
    os.truncate(victim, victim.stat().st_size - 1)
    resume(tmp_path / "cut", listener=heard)
    assert any("step-00000004" in said and "going back" in said for said in heard.said)
    assert "going on from step 2" in heard.said
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_killed_at_any_file_operation_of_its_end_it_still_ends_the_same(make: Make, tmp_path: Path) -> None:
    """Checkpoint, model, log and report of the last step, in a child that dies as by kill -9."""
    plan = make(checkpoint_every=1, eval_every=1)
    pretrain(plan, tmp_path / "whole")
    killed_at(STEPS - 1, lambda: pretrain(plan, tmp_path / "base"))
    boundary, killed = 0, True
    while killed:
        run = tmp_path / f"cut-{boundary}"
        shutil.copytree(tmp_path / "base", run)
        killed = in_a_child_killed_at(boundary, functools.partial(resume, run))
        if killed:
            resume(run)
        assert bits(run) == bits(tmp_path / "whole"), f"killed at operation {boundary}"
        assert not list(run.rglob(".*")), f"left aside by a kill at operation {boundary}"
        assert [r["step"] for r in read_log(run) if r["kind"] == "evaluation"] == [1, 2, 3, 4, 5, 6]
        assert (run / "report.html").exists()
        boundary += 7
    assert boundary > 50


def test_the_time_spent_counts_on(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed_at(5, lambda: pretrain(make(), run))
    before = read_checkpoint(run / "checkpoints" / "step-00000004")[0].seconds
    result = resume(run)
    assert 0 < before / 60 < result.minutes
    log = [r for r in read_log(run) if "minutes" in r]
    assert [r["minutes"] for r in log] == sorted(r["minutes"] for r in log)
    assert [r["step"] for r in log] == sorted(r["step"] for r in log)


def test_a_budget_in_minutes_follows_the_clock(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, run, clock = make(minutes=1.0, warmup=0.0), tmp_path / "run", [0.0]
    real = Training.step

    def slow(self: Training, progress: float) -> dict[str, float]:
        clock[0] += 10
        return real(self, progress)

    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Training, "step", slow)
    killed_at(3, lambda: pretrain(plan, run))
    assert checkpoints(run) == [2, 3]
    clock[0] += 1000
    result = resume(run)
    assert result.step == 6 and result.minutes == pytest.approx(1.0)
    rates = [r["lr"] for r in read_log(run) if r["kind"] == "step"]
    assert rates == sorted(rates, reverse=True)


def test_a_finished_run_can_be_resumed_and_is_as_it_was(make: Make, tmp_path: Path) -> None:
    first = pretrain(make(), tmp_path / "run")
    before = bits(tmp_path / "run")
    assert resume(tmp_path / "run") == first
    assert bits(tmp_path / "run") == before


# What it is trained on


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, float]]:
    """Every batch that is made from now on: (length, first row, rows, rate)."""
    seen: list[tuple[int, int, int, float]] = []
    real = pretraining.make_batch

    def spy(*arguments: Any, **named: Any) -> Any:
        seen.append((named["length"], named["first_row"], named["n_rows"], named["rate"]))
        return real(*arguments, **named)

    monkeypatch.setattr(pretraining, "make_batch", spy)
    return seen


def test_lengths_batches_and_rates_follow_the_recipe(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    objective = {"rate": 0.3, "rate_end": 0.1}
    pretrain(make(steps=8, lengths="16:0.5,32:0.5", batch_ramp=0.5, objective=objective), tmp_path / "run")
    assert [(length, first, n) for length, first, n, _ in seen] == [
        *[(16, 0, 4), (16, 4, 7), (16, 11, 10), (16, 21, 13)],
        *[(32, 0, 8), (32, 8, 8), (32, 16, 8), (32, 24, 8)],
    ]
    assert [rate for *_, rate in seen] == pytest.approx([0.3 - 0.2 * i / 8 for i in range(8)])


def test_a_resumed_run_reads_the_rows_that_the_other_would_have(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    pretrain(make(), tmp_path / "whole")
    whole = list(seen)
    seen.clear()
    killed_at(4, lambda: pretrain(make(), tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert seen == whole


def test_an_epoch_reads_each_row_once(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    pretrain(make(epochs=1.0, batch_tokens=1024), tmp_path / "run")
    rows = [row for _, first, n, _ in seen for row in range(first, first + n)]
    store = next((tmp_path / "run").glob("corpus.json"))
    total = pretraining.rows_per_epoch(Store.open(json.loads(store.read_text())["folder"]).train, 32)
    assert rows == list(range(len(rows))) and total <= len(rows) < total + 32


@pytest.mark.parametrize("parts", [2, 5])
def test_accumulating_is_the_same_step_in_parts(make: Make, tmp_path: Path, parts: int) -> None:
    for name, accumulate in (("one", 1), ("parts", parts)):
        # AdamW, as Muon's bfloat16 steps amplify the rounding that adding in another order brings.
        fields = {"optimizer": "adamw", "objective": {"sentence": "order"}, "steps": 3}
        plan = make(accumulate=accumulate, preset="bert-tiny", **fields)
        pretrain(plan, tmp_path / name)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "parts"))
    moved = build_first(tmp_path / "one")
    for name in one:
        if name.endswith("key.bias"):
            continue  # nothing depends on it but rounding
        far = float((one[name] - other[name]).norm()) / max(float((one[name] - moved.get(name, 0)).norm()), 1e-6)
        assert far < 0.02, name


def test_a_batch_that_asks_nothing_is_passed_over(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of nothing but unknown or special tokens have nothing to ask."""
    real, none = pretraining.make_batch, np.zeros(0, np.int64)
    count = [0]

    def some(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        batch = real(*arguments, **named)
        return replace(batch, asked=none, targets=none) if count[0] in (1, 4) else batch

    monkeypatch.setattr(pretraining, "make_batch", some)
    result = pretrain(make(), tmp_path / "run")
    assert result.step == STEPS and math.isfinite(result.loss)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "run" / "model" / "model.safetensors").values())


@pytest.mark.parametrize(
    ("every", "steps"), [(2, [2, 4, 6]), (4, [4, 6]), (1, [1, 2, 3, 4, 5, 6]), (0.5, [3, 6]), (0.34, [3, 5, 6])]
)
def test_evaluations_come_when_they_are_due_and_at_the_end(
    make: Make, tmp_path: Path, every: float, steps: list[int]
) -> None:
    heard = Listening()
    pretrain(make(eval_every=every, checkpoint_every=100), tmp_path / "run", listener=heard)
    assert [record["step"] for record in heard.evaluations] == steps


def test_checkpoints_come_when_they_are_due(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bool]] = []
    real = loop.save_checkpoint

    def spy(run: Path, position: Position, *rest: Any) -> Path:
        written.append((position.step, position.loss is not None))
        return real(run, position, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", spy)
    pretrain(make(eval_every=3, checkpoint_every=2), tmp_path / "run")
    assert written == [(2, False), (3, True), (4, False), (6, True)]


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 3])
def test_asked_to_stop_it_saves_and_can_be_resumed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int
) -> None:
    plan, before = make(checkpoint_every=100, eval_every=100), signal.getsignal(number)
    pretrain(plan, tmp_path / "whole")
    real = Training.step

    def asked(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == at:
            os.kill(os.getpid(), number)
        return real(self, progress)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="bertkin resume"):
        patch.setattr(Training, "step", asked)
        pretrain(plan, tmp_path / "cut")
    assert checkpoints(tmp_path / "cut") == [at + 1]
    assert (tmp_path / "cut" / "report.html").exists() and (tmp_path / "cut" / "model" / "config.json").exists()
    assert signal.getsignal(number) == before
    resume(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_asked_twice_it_stops_at_once(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(_self: Training, _progress: float) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    monkeypatch.setattr(Training, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        pretrain(make(), tmp_path / "run")


def test_a_loss_off_the_rails_names_its_step_and_keeps_the_checkpoint(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NonFiniteLoss) as caught:
        pretrain(make(preset="bert-tiny", lr=9e8, checkpoint_every=1, steps=20, eval_every=100), run)
    said = str(caught.value)
    step = int(re.search(r"at step (\d+)", said).group(1))
    assert "\n" not in said and f"the checkpoint of step {step - 1} is kept" in said and "--train.lr" in said
    assert checkpoints(run)[-1] == step - 1
    assert (run / "report.html").exists()


def test_a_gradient_off_the_rails_stops_before_it_is_used(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Optimizer.gradient_norm
    monkeypatch.setattr(Optimizer, "gradient_norm", lambda self: math.nan if self.steps == 4 else real(self))
    with pytest.raises(NonFiniteLoss, match=r"gradient's norm is nan at step 5; the checkpoint of step 4 is kept"):
        pretrain(make(), tmp_path / "run")
    monkeypatch.undo()
    resume(tmp_path / "run")
    pretrain(make(), tmp_path / "whole")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_held_out_loss_off_the_rails_is_not_saved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "evaluate", lambda *_: {"loss": math.inf, "accuracy": 0.0})
    with pytest.raises(NonFiniteLoss, match=r"held-out loss is inf at step 3; the checkpoint of step 2 is kept"):
        pretrain(make(eval_every=3), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == [2]


def test_a_full_disk_stops_with_a_line_and_the_older_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.fsync, [0]

    def full(handle: int) -> None:
        if (tmp_path / "run" / "checkpoints" / "step-00000002").exists() and count[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count[0] += 1
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full"):
        patch.setattr(os, "fsync", full)
        pretrain(make(checkpoint_every=1, eval_every=100), tmp_path / "run")
    assert checkpoints(tmp_path / "run")
    resume(tmp_path / "run")
    pretrain(make(checkpoint_every=1, eval_every=100), tmp_path / "whole")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


# Where it writes


def test_a_run_that_exists_is_not_touched_and_resuming_is_offered(make: Make, tmp_path: Path) -> None:
    pretrain(make(), tmp_path / "run")
    before = bits(tmp_path / "run")
    with pytest.raises(UserError, match=r"already exists; go on with `bertkin resume .*--overwrite"):
        pretrain(make(), tmp_path / "run")
    assert bits(tmp_path / "run") == before


def test_overwriting_clears_the_run_and_nothing_else(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(make(steps=8), run)
    (run / "notes.txt").write_text("mine")
    pretrain(make(steps=2), run, overwrite=True)
    assert checkpoints(run) == [1, 2]
    assert {r["step"] for r in read_log(run)} <= {1, 2}
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["letters.txt", "recipe.yaml", "model/model.safetensors", "checkpoints/step-1/x"])
def test_overwriting_never_empties_a_folder_that_is_no_run(make: Make, tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("precious")
    with pytest.raises(UserError, match="only a run is ever overwritten") as caught:
        pretrain(make(), home, overwrite=True)
    assert "\n" not in str(caught.value)
    assert (home / name).read_text() == "precious" and len(list(home.iterdir())) == 1
    with pytest.raises(UserError, match="already exists"):
        pretrain(make(), home)


def test_a_file_in_the_place_of_a_run_is_a_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="choose another --out"):
            pretrain(make(), tmp_path / "run", overwrite=overwrite)
    with pytest.raises(UserError, match="a part of this path is a file"):
        pretrain(make(), tmp_path / "run" / "deeper")


def test_a_mistake_leaves_the_old_run_and_no_new_folder(make: Make, tmp_path: Path) -> None:
    pretrain(make(), tmp_path / "run")
    before = bits(tmp_path / "run")
    wrong = make(batch_tokens=1 << 20)
    with pytest.raises(UserError, match=r"the corpus has .* tokens, but one batch needs"):
        pretrain(wrong, tmp_path / "run", overwrite=True)
    with pytest.raises(UserError):
        pretrain(wrong, tmp_path / "new" / "run")
    assert bits(tmp_path / "run") == before and not (tmp_path / "new").exists()


def test_a_disk_that_refuses_at_the_start_leaves_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "dump_recipe", full)
    with pytest.raises(UserError, match="disk is full"):
        pretrain(make(), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_run_killed_before_its_recipe_was_written_may_be_overwritten(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "corpus.json").write_text("{}")
    with pytest.raises(UserError, match="not a run folder"):
        resume(run)
    with pytest.raises(UserError, match="--overwrite"):
        pretrain(make(), run)
    assert pretrain(make(steps=1), run, overwrite=True).step == 1


# What it is given


def test_a_corpus_that_has_changed_is_a_line(tmp_path: Path) -> None:
    ground = corpus(tmp_path / "c")
    pretrain(recipe(ground, tmp_path / "cache"), tmp_path / "run")
    ground[0].write_text(text(seed=1))
    with pytest.raises(UserError, match="the corpus has changed since this run began"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("named", ["by its path", "-"])
def test_a_corpus_that_is_gone_is_found_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    path, tokenizer = corpus(tmp_path / "c")
    plan = recipe((path, tokenizer), tmp_path / "cache")
    pretrain(plan, tmp_path / "whole")
    if named == "-":
        plan = replace(plan, data=replace(plan.data, corpus=("-",)))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    killed_at(3, lambda: pretrain(plan, tmp_path / "cut"))
    path.unlink()
    shutil.rmtree(tokenizer)
    if named == "-":
        monkeypatch.setattr("sys.stdin", None)
    resume(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError):
        resume(tmp_path / "cut")


def test_a_run_can_be_resumed_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path / "c")
    monkeypatch.chdir(tmp_path / "c")
    plan = recipe((Path("corpus.txt"), Path("tokenizer")), Path("cache"))
    killed_at(3, lambda: pretrain(plan, Path("run")))
    monkeypatch.chdir("/")
    assert resume(tmp_path / "c" / "run").step == STEPS


def test_another_tokenizer_is_a_line(tmp_path: Path) -> None:
    path, tokenizer = corpus(tmp_path / "c")
    pretrain(recipe((path, tokenizer), tmp_path / "cache"), tmp_path / "run")
    train_tokenizer(text().splitlines(), vocab_size=120).save(tmp_path / "run" / "tokenizer")
    path.unlink()
    with pytest.raises(UserError, match="made by another tokenizer"):
        resume(tmp_path / "run")


def test_a_checkpoint_of_another_model_is_a_line(make: Make, tmp_path: Path) -> None:
    pretrain(make(), tmp_path / "a")
    pretrain(make(preset="bert-tiny"), tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    shutil.copytree(tmp_path / "b" / "checkpoints", tmp_path / "a" / "checkpoints")
    with pytest.raises(UserError, match="of another model"):
        resume(tmp_path / "a")


def test_every_checkpoint_damaged_is_a_line(make: Make, tmp_path: Path) -> None:
    pretrain(make(), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").rglob("state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        resume(tmp_path / "run")


def test_sentence_objectives_want_sentences_and_documents(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "flat.txt"
    path.write_text("\n\n".join(f"words without an end number {i} and so on and on" for i in range(400)))
    plan = make(preset="bert-tiny", objective={"sentence": "order"})
    plan = replace(plan, data=replace(plan.data, corpus=(str(path),)))
    with pytest.raises(UserError, match="no document of the corpus has two sentences"):
        pretrain(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two budgets": ({"steps": 3, "minutes": 1.0}, "two budgets at once"),
    "a budget of nothing": ({"steps": 0}, "a budget of 0"),
    "rows longer than the model": ({"length": 1024}, "reads at most 512"),
    "a curriculum longer than the model": ({"lengths": "128:0.5,1024:0.5"}, "reads at most 512"),
    "heads that do not divide": ({"model": {"heads": 3}}, "heads"),
    "a preset nobody knows": ({"preset": "bert-tony"}, "did you mean bert-tiny"),
    "a rate above all": ({"objective": {"rate": 1.5}}, "--objective.rate"),
    "no rows to evaluate on": ({"eval_rows": 0}, "--train.eval-rows"),
    "checkpoints never": ({"checkpoint_every": -1}, "--train.checkpoint-every"),
    "no threads": ({"threads": -2}, "--train.threads"),
    "a clip below nothing": ({"clip": -1.0}, "--train.clip"),
    "a rate that is no number": ({"lr": math.nan}, "--train.lr"),
    "an average that never moves": ({"ema": 1.0}, "--train.ema"),
    "a seed that no number holds": ({"seed": 1 << 70}, "--train.seed"),
}


@pytest.mark.parametrize(("fields", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_a_line_before_anything_is_begun(
    make: Make, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")) as caught:
        pretrain(make(**fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_muon_moves_its_matrices_on_a_preset_that_says_nothing_of_them(make: Make, tmp_path: Path) -> None:
    pretrain(make(preset="bert-tiny", optimizer="muon", steps=1, weight_decay=0.0), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").train.matrix_lr > 0
    first = build_first(tmp_path / "run")
    now = load_file(tmp_path / "run" / "model" / "model.safetensors")
    name = next(name for name in now if name.endswith("attention.output.dense.weight"))
    assert not torch.equal(now[name], first[name])


def build_first(run: Path) -> dict[str, torch.Tensor]:
    """The weights a run began with, under the names they are saved by."""
    used = load_recipe(run / "recipe.yaml")
    model = build(used.model, sentence=used.objective.sentence != "none", seed=used.train.seed)
    save_model(model, run / "first")
    return load_file(run / "first" / "model.safetensors")
