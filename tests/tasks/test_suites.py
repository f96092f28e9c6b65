"""A suite of tasks: which are there, several seeds each, one table; stopped and gone on with, compared, and submitted."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertkin
from bertkin.cli import main
from bertkin.config import Model
from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.models.strategy import Strategy
from bertkin.tasks import evaluating
from bertkin.tasks.metrics import measure
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import read_splits
from bertkin.tasks.results import Results, Scores, compare, keep_answers
from bertkin.tasks.submitting import FILES, SIZES, lines, official
from bertkin.tasks.suites import GLUE, SUITES, entries_of, read_suite
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning, load_tuning
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.progress import QuietListener

WORDS = {"good": ["fine", "warm"], "bad": ["dull", "cold"]}
DATA = Path(os.environ.get("BERTKIN_DATA") or "nowhere")
real = pytest.mark.skipif(not DATA.is_dir(), reason="BERTKIN_DATA names no folder of real data")
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


def test_a_seed_that_diverges_is_told_and_the_others_count(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_one, train = evaluating.finetune, {"steps": 8, "precision": "float32", "threads": 1}

    def steeply(tuning: Tuning, run: Path, **how: Any) -> Any:
        train = replace(tuning.train, lr=9e8, weight_decay=900.0) if run.name in steep else tuning.train
        return real_one(replace(tuning, train=train), run, **how)

    monkeypatch.setattr(evaluating, "finetune", steeply)
    how: dict[str, Any] = {"data": desk / "glue", "only": ["CoLA"], "train": train, "listener": QuietListener()}
    steep = ["seed-1"]
    results = bertkin.evaluate(desk / "stock", "glue", out=desk / "steep", seeds=3, **how)
    told = results.tasks["CoLA"]
    assert told.diverged == (1,) and len(told.last) == 2 and "CoLA" in str(results)
    assert "(1 of 3 diverged)" in str(results) and results.to_mapping()["tasks"]["CoLA"]["diverged"] == [1]
    steep, two = ["seed-0"], {**how, "only": ["CoLA", "SST-2"]}
    monkeypatch.setattr(
        evaluating, "finetune", lambda t, run, **more: (steeply if "CoLA" in str(run) else real_one)(t, run, **more)
    )
    results = bertkin.evaluate(desk / "stock", "glue", out=desk / "one-lost", seeds=1, **two)
    assert list(results.tasks) == ["SST-2"] and results.gone == ("CoLA",)
    kept = json.loads((desk / "one-lost" / "results.json").read_text())
    assert kept["gone"] == ["CoLA"] and kept["mean"] == pytest.approx(results.tasks["SST-2"].median, abs=1e-5)
    assert "CoLA (every seed diverged)" in str(results) and "mean without CoLA" in results.latex()
    assert results.csv().splitlines()[-1] == "CoLA" + "," * 14 + "all"
    monkeypatch.setattr(evaluating, "finetune", steeply)
    with pytest.raises(NonFiniteLoss):
        bertkin.evaluate(desk / "stock", "glue", out=desk / "lost", seeds=1, **how)


def test_mrpc_has_both_its_metrics_which_count_once(desk: Path) -> None:
    for part, count in (("train", 24), ("dev", 8)):
        (desk / "two" / "MRPC").mkdir(parents=True, exist_ok=True)
        rows = [MRPC, *(f"{at % 2}|{at}|{at + 1}|the film was warm|it was {at}" for at in range(count))]
        (desk / "two" / "MRPC" / f"{part}.tsv").write_text("\n".join(rows).replace("|", "\t") + "\n")
    train = {"steps": 2, "threads": 1}
    how: dict[str, Any] = {"data": desk / "two", "train": train, "listener": QuietListener()}
    results = bertkin.evaluate(desk / "stock", "glue", out=desk / "both-metrics", **how)
    f1, accuracy = results.tasks["MRPC"], results.tasks["MRPC (accuracy)"]
    assert (f1.metric, f1.human, accuracy.metric, accuracy.human) == ("f1", 0.863, "accuracy", 0.808)
    dev = read_splits(desk / "two" / "MRPC").dev
    answers = json.loads((desk / "both-metrics" / "MRPC" / "answers.json").read_text())["answers"]
    right = [answer == example.label for answer, example in zip(answers, dev.examples, strict=True)]
    assert accuracy.median == pytest.approx(np.mean(right), abs=1e-5)
    assert results.mean == pytest.approx((f1.median + accuracy.median) / 2)


def test_minimal_pairs_are_a_suite_that_trains_nothing(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "pairs").mkdir()
    pair = {"sentence_good": "the film was warm", "sentence_bad": "film the warm was"}
    (desk / "pairs" / "order.jsonl").write_text(json.dumps(pair) + "\n")
    command = ["evaluate", str(desk / "stock"), "blimp"]
    assert main([*command, "--data", str(desk / "pairs"), "--out", str(desk / "asked"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == 1 and set(told["paradigms"]) == {"order"}
    assert json.loads((desk / "asked" / "results.json").read_text())["mean"] == told["mean"]
    assert main(command) == 2
    assert "give --data FOLDER" in capsys.readouterr().err
    assert main([*command, "--data", str(desk / "pairs"), "--train.epochs", "3"]) == 2
    assert "--train.epochs: minimal pairs are asked without any training" in capsys.readouterr().err


def test_a_suite_of_ones_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = desk / "mine.yaml"
    suite.write_text("- {name: films, data: glue/SST-2-part, metric: f1_macro, length: 24, batch: 8, human: 0.9}\n")
    assert main(["evaluate", str(desk / "stock"), str(suite), "--out", str(desk / "own"), "--json", *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)["tasks"]["films"]
    assert told["metric"] == "f1_macro" and told["human"] == 0.9
    recipe = load_tuning(desk / "own" / "films" / "seed-0" / "recipe.yaml")
    assert (recipe.length, recipe.batch, recipe.train.steps) == (24, 8, 4)
    again = bertkin.evaluate(desk / "stock", suite, out=desk / "own", listener=QuietListener())
    assert again.to_mapping()["tasks"]["films"] == told, "what is done is not done again"
    shutil.copytree(desk / "stock", desk / "another")
    for model, more, what in (
        ("another", {}, "model"),
        ("stock", {"train": {"lr": 0.5}}, "train"),
        ("stock", {"length": 16}, "length"),
    ):
        with pytest.raises(UserError, match=f"seed-0: begun with another {what}; choose another --out"):
            bertkin.evaluate(desk / model, suite, out=desk / "own", listener=QuietListener(), **more)
    other = bertkin.evaluate(
        desk / "stock", suite, out=desk / "python", batch=4, train={"steps": 2, "threads": 1}, listener=QuietListener()
    )
    recipe = load_tuning(desk / "python" / "films" / "seed-0" / "recipe.yaml")
    assert (recipe.length, recipe.batch, recipe.train.steps) == (24, 4, 2) and "films" in other.tasks


def test_options_hold_for_all_tasks_that_have_them(desk: Path) -> None:
    lines = "\n".join("\n".join([f"{name} B-PLACE", "is O", "warm O", ""]) for name in ("Rome", "Oslo") * 20)
    (desk / "places.conll").write_text(lines)
    (desk / "both.yaml").write_text(
        "- {name: films, data: glue/SST-2-part, windows: 4, batch: 8}\n- {name: places, data: places.conll}\n"
    )
    options = ["--windows", "1", "--length", "24", "--batch", "32", "--crf"]
    command = ["evaluate", str(desk / "stock"), str(desk / "both.yaml"), "--out", str(desk / "both")]
    assert main([*command, *options, *OPTIONS]) == 0
    films, places = (load_tuning(desk / "both" / name / "seed-0" / "recipe.yaml") for name in ("films", "places"))
    assert (films.windows, films.length, films.batch, films.crf) == (1, 24, 32, False)  # before what the list says
    assert (places.windows, places.length, places.batch, places.crf) == (1, 24, 32, True)
    shutil.rmtree(desk / "both")
    assert main([*command, "--windows", "3", *OPTIONS]) == 0
    films, places = (load_tuning(desk / "both" / name / "seed-0" / "recipe.yaml") for name in ("films", "places"))
    assert (films.windows, places.windows) == (3, 1)


def test_a_run_of_other_options_is_not_taken_for_one_of_the_defaults(desk: Path) -> None:
    def evaluate(**how: Any) -> Results:
        train = {"steps": 2, "threads": 1} | how.pop("train", {})
        listener = QuietListener()
        return bertkin.evaluate(
            desk / "stock",
            "glue",
            out=desk / "ranks",
            data=desk / "glue",
            only="CoLA",
            train=train,
            listener=listener,
            **how,
        )

    evaluate(strategy={"kind": "lora", "rank": 4}, train={"layer_decay": 0.9, "seed": 5})
    with pytest.raises(UserError, match=r"begun with another train.layer_decay"):
        evaluate(strategy={"kind": "lora", "rank": 4}, train={"seed": 5})
    with pytest.raises(UserError, match=r"begun with another train.seed"):
        evaluate(strategy={"kind": "lora", "rank": 4}, train={"layer_decay": 0.9})
    with pytest.raises(UserError, match=r"begun with another strategy"):
        evaluate(strategy="lora", train={"layer_decay": 0.9, "seed": 5})
    assert evaluate(strategy={"kind": "lora", "rank": 4}, train={"layer_decay": 0.9, "seed": 5, "keep": 3}).tasks


def test_a_run_with_weights_of_classes_is_no_run_without(desk: Path) -> None:
    how: dict[str, Any] = {"data": desk / "glue", "only": "SST-2", "listener": QuietListener()}
    how |= {"train": {"steps": 2, "threads": 1}, "out": desk / "weighed"}
    bertkin.evaluate(desk / "stock", "glue", class_weights="balanced", **how)
    with pytest.raises(UserError, match="begun with another class_weights"):
        bertkin.evaluate(desk / "stock", "glue", **how)
    with pytest.raises(UserError, match="begun with another"):
        bertkin.evaluate(desk / "stock", "glue", class_weights="balanced", positive="0", **how)


def test_of_another_strategy_than_the_lists_nothing_is_left_of_that(desk: Path) -> None:
    (desk / "rank.yaml").write_text("- {name: films, data: glue/SST-2-part, strategy: {kind: lora, rank: 4}}\n")
    how: dict[str, Any] = {"train": {"steps": 2, "threads": 1}, "listener": QuietListener()}
    bertkin.evaluate(desk / "stock", desk / "rank.yaml", out=desk / "whole", strategy="full", **how)
    strategy = load_tuning(desk / "whole" / "films" / "seed-0" / "recipe.yaml").strategy
    assert strategy == Strategy()
    bertkin.evaluate(desk / "stock", desk / "rank.yaml", out=desk / "ranked", strategy={"alpha": 4.0}, **how)
    strategy = load_tuning(desk / "ranked" / "films" / "seed-0" / "recipe.yaml").strategy
    assert (strategy.kind, strategy.rank, strategy.alpha) == ("lora", 4, 4.0)
    with pytest.raises(UserError, match=r"--strategy\.rank: of lora, but the strategy is full"):
        bertkin.evaluate(
            desk / "stock", desk / "rank.yaml", out=desk / "odd", strategy={"kind": "full", "rank": 2}, **how
        )


def test_an_option_goes_before_the_list_though_it_be_the_default(desk: Path) -> None:
    (desk / "said.yaml").write_text(
        "- {name: films, data: glue/SST-2-part, strategy: {kind: lora, rank: 4}, train: {clip: 0.5, steps: 2}}\n"
    )
    command = ["evaluate", str(desk / "stock"), str(desk / "said.yaml"), "--quiet"]
    assert main([*command, "--out", str(desk / "as-listed")]) == 0
    assert main([*command, "--out", str(desk / "as-told"), "--strategy", "full", "--train.clip", "1"]) == 0
    listed, told = (load_tuning(desk / out / "films" / "seed-0" / "recipe.yaml") for out in ("as-listed", "as-told"))
    assert (listed.strategy.kind, listed.strategy.rank, listed.train.clip) == ("lora", 4, 0.5)
    assert (told.strategy.kind, told.train.clip, told.train.steps) == ("full", 1.0, 2)


def test_a_mistake_in_the_last_task_is_said_before_the_first_is_trained(desk: Path) -> None:
    (desk / "late.yaml").write_text(
        "- {name: films, data: glue/SST-2-part}\n- {name: again, data: glue/SST-2-part, metric: acuracy}\n"
    )
    with pytest.raises(UserError, match="acuracy"):
        bertkin.evaluate(desk / "stock", desk / "late.yaml", out=desk / "late", listener=QuietListener())
    assert not (desk / "late").exists()
    with pytest.raises(UserError, match="MNLI is not there"):
        read_suite("glue", desk / "glue", ["CoLA", "MNLI"])
    (desk / "a-file").write_text("")
    how: dict[str, Any] = {"listener": QuietListener(), "submission": desk / "a-file"}
    with pytest.raises(UserError, match="a-file: is no folder"):
        evaluating.run_suite(str(desk / "stock"), read_suite("glue", desk / "glue", ["CoLA"]), desk / "late", **how)
    assert not (desk / "late").exists()


def test_another_model_that_shares_nothing_is_said_before_anything_is_trained(desk: Path) -> None:
    (desk / "elsewhere").mkdir()
    (desk / "elsewhere" / "results.json").write_text('{"model": "m"}')
    how: dict[str, Any] = {"data": desk / "glue", "only": "CoLA", "listener": QuietListener()}
    with pytest.raises(UserError, match="none of these tasks was answered there"):
        bertkin.evaluate(desk / "stock", "glue", out=desk / "alone", against=desk / "elsewhere", **how)
    dev = [Example(("other",), 0)]
    keep_answers(desk / "elsewhere" / "CoLA", Task("class", labels=("0", "1")), dev, "matthews", [0])
    with pytest.raises(UserError, match="measured on other examples"):
        bertkin.evaluate(desk / "stock", "glue", out=desk / "alone", against=desk / "elsewhere", **how)
    assert not (desk / "alone").exists()


def test_errors_are_no_part_of_the_mean_and_are_shown_as_they_are() -> None:
    right = Scores("accuracy", (0.9,), (0.9,), 0.8, 1.0, (), (1.0,))
    prices = Scores("mean_absolute_error", (12345.0,), (12345.0,), 12000.0, 12500.0, (), (1.0,))
    results = Results("m", "full", {"films": right, "prices": prices})
    assert results.mean == 0.9 and "| mean without prices |  | 90.0 |" in str(results)
    assert "| prices | mean_absolute_error | 12345 |" in str(results)
    small = Scores("mean_squared_error", (3e-6,), (3e-6,), 1e-6, 4e-6, (), (1.0,))
    told = Results("m", "full", {"small": small})
    assert told.to_mapping()["tasks"]["small"]["median"] == 3e-6 and ",3e-06," in told.csv()
    alone = Results("m", "full", {"prices": prices})
    assert alone.to_mapping()["mean"] is None and str(alone).splitlines()[-1].startswith(
        "| mean without prices |  |  |"
    )


def test_a_right_model_of_rows_of_one_class_has_learnt_something(desk: Path) -> None:
    (desk / "one-class").mkdir()
    for part, count in (("train", 40), ("dev", 8)):
        rows = [f"the film was {WORDS['good'][at % 2]}\tgood" for at in range(count)]
        rows += [f"the film was {WORDS['bad'][at % 2]}\tbad" for at in range(count)] if part == "train" else []
        (desk / "one-class" / f"{part}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    (desk / "one.yaml").write_text("- {name: films, data: one-class}\n")
    train = {"steps": 60, "lr": 5e-3, "threads": 1}
    how: dict[str, Any] = {"train": train, "listener": QuietListener()}
    told = bertkin.evaluate(desk / "stock", desk / "one.yaml", out=desk / "one", **how).tasks["films"]
    assert told.median == 1.0 and told.degenerate == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of tasks"),
        ("- {name: x}", "a task without name or data"),
        ("- {name: x, hub: nyu-mll/glue}", "write OWNER/NAME:CONFIGURATION"),
        ("- {name: x, hub: }", "a task without name or data"),
        ("- {name: x, data: nowhere}", "nowhere is not there; put the data of x there"),
        ("- {name: x, data: glue, colour: red}", "unknown field 'colour'"),
        ("- {name: zh/films, data: glue}", "'zh/films' cannot be a task's folder"),
        ("- {name: x, data: glue, human: 91%}", "human: '91%'; write a number"),
        ("[", "not YAML"),
    ],
)
def test_a_suite_that_cannot_be_is_a_line(desk: Path, content: str, message: str) -> None:
    (desk / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_suite(desk / "bad.yaml")
    with pytest.raises(UserError, match=r"no task 'COLA'.*CoLA"):
        read_suite("glue", desk / "glue", ["COLA"])
    with pytest.raises(UserError, match=r"no suite 'glu'.*did you mean glue"):
        read_suite("glu")


def test_a_part_of_the_data_is_found_where_the_whole_is_not(tmp_path: Path) -> None:
    for name in ("train-v1.1-part.json", "dev-v1.1.json", "dev-v1.1-part.json", "train-v2.0.json"):
        (tmp_path / "squad" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "squad" / name).write_text("{}")
    one = read_suite("squad", tmp_path / "squad")["SQuAD-1.1"]
    assert [Path(path).name for path in (*one.data, one.dev)] == ["train-v1.1-part.json", "dev-v1.1.json"]
    (tmp_path / "ud" / "English-EWT").mkdir(parents=True)
    assert list(read_suite("core", tmp_path)) == ["SQuAD-1.1", "SQuAD-2.0", "UD-English-EWT"]
    names = [entry.name for entry in entries_of("core")]
    assert len(set(names)) == len(names) == sum(map(len, SUITES.values()))


# GLUE as it is given out, and as its server wants it back.

MRPC = "Quality|#1 ID|#2 ID|#1 String|#2 String"
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
QQP = "id|qid1|qid2|question1|question2|is_duplicate"
MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
    "|sentence1|sentence2"
)
RTE = "index|sentence1|sentence2|label"
LAYOUTS: dict[str, list[str]] = {
    "CoLA/train.tsv": ['gj04|1||One more "pseudo', "gj04|0|*|The more you"] * 8,
    "CoLA/dev.tsv": ["gj04|1||One less", "cj99|0|*|The less you"],
    "CoLA/test.tsv": ["index|sentence", "0|Bill whistled", '1|"The car'],
    "MRPC/train.tsv": ["\ufeff" + MRPC, *['1|7|8|" He said|He did', "0|5|6|Yes|No"] * 8],
    "MRPC/dev.tsv": ["\ufeff" + MRPC, "1|1|2|He said|He did", "0|3|4|Yes|No"],
    "MRPC/test.tsv": [MRPC.replace("Quality", "index"), "0|11|12|PCCW|PCCX", "1|13|14|A|B"],
    "MRPC/dev_ids.tsv": ["1|2", "3|4"],
    "MRPC/msr_paraphrase_train.txt": [MRPC, "1|7|8|He said|He did"],
    "STS-B/train.tsv": [
        f"{STSB}|score",
        *["0|cap|MSR|2012|1|none|none|A man|A girl|3.800", "1|cap|MSR|2012|2|none|none|A dog|A cat|5.000"] * 8,
        *["2|cap|MSR|2012|3|none|none|A car|A cat|0.250"] * 2,
    ],
    "STS-B/dev.tsv": [
        f"{STSB}|score",
        *["0|cap|MSR|2012|1|none|none|A man|A boy|3.000", "1|cap|MSR|2012|2|none|none|A dog|A cow|1.400"],
    ],
    "STS-B/test.tsv": [STSB, "0|cap|MSR|2012|1|none|none|A man|A boy"],
    "QQP/train.tsv": [QQP, *["1|2|3|Who ?|What ?|0", "4|5|6|Why ?|Why not ?|1"] * 8, "9|9|9|cut off"],
    "QQP/dev.tsv": [QQP, "1|2|3|Who ?|Whom ?|0", "4|5|6|Why ?|Why so ?|1"],
    "QQP/test.tsv": ["id|question1|question2", "0|Would it ?|Would I ?", "1|Can it ?|Can I ?"],
    "MNLI/diagnostic.tsv": ["index|sentence1|sentence2", "0|The cat sat|It sat", "1|A|B"],
    "RTE/train.tsv": [RTE, *["0|No arms|Arms|not_entailment", "1|A place|Place|entailment"] * 8],
    "RTE/dev.tsv": [RTE, "0|No legs|Legs|not_entailment", "1|A space|Space|entailment"],
}
"""A few rows of GLUE's layouts, | for a tab: their headers, quotation marks, further files and missing labels."""


def as_given_out(root: Path) -> None:
    """Write some of GLUE."""

    def rows(what: str, count: int, labels: int) -> list[str]:
        told = ["neutral", "entailment", "contradiction"] * count
        head = [f"{n}|1|1n|gov|( a )|( b )|(ROOT a)|(ROOT b)|{what} {n}|It rains" for n in range(count)]
        return ["|".join([row, *[label] * labels]) for row, label in zip(head, told, strict=False)]

    five = "label1|label2|label3|label4|label5|gold_label"
    files = dict(LAYOUTS)
    files["MNLI/train.tsv"] = [f"{MNLI}|label1|gold_label", *rows("Row", 18, 2)]
    for part, count in (("matched", 3), ("mismatched", 2)):
        files[f"MNLI/dev_{part}.tsv"] = [f"{MNLI}|{five}", *rows("Said", 4, 6)]
        files[f"MNLI/test_{part}.tsv"] = [MNLI, *rows("Told", count, 0)]
    for name, lines_ in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(lines_).replace("|", "\t") + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def official_glue(desk: Path) -> Path:
    """Some of GLUE as it is given out."""
    as_given_out(desk / "official")
    return desk / "official"


@pytest.mark.parametrize(
    ("name", "inputs", "labels", "sizes"),
    [
        ("CoLA", 1, ("0", "1"), (16, 2, 2)),
        ("MRPC", 2, ("0", "1"), (16, 2, 2)),
        ("STS-B", 2, (), (18, 2, 1)),
        ("QQP", 2, ("0", "1"), (16, 2, 2)),
        ("MNLI", 2, ("contradiction", "entailment", "neutral"), (18, 4, 3)),
    ],
)
def test_glue_is_read_as_it_is_given_out(
    name: str, inputs: int, labels: tuple[str, ...], sizes: tuple[int, ...], official_glue: Path
) -> None:
    tuning = read_suite("glue", official_glue)[name]
    splits = read_splits(tuning.data[0], skip_bad=tuning.skip_bad)
    assert splits.test is not None
    assert (len(splits.train), len(splits.dev), len(splits.test)) == sizes
    assert (splits.task.inputs, splits.task.labels) == (inputs, labels)
    assert [example.id for example in splits.test.examples] == [str(at) for at in range(sizes[2])]
    assert all(example.label is None for example in splits.test.examples)
    assert sorted(splits.others) == (["dev_mismatched", "test_mismatched"] if name == "MNLI" else [])
    if name == "MNLI":
        assert splits.train.examples[0].texts == ("Row 0", "It rains")
    if name == "CoLA":
        assert splits.test.examples[1].texts == ('"The car',)


def test_a_suite_is_submitted_as_the_server_wants_it(
    desk: Path, official_glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(desk / "stock"), "glue", "--data", str(official_glue), "--out", str(desk / "sent")]
    only = [word for name in ("CoLA", "STS-B", "MNLI", "RTE") for word in ("--only", name)]
    options = ["--train.steps", "2", "--train.precision", "float32", "--train.threads", "1"]
    assert main([*command, *only, "--submit", str(desk / "files"), "--table", "latex", *options]) == 0
    shown = capsys.readouterr()
    assert "RTE.tsv     not written: there are no test data" in shown.err
    assert "2 rows; the server expects 1,063" in shown.err
    assert shown.out.startswith("\\begin{tabular}") and (desk / "sent" / "results.tex").read_text() == shown.out
    written = {path.name: path.read_text().splitlines() for path in (desk / "files").iterdir()}
    assert set(written) == {"CoLA.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"}
    assert all(rows[0] == "index\tprediction" for rows in written.values())
    assert [row.split("\t")[0] for row in written["MNLI-m.tsv"][1:]] == ["0", "1", "2"]
    assert len(written["MNLI-mm.tsv"]) == len(written["AX.tsv"]) == len(written["CoLA.tsv"]) == 3
    assert 0 <= float(written["STS-B.tsv"][1].split("\t")[1]) <= 5
    reader = open_reader(desk / "sent" / "MNLI" / "seed-0")
    said = [reader.said(["", ""], p)["label"] for p in reader.predict([("The cat sat", "It sat"), ("A", "B")])]
    assert [row.split("\t")[1] for row in written["AX.tsv"][1:]] == said
    told = json.loads((desk / "sent" / "results.json").read_text())["tasks"]
    assert told["MNLI-mm"]["of"] == "MNLI" and told["MNLI-mm"]["human"] == 0.928
    other = read_splits(official_glue / "MNLI").others["dev_mismatched"].examples
    score = measure(reader.task, other, [p.answer for p in reader.examples(other)])["accuracy"]
    assert told["MNLI-mm"]["last"] == [pytest.approx(score, abs=1e-5)]


def test_only_glue_is_submitted(desk: Path) -> None:
    suite = desk / "other.yaml"
    suite.write_text("- {name: films, data: glue/SST-2-part}\n")
    command = ["evaluate", str(desk / "stock"), str(suite), "--out", str(desk / "no"), "--submit", str(desk / "x")]
    assert main([*command, *OPTIONS]) == 2
    assert not (desk / "no").exists() and not (desk / "x").exists()


def test_labels_are_submitted_by_their_official_names() -> None:
    assert official("MNLI", Task("class", 2, ("0", "1", "2"))) == ["entailment", "neutral", "contradiction"]
    assert official("RTE", Task("class", 2, ("entailment", "not_entailment"))) == ["entailment", "not_entailment"]
    with pytest.raises(UserError, match="the label 'no' is none of CoLA's"):
        official("CoLA", Task("class", 1, ("no", "yes")))
    examples = [Example(("a",), id="7"), Example(("b",), id="7")]  # no numbers of rows, then
    assert lines("STS-B", Task("score", 2, low=0, high=5), examples, [5.4, 2.0])[1:] == ["0\t5.000", "1\t2.000"]
    assert {file for files in FILES.values() for file in files.values()} | {"AX"} == set(SIZES)


@real
@pytest.mark.parametrize("name", ["CoLA", "MRPC", "STS-B", "RTE", "WNLI"])
def test_real_test_files_have_the_rows_the_server_expects(name: str) -> None:
    splits = read_splits(DATA / "glue" / name)
    assert splits.test is not None and not splits.test.left_out
    rows = lines(name, splits.task, splits.test.examples, [0] * len(splits.test))
    assert [row.split("\t")[0] for row in rows[1:]] == [str(at) for at in range(SIZES[name])]


@real
def test_the_shared_data_are_known_by_name() -> None:
    found = read_suite("core", DATA)
    assert {"CoLA", "QQP", "SQuAD-1.1", "CMRC-2018-trial", "UD-Chinese-GSD", "WNUT-17", "splice", "promoters"} <= set(
        found
    )
    for name, scheme in (("promoters", ""), ("WNUT-17", "iob2"), ("splice", "")):
        task = read_splits(found[name].data[0]).task
        assert task.scheme == scheme and len(task.labels) == {"promoters": 2, "splice": 3, "WNUT-17": 13}[name]


# The table, and two models.


def scores(*last: float, **more: float | str | None) -> Scores:
    told = {"metric": "f1_macro", "low": 0.1, "high": 0.9, "degenerate": (), "minutes": (1.0,), "best": last} | more
    return Scores(last=last, **told)  # type: ignore[arg-type]


def test_a_table_for_a_page_a_paper_and_a_spreadsheet() -> None:
    tasks = {"A_1": scores(0.5, 0.7, 0.6), "MNLI": scores(0.8), "MNLI-mm": scores(0.4, of="MNLI", minutes=())}
    results = Results("m", "full", tasks)
    assert results.mean == pytest.approx((0.6 + 0.6) / 2)  # both halves of MNLI are one task
    head, _, first, *_ = str(results).split("\n")
    assert len(head.split("|")) == len(first.split("|"))
    assert first.startswith("| A_1 | f1_macro | 60.0 | 60.0 ± 10.0 | 70.0 | 10.0 – 90.0 |")
    latex = results.latex()
    assert r"A\_1 & f1\_macro & 60.0 & 60.0 $\pm$ 10.0" in latex and r"95\% interval" in latex
    assert len({row.count("&") for row in latex.splitlines() if "&" in row}) == 1
    rows = list(csv.DictReader(results.csv().splitlines()))
    assert [row["task"] for row in rows] == list(tasks)
    assert float(rows[0]["median"]) == 0.6 and rows[2]["minutes"] == ""


def test_two_models_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    task = Task("class", 1, ("0", "1"))
    dev = [Example((str(at),), at % 2) for at in range(100)]
    right = [e.label for e in dev]
    worse = [1 - label if at < 20 else label for at, label in enumerate(right)]
    keep_answers(tmp_path / "one" / "T", task, dev, "accuracy", worse)
    keep_answers(tmp_path / "two" / "T", task, dev, "accuracy", np.array(right).tolist())
    found = compare(tmp_path / "one", tmp_path / "two", "T", task, dev)
    assert found is not None and (found.one, found.two) == (0.8, 1.0) and found.p < 0.001
    same = compare(tmp_path / "two", tmp_path / "two", "T", task, dev)
    assert same is not None and same.p == 1.0
    assert compare(tmp_path / "nowhere", tmp_path / "two", "T", task, dev) is None
    with pytest.raises(UserError, match="measured on other examples"):
        compare(tmp_path / "one", tmp_path / "two", "T", task, dev[1:])
    (tmp_path / "one" / "T" / "answers.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        compare(tmp_path / "one", tmp_path / "two", "T", task, dev)


def test_written_answers_are_scored_whole(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though fewer are written while training goes on, which is what the log tells of."""
    from bertkin.tasks import writing

    monkeypatch.setattr(writing, "LOOKED_AT", 1)
    data, out = tmp_path / "rows.tsv", tmp_path / "run"
    rows = [f"the film was warm\t{place}" for place in ["Rome", "Oslo"] * 12]
    data.write_text("\n".join(["text\ttarget", *rows]) + "\n")
    given = ["--task", "sequence", "--dev", str(data), "--seeds", "2", "--out", str(out), *OPTIONS[2:]]
    given += ["--train.steps", "40", "--train.lr", "0.01"]  # enough to say a town, and half are right
    assert main(["finetune", str(desk / "stock"), str(data), *given]) == 0
    (task,) = json.loads((out / "results.json").read_text())["tasks"].values()
    dev = read_splits(data, dev=data, output="sequence").dev.examples
    runs = sorted(path.parent for path in out.rglob("task.json"))
    for run, told in zip(runs, task["last"], strict=True):
        answers = [one.answer for one in open_reader(run).examples(dev)]
        assert told == pytest.approx(measure(Task("sequence"), dev, answers)[task["metric"]], abs=1e-5)
        assert told == 0.5


def test_a_second_model_is_compared_with_the_first(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(desk / "stock"), "glue", "--data", str(desk / "glue"), "--only", "SST-2", *OPTIONS]
    assert main([*command, "--out", str(desk / "first")]) == 0
    capsys.readouterr()
    second = ["--out", str(desk / "second"), "--train.lr", "1e-2", "--train.seed", "3"]
    assert main([*command, *second, "--against", str(desk / "first" / "results.json")]) == 0
    shown = capsys.readouterr().out
    assert "| stock | p |" in shown and "SST-2: stock and this one, accuracy" in shown
    told = json.loads((desk / "second" / "results.json").read_text())
    before = json.loads((desk / "first" / "results.json").read_text())["tasks"]["SST-2"]
    both = told["tasks"]["SST-2"]["against"]
    assert told["against"] == "stock" and 0 < both["p"] <= 1
    assert both["theirs"] == pytest.approx(before["median"], abs=1e-4)
    assert (desk / "second" / "results.md").read_text().strip() in shown
    assert main([*command, "--out", str(desk / "third"), "--against", str(desk / "nowhere")]) == 2
    assert not (desk / "third").exists()
