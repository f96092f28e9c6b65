"""Fine-tuning: every kind of answer through the one loop, resumed to the bit, the same in transformers' pipelines."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bertkin.cli import main
from bertkin.config import Model, Train
from bertkin.errors import UserError
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import load_model, save_model
from bertkin.models.strategy import Strategy
from bertkin.tasks.answering import answers
from bertkin.tasks.completing import USUAL
from bertkin.tasks.data.words import words_in
from bertkin.tasks.encoding import Template, encode
from bertkin.tasks.finetune import FineTuning, finetune
from bertkin.tasks.gathering import gather
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import read_examples, read_splits
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer, train_tokenizer
from bertkin.train.loop import Training
from bertkin.train.parallel import World
from bertkin.train.progress import QuietListener, RichListener
from bertkin.train.state import kept_evaluation, read_log

GOOD = ["fine", "lovely", "bright", "warm"]
BAD = ["grim", "dull", "cold", "sour"]
PLACES = ["Paris", "Rome", "Lyon", "Oslo"]
FILL = ["the film was", "a day that is", "this book seems", "her song is", "it was"]


def sentence(draw: random.Random) -> tuple[str, int]:
    label = draw.randrange(2)
    return f"{draw.choice(FILL)} {draw.choice(GOOD if label else BAD)} in {draw.choice(PLACES)}", label


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained encoder with a tokenizer of the words used here."""
    folder = tmp_path_factory.mktemp("stock")
    draw = random.Random(0)
    tokenizer = train_tokenizer([sentence(draw)[0] for _ in range(200)], kind="wordpiece", vocab_size=90)
    shape = Model(family="bert", layers=2, hidden=64, heads=2, max_length=64, start="random")
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), folder, tokenizer=tokenizer)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def lively(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights far from their first values: its states differ from text to text, as a trained model's do."""
    folder, model = tmp_path_factory.mktemp("lively"), load_model(stock)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.12)
    save_model(model, folder, tokenizer=Tokenizer.load(stock))
    return folder


def written(folder: Path, kind: str, rows: int = 96) -> Path:
    """Labelled rows of a kind, in a file that says what they are."""
    draw = random.Random(1)
    path = folder / {"tokens": "places.conll", "span": "asked.json"}.get(kind, f"{kind}.tsv")
    lines, squad = [], []
    for number in range(rows):
        text, label = sentence(draw)
        words = text.split()
        if kind == "class":
            lines.append(f"{text} {number}\t{['bad', 'good'][label]}")
        elif kind == "score":
            lines.append(f"{text}\t{text} {number}\t{label * 5.0:.1f}")
        elif kind == "tokens":
            lines += [f"{word} {'B-PLACE' if word in PLACES else 'O'}" for word in words] + [""]
        else:
            at = text.index(words[-1])
            answer = {"text": words[-1], "answer_start": at}
            squad.append(
                {"context": text, "qas": [{"id": str(number), "question": "in what town", "answers": [answer]}]}
            )
    head = {"class": "sentence\tlabel\n", "score": "sentence1\tsentence2\tscore\n"}.get(kind, "")
    content = json.dumps({"data": [{"paragraphs": squad}]}) if kind == "span" else head + "\n".join(lines) + "\n"
    path.write_text(content, encoding="utf-8")
    return path


def plan(stock: Path, data: Path, **more: Any) -> Tuning:
    train = {"steps": 40, "lr": 2e-3, "precision": "float32", "threads": 1, "eval_every": 20.0} | more.pop("train", {})
    return Tuning(model=str(stock), data=(str(data),), batch=16, length=32, train=Train(**train), **more)


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("kind", "least"), [("class", 0.9), ("score", 0.8), ("tokens", 0.9), ("span", 0.6)])
def test_every_kind_of_answer_is_learnt(kind: str, least: float, stock: Path, tmp_path: Path) -> None:
    result = finetune(plan(stock, written(tmp_path, kind, 240), train={"steps": 120}), tmp_path / "run")
    assert result.accuracy >= least
    assert result.kind == kind


@pytest.mark.parametrize(("low", "size"), [(-1e-3, 1e-6), (300_000.0, 40_000.0)], ids=["small", "prices"])
def test_scores_of_any_size_are_learnt_alike(low: float, size: float, stock: Path, tmp_path: Path) -> None:
    """And answered as they are, in the range or out of it."""
    draw, path = random.Random(1), tmp_path / "prices.tsv"
    rows = [(text, low + size * (label + draw.random() / 10)) for text, label in (sentence(draw) for _ in range(240))]
    path.write_text("text\tscore\n" + "".join(f"{text}\t{value!r}\n" for text, value in rows))
    tuning = plan(stock, path, task="score", metric="pearson", train={"steps": 120})
    assert finetune(tuning, tmp_path / "run").accuracy >= 0.8
    predictions = open_reader(tmp_path / "run", precision="float32").predict([[text] for text, _ in rows])
    gaps = [abs(one.answer - value) / size for one, (_, value) in zip(predictions, rows, strict=True)]
    assert sum(gaps) / len(gaps) < 0.1  # the mean alone is 0.5 away


def test_columns_of_a_question_and_its_text_can_have_any_name(stock: Path, tmp_path: Path) -> None:
    draw, path = random.Random(1), tmp_path / "asked.csv"
    texts = [sentence(draw)[0] for _ in range(40)]
    path.write_text("query,passage,reply\n" + "".join(f"in what town,{text},{text.split()[-1]}\n" for text in texts))
    named = {"task": "span", "text": "query", "text2": "passage", "label": "reply"}
    result = finetune(plan(stock, path, train={"steps": 2}, **named), tmp_path / "run")
    assert result.kind == "span"


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece"])
def test_a_span_stands_where_it_is_said_to_and_none_is_outside_the_text(kind: Any, tmp_path: Path) -> None:
    """Byte-level tokens begin with the blank before a word; and a tokenizer that puts nothing before a text leaves no place
    for "no answer" but one inside it."""
    size = {"byte-bpe": 270, "wordpiece": 40}[kind]
    tokenizer = train_tokenizer(["it was warm in Oslo", "in Rome it was cold"] * 9, kind=kind, vocab_size=size)
    text = "it was warm in Oslo"
    examples = [Example((text,), ((15, 19),)), Example((text,), ())]
    task = Task("span", 1, unanswerable=True)
    rows = encode(examples, task, tokenizer, max_length=32)
    scores = [np.full((len(row.ids), 2), -9.0, np.float32) for row in rows.rows]
    for row, one in zip(rows.rows, scores, strict=True):
        assert row.target is not None
        one[row.target[0], 0] = one[row.target[1], 1] = 9.0
    here, nowhere = answers(task, rows, scores)
    assert here.answer == "Oslo" and here.where == (15, 19) and nowhere.answer == ""
    tokenizer.backend.post_processor = None  # as GPT-2's and T5's
    rows = encode(examples, task, tokenizer, max_length=32)
    assert [row.target[0] not in row.places for row in rows.rows] == [False, True]


def test_a_span_of_one_text(stock: Path, tmp_path: Path) -> None:
    """Where in the text a town is named, without a question."""
    draw, path = random.Random(1), tmp_path / "towns.jsonl"
    texts = [sentence(draw)[0] for _ in range(240)]
    lines = [{"context": text, "answers": [{"text": text.split()[-1]}]} for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, named in enumerate(({}, {"task": "span", "text": "context", "label": "answers"})):
        tuning = plan(stock, path, train={"steps": 120 if number else 1}, **named)
        result = finetune(tuning, tmp_path / str(number))
    assert result.kind == "span" and result.accuracy >= 0.6
    (prediction,) = open_reader(tmp_path / "1", precision="float32").predict([[texts[0]]])
    assert prediction.answer in texts[0]


def test_words_are_tagged_by_what_is_asked_of_them(stock: Path, tmp_path: Path) -> None:
    """The same words with other tags: only who reads the question can tell."""
    draw, path, lines = random.Random(1), tmp_path / "asked.jsonl", []
    for number in range(400):
        words, asked = sentence(draw)[0].split(), ["good", "bad"][number % 2]
        tags = ["HERE" if (word in PLACES) is (asked == "good") else "NO" for word in words]
        lines.append(json.dumps({"question": asked, "tokens": words, "tags": tags}))
    path.write_text("\n".join(lines) + "\n")
    named = {"task": "tokens", "text": "tokens", "text2": "question", "label": "tags"}
    result = finetune(plan(stock, path, train={"steps": 160}, **named), tmp_path / "run")
    assert result.accuracy >= 0.95
    reader, text = open_reader(tmp_path / "run", precision="float32"), sentence(draw)[0]
    good, bad = reader.predict([["good", text], ["bad", text]])
    assert all(one != other for one, other in zip(good.answer, bad.answer, strict=True))
    assert [word for word, _ in reader.said(["good", text], good)["words"]] == text.split()


def test_each_seed_draws_its_own_adapters(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    drawn = []
    for seed in (0, 1):
        tuning = plan(stock, data, strategy=Strategy("adapter"), train={"steps": 1, "lr": 1e-9, "seed": seed})
        finetune(tuning, tmp_path / str(seed))
        drawn.append({name: value for name, value in weights(tmp_path / str(seed)).items() if "down.weight" in name})
    assert drawn[0] and all(not torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


def test_several_seeds_from_the_command_line(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(written(tmp_path, "class")), tmp_path / "runs"
    asked = ["finetune", str(stock), data, "--seeds", "2", "--train.steps", "2", "--out", str(out), "--quiet"]
    assert main(asked) == 0
    assert (out / "seeds" / "seed-1" / "model").is_dir() and (out / "results.json").is_file()
    first = capsys.readouterr().out
    assert "accuracy" in first and "seed-0" in first
    assert main(asked) == 0 and capsys.readouterr().out == first, "what is done is not done again"
    asked.remove("--seeds"), asked.remove("2")
    for more, said in (
        (["--seeds", "0"], "choose at least 1"),
        (["--seeds", "2", "--overwrite"], "go on where they were"),
    ):
        assert main([*asked, *more]) == 2
        assert said in capsys.readouterr().err


def test_later_questions_are_asked_as_the_first_were(stock: Path, tmp_path: Path) -> None:
    finetune(plan(stock, written(tmp_path, "span"), stride=3, train={"steps": 1}), tmp_path / "span")
    assert open_reader(tmp_path / "span").stride == 3
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 1}), tmp_path / "class")
    assert open_reader(tmp_path / "class").stride is None


def test_entities_are_told_with_their_characters(stock: Path, tmp_path: Path) -> None:
    finetune(plan(stock, written(tmp_path, "tokens", 240), train={"steps": 120}), tmp_path / "run")
    reader, text = open_reader(tmp_path / "run", precision="float32"), sentence(random.Random(5))[0]
    (prediction,) = reader.predict([[text]])
    found = reader.said([text], prediction)["entities"]
    assert found and all(text[one["start"] : one["end"]] == one["text"] for one in found)
    assert {one["text"] for one in found} <= set(PLACES) and {one["kind"] for one in found} == {"PLACE"}


@pytest.mark.parametrize("kind", ["frozen", "last", "layers", "adapter", "lora", "bias", "prefix"])
def test_every_strategy_learns_and_is_opened_again(kind: Any, lively: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class", 240)
    train = {"steps": 160 if kind == "prefix" else 60, "lr": 1e-2}
    sizes: dict[str, Any] = {"lora": {"rank": 4}, "adapter": {"size": 8}, "pals": {"size": 8}}
    strategy = Strategy(kind, **sizes.get(kind, {}))
    result = finetune(plan(lively, data, train=train, strategy=strategy, pooling="mean", dropout=0.0), tmp_path / "run")
    assert result.accuracy >= 0.8
    reader = open_reader(tmp_path / "run", precision="float32")
    dev = read_splits(str(data)).dev.examples
    right = [p.answer == e.label for p, e in zip(reader.examples(dev), dev, strict=True)]
    assert np.mean(right) == pytest.approx(result.accuracy)
    saved = sum(path.stat().st_size for path in (tmp_path / "run" / "model").glob("*.safetensors"))
    assert saved < (lively / "model.safetensors").stat().st_size / 2


def test_several_light_tasks_share_one_stock(stock: Path, tmp_path: Path) -> None:
    for name, kind in (("one", "lora"), ("two", "adapter")):
        finetune(plan(stock, written(tmp_path, "class"), train={"steps": 2}, strategy=Strategy(kind)), tmp_path / name)
    first = open_reader(tmp_path / "one", precision="float32")
    second = open_reader(tmp_path / "two", precision="float32", stock=first.model)
    alone = open_reader(tmp_path / "two", precision="float32")
    assert second.model.stack is not None and first.model.stack is not None
    mine, theirs = (reader.model.stack.embeddings.tokens for reader in (second, first))  # type: ignore[union-attr]
    assert mine.data_ptr() == theirs.data_ptr()
    (one,), (other,) = second.predict([("it was grim",)]), alone.predict([("it was grim",)])
    assert one.sure == pytest.approx(other.sure, abs=1e-5)


def test_merged_lora_is_an_ordinary_folder(stock: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    tuning = plan(stock, written(tmp_path, "class"), train={"lr": 2e-2}, strategy=Strategy("lora"), merge=True)
    finetune(tuning, tmp_path / "run")
    text = "it was warm in Lyon"
    (prediction,) = open_reader(tmp_path / "run", precision="float32").predict([(text,)])
    (their,) = pipeline("text-classification", model=str(tmp_path / "run" / "model"))([text])
    assert prediction.sure == pytest.approx(their["score"], abs=1e-4)


def test_what_does_not_fold_is_said_first(stock: Path, tmp_path: Path) -> None:
    tuning = plan(stock, written(tmp_path, "class"), strategy=Strategy("adapter"), merge=True)
    with pytest.raises(UserError, match="adapter does not fold into the weights"):
        finetune(tuning, tmp_path / "run")


def test_the_test_data_are_measured_at_the_end(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    finetune(plan(stock, data, train={"steps": 3}, test=str(data)), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "test.json").read_text())
    reader, examples = open_reader(tmp_path / "run", precision="float32"), read_examples(data).examples
    right = [p.answer == e.label for p, e in zip(reader.examples(examples), examples, strict=True)]
    assert told["accuracy"] == pytest.approx(np.mean(right), abs=1e-5)


def test_choices_are_compared_among_all_of_an_example(stock: Path, tmp_path: Path) -> None:
    """Three choices each, and more rows than are looked at together."""
    row = {"question": "it was", "choices": ["warm", "cold", "dull"]}
    for part, count in (("train", 8), ("dev", 120)):
        rows = [json.dumps(row | {"question": f"it was {n}", "answer": n % 3}) for n in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
    data, dev = str(tmp_path / "train.jsonl"), str(tmp_path / "dev.jsonl")
    tuning = replace(plan(stock, Path(data), train={"steps": 1}), dev=dev)
    assert finetune(tuning, tmp_path / "run").loss == pytest.approx(np.log(3), abs=0.2)
    reader = open_reader(tmp_path / "run")
    asked = ("it was 1", "warm", "cold", "dull")
    (found,) = reader.predict([asked])
    assert reader.said(asked, found)["all"].keys() == {"warm", "cold", "dull"}
    for few in (("it was 1",), ("it was 1", "warm")):
        with pytest.raises(UserError, match="where the model reads 1 and two choices or more"):
            reader.predict([few])


def test_choices_may_follow_two_texts(stock: Path, tmp_path: Path) -> None:
    row = {"passage": "a film", "question": "was it", "choices": ["warm", "cold"]}
    rows = [json.dumps(row | {"passage": f"a film {n}", "answer": n % 2}) for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("\n".join(rows) + "\n")
    finetune(plan(stock, tmp_path / "asked.jsonl", train={"steps": 1}), tmp_path / "run")
    reader = open_reader(tmp_path / "run")
    asked = ("a film 1", "was it", "warm", "cold")
    assert reader.task.inputs == 3
    (found,) = reader.predict([asked])
    assert reader.said(asked, found)["label"] in ("warm", "cold")


def test_files_are_read_as_check_data_reads_them(stock: Path, tmp_path: Path) -> None:
    rows = written(tmp_path, "class").read_bytes().splitlines()[1:]
    (tmp_path / "bare.tsv").write_bytes(b"\n".join([b"a film\xff\tgood", *rows]) + b"\n")
    tuning = plan(stock, tmp_path / "bare.tsv", train={"steps": 1})
    with pytest.raises(UserError, match="not UTF-8"):
        finetune(tuning, tmp_path / "run")
    found = gather(replace(tuning, header=False, encoding_errors="replace"), "cpu")
    assert len(found.train.examples) + len(found.dev.examples) == len(rows) + 1
    (tmp_path / "tags.conll").write_text("".join(f"Ada I-PER\nmet{n} O\nBob I-PER\n\n" for n in range(40)))
    tagged = plan(stock, tmp_path / "tags.conll", scheme="iob1", train={"steps": 1})
    assert gather(tagged, "cpu").task.scheme == "iob1"


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_is_not_trained_is_in_memory_once(ema: float, stock: Path, tmp_path: Path) -> None:
    """In float32 so is the rest, unless its average is what is saved."""
    train = {"steps": 2, "ema": ema}
    tuning = plan(stock, written(tmp_path, "class"), strategy=Strategy("adapter", size=4), train=train)
    training = Training(FineTuning(gather(tuning, "cpu"), "cpu"), tmp_path / "run", QuietListener(), World(), "cpu")
    held, trained = dict(training.model.named_parameters()), training.optimizer.weights()
    for name, parameter in training.finished.named_parameters():
        assert (parameter.data_ptr() == held[name].data_ptr()) is (name not in trained or not ema)


def test_what_is_reviewed_is_the_average_that_was_measured(stock: Path, tmp_path: Path) -> None:
    """In bfloat16 too, where the average is in float32."""
    train = {"steps": 8, "ema": 0.5, "precision": "bfloat16", "final": "last"}
    finetune(plan(stock, written(tmp_path, "score"), train=train), tmp_path / "run")
    kept = kept_evaluation(read_log(tmp_path / "run"))
    assert kept is not None
    review = json.loads((tmp_path / "run" / "review.json").read_text())["dev"]["scores"]
    assert review["pearson"]["value"] == pytest.approx(kept["pearson"], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "choice", "message"),
    [
        ("class", {"scheme": "iob1"}, "--scheme: of tags, and this is a task of class"),
        ("sequence", {"stride": 8}, "--stride: a task of sequence is not read in windows"),
        ("class", {"positive": "fair"}, "--positive: no class 'fair'; choose bad or good"),
        ("score", {"positive": "good"}, "--positive: only of two classes"),
    ],
)
def test_an_option_of_other_tasks_is_refused(
    kind: str, choice: dict[str, Any], message: str, stock: Path, tmp_path: Path
) -> None:
    if kind == "sequence":
        data = tmp_path / "data.tsv"
        data.write_text("question\tanswer\n" + "".join(f"what is {at}\tit is {at}\n" for at in range(40)))
        choice = choice | {"task": "sequence"}
    else:
        data = written(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        finetune(plan(stock, data, **choice), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_positive_class_counts_and_is_kept(stock: Path, tmp_path: Path) -> None:
    data = written(tmp_path, "class")
    tuning = plan(stock, data, metric="f1", positive="bad", train={"steps": 4, "final": "last"})
    finetune(tuning, tmp_path / "run")
    task = Task.from_mapping(json.loads((tmp_path / "run" / "task.json").read_text())["task"])
    assert (task.positive, task.metric) == ("bad", "f1") and "by f1 of bad" in str(task)
    assert open_reader(tmp_path / "run").task.positive == "bad"
    review = json.loads((tmp_path / "run" / "review.json").read_text())["dev"]
    assert review["scores"]["recall"]["value"] == pytest.approx(review["classes"]["bad"][1], abs=1e-4)


def test_a_table_is_answered_in_pieces(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 4}), tmp_path / "run")
    reader, texts = open_reader(tmp_path / "run", precision="float32"), [(f"the film was {one}",) for one in GOOD + BAD]
    whole = reader.predict(texts)
    monkeypatch.setattr("bertkin.tasks.predict.AT_ONCE", 3)
    pieces = reader.predict(texts)
    assert [one.answer for one in pieces] == [one.answer for one in whole]
    np.testing.assert_allclose([one.sure for one in pieces], [one.sure for one in whole], atol=1e-5)
    assert reader.predict([]) == []
    with pytest.raises(UserError, match="0 texts, where the model reads 1"):
        reader.predict([()])


def test_pipelines_of_transformers_answer_alike(stock: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    texts = ["the film was grim in Oslo", "her song is lovely in Rome"]
    finetune(plan(stock, written(tmp_path, "class")), tmp_path / "class")
    reader = open_reader(tmp_path / "class", precision="float32")
    theirs = pipeline("text-classification", model=str(tmp_path / "class" / "model"))(texts)
    for text, prediction, their in zip(texts, reader.predict([(t,) for t in texts]), theirs, strict=True):
        told = reader.said([text], prediction)
        assert told["label"] == their["label"]
        assert told["probability"] == pytest.approx(their["score"], abs=2e-4)
    finetune(plan(stock, written(tmp_path, "tokens")), tmp_path / "tokens")
    tagger = open_reader(tmp_path / "tokens", precision="float32")
    found = pipeline("token-classification", model=str(tmp_path / "tokens" / "model"))(texts[0])
    (prediction,) = tagger.predict([(texts[0],)])
    tagged = [word for word, tag in tagger.said([texts[0]], prediction)["words"] if tag == "B-PLACE"]
    assert [word.lower() for word in tagged] == ["oslo"]
    assert "B-PLACE" in {entity["entity"] for entity in found}


def test_from_the_terminal(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(written(tmp_path, "class")), str(tmp_path / "run")
    options = ["--train.steps", "4", "--train.precision", "float32", "--quiet"]
    assert main(["finetune", str(stock), data, "--out", out, *options]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["resume", out, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["predict", out, "it was warm in Lyon", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("good", "bad")
    lines = tmp_path / "lines.txt"
    lines.write_text("it was warm\nit was cold in Oslo\n", encoding="utf-8")
    assert main(["embed", str(stock), str(lines), "--out", str(tmp_path / "v.npy"), "--normalise"]) == 0
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_model_grown_here_whose_numbers_are_large_takes_a_higher_rate(stock: Path, tmp_path: Path) -> None:
    """By the square, for that many times as little is changed by a step; not a stranger's, nor what is put beside it."""
    data, model = written(tmp_path, "class"), load_model(stock)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                parameter.mul_(2 * USUAL / parameter.square().mean().sqrt())
    for folder, extra in (("ours", {"objective": "masked"}), ("strangers", {})):
        save_model(model, tmp_path / folder, tokenizer=Tokenizer.load(stock), extra=extra)

    def rate(folder: Path, kind: str = "full") -> Any:
        return gather(plan(folder, data, strategy=Strategy(kind), train={"lr": None}), "cpu").tuning.train.lr  # type: ignore[arg-type]

    usual = rate(stock)
    assert rate(tmp_path / "ours") == pytest.approx(4 * usual, rel=0.01)
    assert rate(tmp_path / "strangers") == usual
    assert rate(tmp_path / "ours", "lora") == rate(stock, "lora")


def test_a_whole_text_is_its_mean_where_transformers_can_say_so(stock: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(stock)
    shape = Model(family="modern", layers=1, hidden=32, heads=1, max_length=64)
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), tmp_path / "modern", tokenizer=tokenizer)  # type: ignore[arg-type]
    data = written(tmp_path, "class")
    assert gather(plan(stock, data), "cpu").tuning.pooling == "first"
    assert gather(plan(tmp_path / "modern", data), "cpu").tuning.pooling == "mean"
    finetune(plan(tmp_path / "modern", data, train={"steps": 2}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["classifier_pooling"] == "mean"


def test_a_second_text_may_be_empty(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--train.steps", "2", "--train.precision", "float32", "--quiet"]
    assert (
        main(["finetune", str(stock), str(written(tmp_path, "score")), "--out", str(tmp_path / "run"), *options]) == 0
    )
    (tmp_path / "pairs.txt").write_text("it was warm\t\n\nit was warm\tcold\n")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--file", str(tmp_path / "pairs.txt"), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["texts"] for one in told] == [["it was warm", ""], ["it was warm", "cold"]]


def test_a_tokenizer_of_another_model_is_refused_by_whoever_reads(stock: Path, tmp_path: Path) -> None:
    import bertkin

    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 2}), tmp_path / "run")
    words = " ".join(f"w{at}" for at in range(300))
    other = train_tokenizer([words] * 3, kind="wordpiece", vocab_size=300)
    other.save(tmp_path / "run" / "model")
    for ask in (bertkin.predict, bertkin.embed):
        with pytest.raises(UserError, match=r"the tokenizer has .* tokens, the model's table"):
            ask(tmp_path / "run" / "model", ["it was warm"])


def test_from_python(stock: Path, tmp_path: Path) -> None:
    import bertkin

    train = {"steps": 2, "precision": "float32"}
    quiet = QuietListener()
    bertkin.finetune(
        stock, written(tmp_path, "class"), out=tmp_path / "run", strategy="lora", train=train, listener=quiet
    )
    assert bertkin.resume(tmp_path / "run", listener=quiet).step == 2
    assert set(bertkin.predict(tmp_path / "run", "it was warm")[0]) == {"texts", "label", "probability", "all"}
    assert bertkin.embed(stock, ["it was warm", "cold"]).shape == (2, 64)
    assert bertkin.embed(stock, "it was warm").shape == (1, 64)
    with pytest.raises(UserError, match=r"train\.length: of pretraining alone"):
        bertkin.finetune(stock, "x.csv", out=tmp_path / "other", train={"length": 16})
    (tmp_path / "mine.yaml").write_text("- {name: films, data: class.tsv}\n")
    with pytest.raises(UserError, match="--seeds: 0 seeds"):
        bertkin.evaluate(stock, tmp_path / "mine.yaml", out=tmp_path / "other", seeds=0)
    with pytest.raises(UserError, match="unknown field 'epoch'"):
        bertkin.finetune(stock, "x.csv", out=tmp_path / "other", train={"epoch": 1})


@pytest.mark.parametrize(
    ("budget", "epochs"),
    [({"steps": 12}, 4.0), ({"epochs": 4.0}, 4.0), ({"tokens": 1}, None), ({"minutes": 1e-6}, None)],
)
def test_the_price_is_of_the_budget(budget: dict[str, Any], epochs: float | None, stock: Path, tmp_path: Path) -> None:
    """40 rows in batches of 16: three steps an epoch."""
    work = FineTuning(gather(plan(stock, written(tmp_path, "class", 45), train={"steps": None} | budget), "cpu"), "cpu")
    rows = len(work.examples.examples)
    tokens = int(work.examples.lengths.sum())
    price = work.price(work.first_model(), device="cpu", dtype=torch.float32, threads=1)
    assert 32 < rows <= 48
    if epochs is not None:
        assert (price.steps, price.tokens) == (12, round(tokens * epochs))
    else:
        assert price.steps == 1 and price.tokens < tokens / 10
    assert price.minutes == pytest.approx(budget.get("minutes", price.minutes))
    more = work.price(work.first_model(), device="cpu", dtype=torch.float32, threads=1)
    assert more == price


def test_the_evaluation_that_is_told_is_the_score_that_counts(
    stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for metric, said in (("mean_squared_error", "· mean_squared_error "), ("pearson", "· pearson ")):
        tuning = plan(stock, written(tmp_path, "score"), metric=metric, train={"steps": 2})
        finetune(tuning, tmp_path / metric, listener=RichListener())
        line = next(line for line in capsys.readouterr().err.split("\n") if "held-out loss" in line)
        assert said in line and "%" not in line and "accuracy" not in line


WORDS = st.lists(st.sampled_from(["film", "warm", "Oslo", "grim", "lovelier", "xyz", ","]), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(words=WORDS, length=st.integers(10, 40))
def test_every_labelled_word_is_asked_exactly_once(stock: Path, words: list[str], length: int) -> None:
    text, places, at = " ".join(words), [], 0
    for word in words:
        places.append((at, at + len(word), 0))
        at += len(word) + 1
    tokenizer = Tokenizer.load(stock)
    task = Task("tokens", 1, ("O", "B-X"), scheme="iob2")
    rows = encode([Example((text,), tuple(places))], task, tokenizer, max_length=length)
    asked = [word for row in rows.rows for word in row.words.tolist()]
    assert asked == list(range(len(words)))
    for row in rows.rows:
        assert len(row.ids) <= length
        for place, word in zip(row.places, row.words, strict=True):
            assert row.ids[place] == tokenizer.encode(words[word])[0]


@settings(max_examples=40, deadline=None)
@given(words=WORDS, first=st.integers(0, 39), size=st.integers(1, 3), length=st.integers(28, 48))
def test_a_span_is_found_again_by_its_offsets(
    stock: Path, words: list[str], first: int, size: int, length: int
) -> None:
    first = min(first, len(words) - 1)
    context = " ".join(words)
    start = len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first : first + size])
    example = Example(("film ?", context), ((start, start + len(answer)),), answers=(answer,))
    tokenizer = Tokenizer.load(stock)
    rows = encode([example], Task("span", 2), tokenizer, max_length=length)
    offsets = rows.contexts[0]
    seen: set[int] = set()
    hits = 0
    for row in rows.rows:
        assert len(row.ids) <= length
        seen |= set(row.words.tolist())
        if row.target != (0, 0):
            hits += 1
            low, high = (row.words[place - row.places[0]] for place in row.target)
            assert context[offsets[low][0] : offsets[high][1]] == answer
    assert seen == set(range(len(offsets)))
    assert hits or len(tokenizer.encode(answer)) > length // 4


@pytest.mark.parametrize("unanswerable", [False, True])
@pytest.mark.parametrize("none", [-3.0, 30.0])
def test_no_answer_is_given_where_a_task_has_such_questions_and_it_beats_every_span(
    stock: Path, unanswerable: bool, none: float
) -> None:
    task = Task("span", 2, unanswerable=unanswerable)
    rows = encode([Example(("film ?", "a good film"), ())], task, Tokenizer.load(stock), max_length=28)
    scores = np.zeros((len(rows.rows[0].ids), 2), np.float32)
    scores[0], scores[rows.rows[0].places[0], 0] = none, 5.0
    (found,) = answers(task, rows, [scores])
    assert (found.answer == "") == (unanswerable and none > 5)
    assert found.answer or found.where is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada met Mr. B-52", ["Ada", "met", "Mr", ".", "B", "-", "52"]),
        ("王小明在IBM上班。", ["王", "小", "明", "在", "IBM", "上", "班", "。"]),
        ("去年 2019年", ["去", "年", "2019", "年"]),
        ("हिन्दी में René", ["हिन्दी", "में", "René"]),
        ("كِتَاب", ["كِتَاب"]),
        ("می\u200cخواهم 👩\u200d💻!", ["می\u200cخواهم", "👩\u200d💻", "!"]),
        ("I ❤\ufe0fNY", ["I", "❤\ufe0f", "NY"]),
        ("葛\U000e0100abc", ["葛\U000e0100", "abc"]),
        ("か\u3099く", ["か\u3099", "く"]),
        ("", []),
    ],
)
def test_words_to_tag_are_those_of_the_script(text: str, words: list[str]) -> None:
    assert [text[begin:end] for begin, end in words_in(text)] == words


def test_texts_are_joined_as_the_tokenizer_joins_them(stock: Path) -> None:
    tokenizer = Tokenizer.load(stock)
    template = Template.of(tokenizer)
    assert (template.before, template.between, template.after) == (
        (tokenizer.cls_id,),
        (tokenizer.sep_id,),
        (tokenizer.sep_id,),
    )
    task = Task("class", 2, ("no", "yes"))
    (row,) = encode([Example(("it was", "warm in Oslo"), 1)], task, tokenizer, max_length=32).rows
    pair = tokenizer.backend.encode("it was", "warm in Oslo")
    assert row.ids.tolist() == pair.ids and row.segments.tolist() == pair.type_ids


def test_nothing_is_cut_silently(stock: Path) -> None:
    tokenizer = Tokenizer.load(stock)
    task = Task("class", 2, ("no", "yes"))
    rows = encode([Example(("warm " * 50, "grim"), 1), Example(("warm", "grim"), 0)], task, tokenizer, max_length=16)
    assert rows.cut == 1
    assert all(len(row.ids) <= 16 for row in rows.rows)
    assert tokenizer.encode("grim")[0] in rows.rows[0].ids  # the shorter text is whole


def test_a_row_longer_than_the_model_reads_is_refused(stock: Path, tmp_path: Path) -> None:
    tuning = Tuning(model=str(stock), data=(str(written(tmp_path, "class")),), length=128)
    with pytest.raises(UserError, match="rows of 128 tokens, but the model reads at most 64"):
        finetune(tuning, tmp_path / "run")
    assert not (tmp_path / "run").exists()
