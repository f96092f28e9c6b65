"""Training well: the best evaluation is kept, patience ends, classes weigh what was asked, layers learn at their own pace,
tags follow each other, and settings are searched for; each resumed to the same bits."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bertkin.cli import main
from bertkin.config import Model, Train
from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models.adapt import Strategy
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained_tasks import load_task_model
from bertkin.tasks import search as room
from bertkin.tasks.answering import loss_of
from bertkin.tasks.chaining import allowed
from bertkin.tasks.data.schemes import faults
from bertkin.tasks.encoding import encode
from bertkin.tasks.finetune import FineTuning, finetune, resume
from bertkin.tasks.gathering import gather
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import read_examples, read_splits
from bertkin.tasks.search import (
    Among,
    answering_depth,
    is_search,
    resume_search,
    search,
    settings_of,
    space,
    with_settings,
)
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.tasks.weighing import weights_of
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer
from bertkin.train import loop
from bertkin.train.loop import Training
from bertkin.train.state import kept_evaluation, read_checkpoint, read_log

from .test_finetune import plan, stock, weights, written

__all__ = ["stock"]


class Killed(BaseException):
    pass


@contextlib.contextmanager
def dying(method: str, at: int) -> Any:
    """Every training dies as it comes to this method at this step."""
    real = getattr(Training, method)

    def die(self: Training, *given: Any) -> Any:
        if self.position.step == at:
            raise Killed
        return real(self, *given)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Training, method, die)
        yield


def fixed(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Evaluations come out as these, in order of their steps, whatever the weights are: every second step has one."""
    real = FineTuning.evaluate

    def evaluate(self: FineTuning, model: Any, world: Any) -> dict[str, float]:
        found = real(self, model, world)
        score = scores[self.asked_for]  # type: ignore[attr-defined]
        return found | {"accuracy": score, "score": score}

    step = Training.step

    def counted(self: Training, progress: float) -> Any:
        self.work.asked_for = self.position.step // 2  # type: ignore[attr-defined]
        return step(self, progress)

    monkeypatch.setattr(FineTuning, "evaluate", evaluate)
    monkeypatch.setattr(Training, "step", counted)


def let_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of evaluations wait after the first, as if the disk were slow."""
    monkeypatch.setattr(loop, "SLOW", 0.0)
    monkeypatch.setattr(loop, "RARELY", 10**9)


def steps(stock: Path, data: Path, **more: Any) -> Tuning:
    """Eight steps, evaluated every second."""
    train = {"steps": 8, "eval_every": 2.0, "checkpoint_every": 100} | more.pop("train", {})
    return plan(stock, data, train=train, **more)


RISING_AND_FALLING = [0.5, 0.9, 0.7, 0.6]
"""The best at step 4."""


@pytest.fixture
def waiting(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuning:
    """A fine-tuning that keeps its best evaluation, which is at step 4 and waits to be written."""
    fixed(monkeypatch, RISING_AND_FALLING)
    let_wait(monkeypatch)
    return steps(stock, written(tmp_path, "class"), train={"checkpoint_every": None, "final": "best"})


def see_alike(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, to the bit."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# The best evaluation


def test_the_weights_of_the_best_evaluation_are_what_is_there_at_the_end(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path, "class")
    fixed(monkeypatch, RISING_AND_FALLING)
    best = finetune(steps(stock, data), tmp_path / "best")
    last = finetune(steps(stock, data, train={"final": "last"}), tmp_path / "last")
    assert (best.step, best.accuracy) == (8, 0.9) and (last.step, last.accuracy) == (8, 0.6)
    told = [json.loads((tmp_path / name / "model" / "bertkin.json").read_text()) for name in ("best", "last")]
    assert [one["step"] for one in told] == [4, 8]
    # A run that is stopped after step 4 has the weights of that step, as they were: the schedule is that of eight steps.
    with dying("step", 4):
        finetune(steps(stock, data, train={"final": "last"}), tmp_path / "four")
    four, found = weights(tmp_path / "four"), weights(tmp_path / "best")
    assert all(torch.equal(tensor, found[name]) for name, tensor in four.items())
    assert not all(torch.equal(tensor, found[name]) for name, tensor in weights(tmp_path / "last").items())
    kept = kept_evaluation(read_log(tmp_path / "best"))
    assert kept is not None and kept["step"] == 4


def test_of_equal_evaluations_the_first_is_the_best(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch, [0.5, 0.9, 0.9, 0.9])
    finetune(steps(stock, written(tmp_path, "class")), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())["step"] == 4


def test_patience_counts_evaluations_without_a_better_score(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path, "class")
    fixed(monkeypatch, RISING_AND_FALLING)
    for patience, ended in ((0, 8), (1, 6), (2, 8)):
        result = finetune(steps(stock, data, train={"patience": patience}), tmp_path / f"{patience}")
        assert (result.step, result.accuracy) == (ended, 0.9)
    resumed = resume(tmp_path / "1")
    assert (resumed.step, resumed.accuracy) == (6, 0.9)  # it was over, and stays so


def test_an_error_is_better_the_smaller_it_is(stock: Path, tmp_path: Path) -> None:
    tuning = steps(stock, written(tmp_path, "score"), metric="mean_squared_error")
    finetune(tuning, tmp_path / "run")
    records = read_log(tmp_path / "run")
    errors = {r["step"]: r["mean_squared_error"] for r in records if r["kind"] == "evaluation"}
    kept = kept_evaluation(records)
    assert kept is not None and kept["mean_squared_error"] == min(errors.values()) < max(errors.values())


@pytest.mark.parametrize(
    ("method", "at", "strategy", "train"),
    [
        ("step", 5, "full", {}),  # after the best, before anything else was saved
        ("step", 7, "lora", {"patience": 3}),
        ("_export", 4, "full", {"ema": 0.5}),  # the best one's checkpoint is there, its model is not
        ("_go_back", 8, "full", {"layer_decay": 0.8, "unfreeze": 0.7}),  # nothing is left to do but to go back
        ("_go_back", 6, "adapter", {"patience": 1}),
    ],
)
def test_a_killed_run_ends_with_the_same_best(
    method: str, at: int, strategy: Any, train: dict[str, Any],
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tuning = steps(stock, written(tmp_path, "class"), train=train, strategy=Strategy(strategy))
    fixed(monkeypatch, RISING_AND_FALLING)
    whole = finetune(tuning, tmp_path / "whole")
    with dying(method, at):
        finetune(tuning, tmp_path / "cut")
    cut = resume(tmp_path / "cut")
    assert (cut.step, cut.loss, cut.accuracy) == (whole.step, whole.loss, whole.accuracy)
    see_alike(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("at", [None, 3, 5, 7])
@pytest.mark.parametrize("final", ["best", "last"])
def test_checkpoints_that_wait_change_nothing(
    final: Any, at: int | None, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = steps(stock, written(tmp_path, "class"), train={"checkpoint_every": None, "final": final})
    fixed(monkeypatch, RISING_AND_FALLING)
    whole = finetune(tuning, tmp_path / "whole")
    let_wait(monkeypatch)
    if at is None:
        waited = finetune(tuning, tmp_path / "waited")
    else:
        with dying("step", at):
            finetune(tuning, tmp_path / "waited")
        names = [folder.name for folder in (tmp_path / "waited" / "checkpoints").iterdir()]
        assert names == ["step-00000002"]  # the first told how long one takes; step 4, the best, waited
        waited = resume(tmp_path / "waited")
    assert (waited.step, waited.loss, waited.accuracy) == (whole.step, whole.loss, whole.accuracy)
    see_alike(tmp_path / "whole", tmp_path / "waited")
    assert {"step-00000004", "step-00000008"} <= {
        folder.name for folder in (tmp_path / "waited" / "checkpoints").iterdir()
    }
    shown = [
        [(record["step"], record["loss"]) for record in read_log(tmp_path / name) if record["kind"] == "evaluation"]
        for name in ("whole", "waited")
    ]
    assert shown[0] == shown[1]


def test_a_best_that_waits_is_written_before_a_loss_that_runs_off_ends_the_run(
    waiting: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training.step

    def off(self: Training, progress: float) -> Any:
        if self.position.step == 5:
            self._refuse("the loss is nan", 5)
        return step(self, progress)

    monkeypatch.setattr(Training, "step", off)
    with pytest.raises(NonFiniteLoss, match="the checkpoint of step 4 is kept"):
        finetune(waiting, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    assert json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())["step"] == 4


def test_who_stops_a_run_has_the_best_model_though_it_waited(
    waiting: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training.step

    def interrupted(self: Training, progress: float) -> Any:
        self.stop = self.position.step == 4
        return step(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", interrupted)
        with pytest.raises(loop.Stopped):
            finetune(waiting, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())["step"] == 4
    (_, best), (_, last) = (read_checkpoint(tmp_path / "run" / "checkpoints" / f"step-0000000{at}") for at in (4, 5))
    name = "weight/stack.embeddings.tokens"
    model, _ = load_task_model(tmp_path / "run" / "model")
    assert torch.equal(dict(model.named_parameters())["stack.embeddings.tokens"], best[name])
    assert not torch.equal(best[name], last[name])
    resume(tmp_path / "run")
    finetune(waiting, tmp_path / "whole")
    see_alike(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("kind", "ema"), [("adapter", 0.0), ("full", 0.5)])
def test_the_best_that_waited_is_written_and_nothing_else_is_changed(
    kind: Any, ema: float, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a light strategy, whose stock both models share, and of an average of weights."""
    fixed(monkeypatch, RISING_AND_FALLING)
    train = {"checkpoint_every": None, "final": "best", "ema": ema}
    strategy = Strategy("adapter", size=4) if kind == "adapter" else Strategy()
    tuning = steps(stock, written(tmp_path, "class"), train=train, strategy=strategy)
    finetune(tuning, tmp_path / "whole")
    let_wait(monkeypatch)
    finetune(tuning, tmp_path / "waited")
    see_alike(tmp_path / "whole", tmp_path / "waited")


def test_a_prediction_that_is_no_number_at_an_evaluation_loses_no_best(
    waiting: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = FineTuning.evaluate

    def off(self: FineTuning, model: Any, world: Any) -> dict[str, float]:
        if self.asked_for == 2:  # type: ignore[attr-defined]
            raise NonFiniteLoss("a predicted score is not a number")
        return evaluate(self, model, world)

    monkeypatch.setattr(FineTuning, "evaluate", off)
    with pytest.raises(NonFiniteLoss, match="a predicted score is not a number at step 6; the checkpoint of step 4 is"):
        finetune(waiting, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())["step"] == 4


def test_a_best_checkpoint_that_is_damaged_costs_the_best_and_nothing_else(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch, RISING_AND_FALLING)
    with dying("_go_back", 8):
        finetune(steps(stock, written(tmp_path, "class")), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    assert resume(tmp_path / "run").accuracy == 0.6
    assert json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())["step"] == 8


# Weights of classes


def test_balanced_classes_weigh_the_same_together_and_an_answer_one_on_average() -> None:
    task = Task("class", labels=("a", "b", "c", "never"))
    examples = [Example((str(n),), n) for n in [0] * 6 + [1] * 3 + [2]]
    found = weights_of("balanced", task, examples)
    assert found is not None and found[3] == 1.0
    counts = Counter(example.label for example in examples)
    assert [found[at] * counts[at] for at in range(3)] == pytest.approx([10 / 3] * 3)
    tags = [Example(("x y z",), ((0, 1, 0), (2, 3, 0), (4, 5, 1)))]
    assert weights_of("balanced", Task("tokens", labels=("O", "B-X")), tags) == pytest.approx([0.75, 1.5])
    assert weights_of("none", task, examples) is None
    assert weights_of("b=2,c=0.5", task, examples) == [1.0, 2.0, 0.5, 1.0]


def test_the_loss_is_weighed_as_torch_weighs_it(stock: Path) -> None:
    task, tokenizer = Task("class", labels=("bad", "good")), Tokenizer.load(stock)
    rows = encode([Example((f"it was {n}",), n % 2) for n in range(5)], task, tokenizer, max_length=16)
    scores, layout = torch.randn(5, 2), Layout.from_lengths(rows.lengths).to("cpu")
    weights = torch.tensor([0.5, 3.0])
    loss, _, count = loss_of(task, scores, rows.rows, layout, weights=weights)
    targets = torch.tensor([n % 2 for n in range(5)])
    assert count == 5 and torch.allclose(loss, F.cross_entropy(scores, targets, weight=weights, reduction="sum"))


def test_a_heavier_class_is_said_more_often(stock: Path, tmp_path: Path) -> None:
    """On words that tell nothing, what is said depends on nothing but the weights."""
    path = tmp_path / "same.tsv"
    path.write_text(
        "sentence\tlabel\n" + "".join(f"it was {n}\t{'rare' if n % 4 == 0 else 'often'}\n" for n in range(80))
    )
    said = {}
    for name, given in (("plain", "none"), ("weighed", "rare=30")):
        tuning = replace(steps(stock, path, train={"steps": 30, "final": "last"}), dev=str(path), class_weights=given)
        finetune(tuning, tmp_path / name)
        reader = open_reader(tmp_path / name, precision="float32")
        said[name] = Counter(reader.task.labels[p.answer] for p in reader.examples(read_examples(path).examples))
    assert said["plain"]["rare"] < 8 and said["weighed"]["rare"] > 72


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        ("class", {"class_weights": "good"}, "'good' is not CLASS=NUMBER"),
        ("class", {"class_weights": "good=0"}, "with a number above 0"),
        ("class", {"class_weights": "god=2"}, "no class 'god'; did you mean good"),
        ("score", {"class_weights": "balanced"}, "a task of score has no classes to weigh"),
        ("class", {"crf": True}, "a CRF is for tags, not for class"),
        ("tokens", {"crf": True, "class_weights": "balanced"}, "choose one of the two"),
        ("class", {"reinit": 9}, "--reinit: 9 is out of range; choose 0 for none, or up to 2"),
        ("class", {"reinit": 1, "strategy": Strategy("lora")}, "lora leaves the layers as they are"),
        ("class", {"train": {"layer_decay": 1.5}}, "--train.layer-decay: 1.5 is out of range"),
        ("class", {"train": {"patience": -1}}, "--train.patience: -1 is out of range"),
        ("class", {"train": {"unfreeze": 2.0}}, "--train.unfreeze: 2.0 is out of range"),
        ("class", {"train": {"accumulate": 0}}, "--train.accumulate: 0 is out of range"),
        ("class", {"train": {"eval_every": 0.0}}, "--train.eval-every: 0.0 is out of range"),
        ("class", {"train": {"steps": None, "epochs": -1.0}}, "--train.epochs: a budget of -1.0; choose more than 0"),
        ("class", {"dropout": 1.0}, "--dropout: 1.0 is out of range"),
        ("class", {"attention_dropout": -0.1}, "--attention-dropout: -0.1 is out of range"),
        ("tokens", {"stride": -1}, "--stride: -1 is out of range"),
        ("tokens", {"pooling": "max"}, "--pooling: a task of tokens is not answered by one state"),
        ("class", {"writer": "prefix"}, "--writer: a task of class writes no text"),
        ("class", {"decoder_layers": 2}, "--decoder-layers: a task of class writes no text"),
    ],
)
def test_what_does_not_go_together_is_a_line_and_leaves_nothing(
    kind: str, fields: dict[str, Any], line: str, stock: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        finetune(steps(stock, written(tmp_path, kind), **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_is_not_overwritten_that_the_new_one_begins_with(inside: str, stock: Path, tmp_path: Path) -> None:
    data, run = written(tmp_path, "class"), tmp_path / "run"
    finetune(steps(stock, data), run)
    before = weights(run)
    with pytest.raises(UserError, match=r"cannot be overwritten, for .* is needed; choose another --out"):
        finetune(steps(run / inside, data), run, overwrite=True)
    with pytest.raises(UserError, match="is needed"):
        search(steps(run / inside, data), run, trials=1, overwrite=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())


def test_a_model_that_cannot_be_made_leaves_nothing_and_an_earlier_run_whole(stock: Path, tmp_path: Path) -> None:
    data, run = written(tmp_path, "class"), tmp_path / "run"
    tuning = steps(stock, data, strategy=Strategy("last", last=99))
    with pytest.raises(UserError):
        finetune(tuning, run)
    assert not run.exists()
    finetune(steps(stock, data), run)
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError):
        finetune(tuning, run, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == before


# Tags as a chain


def test_tags_that_cannot_follow_are_never_chosen(stock: Path, tmp_path: Path) -> None:
    """Names of two words; a tagger that has hardly begun makes faults, one with a CRF never does."""
    path, lines = tmp_path / "names.conll", []
    for number in range(60):
        lines += ["it O", "was O", f"{['Paris', 'Rome', 'Lyon'][number % 3]} B-X", "Oslo I-X", f"{number} O", ""]
    path.write_text("\n".join(lines) + "\n")
    found: dict[bool, int] = {}
    for crf in (False, True):
        tuning = replace(steps(stock, path, train={"steps": 3}), crf=crf)
        finetune(tuning, tmp_path / f"{crf}")
        reader = open_reader(tmp_path / f"{crf}", precision="float32")
        assert (reader.model.crf is not None) == crf
        predictions = reader.examples(read_splits(str(path)).train.examples)
        said = [[reader.task.labels[tag] for tag in p.answer] for p in predictions]
        found[crf] = sum(len(faults(tags, "iob2")) for tags in said)
        assert all(0 < p.sure <= 1 for p in predictions)
    assert found[True] == 0


def test_a_crf_learns_what_follows_what(stock: Path, tmp_path: Path) -> None:
    """It is trained together with the model, at a rate of its own, and resumes with it to the same bits."""
    data = written(tmp_path, "tokens", 240)
    result = finetune(replace(plan(stock, data, train={"steps": 60}), crf=True), tmp_path / "run")
    assert result.accuracy >= 0.9
    model = open_reader(tmp_path / "run", precision="float32").model
    assert model.crf is not None and float(model.crf.between.detach().abs().max()) > 0.1
    tuning = replace(steps(stock, data, strategy=Strategy("adapter")), crf=True)
    whole = finetune(tuning, tmp_path / "whole")
    with dying("step", 5):
        finetune(tuning, tmp_path / "cut")
    assert resume(tmp_path / "cut").loss == whole.loss
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert "crf.between" in one and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_sentence_in_windows_is_one_chain(stock: Path) -> None:
    """A transition that is forbidden between two words is forbidden where a window ends between them, too."""
    from bertkin.models.crf import Chain, Crf
    from bertkin.tasks.answering import answers

    task, words = Task("tokens", labels=("O", "B-X", "I-X"), scheme="iob2"), ["warm"] * 60
    places = tuple((5 * at, 5 * at + 4, 0) for at in range(60))
    rows = encode([Example((" ".join(words),), places)], task, Tokenizer.load(stock), max_length=24)
    assert len(rows.rows) > 1
    draw = np.random.default_rng(0)
    scores = [draw.normal(size=(len(row.ids), 3)).astype(np.float32) * 3 for row in rows.rows]
    chain = Chain.of(Crf(3), *allowed(task.labels))
    (alone,), (joined,) = (answers(task, rows, scores, chain=one) for one in (None, chain))
    assert faults([task.labels[tag] for tag in alone.answer], "iob2")
    assert not faults([task.labels[tag] for tag in joined.answer], "iob2")


def test_a_crf_learns_over_the_edges_of_windows(stock: Path) -> None:
    """Its loss is that of the whole sentence, as the answer is."""
    from bertkin.models.crf import Crf

    task, words = Task("tokens", labels=("O", "B-X", "I-X"), scheme="iob2"), ["warm"] * 60
    draw = np.random.default_rng(0)
    tags = draw.integers(0, 3, 60)
    places = tuple((5 * at, 5 * at + 4, int(tag)) for at, tag in enumerate(tags))
    crf, emitted = Crf(3), torch.from_numpy(draw.normal(size=(60, 3)).astype(np.float32))
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    losses = []
    for length in (24, 128):
        rows = encode([Example((" ".join(words),), places)], task, Tokenizer.load(stock), max_length=length).rows
        layout = Layout.from_lengths([len(row.ids) for row in rows]).to("cpu")
        scores = torch.zeros(layout.n_tokens, 3)
        for row, start in zip(rows, layout.starts[:-1].tolist(), strict=True):
            scores[row.places + start] = emitted[row.words]
        losses.append(loss_of(task, scores, rows, layout, crf=crf)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Layers at their own pace


def test_layers_that_are_not_open_yet_stay_as_they_were(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    tuning = steps(stock, data, train={"steps": 2, "unfreeze": 1.0, "final": "last"})
    first = FineTuning(gather(tuning, "cpu"), "cpu").first_model()
    finetune(tuning, tmp_path / "run")
    model = open_reader(tmp_path / "run", precision="float32").model
    before = dict(first.named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("classifier") for name in moved) and any("layers.1." in name for name in moved)
    assert not any("embeddings" in name or "layers.0." in name for name in moved)  # half of the budget opens level 1


def test_every_strategy_takes_rates_by_layer(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    for kind in ("full", "last", "adapter", "prefix", "layers"):
        train = {"steps": 2, "layer_decay": 0.5, "unfreeze": 0.4}
        assert finetune(steps(stock, data, train=train, strategy=Strategy(kind)), tmp_path / kind).step == 2


# Searching


SMALL = {"train": {"steps": 4, "eval_every": 2.0}}


def test_a_search_keeps_its_best_trial_as_an_ordinary_run(stock: Path, tmp_path: Path) -> None:
    data, out = written(tmp_path, "class"), tmp_path / "run"
    tuning = steps(stock, data, **SMALL)
    tuning = replace(tuning, train=replace(tuning.train, lr=None))
    found = search(tuning, out, trials=3)
    assert [trial.number for trial in found.trials] == [0, 1, 2] and found.trials[0].settings == {}
    assert found.best.score == max(trial.score for trial in found.trials if trial.score is not None)
    assert not (out / "trials").exists() and not is_search(out)
    reader = open_reader(out, precision="float32")
    dev = read_splits(str(data)).dev.examples
    right = [p.answer == e.label for p, e in zip(reader.examples(dev), dev, strict=True)]
    assert np.mean(right) == pytest.approx(found.best.score, abs=1e-5)
    assert "trials/" not in (out / "model" / "README.md").read_text() + (out / "report.html").read_text()
    assert str(found) in (out / "search.md").read_text() and "the defaults" in str(found)
    assert resume(out).step == 4
    # The same trial by itself is the same run.
    alone = finetune(with_settings(tuning, found.best.settings), tmp_path / "alone")
    assert alone.accuracy == pytest.approx(found.best.score, abs=1e-5)


def test_a_search_that_was_killed_repeats_no_trial(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = steps(stock, written(tmp_path, "class"), **SMALL)
    whole = search(tuning, tmp_path / "whole", trials=3)
    began: list[str] = []
    real = room.finetune

    def counted(tuning: Tuning, out: Path, **how: Any) -> Any:
        began.append(out.parent.name)
        return real(tuning, out, **how)

    monkeypatch.setattr(room, "finetune", counted)
    calls = iter(range(100))
    step = Training.step

    def die(self: Training, progress: float) -> Any:
        if next(calls) == 6:  # in the second trial, after its first evaluation
            raise Killed
        return step(self, progress)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Training, "step", die)
        search(tuning, tmp_path / "cut", trials=3)
    assert is_search(tmp_path / "cut")
    with pytest.raises(UserError, match="a search began here"):
        search(tuning, tmp_path / "cut", trials=3)
    cut = resume_search(tmp_path / "cut")
    assert began == ["000", "001", "002"]
    assert [(t.settings, t.score, t.step) for t in cut.trials] == [(t.settings, t.score, t.step) for t in whole.trials]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_trials_are_judged_by_the_same_data(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = steps(stock, written(tmp_path, "class"), **SMALL)
    real = room._tried

    def between(tuning: Tuning, settings: dict[str, Any], number: int, *rest: Any) -> Any:
        if number == 1:
            raise Killed
        return real(tuning, settings, number, *rest)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(room, "_tried", between)
        search(tuning, tmp_path / "cut", trials=2)
    rows = Path(tuning.data[0]).read_text()
    Path(tuning.data[0]).write_text(rows.replace("\tgood", "\tbad", 1))
    with pytest.raises(UserError, match="so that trials do not compare"):
        resume_search(tmp_path / "cut")
    Path(tuning.data[0]).write_text(rows)
    assert len(resume_search(tmp_path / "cut").trials) == 2


def test_what_a_person_chose_is_not_varied(stock: Path, tmp_path: Path) -> None:
    asked = Tuning(strategy=Strategy("lora"))
    full = gather(replace(asked, model=str(stock), data=(str(written(tmp_path, "class")),)), "cpu").tuning
    open_ = space(asked, full, 500, 2)
    assert {"train.lr", "train.epochs", "batch", "strategy.rank"} <= open_.keys()
    chosen = replace(asked, batch=4, train=replace(asked.train, lr=1e-3, steps=9), strategy=Strategy("lora", rank=2))
    assert not {"train.lr", "train.epochs", "batch", "strategy.rank"} & space(chosen, full, 500, 2).keys()
    assert open_.keys() - space(asked, full, 500, 2, ["dropout", "strategy.rank"]).keys() == {
        "dropout",
        "strategy.rank",
    }
    assert settings_of(0, 1, open_) == {}
    assert settings_of(3, 1, open_) == settings_of(3, 1, open_) != settings_of(4, 1, open_)
    drawn = [settings_of(number, 0, open_)["train.lr"] for number in range(1, 60)]
    assert min(drawn) < full.train.lr / 2 and max(drawn) > full.train.lr * 2
    assert all(full.train.lr / 4.1 <= lr <= full.train.lr * 4.1 for lr in drawn)


def test_a_search_that_cannot_begin_is_a_line_and_leaves_nothing(stock: Path, tmp_path: Path) -> None:
    tuning = steps(stock, written(tmp_path, "class"))
    for wrong, line in (
        (replace(tuning, length=999), "rows of 999 tokens"),
        (replace(tuning, length=3), "leave no room"),
        (replace(tuning, data=("nowhere.tsv",)), "nowhere.tsv"),
        (replace(tuning, crf=True), "a CRF is for tags"),
    ):
        with pytest.raises(UserError, match=line):
            search(wrong, tmp_path / "run", trials=2)
        assert not (tmp_path / "run").exists()


def test_minutes_bound_a_search(stock: Path, tmp_path: Path) -> None:
    found = search(steps(stock, written(tmp_path, "class"), **SMALL), tmp_path / "run", trials=50, minutes=1e-9)
    assert len(found.trials) == 1


def test_a_trial_that_runs_off_is_told_and_passed_over(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "settings_of", lambda number, *_: {"train.lr": 5e8} if number == 1 else {})
    found = search(steps(stock, written(tmp_path, "class"), **SMALL), tmp_path / "run", trials=2)
    assert found.trials[1].score is None and found.best == found.trials[0]
    assert "diverged" in str(found)


def test_from_the_terminal(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(written(tmp_path, "class")), str(tmp_path / "run")
    options = [
        "--train.epochs",
        "2",
        "--train.precision",
        "float32",
        "--patience",
        "1",
        "--layer-decay",
        "0.9",
        "--quiet",
    ]
    options += ["--class-weights", "balanced", "--reinit", "1", "--final", "best", "--unfreeze", "0.2"]
    assert main(["finetune", str(stock), data, "--out", out, "--search", "2", *options]) == 0
    said = capsys.readouterr().out
    assert "| the defaults |" in said and f"bertkin predict {out}" in said
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "class_weights: balanced" in recipe and "patience: 1" in recipe and "reinit: 1" in recipe
    assert main(["resume", out, "--quiet"]) == 0
    assert main(["finetune", str(stock), data, "--out", str(tmp_path / "no"), "--search", "0"]) == 2
    assert "choose at least 1" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("task", "family", "kind", "size", "most"),
    [
        ("class", "bart", "last", None, 1),
        ("tokens", "bart", "last", None, 3),
        ("sequence", "bert", "last", 2, 2),
        ("class", "bert", "pals", None, 0),
    ],
)
def test_a_search_draws_nothing_that_cannot_be(task: Any, family: str, kind: Any, size: int | None, most: int) -> None:
    layers = {"layers": 3} | ({"decoder_layers": 1} if family == "bart" else {})
    a = build(resolve_model(Model(family=family, hidden=64, heads=2, **layers), 90)).architecture  # type: ignore[arg-type]
    strategy = Strategy(kind, heads=32, size=64) if kind == "pals" else Strategy(kind)
    tuning = Tuning(strategy=strategy, decoder_layers=size, train=Train(lr=1e-3, epochs=3.0))
    found = space(tuning, tuning, 100, answering_depth(a, tuning, Task(task)))
    if kind == "last":
        assert found["strategy.last"] == Among(tuple(range(1, most + 1)))
    else:
        assert found.get("strategy.size", Among((64,))) == Among((64, 256))
