"""A file of rows in, a file of answers out: as trained, whatever the form; and a light model folded into its stock."""

# ruff: noqa: F811 — fixtures of another file

from __future__ import annotations

import csv
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bertkin
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.models.pretrained_tasks import begin_task_model, load_task_model, save_task_model
from bertkin.models.strategy import Strategy
from bertkin.models.task_heads import Answer
from bertkin.tasks.answering import LONGEST_ANSWER
from bertkin.tasks.finetune import finetune
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import read_examples
from bertkin.tasks.sheets import measured, read_rows, write_answers
from bertkin.tasks.task import Example
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.progress import QuietListener

from .test_finetune import PLACES, lively, plan, stock, weights, written  # noqa: F401 — fixtures


@pytest.fixture(scope="module")
def runs(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of each kind, with the data it was trained on."""
    home = tmp_path_factory.mktemp("runs")
    for kind in ("class", "score", "tokens", "span"):
        finetune(plan(stock, written(home, kind), train={"steps": 30}), home / kind, listener=QuietListener())
    return home


def said(*arguments: Any) -> list[dict[str, Any]]:
    """What `bertkin predict … --out x.jsonl` writes."""
    out = Path(str(arguments[-1]))
    assert main(["predict", *map(str, arguments[:-1]), "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_table_is_read_as_the_one_it_was_trained_on(runs: Path, tmp_path: Path) -> None:
    """Columns by their names, in any order, the label passed over; answers as those to the texts alone."""
    rows = [("1", "good", "it was warm in Oslo"), ("2", "what?", 'a day that is grim, "sour"')]
    sheet = tmp_path / "rows.csv"
    with sheet.open("w", newline="") as stream:
        csv.writer(stream).writerows([("number", "label", "sentence"), *rows])
    told = said(runs / "class", "--file", sheet, tmp_path / "out.jsonl")
    assert [one["texts"] for one in told] == [[rows[0][2]], [rows[1][2]]]
    assert told == bertkin.predict(runs / "class", [row[2] for row in rows])


@pytest.mark.parametrize("form", [".csv", ".tsv", ".jsonl"])
def test_pairs_from_every_form_of_table(form: str, runs: Path, tmp_path: Path) -> None:
    pairs = [("it was warm", "it was cold"), ("her song is dull", "")]
    sheet, head = tmp_path / f"pairs{form}", ("sentence1", "sentence2")
    if form == ".jsonl":
        sheet.write_text("".join(json.dumps(dict(zip(head, pair, strict=True))) + "\n" for pair in pairs))
    else:
        mark = "," if form == ".csv" else "\t"
        sheet.write_text("\n".join(mark.join(row) for row in (head, *pairs)) + "\n")
    told = said(runs / "score", "--file", sheet, tmp_path / "out.jsonl")
    assert told == bertkin.predict(runs / "score", pairs)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.tsv", "sentence\nwarm, lovely film\ndull, cold\n", ["warm, lovely film", "dull, cold"]),
        ("a.tsv", f"it was warm\nthe film was {'so ' * 6}dull\n", ["it was warm", f"the film was {'so ' * 6}dull"]),
        ("a.csv", "it was warm\nit was cold\n", ["it was warm", "it was cold"]),
        ("a.csv", "1,it was warm\n2,cold\n", None),
        ("a.csv", "Kommentar,Datum\nwarm,May\ncold,June\n", None),
        ("a.csv", "title\nwarm\n", ["warm"]),
        ("a.csv.gz", "sentence,label\nwarm,\n", ["warm"]),
    ],
)
def test_what_a_column_holds_decides_nothing(
    name: str, content: str, texts: list[str] | None, runs: Path, tmp_path: Path
) -> None:
    """A row is never lost for looking like a header, nor a text for looking like an answer."""
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    if texts is None:
        with pytest.raises(UserError, match="cannot tell which of 2 columns the model is to read"):
            bertkin.predict_table(runs / "class", tmp_path / name)
        texts = [line.split(",")[0] for line in content.splitlines()]
        told = bertkin.predict_table(runs / "class", tmp_path / name, columns={"text": "1"}, header=False)
    else:
        told = bertkin.predict_table(runs / "class", tmp_path / name)
    assert [one["texts"] for one in told] == [[text] for text in texts]


def test_columns_are_those_of_the_training_data_whatever_their_form(stock: Path, tmp_path: Path) -> None:
    """A folder of classes has none, and those of CoNLL are its own."""
    rows = [
        f"{at} {word} x {'B-PLACE' if word in PLACES else 'O'}" for at, word in enumerate([*PLACES, "day", "film"] * 8)
    ]
    (tmp_path / "four.conll").write_text("\n\n".join(rows) + "\n")
    tuning = plan(stock, tmp_path / "four.conll", text="2", label="4", train={"steps": 2})
    finetune(tuning, tmp_path / "words", listener=QuietListener())
    told = bertkin.predict_table(tmp_path / "words", tmp_path / "four.conll")
    assert [word for word, _ in told[0]["words"]] == ["Paris"]
    for label, word in (("good", "warm"), ("bad", "dull")):
        (tmp_path / "classes" / label).mkdir(parents=True)
        for at in range(12):
            (tmp_path / "classes" / label / f"{at}.txt").write_text(f"it was {word} {at}")
    finetune(plan(stock, tmp_path / "classes", train={"steps": 2}), tmp_path / "films", listener=QuietListener())
    (tmp_path / "new.csv").write_text("file,text\na.txt,it was warm\n")
    assert bertkin.predict_table(tmp_path / "films", tmp_path / "new.csv")[0]["texts"] == ["it was warm"]


def test_answers_that_are_passed_over_may_be_wrong(runs: Path, tmp_path: Path) -> None:
    data = json.loads((runs / "asked.json").read_text())
    for question in (qa for one in data["data"] for part in one["paragraphs"] for qa in part["qas"]):
        question["answers"] = [{"text": "nowhere", "answer_start": 999}]
    (tmp_path / "wrong.json").write_text(json.dumps(data))
    assert len(bertkin.predict_table(runs / "span", tmp_path / "wrong.json")) == 96
    (tmp_path / "tags.jsonl").write_text(json.dumps({"tokens": ["it", "was"], "tags": ["O"]}) + "\n")
    assert len(bertkin.predict_table(runs / "tokens", tmp_path / "tags.jsonl")[0]["words"]) == 2


@pytest.mark.parametrize(
    ("head", "columns", "texts"),
    [
        ("sentence1,sentence2", {}, ["a", "b"]),
        ("sentence2,sentence1", {}, ["b", "a"]),
        ("sentence1,other", {"text2": "other"}, ["a", "b"]),
        ("other,sentence2", {"text": "other"}, ["a", "b"]),
        ("other,more", {"text2": "other"}, ["b", "a"]),
        ("claim,text", {}, ["a", "b"]),
        ("headline,body", {}, ["a", "b"]),
        ("body,label,headline", {}, ["a", "c"]),
    ],
)
def test_the_texts_of_a_pair_keep_their_order(
    head: str, columns: dict[str, str], texts: list[str], runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(f"{head}\n{','.join('abc'[: head.count(',') + 1])}\n")
    told = bertkin.predict_table(runs / "score", tmp_path / "rows.csv", columns=columns, header=True)
    assert told[0]["texts"] == texts


def test_rows_without_words_and_halves_of_characters(runs: Path, tmp_path: Path) -> None:
    """What has no token has no tag of its own; what is no text is a line."""
    (tmp_path / "odd.jsonl").write_text('{"text": "\\u200b"}\n{"text": "it was warm"}\n')
    told = bertkin.predict_table(runs / "tokens", tmp_path / "odd.jsonl")
    assert [len(one["words"]) for one in told] == [1, 3]
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"empty.jsonl:1: a row without words"):
        bertkin.predict_table(runs / "tokens", tmp_path / "empty.jsonl", out=tmp_path / "x.conll")
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"half.jsonl:1: half a character"):
        bertkin.predict_table(runs / "tokens", tmp_path / "half.jsonl")
    for how, line in (
        ({"out": tmp_path / "x.conll", "scheme": "bilou"}, "no scheme"),
        ({"scheme": "bmes"}, "in a file"),
    ):
        with pytest.raises(UserError, match=line):
            bertkin.predict_table(runs / "tokens", tmp_path / "odd.jsonl", **how)


def test_several_models_answer_a_table_each(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("sentence\nit was warm in Oslo\n")
    command = ["predict", str(runs / "class"), "--also", str(runs / "tokens"), "--file", str(tmp_path / "rows.csv")]
    assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["model"] for one in told] == [str(runs / "class"), str(runs / "tokens")]
    assert "label" in told[0] and len(told[1]["words"]) == 5
    capsys.readouterr()
    assert main([*command, "--also", str(runs / "score"), "--json"]) == 0  # which reads two texts
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 and "is passed over: " in captured.err
    assert main([*command, "--out", str(tmp_path / "out.conll")]) == 2
    assert ".conll is for the answers of one model" in capsys.readouterr().err


def test_columns_of_other_names_are_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("a,b\nit was warm,cold\n")
    told = said(runs / "class", "--file", tmp_path / "rows.csv", "--text", "b", tmp_path / "out.jsonl")
    assert told[0]["texts"] == ["cold"]
    assert "rows.csv: text = b" in capsys.readouterr().err
    assert main(["predict", str(runs / "class"), "--file", str(tmp_path / "rows.csv"), "--text", "c"]) == 2
    assert "no column 'c'" in capsys.readouterr().err


def test_answers_that_the_file_has_are_scored(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((runs / "class" / "review.json").read_text())["dev"]
    assert main(["predict", str(runs / "class"), "--file", str(runs / "class.tsv"), "--score"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 96 and "(96 rows with an answer)" in captured.err
    score = float(captured.err.split("accuracy ")[1].split()[0])
    examples = read_examples(runs / "class.tsv").examples
    given = [one["label"] for one in bertkin.predict(runs / "class", [example.texts[0] for example in examples])]
    right = [label == ("bad", "good")[example.label] for label, example in zip(given, examples, strict=True)]
    assert score == pytest.approx(np.mean(right), abs=1e-4) and told["scores"]


def test_without_a_table_there_is_nothing_to_score(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(runs / "class"), "it was warm", "--score"]) == 2
    assert "--score: is of rows with columns" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("sentence\nit was warm\n")
    assert main(["predict", str(runs / "class"), "--file", str(tmp_path / "rows.csv"), "--score"]) == 2
    assert "no row has an answer to score by" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["", "iob1", "bioes", "bmes"])
def test_words_are_those_of_the_file_and_tags_are_written_in_any_scheme(
    scheme: str, runs: Path, tmp_path: Path
) -> None:
    """Words are not parted anew; what is written reads back as the same entities."""
    sheet, out = tmp_path / "words.conll", tmp_path / "out.conll"
    sheet.write_text("U.S.\nday\nin\nParis\n\nit\nwas\nOslo\n")
    options = ["--scheme", scheme] if scheme else []
    assert main(["predict", str(runs / "tokens"), "--file", str(sheet), "--out", str(out), *options]) == 0
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert [line[0] for line in lines] == ["U.S.", "day", "in", "Paris", "", "it", "was", "Oslo"]
    first = {"": "B", "iob1": "I", "bioes": "S", "bmes": "S"}[scheme]
    assert lines[3][1] == f"{first}-PLACE" and lines[2][1] == "O"
    assert len(said(runs / "tokens", "--file", sheet, tmp_path / "out.jsonl")[0]["words"]) == 4


def test_a_table_of_plain_texts_is_tagged_too(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\nit was warm in Oslo\n")
    told = said(runs / "tokens", "--file", tmp_path / "texts.csv", tmp_path / "out.jsonl")
    assert told == bertkin.predict(runs / "tokens", ["it was warm in Oslo"])


def test_answers_to_questions_are_written_as_the_evaluation_of_squad_takes_them(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.json"
    assert main(["predict", str(runs / "span"), "--file", str(runs / "asked.json"), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert set(told) == {str(number) for number in range(96)} and all(isinstance(one, str) for one in told.values())


def test_the_table_of_answers_reads_back(runs: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "rows.jsonl"
    texts = ['it was "warm", in Oslo', "a\tday that\nis grim"]
    sheet.write_text("".join(json.dumps({"id": f"r{at}", "sentence": text}) + "\n" for at, text in enumerate(texts)))
    told = said(runs / "class", "--file", sheet, tmp_path / "out.jsonl")
    for form in ("csv", "tsv"):
        out = tmp_path / f"out.{form}"
        assert main(["predict", str(runs / "class"), "--file", str(sheet), "--out", str(out)]) == 0
        quoting: Any = {"quoting": csv.QUOTE_NONE, "delimiter": "\t"} if form == "tsv" else {}
        with out.open(newline="") as stream:
            read = list(csv.DictReader(stream, **quoting))
        assert [row["id"] for row in read] == ["r0", "r1"]
        assert [row["label"] for row in read] == [one["label"] for one in told]
        assert [row["text"].split() for row in read] == [text.split() for text in texts]


@pytest.mark.parametrize(
    ("kind", "more", "line"),
    [
        ("class", ["--out", "x.conll"], "a CoNLL file is of tags"),
        ("class", ["--out", "x.json"], "is of spans"),
        ("class", ["--out", "x.txt"], "answers are not written as .txt; end its name in .jsonl"),
        ("class", ["--out", "x.csv", "--scheme", "bioes"], "a scheme is of tags in a CoNLL file"),
        ("tokens", ["--scheme", "bioes"], "--scheme: is of tags in a file"),
        ("class", ["--out", "."], "a folder"),
        ("class", ["a text", "--file", "rows.csv"], "texts beside a table"),
        ("class", ["--file", "none.csv"], "none.csv"),
        ("score", ["--file", "rows.csv"], "cannot tell which of 1 columns the model is to read"),
        ("class", ["--file", "rows.csv", "--label", "gold"], "--label: a column of answers, which are passed over"),
        ("class", ["--file", "rows.csv", "--score", "--label", "gold"], "no column 'gold'"),
        ("class", ["--file", "rows.csv", "--out", "rows.csv"], "is what is read"),
        ("class", ["--out", "none/x.csv"], "no such folder"),
        ("class", ["a text", "--skip-bad"], "--skip-bad: is of rows with columns"),
        ("span", ["--file", "rows.csv"], "cannot tell which of 1 columns"),
    ],
)
def test_what_cannot_be_asked_or_written_is_a_line_and_writes_nothing(
    kind: str,
    more: list[str],
    line: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("sentence\nit was warm\n")
    texts = [] if "--file" in more else ["it was warm"]
    assert main(["predict", str(runs / kind), *texts, *more]) == 2
    assert line in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_questions_without_an_id_are_written_as_lines(runs: Path, tmp_path: Path) -> None:
    reader = open_reader(runs / "span")
    texts = ["in what town", "it was warm in Oslo"]
    told = [reader.said(texts, reader.predict([texts])[0])]
    with pytest.raises(UserError, match="questions without an id"):
        write_answers(tmp_path / "x.json", told, [reader])
    assert not any(tmp_path.iterdir())


@pytest.fixture
def foreign(lively: Path, tmp_path: Path) -> Path:
    """A classifier as transformers saves one: nobody says what it reads."""
    model = begin_task_model(lively, Answer("class", 2), seed=1)
    save_task_model(model, tmp_path / "foreign", labels=("no", "yes"), tokenizer=Tokenizer.load(lively))
    return tmp_path / "foreign"


def test_a_classifier_of_transformers_is_asked_of_texts_and_of_pairs(foreign: Path, tmp_path: Path) -> None:
    pair = ("it was warm in Oslo", "her song is sour")
    reader = open_reader(foreign, precision="float32")
    alone, both = reader.predict([pair[:1]]), reader.predict([pair])
    assert alone[0].best != both[0].best
    with pytest.raises(UserError, match="3 texts, where the model reads 1"):
        reader.predict([(*pair, "x")])
    sheet = tmp_path / "pairs.csv"
    sheet.write_text("one,other,answer\n" + "{},{},yes\n".format(*pair))
    (told,) = said(foreign, "--file", sheet, "--text", "one", "--text2", "other", tmp_path / "out.jsonl")
    assert told["texts"] == [*pair]


def test_scores_that_are_no_numbers_are_a_line(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = load_task_model(foreign)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    save_task_model(model, foreign, labels=("no", "yes"))
    assert main(["predict", str(foreign), "it was warm"]) == 2
    told = capsys.readouterr()
    assert "the model's scores are not numbers" in told.err and not told.out


def test_tags_of_transformers_are_scored_as_they_are_called(lively: Path, tmp_path: Path) -> None:
    """A model that has I alone, and a file that begins entities with B."""
    model = begin_task_model(lively, Answer("tokens", 2), seed=1)
    save_task_model(model, tmp_path / "tags", labels=("O", "I-PLACE"), tokenizer=Tokenizer.load(lively))
    reader = open_reader(tmp_path / "tags", precision="float32")
    file, places = tmp_path / "x.conll", {"Oslo", "Rome"}
    words = ["it", "was", "warm", "in", "Oslo", "her", "Rome"]
    file.write_text("".join(f"{word} {'B-PLACE' if word in places else 'O'}\n" for word in words))
    asked, labelled = read_rows(reader, file), read_rows(reader, file, labelled=True)
    found = reader.asked(asked.examples)
    right = [
        reader.task.labels[tag] == ("I-PLACE" if word in places else "O")
        for word, tag in zip(words, found[0].answer, strict=True)
    ]
    assert measured(reader, asked, found, labelled)[0]["accuracy"] == pytest.approx(sum(right) / len(words))


def test_a_question_that_fills_the_row_loses_its_end_and_the_rest_is_answered(runs: Path) -> None:
    reader = open_reader(runs / "span")
    long = ("warm " * 200, "it was warm in Oslo")
    with pytest.warns(UserWarning, match="1 of 2 inputs are longer"):
        found = reader.predict([("in what town", long[1]), long])
    alone = reader.predict([("in what town", long[1])])
    assert found[0] == alone[0] and found[1].answer in long[1]


def test_the_chances_of_spans_are_among_all_spans(runs: Path) -> None:
    """So that the five that are told come to less than one, but where there are no more."""
    reader = open_reader(runs / "span", precision="float32")
    many, few = reader.asked([Example(("in what town", text)) for text in ("it was warm in Oslo", "Oslo")])
    assert len(many.best) == 5 and sum(chance for _, chance in many.best) < 1
    assert [answer for answer, _ in few.best] == ["Oslo"] and few.sure == pytest.approx(1)
    assert many.sure == many.best[0][1] == max(chance for _, chance in many.best)


@pytest.mark.parametrize("kind", ["lora", "bias"])
def test_a_light_model_folds_into_its_stock_afterwards(
    kind: str, lively: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder answers as the light one did, in transformers as well, and is what `--merge` would have written."""
    from transformers import pipeline

    data, merged = written(tmp_path, "class"), tmp_path / "merged"
    finetune(plan(lively, data, strategy=Strategy(kind)), tmp_path / "light", listener=QuietListener())
    assert main(["merge", str(tmp_path / "light"), "--out", str(merged)]) == 0
    texts = ["it was warm in Oslo", "this book seems grim in Rome"]
    light, whole = (bertkin.predict(path, texts, precision="float32") for path in (tmp_path / "light", merged))
    assert [one["label"] for one in whole] == [one["label"] for one in light]
    assert [one["probability"] for one in whole] == pytest.approx([one["probability"] for one in light], abs=2e-4)
    found = pipeline("text-classification", model=str(merged))(texts)
    assert [one["label"] for one in found] == [one["label"] for one in whole]
    card, before = ((folder / "README.md").read_text() for folder in (merged, tmp_path / "light" / "model"))
    assert card.count("## ") == before.count("## ") == 3
    scores = before[before.index("## Scores") : before.index("## Use")].strip()
    assert scores in card and f"bertkin predict {merged}" in card and "from_pretrained" in card
    assert "library_name: transformers" in card and f"bertkin merge {tmp_path / 'light'} --out {merged}" in card
    finetune(plan(lively, data, strategy=Strategy(kind), merge=True), tmp_path / "at-once", listener=QuietListener())
    (file,) = merged.glob("*.safetensors")
    from safetensors.torch import load_file

    for name, tensor in weights(tmp_path / "at-once").items():
        np.testing.assert_allclose(load_file(file)[name].numpy(), tensor.numpy(), atol=1e-6)
    assert main(["merge", str(tmp_path / "light"), "--out", str(merged)]) == 2
    assert "holds something already" in capsys.readouterr().err


def test_what_does_not_fold_is_a_line(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(
        plan(stock, written(tmp_path, "class"), strategy=Strategy("adapter"), train={"steps": 2}),
        tmp_path / "light",
        listener=QuietListener(),
    )
    for path, line in ((tmp_path / "light", "does not fold into the weights"), (stock, "no changes to a model here")):
        assert main(["merge", str(path), "--out", str(tmp_path / "merged")]) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_light_model_gives_vectors(lively: Path, tmp_path: Path) -> None:
    """Those of its stock with its changes: of a frozen one the stock's own."""
    texts = ["it was warm in Oslo", "cold"]
    before = bertkin.embed(lively, texts, precision="float32")
    for kind in ("frozen", "lora"):
        finetune(
            plan(lively, written(tmp_path, "class"), strategy=Strategy(kind)), tmp_path / kind, listener=QuietListener()
        )
        after = bertkin.embed(tmp_path / kind, texts, precision="float32")
        assert np.allclose(before, after, atol=1e-5) == (kind == "frozen")


def test_a_stock_that_has_moved_is_named(lively: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A light run answers over its stock wherever that lies; over another it does not."""
    stock, light, text = tmp_path / "stock", tmp_path / "light", "it was warm in Oslo"
    shutil.copytree(lively, stock)
    finetune(plan(stock, written(tmp_path, "class"), strategy=Strategy("lora")), light, listener=QuietListener())
    told, vector = bertkin.predict(light, text), bertkin.embed(light, [text])
    moved = stock.rename(tmp_path / "moved")
    (tmp_path / "texts.txt").write_text(f"{text}\n")
    for verb in (["predict", str(light), text], ["merge", str(light), "--out", str(tmp_path / "merged")]):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert "its stock is no longer there" in error and "--stock FOLDER" in error and error.count("\n") == 1
    assert bertkin.predict(light, text, stock=moved) == told
    assert bertkin.predict_all([light], text, stock=moved)[str(light)] == told
    assert np.array_equal(bertkin.embed(light, [text], stock=moved), vector)
    assert main(["predict", str(light), text, "--stock", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told[0]
    assert main(["merge", str(light), "--out", str(tmp_path / "merged"), "--stock", str(moved)]) == 0
    assert bertkin.predict(tmp_path / "merged", text)[0]["label"] == told[0]["label"]
    for path in (moved, tmp_path / "merged"):  # which are whole
        assert main(["predict", str(path), text, "--stock", str(moved)]) == 2
    out = ["--out", str(tmp_path / "x.npy")]
    assert main(["embed", str(moved), str(tmp_path / "texts.txt"), "--stock", str(moved), *out]) == 2
    finetune(plan(moved, written(tmp_path, "class"), train={"steps": 2}), tmp_path / "other", listener=QuietListener())
    capsys.readouterr()
    assert main(["predict", str(light), text, "--stock", str(tmp_path / "other")]) == 2
    assert "trained on another stock" in capsys.readouterr().err


def test_a_model_that_does_not_say_may_be_told_that_questions_have_no_answer(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "in what town\tit was warm in Oslo"
    assert main(["predict", str(runs / "span"), question, "--json", "--unanswerable"]) == 0
    asked, plain = json.loads(capsys.readouterr().out), bertkin.predict(runs / "span", [tuple(question.split("\t"))])[0]
    best = dict(asked["best"])
    assert "" not in dict(plain["best"])
    assert sum(best.values()) <= 1 + 1e-3 and asked["probability"] < plain["probability"]
    assert main(["predict", str(runs / "class"), "it was warm", "--unanswerable"]) == 2
    assert "--unanswerable: this model looks for no spans" in capsys.readouterr().err


def test_answers_may_be_as_long_as_those_that_were_learnt_from(stock: Path, tmp_path: Path) -> None:
    context = " ".join(["it was warm in Oslo"] * 6)
    for name, long in (("short", "it was warm"), ("long", context[: context.rindex(" in")])):
        answer = {"text": long, "answer_start": 0}
        asked = [{"id": str(at), "question": "in what town", "answers": [answer]} for at in range(24)]
        rows = [{"context": f"{context} {at}", "qas": [one]} for at, one in enumerate(asked)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": rows}]}))
        tuning = plan(stock, tmp_path / f"{name}.json", train={"steps": 2})
        finetune(replace(tuning, length=64), tmp_path / name, listener=QuietListener())
    assert open_reader(tmp_path / "short").longest == LONGEST_ANSWER
    tokens = Tokenizer.load(stock).backend.encode(long, add_special_tokens=False).ids
    assert open_reader(tmp_path / "long").longest == len(tokens) > LONGEST_ANSWER


def test_one_of_several_tasks_answers_a_table(stock: Path, tmp_path: Path) -> None:
    """By the columns of its own training data."""
    tasks = {kind: {"data": str(written(tmp_path, kind)), "length": 32} for kind in ("class", "tokens")}
    train = {"steps": 4, "precision": "float32", "threads": 1}
    bertkin.finetune_together(stock, tasks, out=tmp_path / "many", train=train, listener=QuietListener())
    (tmp_path / "rows.csv").write_text("a,sentence\nx,it was warm\n")
    told = said(tmp_path / "many", "--task", "class", "--file", tmp_path / "rows.csv", tmp_path / "out.jsonl")
    assert [(one["model"], one["texts"]) for one in told] == [("class", ["it was warm"])]


def test_what_peft_saved_folds_too(lively: Path, tmp_path: Path) -> None:
    """Without a word of ours beside it: its classes have no names."""
    from safetensors.torch import load_file

    tuning = plan(lively, written(tmp_path, "class"), strategy=Strategy("lora"))
    finetune(tuning, tmp_path / "run", listener=QuietListener())
    bertkin.merge(tmp_path / "run", tmp_path / "ours")
    (tmp_path / "run" / "model" / "bertkin.json").unlink()
    (tmp_path / "run" / "model" / "README.md").write_text("---\nlibrary_name: peft\n---\n# Theirs\n")
    bertkin.merge(tmp_path / "run" / "model", tmp_path / "theirs")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=1e-6)
    assert not (tmp_path / "theirs" / "README.md").exists()
    assert bertkin.predict(tmp_path / "theirs", "it was warm")[0]["label"] in ("LABEL_0", "LABEL_1")
