"""bertkin check data: each thing that spoils a score is found, at its line, and clean data is left in peace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bertkin
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.tasks.checking import Checked, check_data
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

TRAIN = "".join(f"A text about {at} things of many kinds.,{'good' if at % 2 else 'bad'}\n" for at in range(40))
DEV = "".join(f"Another one about {at} people.,{'good' if at % 2 else 'bad'}\n" for at in range(20))


def data(folder: Path, train: str = "", dev: str = "", test: str = "") -> Path:
    """A data set of clean rows and what is added to each part."""
    (folder / "train.csv").write_text("text,label\n" + TRAIN + train, encoding="utf-8")
    (folder / "dev.csv").write_text("text,label\n" + DEV + dev, encoding="utf-8")
    if test:
        (folder / "test.csv").write_text("text\n" + test, encoding="utf-8")
    return folder


def places(checked: Checked, kind: str) -> list[str]:
    """Where something was found, by file name and line."""
    found = [place for finding in checked.findings if finding.kind == kind for place in finding.places]
    return [" = ".join(Path(side).name for side in place.split(" = ")) for place in found]


def test_clean_data_is_left_in_peace(tmp_path: Path) -> None:
    checked = check_data(data(tmp_path, test="Who knows?\n"))
    assert checked.findings == () and checked.parts == {"train": 40, "dev": 20, "test": 1}
    assert checked.labels == {"train": {"bad": 20, "good": 20}, "dev": {"bad": 10, "good": 10}}
    assert str(checked).endswith("nothing to complain about")


def test_duplicates_and_contradictions_name_both_lines(tmp_path: Path) -> None:
    again = "a text  ABOUT 3 things of many kinds.,good\nA text about 5 things of many kinds.,bad\n"
    checked = check_data(data(tmp_path, train=again))
    assert places(checked, "duplicate") == ["train.csv:42 = train.csv:5"]
    assert places(checked, "contradiction") == ["train.csv:43 = train.csv:7"]


def test_leaks_from_training_are_found_in_every_part(tmp_path: Path) -> None:
    leak = "A text about 7 things of many kinds."
    checked = check_data(data(tmp_path, dev=f"{leak},bad\n", test=f"New.\n{leak}\n"))
    assert places(checked, "leak") == ["dev.csv:22 = train.csv:9", "test.csv:3 = train.csv:9"]
    assert "dev: 1 row (4.8%) with a text that is in training" in str(checked)


def test_contexts_shared_with_training_are_leaks_of_questions(tmp_path: Path) -> None:
    for part, question in (("train", "Who?"), ("dev", "When?")):
        rows = [{"question": question, "context": "Ada in 1843.", "answers": {"text": ["Ada"], "answer_start": [0]}}]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert places(check_data(tmp_path), "leak") == ["dev.jsonl:1 = train.jsonl:1"]


def test_labels_that_training_has_not_are_faults(tmp_path: Path) -> None:
    checked = check_data(data(tmp_path, dev="Hm.,odd\nHum.,odd\n"))
    assert places(checked, "unseen") == ["dev.csv:22", "dev.csv:23"]
    assert [fault.kind for fault in checked.faults] == ["unseen"]


def test_rows_that_cannot_be_used_are_all_named(tmp_path: Path) -> None:
    checked = check_data(data(tmp_path, train="no label\nempty,\nx,y,z\n"))
    assert places(checked, "unusable") == ["train.csv:42", "train.csv:44", "train.csv:43"]
    assert checked.parts["train"] == 40


def test_empty_and_overlong_texts_are_found(tmp_path: Path) -> None:
    checked = check_data(data(tmp_path, train=f",good\n{'word ' * 600},bad\n{'字' * 511},bad\n"))
    assert places(checked, "empty") == ["train.csv:42"]
    assert places(checked, "overlong") == ["train.csv:43", "train.csv:44"]
    assert places(check_data(tmp_path, max_length=601), "overlong") == ["train.csv:43"]


def test_a_choice_counts_with_what_it_is_a_choice_of(tmp_path: Path) -> None:
    rows = [{"question": "what then " * 5, "choices": ["a", f"b {n} " * 20], "answer": 0} for n in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for most, count in ((40, 3), (60, 0)):
        assert len(places(check_data(path, max_length=most), "overlong")) == count


def test_a_tokenizer_counts_tokens_exactly(tmp_path: Path) -> None:
    train_tokenizer(TRAIN.split("\n"), vocab_size=60).save(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    folder = data(tmp_path / "data", train="thingsaboutkinds manythings,good\n")
    tokens = len(Tokenizer.load(tmp_path / "tokenizer").encode("thingsaboutkinds manythings")) + 2
    assert tokens > 6  # more than its two words
    for most, found in ((tokens - 1, ["train.csv:42"]), (tokens, [])):
        checked = check_data(folder, tokenizer=tmp_path / "tokenizer", max_length=most)
        assert [place for place in places(checked, "overlong") if place == "train.csv:42"] == found


def test_skewed_labels_are_said(tmp_path: Path) -> None:
    many = "".join(f"A good thing, number {at}\tgood\n" for at in range(400))
    (tmp_path / "train.tsv").write_text(f"text\tlabel\n{many}Bad.\tbad\n")
    rows = "".join(f"A thing, number {at}\t{'good' if at % 2 else 'bad'}\n" for at in range(100))
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + rows)
    said = [finding.what for finding in check_data(tmp_path).findings]
    assert said[0].startswith("99.8% of the training data is 'good'")
    assert said[1] == "1 label with fewer than 5 examples in training: bad (1)"
    assert "of train, but 50.0% of dev" in said[2]


def test_tags_that_break_their_scheme_and_answers_beside_their_offset_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.bmes").write_text("a B-X\nb E-X\n\nc M-X\nd E-X\n\ne O\nf O\n")
    assert places(check_data(tmp_path / "a.bmes"), "tags") == ["a.bmes:4"]
    answers = [{"text": "Ada", "answer_start": 4}]
    rows = [{"question": "Who?", "context": "So did Ada.", "answers": answers}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert places(check_data(tmp_path / "a.jsonl"), "offset") == ["a.jsonl:1"]


def test_scores_outside_the_range_of_training_are_found(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,score\na,0.5\nb,4.5\nc,2.25\n")
    (tmp_path / "dev.csv").write_text("text,score\nd,1.5\ne,7.5\n")
    assert places(check_data(tmp_path), "score") == ["dev.csv:3"]


def test_files_are_parts_by_their_names_or_as_one_says(tmp_path: Path) -> None:
    data(tmp_path)
    (tmp_path / "dev.csv").rename(tmp_path / "more.csv")
    both = check_data([tmp_path / "train.csv", tmp_path / "more.csv"])
    assert both.parts == {"train": 60}
    assert check_data(tmp_path / "train.csv", dev=tmp_path / "more.csv").parts == {"train": 40, "dev": 20}
    with pytest.raises(UserError, match="no data given"):
        check_data([])


# On the command line.


def test_the_verb_prints_the_report_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(data(tmp_path, train="A text about 3 things of many kinds.,good\n"))
    assert main(["check", "data", folder]) == 0
    out, err = capsys.readouterr()
    assert "text = text, label = label" in out and "warning: train: 1 row again" in out and err == ""
    assert out.strip() == str(bertkin.check_data(folder))


def test_faults_end_with_two_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(data(tmp_path, dev="Hm.,odd\n" * 9))
    assert main(["check", "data", folder, "--show", "2"]) == 2
    out, err = capsys.readouterr()
    assert "… and 7 more" in out
    assert err.count("\n") == 1 and "dev.csv:22: 9 rows cannot be used (the label 'odd' is not in" in err


def test_json_has_every_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(data(tmp_path, train="A text about 3 things of many kinds.,good\n" * 9))
    assert main(["check", "data", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"train": 49, "dev": 20} and found["task"]["labels"] == ["bad", "good"]
    (finding,) = found["findings"]
    assert finding["kind"] == "duplicate" and len(finding["places"]) == 9


def test_what_was_guessed_of_each_file_is_said_and_what_was_counted_is_found(tmp_path: Path) -> None:
    asked = {"id": "1", "question": "who?", "answers": [{"text": "Ada", "answer_start": 1}]}
    paragraphs = [{"context": f"Ada met {n} people.", "qas": [asked | {"id": str(n)}]} for n in range(4)]
    for part, some in (("train", paragraphs[:3]), ("dev", paragraphs[3:])):
        (tmp_path / f"{part}.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": some}]}))
    checked = check_data(tmp_path)
    assert [line.rpartition("/")[2] for line in checked.said] == [
        "train.json: SQuAD's format",
        "dev.json: SQuAD's format",
    ]
    assert places(checked, "offset")
    (tmp_path / "films").mkdir()
    checked = check_data(data(tmp_path / "films", train="no label\n"))
    assert len(checked.said) == 2 and all("label = label" in line for line in checked.said)


def test_columns_are_chosen_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("text,other,label\na,c,x\nb,d,y\n")
    assert main(["check", "data", str(tmp_path / "a.csv"), "--text", "other", "--label", "3"]) == 0
    assert "text = other, label = label" in capsys.readouterr().out
    assert main(["check", "data", str(tmp_path / "a.csv"), "--text", "othr"]) == 2
    assert "did you mean other?" in capsys.readouterr().err
