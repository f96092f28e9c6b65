"""Suites from the hub, on a cache laid out as its own: no network is needed, and none is used."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertkin.cli import main
from bertkin.config import Model
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.tasks.data.parts import find_parts
from bertkin.tasks.evaluating import parts_of
from bertkin.tasks.reading import read_examples, read_splits
from bertkin.tasks.submitting import official
from bertkin.tasks.suites import GLUE, read_suite
from bertkin.text.tokenizer import train_tokenizer

pyarrow = pytest.importorskip("pyarrow")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(cache: Path, name: str) -> Path:
    """Where the cache has what the hub converted of a set."""
    store = cache / f"datasets--{name.replace('/', '--')}"
    (store / "refs" / "refs" / "convert").mkdir(parents=True, exist_ok=True)
    (store / "refs" / "refs" / "convert" / "parquet").write_text(COMMIT)
    return store / "snapshots" / COMMIT


def write(path: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> None:
    """A parquet file as the library `datasets` writes it, its features in the schema."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path)


def classes(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, and a process that reads nothing else."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def stock(folder: Path) -> None:
    """A tiny model in folder/stock."""
    tokenizer = train_tokenizer(["warm cold dull fine"] * 20, vocab_size=24)
    shape = Model(family="bert", layers=1, hidden=32, heads=2, max_length=32, start="random")
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), folder / "stock", tokenizer=tokenizer)  # type: ignore[arg-type]


def mrpc(cache: Path, rows: int = 60) -> Path:
    """Pairs whose label is whether they are the same; training in two files, test labels withheld."""
    draw = random.Random(0)
    words, named = ["warm", "cold", "dull", "fine"], {"label": classes("not_equivalent", "equivalent")}
    place = snapshot(cache, "nyu-mll/glue") / "mrpc"
    for part, piece, count in (("train", 0, rows), ("train", 1, 7), ("validation", 0, 12), ("test", 0, 9)):
        first = [draw.choice(words) for _ in range(count)]
        second = [draw.choice(words) for _ in range(count)]
        label = [int(one == two) if part != "test" else -1 for one, two in zip(first, second, strict=True)]
        columns = {"sentence1": first, "sentence2": second, "label": label, "idx": list(range(count))}
        write(place / part / f"{piece:04}.parquet", columns, named)
    return place


def test_a_task_of_the_hub_has_its_parts_its_classes_and_their_order(cache: Path) -> None:
    mrpc(cache)
    tuning = read_suite("glue", None, ["MRPC"])["MRPC"]
    splits = read_splits(tuning.data[0])
    assert (len(splits.train), len(splits.dev), len(splits.test or ())) == (67, 12, 9)
    assert splits.task.labels == ("not_equivalent", "equivalent")  # F1 is of the second, as GLUE counts it
    assert tuning.metric == "f1" and official("MRPC", splits.task) == ["0", "1"]
    for example in splits.train.examples:
        assert example.label == (example.texts[0] == example.texts[1])
    assert splits.test is not None and all(example.label is None for example in splits.test.examples)


def test_mismatched_pairs_are_a_row_of_their_own(cache: Path) -> None:
    place, names = snapshot(cache, "nyu-mll/glue") / "mnli", ("entailment", "neutral", "contradiction")
    for part in ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"):
        columns = {"premise": ["a b", "c", "d"], "hypothesis": ["a", "d", "e"], "label": [0, 1, 2]}
        write(place / part / "0000.parquet", columns, {"label": classes(*names)})
    splits = read_splits(read_suite("glue", None, ["MNLI"])["MNLI"].data[0])
    entry = next(entry for entry in GLUE if entry.name == "MNLI")
    assert list(parts_of(entry, splits)) == ["MNLI", "MNLI-mm"]
    assert splits.task.labels == names and splits.test is not None and "test_mismatched" in splits.others


def test_scores_that_are_withheld_are_no_scores(cache: Path) -> None:
    place = snapshot(cache, "nyu-mll/glue") / "stsb"
    for part, labels in (("train", [0.5, 2.25, 5.0, 3.1]), ("validation", [1.0, 4.0]), ("test", [-1.0, -1.0])):
        texts = [f"text {at}" for at in range(len(labels))]
        write(place / part / "0000.parquet", {"sentence1": texts, "sentence2": texts, "label": labels})
    splits = read_splits(read_suite("glue", None, ["STS-B"])["STS-B"].data[0])
    assert splits.task.output == "score" and [example.label for example in splits.dev.examples] == [1.0, 4.0]
    assert splits.test is not None and all(example.label is None for example in splits.test.examples)


def test_questions_and_names_of_the_hub_are_read(cache: Path) -> None:
    place = snapshot(cache, "rajpurkar/squad_v2") / "squad_v2"
    found = [{"text": ["Oslo"], "answer_start": [3]}, {"text": [], "answer_start": []}]
    asked = {"id": ["a", "b"], "title": ["t", "t"], "context": ["in Oslo", "in Rome"], "question": ["where?", "why?"]}
    for part in ("train", "validation"):
        write(place / part / "0000.parquet", {**asked, "answers": found})
    splits = read_splits(read_suite("squad", None, ["SQuAD-2.0"])["SQuAD-2.0"].data[0])
    assert splits.task.unanswerable and splits.dev.examples[0].label == ((3, 7),) and splits.dev.examples[1].label == ()
    place = snapshot(cache, "leondz/wnut_17") / "wnut_17"
    tags = {"ner_tags": {"feature": classes("O", "B-person", "I-person"), "_type": "Sequence"}}
    for part in ("train", "validation", "test"):
        columns = {"id": ["0", "1"], "tokens": [["Ada", "Byron", "ran"], ["So", "it"]], "ner_tags": [[1, 2, 0], [0, 0]]}
        write(place / part / "0000.parquet", columns, tags)
    splits = read_splits(read_suite("ner", None, ["WNUT-17"])["WNUT-17"].data[0])
    assert splits.task.scheme == "iob2" and splits.task.labels == ("O", "B-person", "I-person")
    assert [tag for *_, tag in splits.train.examples[0].label] == [1, 2, 0]


def test_a_list_of_ones_own_may_name_the_hub(cache: Path, tmp_path: Path) -> None:
    mrpc(cache)
    (tmp_path / "mine.yaml").write_text("- {name: same, hub: 'nyu-mll/glue:mrpc', metric: f1}\n")
    assert read_suite(tmp_path / "mine.yaml")["same"].metric == "f1"


def test_a_list_may_have_its_own_development_data_beside_it(cache: Path, tmp_path: Path) -> None:
    mrpc(cache)
    (tmp_path / "mine.yaml").write_text("- {name: same, hub: 'nyu-mll/glue:mrpc', dev: mine.tsv}\n")
    (tmp_path / "mine.tsv").write_text("sentence1\tsentence2\tlabel\nwarm\twarm\tequivalent\n")
    tuning = read_suite(tmp_path / "mine.yaml")["same"]
    assert len(read_splits(tuning.data[0], dev=tuning.dev).dev) == 1


def test_classes_by_number_are_named_only_where_classes_are_asked_for(tmp_path: Path) -> None:
    stars = {"label": classes("1 star", "2 stars", "3 stars")}
    write(tmp_path / "stars.parquet", {"text": ["a", "b", "c"], "label": [0, 2, 1]}, stars)
    found = read_examples(tmp_path / "stars.parquet")
    assert found.task.labels == ("1 star", "2 stars", "3 stars") and [e.label for e in found.examples] == [0, 2, 1]
    scored = read_examples(tmp_path / "stars.parquet", output="score")
    assert [e.label for e in scored.examples] == [0.0, 2.0, 1.0]
    which = {"label": classes("choice1", "choice2")}
    columns = {"premise": ["a", "b"], "choice1": ["x", "y"], "choice2": ["z", "w"], "label": [0, 1]}
    write(tmp_path / "copa.parquet", columns, which)
    assert [e.label for e in read_examples(tmp_path / "copa.parquet").examples] == [0, 1]
    pairs = {"premise": ["a", "b", "c"], "hypothesis": ["x", "y", "z"], "label": [0, -1, 1]}
    write(tmp_path / "snli.parquet", pairs, {"label": classes("entailment", "neutral", "contradiction")})
    found = read_examples(tmp_path / "snli.parquet")
    assert len(found) == 2 and "people did not agree" in found.left_out[0][1]
    tags = {"ner_tags": {"feature": classes("O", "B-place"), "_type": "List"}}  # named in the file itself, and withheld
    columns = {"tokens": [["Oslo", "is"], ["it", "is"]], "ner_tags": [["B-place", "O"], ["O", "O"]]}
    write(tmp_path / "said.parquet", columns, tags)
    assert [tag for *_, tag in read_examples(tmp_path / "said.parquet").examples[0].label] == [1, 0]
    write(tmp_path / "kept.parquet", columns | {"ner_tags": [[-1, -1], [-100, -1]]}, tags)
    task = read_examples(tmp_path / "said.parquet").task
    assert [e.label for e in read_examples(tmp_path / "kept.parquet", task, labelled=None).examples] == [None, None]
    odd = {"label": classes("no", "yes"), "list": [{"x": {"dtype": "string"}}]}
    write(tmp_path / "odd.parquet", {"text": ["a", "b"], "label": ["yes", "no"]}, odd)
    assert read_examples(tmp_path / "odd.parquet").task.labels == ("no", "yes")


def test_a_label_of_minus_one_is_a_label_where_the_task_has_it(tmp_path: Path) -> None:
    for part, labels in (("train", [-1, 0, 1]), ("dev", [0, 1, -1]), ("test", [-1, -1, -1])):
        lines = [f"text {at}\t{label}" for at, label in enumerate(labels)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    splits = read_splits(tmp_path)
    assert splits.task.labels == ("-1", "0", "1")
    assert splits.test is not None and [example.label for example in splits.test.examples] == [0, 0, 0]


def test_the_command_line_trains_from_the_hubs_cache(cache: Path, tmp_path: Path) -> None:
    mrpc(cache)
    stock(tmp_path)
    command = [sys.executable, "-m", "bertkin", "evaluate", str(tmp_path / "stock"), "glue", "--only", "MRPC"]
    command += ["--out", str(tmp_path / "out"), "--train.steps", "2", "--quiet"]
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| MRPC" in done.stdout


def test_a_set_of_the_hub_is_named_like_a_file(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mrpc(cache)
    assert main(["check", "data", "nyu-mll/glue:mrpc"]) == 0
    assert "train: 67 examples (not_equivalent" in capsys.readouterr().out
    stock(tmp_path)
    command = ["finetune", str(tmp_path / "stock"), "nyu-mll/glue:mrpc", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*command, "--train.steps", "2"]) == 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "`nyu-mll/glue:mrpc`" in card and f"{tmp_path / 'stock'} nyu-mll/glue:mrpc" in card
    assert main(["finetune", str(tmp_path / "stock"), "nyu-mll/glue:none", "--out", str(tmp_path / "other")]) == 2
    assert "no configuration 'none' on the hub" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_what_the_hub_does_not_give_is_one_line(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(tmp_path / "none"), "glue", "--only", "CoLA", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert "nyu-mll/glue: the hub does not give it" in error and "give --data FOLDER" in error
    assert len(error.splitlines()) == 1
    assert main(["evaluate", str(tmp_path / "none"), "dna", "--out", str(tmp_path / "out")]) == 2
    assert "give --data FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_may_be_in_several_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"):
        write(tmp_path / "data" / name, {"text": [name, "b"], "label": ["x", "y"]})
    parts = find_parts(tmp_path / "data")
    assert [Path(one).name for one in parts["train"]] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(read_splits(tmp_path / "data").train) == 4


def test_what_lies_about_in_a_folder_of_a_part_is_left_alone(tmp_path: Path) -> None:
    for name in ("0000.parquet", "0001.parquet"):
        write(tmp_path / "data" / "train" / name, {"text": [name, "b"], "label": ["x", "y"]})
    for name in ("._0000.parquet", "dataset_info.json", "notes.txt"):
        (tmp_path / "data" / "train" / name).write_text("{}")
    assert [Path(one).name for one in find_parts(tmp_path / "data")["train"]] == ["0000.parquet", "0001.parquet"]
    (tmp_path / "data" / "train.tsv").write_text("text\tlabel\na\tx\nb\ty\n")  # a file goes before a folder
    assert Path(str(find_parts(tmp_path / "data")["train"])).name == "train.tsv"
    (tmp_path / "one" / "test").mkdir(parents=True)
    (tmp_path / "one" / "test" / "some.json").write_text("{}")
    (tmp_path / "one" / "data.csv").write_text("text,label\na,x\n")
    assert Path(str(find_parts(tmp_path / "one")["train"])).name == "data.csv"
