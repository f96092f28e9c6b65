"""The ground of experiments with labelled tasks: data cut in their own format, scores made once, both sides alike."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bertkin.config import Train
from bertkin.errors import UserError
from bertkin.models.pretrained import save_model
from bertkin.tasks.encoding import encode
from bertkin.tasks.finetune import finetune
from bertkin.tasks.reading import read_examples
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import corruptions
import dna
import real_encoder
import sharing
import starts
import trainer
import tuned

WORDS = "the cats sleep on the warm mat and the dogs sleep under it while birds sing of nothing at all"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([WORDS] * 3, vocab_size=80, kind="wordpiece")


@pytest.fixture(scope="module")
def stock(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    from bertkin.config import Model
    from bertkin.models.initial import initialise
    from bertkin.models.presets import build, resolve_model

    shape = Model(family="bert", layers=2, hidden=32, heads=2, intermediate=64, max_length=64)
    model = build(resolve_model(shape, tokenizer.vocab_size))
    initialise(model, model.architecture, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("stock")
    save_model(model, folder, tokenizer=tokenizer)
    return str(folder)


@pytest.fixture
def reviews(tmp_path: Path) -> Tuning:
    words = WORDS.split()
    lines = [f"{' '.join(words[i % 9 : i % 9 + 6])}\t{'good' if i % 2 else 'bad'}" for i in range(40)]
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return Tuning(data=(str(tmp_path / "train.tsv"),), dev=str(tmp_path / "dev.tsv"))


def test_a_cut_keeps_the_header_and_takes_rows_from_all_over(tmp_path: Path) -> None:
    whole, few = tmp_path / "a.tsv", tmp_path / "b.tsv"
    whole.write_text("text\tlabel\n" + "".join(f"row {i}\t{i // 50}\n" for i in range(100)))
    assert tuned.cut(whole, 4, few).read_text() == "text\tlabel\nrow 0\t0\nrow 25\t0\nrow 50\t1\nrow 75\t1\n"


def test_a_cut_of_sentences_and_of_questions_is_read_as_ever(tmp_path: Path) -> None:
    sentences = tmp_path / "a.conll"
    sentences.write_text("".join(f"word{i} O\nEmma B-PER\n\n" for i in range(10)))
    assert len(read_examples(tuned.cut(sentences, 3, tmp_path / "b.conll")).examples) == 3
    asked = {"question": "who?", "id": "1", "answers": [{"text": "Emma", "answer_start": 0}]}
    paragraph = {"context": "Emma sleeps.", "qas": [asked, asked]}
    questions = tmp_path / "a.json"
    questions.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph] * 6}]}))
    found = read_examples(tuned.cut(questions, 2, tmp_path / "b.json")).examples
    assert [example.label for example in found] == [((0, 4),)] * 2


def test_fewer_rows_of_training_leave_the_development_data_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTKIN_DATA", str(tmp_path))
    folder = tmp_path / "ner" / "wnut17"
    folder.mkdir(parents=True)
    for part, count in (("train", 9), ("dev", 7)):
        (folder / f"{part}.conll").write_text("".join(f"word{i} O\nEmma B-PER\n\n" for i in range(count)))

    def read(**said: int) -> list[int]:
        found = tuned.task("WNUT-17", tuned.Options(**said), tmp_path)
        return [len(read_examples(path).examples) for path in (found.data[0], str(found.dev))]

    assert read() == [9, 7] and read(rows=4) == [4, 7] and read(limit=5) == [5, 5]
    assert read(rows=4, limit=6) == [4, 6] and read(rows=3, limit=2) == [2, 2]
    whole = tuned.task("WNUT-17", tuned.Options(rows=9), tmp_path)
    assert whole.data[0] == str(folder / "train.conll")  # a score of all rows is not measured again


def test_fewer_rows_of_genes_leave_the_fold_held_out_whole(tmp_path: Path) -> None:
    rows = [(str(i), f"air {i}") for i in range(20)]
    whole, few = dna.Folded(), dna.Folded(rows=5)
    train, dev = (_lines(path) for path in dna.fold(rows, 1, few, tmp_path / "few"))
    assert train == _lines(dna.fold(rows, 1, whole, tmp_path / "whole")[0])[:5]
    assert dev == _lines(dna.fold(rows, 1, whole, tmp_path / "whole")[1])


def test_a_score_is_made_once_and_its_model_is_not_kept(stock: str, reviews: Tuning, tmp_path: Path) -> None:
    tuning, folder = replace(reviews, model=stock, train=Train(epochs=1.0)), tmp_path / "runs"
    job = tuned.Job(("reviews", "0"), tuning)
    found = tuned.carried_out([job], tuned.Options(), folder)[job.key]
    place = folder / "reviews" / "0"
    assert len(tuned.answers_of(place)) == 40
    assert found["score"] == found["curve"][-1][1] and found["trained"] == found["parameters"]
    assert not (place / "run" / "model").exists() and not (place / "run" / "checkpoints").exists()
    made = (place / "run" / "log.jsonl").stat().st_mtime_ns
    assert tuned.carried_out([job], tuned.Options(), folder)[job.key] == found
    assert (place / "run" / "log.jsonl").stat().st_mtime_ns == made


def test_what_was_trained_but_not_written_down_is_gone_on_with(stock: str, reviews: Tuning, tmp_path: Path) -> None:
    tuning, folder = replace(reviews, model=stock, train=Train(epochs=2.0)), tmp_path / "job"
    folder.mkdir()
    (folder / "begun.json").write_text(json.dumps({"tuning": starts.beyond_usual(tuning)}))
    finetune(tuning, folder / "run")
    tuned.tuned(folder, tuning)
    kinds = [json.loads(line)["kind"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert "resumed" in kinds
    tuned.tuned(folder, replace(tuning, train=Train(epochs=1.0)))  # another recipe begins anew
    kinds = [json.loads(line)["kind"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert "resumed" not in kinds


def test_a_random_start_is_of_the_same_shape_and_of_other_weights(stock: str, tmp_path: Path) -> None:
    drawn = starts.random_start(stock, tmp_path / "drawn", seed=1)
    one, other = starts.headless(stock).state_dict(), starts.headless(drawn).state_dict()
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("embeddings.tokens"))


def test_the_trainer_is_handed_our_labels(tokenizer: Tokenizer) -> None:
    words = Example(("cats sleep",), ((0, 4, 1), (5, 10, 0)))
    rows = encode([words], Task("tokens", labels=("O", "B-X")), tokenizer, max_length=16)
    (one,) = trainer.features(rows)
    assert [label for label in one["labels"] if label != trainer.IGNORED] == [1, 0]
    assert len(one["labels"]) == len(one["input_ids"]) == len(one["attention_mask"])
    span = encode([Example(("cats", "dogs sleep"), ((5, 10),))], Task("span", 2), tokenizer, max_length=24)
    (one,) = trainer.features(span)
    assert tokenizer.decode(one["input_ids"][one["start_positions"] : one["end_positions"] + 1]).strip() == "sleep"


def test_a_peer_goes_on_only_from_a_whole_checkpoint_of_the_same_training(tmp_path: Path) -> None:
    def checkpoint(step: int, whole: bool) -> Path:
        place = tmp_path / "trainer" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        if whole:
            (place / trainer.SPENT).write_text("1.0")
        return place

    assert trainer.begun(tmp_path, {"rows": 2000}) is None
    checkpoint(200, True)
    last = checkpoint(1000, True)
    checkpoint(1200, False)  # killed while it was written
    assert trainer.begun(tmp_path, {"rows": 2000}) == last
    assert trainer.begun(tmp_path, {"rows": 1000}) is None and not (tmp_path / "trainer").exists()


def test_padded_logits_become_rows_of_their_own_length() -> None:
    logits = np.arange(24.0).reshape(2, 4, 3)
    assert [row.shape for row in trainer.by_row(Task("tokens", labels=("a", "b", "c")), logits, [4, 2])] == [
        (4, 3),
        (2, 3),
    ]
    first, last = np.arange(8.0).reshape(2, 4), np.arange(8.0).reshape(2, 4) + 100
    (_, row) = trainer.by_row(Task("span", 2), (first, last), [4, 3])
    assert row.tolist() == [[4, 104], [5, 105], [6, 106]]


@pytest.mark.parametrize(
    ("ours", "theirs", "p", "said"),
    [
        ([0.80, 0.81, 0.82], [0.70, 0.71, 0.72], 0.01, "above"),
        ([0.70, 0.71, 0.72], [0.80, 0.81, 0.82], 0.01, "below"),
        ([0.70, 0.71, 0.72], [0.80, 0.81, 0.82], 0.20, "level"),  # chance on these examples
        ([0.60, 0.71, 0.82], [0.65, 0.73, 0.80], 0.01, "level"),  # no more than seeds move it
        ([0.70], [0.80], 0.01, "below"),
    ],
)
def test_a_difference_is_told_only_where_it_is_beyond_noise(
    ours: list[float], theirs: list[float], p: float, said: str
) -> None:
    assert real_encoder.verdict(ours, theirs, p) == said


def test_folds_hold_every_row_out_once_and_bases_become_words(tmp_path: Path) -> None:
    file = tmp_path / "genes.csv"
    rows = "".join(f"{'EI' if i % 2 else 'N'},  NAME-{i},   {'ACGT'[i % 4]}CN\n" for i in range(23))
    file.write_text("Class, Donor, Sequence\n" + rows)
    found = dna.sequences(file, dict(zip("ACGT", ("air", "city", "gold", "time"), strict=True)))
    assert len(found) == 23 and all(text.endswith(" city any") for _, text in found)
    held = [
        line
        for seed in range(dna.FOLDS)
        for line in _lines(dna.fold(found, seed, dna.Folded(), tmp_path / str(seed))[1])
    ]
    assert sorted(held) == sorted(f"{label},{text}" for label, text in found)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def test_a_table_goes_between_its_own_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- one -->\nold\n<!-- end -->\ntext\n<!-- two -->\nold\n<!-- end -->\n")
    sharing.put(page, sharing.markdown(["a", "b"], [["1", "2"]]), "two")
    assert page.read_text() == (
        "# A\n<!-- one -->\nold\n<!-- end -->\ntext\n<!-- two -->\n| a | b |\n|---|---:|\n| 1 | 2 |\n<!-- end -->\n"
    )
    with pytest.raises(UserError, match="no marks"):
        sharing.put(page, "", "three")
    with pytest.raises(UserError, match="no such page"):
        sharing.put(tmp_path / "none.md", "", "one")


def test_tasks_stand_in_their_usual_order_whichever_was_measured_first() -> None:
    assert list(tuned.in_order({"WNUT-17": 1, "SST-2": 2, "CoLA": 3})) == ["CoLA", "SST-2", "WNUT-17"]


def test_a_record_keeps_earlier_rows_and_takes_new_ones() -> None:
    def row(score: float, **more: str) -> dict[str, object]:
        return {"metric": "f1", "median": score, "scores": [score]} | more

    old = {"command": "a", "tasks": {"CoLA": {"same": row(0.1, failed="out of memory")}, "RTE": {"same": row(0.2)}}}
    found = sharing.joined(old, {"command": "b", "tasks": {"CoLA": {"same": row(0.3)}}})
    assert found == {"command": "b", "tasks": {"CoLA": {"same": row(0.3)}, "RTE": {"same": row(0.2)}}}
    assert old["command"] == "a"


def test_what_is_written_down_is_joined_where_it_is_of_the_same(tmp_path: Path) -> None:
    options, shown = tuned.Options(limit=1, out=tmp_path), []

    def table(whole: dict[str, dict[str, object]]) -> str:
        shown.append(sorted(whole["rows"]))
        return "\n"

    for name, model in (("CoLA", "one"), ("RTE", "one"), ("MRPC", "other")):
        tuned.finish("trial", options, {"rows": {name: {"score": 1}}}, table, about={"model": model})
    assert shown == [["CoLA"], ["CoLA", "RTE"], ["MRPC"]]
    assert json.loads((tmp_path / "trial.json").read_text())["model"] == "other"


def test_a_key_holds_what_is_unusual_and_which_weights(stock: str, reviews: Tuning, tmp_path: Path) -> None:
    tuning = replace(reviews, model=stock, batch=8, train=Train(seed=1))
    key = starts.beyond_usual(tuning)
    assert set(key) == {"model", "data", "dev", "batch", "train", "weights"} and key["train"] == {"seed": 1}
    assert len(key["weights"]) == 16
    folder = tmp_path / "drawn"
    drawn = [starts.weights(starts.random_start(stock, folder, seed)) for seed in (1, 2, 1)]  # grown again in its place
    assert drawn[0] == drawn[2] != drawn[1] and key["weights"] not in drawn


def test_a_job_that_fails_does_not_end_the_others(stock: str, reviews: Tuning, tmp_path: Path) -> None:
    good = tuned.Job(("reviews", "full", "0"), replace(reviews, model=stock, train=Train(epochs=1.0)))
    bad = tuned.Job(("absent", "full", "0"), replace(good.tuning, dev=str(tmp_path / "none.tsv")))
    told = []
    with pytest.raises(UserError, match=r"none\.tsv"):
        tuned.carried_out([bad, good], tuned.Options(), tmp_path / "runs", lambda found: told.append(list(found)))
    assert told == [[good.key]]
    assert (tmp_path / "runs" / "reviews" / "full" / "0" / "done.json").exists()


def test_corruptions_that_are_one_recipe_share_a_run_and_keep_their_rate() -> None:
    same = [("style", "hidden spans behind sentinels"), ("rate", "15% hidden"), ("span", "spans of 3 tokens")]
    assert {corruptions._first(corruptions.options_of(part, title)) for part, title in same} == {"style-4"}
    half = corruptions.options_of("rate", "50% hidden")
    assert half["objective.rate"] == half["objective.rate_end"] == 0.5
