"""A suite of tasks: which are there, several seeds each, one table; stopped and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bertkin.cli import main
from bertkin.config import Model
from bertkin.errors import UserError
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.tasks.suites import GLUE, read_suite
from bertkin.tasks.tuning import load_tuning
from bertkin.text.tokenizer import train_tokenizer

WORDS = {"good": ["fine", "warm"], "bad": ["dull", "cold"]}
OPTIONS = ["--train.steps", "4", "--train.precision", "float32", "--train.threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and two tasks laid out as GLUE's."""
    desk = tmp_path_factory.mktemp("suite")
    draw = random.Random(0)

    def row() -> tuple[str, str]:
        label = draw.choice(["good", "bad"])
        return f"the film was {draw.choice(WORDS[label])} in {draw.choice(['Rome', 'Oslo'])}", label

    for part, count in (("train", 60), ("dev", 20)):
        (desk / "glue" / "CoLA").mkdir(parents=True, exist_ok=True)
        (desk / "glue" / "SST-2-part").mkdir(parents=True, exist_ok=True)
        rows = [row() for _ in range(count)]
        cola = [f"gj04\t{int(label == 'good')}\t\t{text}" for text, label in rows]
        (desk / "glue" / "CoLA" / f"{part}.tsv").write_text("\n".join(cola) + "\n")
        sst = ["sentence\tlabel", *(f"{text}\t{int(label == 'good')}" for text, label in rows)]
        (desk / "glue" / "SST-2-part" / f"{part}.tsv").write_text("\n".join(sst) + "\n")
    tokenizer = train_tokenizer([row()[0] for _ in range(100)], vocab_size=50)
    shape = Model(family="bert", layers=1, hidden=32, heads=1, max_length=32)
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), desk / "stock", tokenizer=tokenizer)  # type: ignore[arg-type]
    return desk


def test_only_tasks_whose_data_are_there_are_run(desk: Path) -> None:
    found = read_suite("glue", desk / "glue")
    assert list(found) == ["CoLA", "SST-2"]
    assert found["CoLA"].metric == "matthews"
    assert len(GLUE) == 9


def test_a_table_over_seeds_that_goes_on_where_it_was(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(desk / "stock"), "glue", "--data", str(desk / "glue"), "--out", str(desk / "out")]
    assert main([*command, "--only", "CoLA", "--seeds", "1", *OPTIONS]) == 0
    before = (desk / "out" / "CoLA" / "seed-0" / "model" / "model.safetensors").stat().st_mtime_ns
    assert "| CoLA" in capsys.readouterr().out
    assert main([*command, "--seeds", "2", "--json", *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["tasks"]) == {"CoLA", "SST-2"} and told == json.loads((desk / "out" / "results.json").read_text())
    assert told["tasks"]["CoLA"]["human"] == 0.664
    for row in told["tasks"].values():
        assert len(row["last"]) == len(row["best"]) == len(row["minutes"]) == 2
        assert row["interval"][0] <= row["median"] <= row["interval"][1] or row["degenerate"]
    folder = desk / "out" / "CoLA" / "seed-0"
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns >= before
    assert json.loads((folder / "task.json").read_text())["task"]["metric"] == "matthews"


def test_a_suite_of_ones_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = desk / "mine.yaml"
    suite.write_text("- {name: films, data: glue/SST-2-part, metric: f1_macro, length: 24, batch: 8, human: 0.9}\n")
    assert main(["evaluate", str(desk / "stock"), str(suite), "--out", str(desk / "own"), "--json", *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)["tasks"]["films"]
    assert told["metric"] == "f1_macro" and told["human"] == 0.9
    recipe = load_tuning(desk / "own" / "films" / "seed-0" / "recipe.yaml")
    assert (recipe.length, recipe.batch, recipe.train.steps) == (24, 8, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of tasks"),
        ("- {name: x}", "a task without name or data"),
        ("- {name: x, data: nowhere}", "none of its tasks is there"),
        ("- {name: x, data: glue, colour: red}", "unknown field 'colour'"),
        ("[", "not YAML"),
    ],
)
def test_a_suite_that_cannot_be_is_a_line(desk: Path, content: str, message: str) -> None:
    (desk / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_suite(desk / "bad.yaml")
    with pytest.raises(UserError, match=r"no task 'COLA'.*CoLA"):
        read_suite("glue", desk / "glue", ["COLA"])
    with pytest.raises(UserError, match="no suite 'glu'"):
        read_suite("glu")
