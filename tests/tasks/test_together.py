"""Several tasks trained together: whose turn it is, the same bits after a stop, one stock on disk and in memory."""

# ruff: noqa: F811 — fixtures of another file
from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import bertkin
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.models.light import open_light
from bertkin.models.many import begin_many
from bertkin.models.strategy import KINDS, Strategy
from bertkin.models.task_heads import Answer
from bertkin.tasks.answering import scores
from bertkin.tasks.encoding import encode
from bertkin.tasks.finetune import finetune, resume
from bertkin.tasks.joining import gather_all, load_together, recipe_of
from bertkin.tasks.predict import open_reader
from bertkin.tasks.sampling import SAMPLINGS, chances, drawn, exponent
from bertkin.tasks.several import ask, open_readers, tasks_in
from bertkin.tasks.suites import read_suite
from bertkin.tasks.task import Example
from bertkin.tasks.together import Joint, resume_together, together
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.loop import Training
from bertkin.train.state import Position, load_checkpoint, read_log

from .test_finetune import lively, plan, stock, weights, written  # noqa: F401 — fixtures

SIZED = {kind: Strategy(kind, size=8) if kind in ("adapter", "pals") else Strategy(kind) for kind in KINDS}
sizes = st.lists(st.integers(1, 400_000), min_size=1, max_size=9)


@given(sizes, st.floats(0, 0.999), st.sampled_from(SAMPLINGS), st.one_of(st.none(), st.floats(0.1, 30)))
def test_chances_are_powers_of_the_sizes(tasks: list[int], progress: float, sampling: Any, epochs: Any) -> None:
    alpha = exponent(sampling, progress, epochs)
    assert 0.2 - 1e-9 <= alpha <= 1 or sampling == "uniform"
    found = chances(tasks, alpha)
    assert found.sum() == pytest.approx(1) and (found > 0).all()
    for a, b in zip(range(len(tasks)), range(1, len(tasks)), strict=False):
        assert found[a] / found[b] == pytest.approx((tasks[a] / tasks[b]) ** alpha, rel=1e-6)


@given(st.integers(1, 30))
def test_alpha_falls_by_epochs_as_published(epochs: int) -> None:
    for e in range(1, epochs + 1):
        wanted = 1 - 0.8 * (e - 1) / (epochs - 1) if epochs > 1 else 1
        for inside in (0.0, 0.5, 0.99):
            assert exponent("annealed", (e - 1 + inside) / epochs, float(epochs)) == pytest.approx(wanted)
    assert exponent("annealed", 0.0) == 1 and exponent("annealed", 0.5) == pytest.approx(0.6)


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_tasks_are_drawn_by_their_chances_and_by_seed_and_step_alone(seed: int, tasks: list[int]) -> None:
    shares = chances(tasks, 0.7)
    turns = [drawn(shares, seed, step) for step in range(600)]
    counts = np.bincount(turns, minlength=len(tasks)) / 600
    assert np.abs(counts - shares).max() < 0.11  # five standard deviations
    assert turns[250] == drawn(shares, seed, 250)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Three tasks of different kinds and sizes, and the YAML that lists them."""
    for kind, rows in (("class", 96), ("tokens", 64), ("score", 40)):
        written(tmp_path, kind, rows)
    (tmp_path / "tasks.yaml").write_text(
        "- {name: films, data: class.tsv, metric: matthews}\n- {name: places, data: places.conll}\n"
        "- {name: pairs, data: score.tsv, length: 48}\n"
    )
    return tmp_path


def recipe(stock: Path, desk: Path, sampling: Any = "annealed", **more: Any) -> Any:
    common = plan(stock, desk / "x", **more)
    return recipe_of(read_suite(desk / "tasks.yaml"), replace(common, data=()), sampling)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted((run / "model").glob("*/*.safetensors")):
        found |= {f"{file.parent.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def test_an_option_goes_before_the_list_though_it_be_the_default(desk: Path) -> None:
    tasks = {"films": Tuning(data=(str(desk / "class.tsv"),), windows=4)}
    assert recipe_of(tasks, Tuning(model="m")).tasks["films"]["windows"] == 4
    assert "windows" not in recipe_of(tasks, Tuning(model="m"), given=["windows"]).tasks["films"]


def test_tasks_of_an_older_version_are_gone_on_with(stock: Path, desk: Path) -> None:
    together(recipe(stock, desk, train={"steps": 4}), desk / "run")
    found = gather_all(load_together(desk / "run" / "recipe.yaml"), "cpu")
    old = found.like("no version")
    assert ":" not in old and found.like(found.fingerprint) == found.fingerprint != old
    about = desk / "run" / "tasks.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"fingerprint": old}))
    assert resume_together(desk / "run").step == 4


def test_no_two_tasks_begin_with_the_same_numbers_whatever_the_seed(stock: Path) -> None:
    heads = [
        model.classifier.weight
        for seed in (0, 1)
        for model in begin_many(stock, [Answer("class", 2)] * 3, Strategy("frozen"), seed=seed).models
    ]
    assert len({round(float(head.detach().sum()), 6) for head in heads}) == 6


@pytest.mark.parametrize("kind", ["pals", "adapter"])
def test_a_killed_training_resumes_to_the_same_bits(
    kind: Any,
    stock: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = {"steps": 11, "checkpoint_every": 2, "eval_every": 6.0}
    tuning = recipe(stock, desk, train=train, strategy=SIZED[kind], attention_dropout=0.1)
    together(tuning, desk / "whole")
    real = Training.step

    class Killed(BaseException):
        pass

    def dying(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == 9:
            raise Killed
        return real(self, progress)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Training, "step", dying)
        together(tuning, desk / "cut")
    resume_together(desk / "cut")
    whole, cut = tensors(desk / "whole"), tensors(desk / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert {name.split()[0] for name in whole} == {"films", "places", "pairs"} | (
        {"stock"} if kind == "pals" else set()
    )


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_one_task_together_with_none_is_fine_tuning(kind: Any, stock: Path, tmp_path: Path) -> None:
    tuning = plan(stock, written(tmp_path, "class"), train={"steps": 8}, strategy=SIZED[kind])
    finetune(tuning, tmp_path / "alone")
    alone = weights(tmp_path / "alone")
    only = recipe_of({"films": Tuning(data=tuning.data, length=32)}, replace(tuning, data=()))
    together(only, tmp_path / "one")
    one = load_file(tmp_path / "one" / "model" / "films" / "changed.safetensors")
    if kind == "full":
        one = {re.sub(r"^dense", "bert.pooler.dense", name): tensor for name, tensor in one.items()}
        one |= load_file(tmp_path / "one" / "model" / "stock" / "model.safetensors")
    assert alone.keys() == one.keys() and all(torch.equal(tensor, one[name]) for name, tensor in alone.items())


@pytest.mark.parametrize("kind", ["pals", "full", "lora"])
def test_every_task_is_learnt_and_asked_by_name(kind: Any, lively: Path, desk: Path) -> None:
    train = {"steps": 150, "lr": 2e-3 if kind != "lora" else 1e-2}
    result = together(recipe(lively, desk, "uniform", train=train, strategy=Strategy(kind)), desk / "run")
    records = [json.loads(line) for line in (desk / "run" / "log.jsonl").read_text().splitlines()]
    told = next(one for one in records if one.get("mean") == pytest.approx(result.accuracy, abs=1e-5))
    assert told["mean"] == pytest.approx(
        (told["films/matthews"] + told["places/span_f1"] + told["pairs/pearson_spearman"]) / 3, abs=1e-4
    )
    assert told["kind"] == "evaluation" and told["films/accuracy"] > 0.85
    assert told["places/span_f1"] > 0.6 and "pairs/accuracy" not in told
    readers = open_readers([desk / "run"], precision="float32")
    assert list(readers) == ["films", "places", "pairs"]
    tables = {reader.model.stack.embeddings.tokens.data_ptr() for reader in readers.values()}
    assert len(tables) == 1
    text = "the film was lovely in Oslo"
    assert [one["model"] for one in ask(readers, [(text,), (text, text)])] == ["films", "places", "pairs"]
    assert bertkin.predict_all(desk / "run", text, tasks="films", precision="float32")["films"][0]["label"] == "good"
    assert list(bertkin.predict_all(desk / "run", text, precision="float32")) == ["films", "places"]
    assert list(bertkin.predict_all(desk / "run", [(text, text)], precision="float32")) == ["pairs"]
    assert "<dt>mean</dt>" in (desk / "run" / "report.html").read_text()


def test_what_is_saved_scores_as_the_model_that_was_trained(
    stock: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    real = Joint.export

    def keeping(self: Joint, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        kept[:] = [self, finished]
        real(self, finished, folder, facts)

    monkeypatch.setattr(Joint, "export", keeping)
    together(recipe(stock, desk, train={"steps": 6}, strategy=Strategy("pals", size=8)), desk / "run")
    work, many = kept
    for (name, part), model in zip(work.works.items(), many.models, strict=True):
        reader = open_reader(desk / "run" / "model" / name, precision="float32")
        with part.in_units(model):
            for a, b in zip(scores(reader.model, part.dev), scores(model, part.dev), strict=True):
                assert np.abs(a - b).max() < 1e-5


def test_tasks_of_which_nothing_was_drawn_stay_as_they_began(stock: Path, desk: Path) -> None:
    """What is a task's own moves at its turns only, and the updates are counted for each: a stop does not forget it."""
    together(recipe(stock, desk, train={"steps": 5}, strategy=Strategy("adapter", size=4)), desk / "run")
    position, table = load_checkpoint(desk / "run", print) or (None, {})
    assert position is not None and position.step == 5
    counts = [int(table.get(f"updates/tasks.{i}.classifier.weight", torch.tensor(5))) for i in range(3)]
    assert sum(counts) == 5 and sum(position.rows.values()) == 5 * 16
    for i, count in enumerate(counts):
        moved = bool(table[f"second/tasks.{i}.classifier.weight"].any())
        assert moved is (count > 0) and position.row(i) == 16 * count


def test_the_verb_trains_goes_on_and_answers(stock: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--train.steps", "4", "--train.precision", "float32", "--train.threads", "1", "--quiet", "--batch", "8"]
    run = desk / "run"
    command = ["finetune", str(stock), "--together", str(desk / "tasks.yaml"), "--out", str(run)]
    assert main([*command, "--strategy", "pals", "--strategy.size", "8", "--sampling", "sqrt", *options]) == 0
    out = capsys.readouterr().out
    assert "| films | matthews |" in out and "| mean |" in out
    made = load_together(run / "recipe.yaml")
    assert (made.sampling, made.batch, made.strategy.size, made.tuning("pairs").length) == ("sqrt", 8, 8, 48)
    assert main(["resume", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), "the film was grim", "--task", "places", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "places" and [word for word, _ in told["words"]] == ["the", "film", "was", "grim"]
    assert main(["predict", str(run), "--task", "films", "--task", "places", "it was dull", "a day"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["films", "places"] * 2
    assert main(["predict", str(run), "--task", "flims", "it was dull"]) == 2
    assert "no task 'flims' here; did you mean" in capsys.readouterr().err
    assert main([*command[:-1], str(desk / "two"), "--label", "x"]) == 2
    assert "--label: of one task" in capsys.readouterr().err and not (desk / "two").exists()
    with pytest.raises(UserError, match="holds several tasks \\(films, places, pairs\\)"):
        open_reader(run)


def test_many_light_models_answer_over_one_stock(
    lively: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for kind, strategy in (("class", "lora"), ("tokens", "adapter")):
        tuning = plan(lively, written(tmp_path, kind), train={"steps": 3}, strategy=Strategy(strategy))
        finetune(tuning, tmp_path / strategy)
        runs.append(str(tmp_path / strategy))
    finetune(plan(lively, tmp_path / "class.tsv", train={"steps": 3}), tmp_path / "whole")
    readers = open_readers([*runs, tmp_path / "whole"], precision="float32")
    assert list(readers) == [*runs, str(tmp_path / "whole")]
    lora, adapter, whole = (dict(reader.model.named_parameters()) for reader in readers.values())
    same = {name for name in lora.keys() & adapter.keys() if lora[name].data_ptr() == adapter[name].data_ptr()}
    inside = {name for name in lora if name.startswith("stack.") and ".low." not in name}
    norms = {name for name in inside if "_norm" in name}  # an adapter after both blocks trains them
    assert same == inside - norms and not any(whole[name].data_ptr() == lora[name].data_ptr() for name in same)
    text = "this book seems warm in Rome"
    for path, reader in readers.items():
        alone = open_reader(path, precision="float32")
        rows = encode([Example((text,))], reader.task, reader.tokenizer, max_length=reader.length)
        assert np.array_equal(scores(reader.model, rows)[0], scores(alone.model, rows)[0])
    assert main(["predict", runs[0], text, "--also", runs[1], "--json"]) == 0
    assert [json.loads(line)["model"] for line in capsys.readouterr().out.splitlines()] == runs


def test_a_single_task_may_train_its_stock_with_its_attention(stock: Path, tmp_path: Path) -> None:
    tuning = plan(stock, written(tmp_path, "class"), train={"steps": 4}, strategy=Strategy("pals", size=8))
    finetune(tuning, tmp_path / "run")
    resume(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    model, about = open_light(tmp_path / "moved" / "model")
    assert about["light"]["strategy"]["frozen"] is True
    assert {one["label"] for one in bertkin.predict(tmp_path / "moved", ["it was dull"])} <= {"good", "bad"}
    assert Tokenizer.load(tmp_path / "moved" / "model" / "stock").vocab_size == model.architecture.vocab_size


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{name: ../films, data: class.tsv}", "cannot be a task's folder"),
        ("{name: stock, data: class.tsv}", "cannot be a task's folder"),
        ("{name: films, data: class.tsv, batch: 4}", "films: batch: the same for all tasks"),
        ("{name: films, data: class.tsv, train: {steps: 2}}", "films: train: the same for all tasks"),
        ("{name: films, data: class.tsv, reinit: 1}", "films: reinit: not for several tasks over one stock"),
        ("{name: films, data: class.tsv, merge: true}", "films: merge: not for several tasks over one stock"),
        ("{name: films, data: score.tsv, metric: mean_squared_error}", "to which mean_squared_error cannot be added"),
        ("{name: films, data: class.tsv}\n- {name: films, data: places.conll}", "two tasks are called 'films'"),
        ("{name: films, data: class.tsv, lenght: 4}", "unknown field 'lenght'"),
    ],
)
def test_what_a_list_of_tasks_cannot_say(
    entry: str,
    said: str,
    stock: Path,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (desk / "tasks.yaml").write_text(f"- {entry}\n")
    assert main(["finetune", str(stock), "--together", str(desk / "tasks.yaml"), "--out", str(desk / "run")]) == 2
    assert said in capsys.readouterr().err and not (desk / "run").exists()


@pytest.mark.parametrize("said", [{"reinit": 1}, {"merge": True}])
def test_what_all_tasks_together_cannot_have(said: dict[str, Any], stock: Path, desk: Path) -> None:
    (desk / "tasks.yaml").write_text("- {name: films, data: class.tsv}\n")
    with pytest.raises(UserError, match=f"--{next(iter(said))}: not for several tasks over one stock; leave it out"):
        bertkin.finetune_together(stock, desk / "tasks.yaml", out=desk / "run", **said)


def test_the_steps_of_an_epoch_reach_every_example(stock: Path, desk: Path) -> None:
    """An epoch is as many examples as all tasks have; each task goes through its own in order."""
    tuning = recipe(stock, desk, "proportional", train={"steps": None, "epochs": 2.0})
    work = Joint(gather_all(tuning, "cpu"), "cpu")
    position, seen = Position(), [0, 0, 0]
    while (done := work.epochs(position) / 2) < 1:
        turn = work.batch(position, done)
        seen[turn.task] += len(turn.examples.groups) - 1
        position.step += 1
        work.advance(position, done)
    assert [position.row(i) for i in range(3)] == seen
    assert sum(seen) >= 2 * sum(work.sizes) > sum(seen) - 16
    assert tasks_in(desk) == {}


def test_each_task_has_its_mistakes_its_card_and_its_place_in_the_report(lively: Path, desk: Path) -> None:
    run = together(
        recipe(lively, desk, train={"final": "last"}, strategy=Strategy("adapter", size=8)), desk / "run"
    ).run
    last = [record for record in read_log(run) if record.get("kind") == "evaluation"][-1]
    report = (run / "report.html").read_text()
    mistakes = [json.loads(line) for line in (run / "mistakes.jsonl").read_text().splitlines()]
    for name, metric in (("films", "matthews"), ("places", "span_f1"), ("pairs", "pearson_spearman")):
        review = json.loads((run / "review.json").read_text())["tasks"][name]
        assert review["dev"]["scores"][metric]["value"] == pytest.approx(last[f"{name}/{metric}"], abs=1e-4)
        assert sum(line["task"] == name for line in mistakes) == review["mistakes"]
        card = (run / "model" / name / "README.md").read_text()
        assert f"# {name}\n" in card and f"--task {name}" in card and "recipe.yaml" in card
        assert f"What it answers to {name}" in report
