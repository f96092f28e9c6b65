"""What a fine-tuning leaves beside its weights: scores with intervals, mistakes, a card, and the report's sections."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bertkin.cli import main
from bertkin.config import Model, Train
from bertkin.errors import UserError
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.models.strategy import Strategy
from bertkin.tasks import concluding
from bertkin.tasks.answering import Prediction
from bertkin.tasks.card import source
from bertkin.tasks.concluding import line
from bertkin.tasks.finetune import finetune, resume
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import read_splits
from bertkin.tasks.review import calibration, mistakes, review
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.answered import sections
from bertkin.train.progress import QuietListener

WORDS = {"good": ["fine", "warm"], "bad": ["dull", "cold"]}
FILMS = Task("class", 1, ("bad", "good"))


class Heard(QuietListener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model, and reviews of films of which some are labelled wrong."""
    desk, draw = tmp_path_factory.mktemp("review"), random.Random(0)

    def row(number: int) -> str:
        label = draw.choice(["good", "bad"])
        told = label if draw.random() < 0.9 else {"good": "bad", "bad": "good"}[label]
        return f"film {number} was {draw.choice(WORDS[label])} <b>\t{told}"

    for part, count in (("train", 80), ("dev", 40), ("test", 20)):
        (desk / "films").mkdir(exist_ok=True)
        rows = ["text\tlabel", *(row(number) for number in range(count))]
        (desk / "films" / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer([row(n).split("\t")[0] for n in range(100)], vocab_size=60)
    shape = Model(family="bert", layers=1, hidden=32, heads=1, max_length=32)
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), desk / "stock", tokenizer=tokenizer)  # type: ignore[arg-type]
    return desk


def plan(desk: Path, **more: Any) -> Tuning:
    train = {"steps": 20, "lr": 5e-3, "precision": "float32", "threads": 1} | more.pop("train", {})
    return Tuning(model=str(desk / "stock"), data=(str(desk / "films"),), length=16, train=Train(**train), **more)


@pytest.fixture(scope="module")
def run(desk: Path) -> Path:
    """A fine-tuning that is done."""
    finetune(plan(desk, train={"steps": 80, "lr": 1e-2}), desk / "run")
    return desk / "run"


# What is found.


def test_mistakes_are_the_wrong_answers_the_surest_first() -> None:
    labels = [("a", 0), ("b", 1), ("c", 0), ("d", None)]
    examples = [Example((text,), label, where=f"films.tsv:{at}") for at, (text, label) in enumerate(labels)]
    predictions = [Prediction(1, 0.6), Prediction(1, 0.99), Prediction(1, 0.9), Prediction(0, 0.99)]
    found = mistakes(FILMS, examples, predictions)
    assert [one.texts for one in found] == [("c",), ("a",)]
    assert found[0].to_mapping() == {
        "texts": ["c"], "wanted": "bad", "answered": "good", "probability": 0.9, "where": "films.tsv:2",
    }  # fmt: skip
    assert line(found[0]) == " 90%  good, not bad: c  (films.tsv:2)"


@pytest.mark.parametrize(
    ("task", "right", "wrong", "wanted", "answered"),
    [
        (Task("classes", 1, ("a", "b", "c")), (0, 2), (1,), ["a", "c"], ["b"]),
        (Task("score", 1, low=0, high=5), 3.0, 4.5, 3.0, 4.5),
        (Task("choice", 2), 1, 0, "blue", "red"),
        (Task("tokens", 1, ("DET", "NOUN")), (0, 1), (0, 0), [("cat", "NOUN")], [("cat", "DET")]),
        (Task("tokens", 1, ("O", "B-X", "I-X"), scheme="iob2"), (1, 2), (0, 1), [("The cat", "X")], [("cat", "X")]),
        (Task("span", 2), "cat", "The dog", "cat", "The dog"),
    ],
)
def test_a_mistake_says_what_was_wanted_in_words(
    task: Task, right: Any, wrong: Any, wanted: Any, answered: Any
) -> None:
    label: Any = right
    if task.output == "tokens":
        label = ((0, 3, right[0]), (4, 7, right[1]))
    if task.output == "span":
        label = ((4, 7),)
    texts = ("who ?", "The cat") if task.output == "span" else ("The cat",)
    example = Example(texts, label, choices=("red", "blue"))
    assert mistakes(task, [example], [Prediction(right, 0.9)]) == []
    (found,) = mistakes(task, [example], [Prediction(wrong, 0.9)])
    assert (found.wanted, found.answered) == (wanted, answered)
    json.dumps(found.to_mapping())
    assert line(found)


def test_a_score_is_a_mistake_from_a_tenth_of_the_range_on() -> None:
    task = Task("score", 1, low=0, high=5)
    examples = [Example((str(at),), 2.0) for at in range(3)]
    found = mistakes(task, examples, [Prediction(said, 1.0) for said in (2.4, 2.6, 4.0)])
    assert [one.answered for one in found] == [4.0, 2.6]
    assert found[0].probability is None


SURE = st.floats(0.5, 1.0)


@given(st.lists(st.tuples(SURE, st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_mean_gap_of_its_bins(answers: list[tuple[float, bool]]) -> None:
    examples = [Example(("",), int(right)) for _, right in answers]
    predictions = [Prediction(1, sure) for sure, _ in answers]
    found = calibration(examples, predictions)
    assert sum(count for _, _, count in found["bins"]) == len(answers)
    assert 0 <= found["error"] <= 1
    right, sure = np.mean([right for _, right in answers]), np.mean([sure for sure, _ in answers])
    assert found["error"] >= abs(right - sure) - 1e-4  # bins can only add to the gap of the whole
    always = calibration([Example(("",), 1)] * 4, [Prediction(1, 1.0)] * 4)
    assert always == {"error": 0.0, "bins": [[1.0, 1.0, 4]]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=40))
def test_a_confusion_and_its_classes_count_alike(pairs: list[tuple[int, int]]) -> None:
    task = Task("class", 1, ("a", "b", "c"))
    examples = [Example(("",), wanted) for wanted, _ in pairs]
    found = review(task, examples, [Prediction(said, 0.7) for _, said in pairs])
    counts = np.array(found["confusion"]["counts"])
    assert counts.sum() == found["examples"] == len(pairs)
    for at, label in enumerate(task.labels):
        precision, recall, f1, count = found["classes"][label]
        assert count == counts[at].sum()
        assert precision == pytest.approx(counts[at, at] / max(counts[:, at].sum(), 1))
        assert recall == pytest.approx(counts[at, at] / max(count, 1))
        assert f1 == pytest.approx(2 * precision * recall / ((precision + recall) or 1))
    score = found["scores"]["accuracy"]
    assert score["low"] <= score["value"] <= score["high"]


def test_of_many_classes_the_commonest_confusions_are_listed() -> None:
    task = Task("class", 1, tuple(f"c{at:02}" for at in range(40)))
    examples = [Example(("",), at % 40) for at in range(80)]
    found = review(task, examples, [Prediction(7 if e.label == 3 else e.label, 0.9) for e in examples])
    assert found["confused"] == [["c03", "c07", 2]] and "confusion" not in found
    assert "c07" in sections({"dev": found})


def test_one_answer_everywhere_is_said_unless_it_is_right() -> None:
    mixed, alike = [Example(("",), at % 2) for at in range(8)], [Example(("",), 1)] * 8
    says_good = [Prediction(1, 0.6)] * 8
    assert review(FILMS, mixed, says_good)["degenerate"] == "'good'"
    assert review(FILMS, alike, says_good)["degenerate"] == ""
    tags = Task("tokens", 1, ("O", "B-X", "I-X"), scheme="iob2")
    tagged = [Example(("a b",), ((0, 1, 0), (2, 3, 1)))] * 4
    assert review(tags, tagged, [Prediction((0, 0), 0.9)] * 4)["degenerate"] == "'O'"


def test_entities_are_counted_by_type_and_scores_are_drawn() -> None:
    tags = Task("tokens", 1, ("O", "B-X", "I-X", "B-<Y>", "I-<Y>"), scheme="iob2")
    examples = [Example(("a b",), ((0, 1, 1), (2, 3, 3)))] * 2
    found = review(tags, examples, [Prediction((1, 3), 0.9), Prediction((1, 0), 0.9)])
    assert found["entities"]["X"] == [1.0, 1.0, 1.0, 2] and found["entities"]["<Y>"][1] == 0.5
    page = sections({"dev": found})
    assert "By type" in page and "&lt;Y&gt;" in page and "<Y>" not in page and "Confusion" not in page
    scores = Task("score", 1, low=0, high=5)
    found = review(scores, [Example(("",), at / 2) for at in range(9)], [Prediction(at / 2.5, 1.0) for at in range(9)])
    assert len(found["points"]) == 9
    page = sections({"dev": found})
    assert "predicted by true" in page and page.count('class="mark"') == 9


# What is left in the run folder.


def test_mistakes_are_those_of_the_saved_model(desk: Path, run: Path) -> None:
    dev = read_splits(desk / "films").dev.examples
    predictions = open_reader(run, precision="float32").examples(dev)
    wrong = {e.where: p.sure for e, p in zip(dev, predictions, strict=True) if p.answer != e.label}
    kept = [json.loads(row) for row in (run / "mistakes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert wrong and {row["where"]: row["probability"] for row in kept} == pytest.approx(wrong, abs=1e-4)
    assert [row["probability"] for row in kept] == sorted((row["probability"] for row in kept), reverse=True)
    assert all(row["wanted"] != row["answered"] for row in kept)
    log = [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]
    last = [row for row in log if row["kind"] == "evaluation"][-1]
    told = json.loads((run / "review.json").read_text(encoding="utf-8"))
    assert last["accuracy"] > 0.7 and told["dev"]["degenerate"] == ""
    assert told["dev"]["scores"]["accuracy"]["value"] == pytest.approx(last["accuracy"], abs=1e-5)
    assert told["mistakes"] == len(wrong)
    assert told["test"]["scores"]["accuracy"]["value"] == json.loads((run / "test.json").read_text())["accuracy"]


def test_the_report_shows_where_it_goes_wrong(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for part in (
        "Confusion",
        "By class",
        "Calibration",
        "expected calibration error",
        "Worst mistakes",
        "95% interval",
    ):
        assert part in page
    assert "bertkin predict run" in page and "&lt;b&gt;" in page and "was dull <b>" not in page


def test_the_card_can_be_read_by_the_hub(desk: Path, run: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "model" / "README.md")
    told = card.data.to_dict()
    assert told["base_model"] == "stock" and "license" not in told and told["pipeline_tag"] == "text-classification"
    (result, *_) = card.data.eval_results
    review = json.loads((run / "review.json").read_text(encoding="utf-8"))
    assert (result.metric_type, result.metric_value) == ("accuracy", review["dev"]["scores"]["accuracy"]["value"])
    score = review["dev"]["scores"]["accuracy"]
    assert f"| accuracy | {score['value']:.4f} | {score['low']:.4f} – {score['high']:.4f} |" in card.text


def block(card: str, language: str, number: int = 0) -> str:
    """A block of code of a card."""
    return card.split(f"```{language}\n")[1 + number].split("```")[0]


def test_what_the_card_says_of_transformers_runs(run: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    code = block((run / "model" / "README.md").read_text(encoding="utf-8"), "python")
    space: dict[str, Any] = {}
    exec(code, space)
    (prediction,) = open_reader(run, precision="float32").predict([("A text.",)])
    chances = torch.softmax(space["outputs"].logits[0], -1)
    assert chances.max().item() == pytest.approx(prediction.sure, abs=1e-4)


def test_the_cards_command_makes_the_same_model(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = Strategy("lora", rank=2, alpha=4.0)
    tuning = plan(
        desk, strategy=strategy, batch=8, dropout=0.2, merge=True, skip_bad=True, train={"steps": 5, "warmup": 0.3}
    )
    finetune(tuning, Path("run"))
    card = Path("run/model/README.md").read_text(encoding="utf-8")
    command = card.split("## Make it again\n\n```\n")[1].split("```")[0]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["bertkin", "finetune"] and words[words.index("--out") + 1] == "run"
    words[words.index("--out") + 1] = "again"
    assert main([*words[1:], "--quiet"]) == 0
    first, second = (load_file(Path(name) / "model" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["classes", "choice", "span", "tokens", "score"])
def test_every_kind_of_answer_has_a_card_and_a_report(desk: Path, tmp_path: Path, kind: str) -> None:
    draw, rows = random.Random(2), []
    for number in range(40):
        word = draw.choice(["fine", "dull"])
        text = f"film {number} was {word}"
        rows.append(
            {
                "classes": {"text": text, "labels": ["any", word][number % 2 :]},
                "choice": {"question": text, "choices": ["fine", "dull"], "answer": number % 2},
                "span": {"question": "how ?", "context": text, "answers": {"text": [word], "answer_start": [text.index(word)]}},
                "tokens": {"tokens": text.split(), "ner_tags": ["O", draw.choice(["O", "B-N"]), "O", "B-A"]},
                "score": {"text": text, "score": number / 8},
            }[kind]
        )  # fmt: skip
    data = tmp_path / "some rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finetune(replace(plan(desk, train={"steps": 2}), data=(str(data),), length=32), tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    front, told = yaml.safe_load(card.split("---\n")[1]), json.loads((tmp_path / "run" / "review.json").read_text())
    assert told["task"]["output"] == kind and front["metrics"] == list(told["dev"]["scores"])
    assert told["mistakes"] == len((tmp_path / "run" / "mistakes.jsonl").read_text().splitlines()) > 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What it answers" in page and "Worst mistakes" in page
    for tag in ("table", "tr", "td", "th", "section", "figure", "svg", "div"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    code = block(card, "python")
    compile(code, "card", "exec")
    words = shlex.split(card.split("## Make it again\n\n```\n")[1].split("```")[0].replace("\\\n", " "))
    assert str(data) in words


def test_shares_of_layers_are_drawn(desk: Path, tmp_path: Path) -> None:
    finetune(plan(desk, strategy=Strategy("layers"), train={"steps": 2}), tmp_path / "run")
    shares = json.loads((tmp_path / "run" / "review.json").read_text())["layers"]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1, abs=1e-4)
    assert "share of each in what the head reads" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "bertkin" and "Only what changed" in card


def test_the_report_follows_the_score_that_counts(desk: Path, tmp_path: Path) -> None:
    finetune(plan(desk, metric="matthews", train={"steps": 2}), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<dt>matthews</dt>" in page and "matthews by step" in page and "accuracy by step" not in page


def test_people_are_told_the_worst_and_what_is_degenerate(desk: Path, tmp_path: Path) -> None:
    heard = Heard()
    finetune(plan(desk, train={"steps": 1, "lr": 1e-9}), tmp_path / "run", listener=heard)
    said = "\n".join(heard.lines)
    assert "degenerate  it says '" in said and "everywhere" in said
    assert "mistakes    " in said and "dev.tsv:" in said
    assert "It answers" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


def test_a_disk_that_refuses_at_the_end_leaves_the_run_whole(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = concluding.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "mistakes.jsonl":
            raise UserError("the disk is full", where=path, mend="free some space or write elsewhere")
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(concluding, "write_text", full)
        with pytest.raises(UserError, match="the disk is full"):
            finetune(plan(desk, train={"steps": 2}), tmp_path / "run")
    assert open_reader(tmp_path / "run").predict([("a film",)])
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()
    resume(tmp_path / "run")  # nothing is left to train; what was not written is
    assert (tmp_path / "run" / "mistakes.jsonl").exists() and (tmp_path / "run" / "model" / "README.md").exists()


def test_a_model_of_the_hub_is_called_by_its_name() -> None:
    cache = Path("/cache/hub/models--someone--bert-base/snapshots/abc")
    assert source(cache) == "someone/bert-base"
    assert source(Path("/cache/hub/models--bert-base/snapshots/abc")) == "bert-base"
