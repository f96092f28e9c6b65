"""Going on with a fine-tuning: to the same bits, from anywhere, in another version; never with other data or another model."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertkin.errors import UserError
from bertkin.models.strategy import Strategy
from bertkin.tasks.finetune import finetune, resume
from bertkin.tasks.gathering import gather
from bertkin.tasks.predict import open_reader
from bertkin.tasks.tuning import Tuning, load_tuning
from bertkin.train.loop import Training

from .test_finetune import plan, stock, weights, written

__all__ = ["stock"]


@pytest.mark.parametrize(("kind", "strategy"), [("class", "full"), ("tokens", "adapter"), ("span", "lora")])
def test_a_killed_fine_tuning_resumes_to_the_same_bits(
    kind: str, strategy: Any, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": 9, "checkpoint_every": 2, "eval_every": 5.0, "epochs": None}
    tuning = plan(stock, written(tmp_path, kind), train=train, strategy=Strategy(strategy))
    finetune(tuning, tmp_path / "whole")
    real = Training.step

    class Killed(BaseException):
        pass

    def dying(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == 7:
            raise Killed
        return real(self, progress)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Training, "step", dying)
        finetune(tuning, tmp_path / "cut")
    resume(tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


def test_a_damaged_recipe_is_a_line(stock: Path, tmp_path: Path) -> None:
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 1}), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("model: [")
    with pytest.raises(UserError, match="not YAML"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_task_is_a_line(stock: Path, tmp_path: Path, content: str) -> None:
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 1}), tmp_path / "run")
    (tmp_path / "run" / "task.json").write_text(content)
    with pytest.raises(UserError, match=r"task.json: damaged .*; start a new run"):
        resume(tmp_path / "run")


def test_data_that_has_changed_is_not_gone_on_with(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    finetune(plan(stock, data, train={"steps": 2}), tmp_path / "run")
    data.write_text(data.read_text() + "one more row\tgood\n")
    with pytest.raises(UserError, match="its data or its model have changed since"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_that_has_changed_is_not_gone_on_with(stock: Path, tmp_path: Path, file: str) -> None:
    mine = Path(shutil.copytree(stock, tmp_path / "stock"))
    finetune(plan(mine, written(tmp_path, "class"), train={"steps": 2}), tmp_path / "run")
    if file.endswith("json"):
        (mine / file).write_text((mine / file).read_text() + "\n")
    else:
        save_file({name: 2 * tensor for name, tensor in load_file(mine / file).items()}, mine / file)
    with pytest.raises(UserError, match="its data or its model have changed since"):
        resume(tmp_path / "run")


def test_rows_that_moved_between_parts_are_other_data(stock: Path, tmp_path: Path) -> None:
    data, dev = written(tmp_path, "class"), tmp_path / "dev.tsv"
    head, *rows = data.read_text().splitlines()
    data.write_text("\n".join([head, *rows[:30]]) + "\n")
    dev.write_text("\n".join([head, *rows[30:]]) + "\n")
    finetune(plan(stock, data, dev=str(dev), train={"steps": 2}), tmp_path / "run")
    data.write_text("\n".join([head, *rows[:29]]) + "\n")
    dev.write_text("\n".join([head, *rows[29:]]) + "\n")
    with pytest.raises(UserError, match="its data or its model have changed since"):
        resume(tmp_path / "run")


def test_a_run_of_an_older_version_is_gone_on_with(stock: Path, tmp_path: Path) -> None:
    """Its fingerprint is of the weights alone, and of examples without their answers."""
    data = written(tmp_path, "class")
    finetune(plan(stock, data, train={"steps": 2}), tmp_path / "run")
    found = gather(load_tuning(tmp_path / "run" / "recipe.yaml"), "cpu")
    old = found.like("no version")
    assert ":" not in old and old == found.like(old) != found.fingerprint
    told = json.loads((tmp_path / "run" / "task.json").read_text())
    (tmp_path / "run" / "task.json").write_text(json.dumps(told | {"fingerprint": old}))
    assert resume(tmp_path / "run").step == 2
    data.write_text(data.read_text() + "one more row\tgood\n")
    with pytest.raises(UserError, match="its data or its model have changed since"):
        resume(tmp_path / "run")


def test_a_run_that_does_not_say_which_class_counts_goes_on_with_the_second(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of older versions, whatever the class is called."""
    data, asked = tmp_path / "fair.tsv", list[Tuning]()
    data.write_text(written(tmp_path, "class").read_text().replace("\tgood", "\tfair").replace("\tbad", "\tnot fair"))
    finetune(plan(stock, data, metric="f1", train={"steps": 4}), tmp_path / "run")
    about = tmp_path / "run" / "task.json"
    told = json.loads(about.read_text())
    assert told["task"]["labels"] == ["fair", "not fair"] and told["task"]["positive"] == "fair"
    monkeypatch.setattr(
        "bertkin.tasks.finetune.gather", lambda tuning, device: asked.append(tuning) or gather(tuning, device)
    )
    assert resume(tmp_path / "run").step == 4 and asked[-1].positive == "fair"
    del told["task"]["positive"]
    about.write_text(json.dumps(told))
    assert resume(tmp_path / "run").step == 4 and asked[-1].positive == "not fair"


def test_a_name_that_begins_with_a_tilde_is_a_name(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "class").rename(tmp_path / "~nobody.tsv")
    finetune(plan(stock, Path("~nobody.tsv"), train={"steps": 2}), tmp_path / "run")
    assert resume(tmp_path / "run").step == 2


def test_data_may_lie_at_home(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "class").rename(tmp_path / "mine.tsv")
    finetune(plan(stock, Path("~/mine.tsv"), train={"steps": 2}), tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert resume(tmp_path / "run").step == 2


def test_a_model_that_another_version_saved_is_read_or_refused_in_a_line(stock: Path, tmp_path: Path) -> None:
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 1}), tmp_path / "run")
    about = tmp_path / "run" / "model" / "bertkin.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps(told | {"task": told["task"] | {"a_field_of_tomorrow": 1}}))
    assert open_reader(tmp_path / "run").task.labels == ("bad", "good")
    for damaged in ("class", {"labels": ["a"]}, told["task"] | {"labels": 5}, told["task"] | {"inputs": "1"}):
        about.write_text(json.dumps(told | {"task": damaged}))
        with pytest.raises(UserError, match=r"model: (expected a|no) task"):
            open_reader(tmp_path / "run")
