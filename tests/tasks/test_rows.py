"""What kind a file is and what its rows are, where it is not as one expects: tables, JSON, folders, choices, characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertkin.errors import UserError
from bertkin.tasks.data.files import Gate, read_table
from bertkin.tasks.data.parts import find_parts
from bertkin.tasks.reading import Columns, read_examples, read_splits
from bertkin.text.sources import list_sources

from .test_reading import REVIEWS, written


def test_a_second_training_file_of_a_folder_is_not_silently_lost(tmp_path: Path) -> None:
    """Of a folder one file is trained on, and the other is said; named, both are."""
    both = [written(tmp_path, name, REVIEWS) for name in ("train.csv", "train_more.csv")]
    splits = read_splits(tmp_path, dev=both[0])
    assert not splits.others and any("train_more.csv is passed over" in line for line in splits.said)
    assert len(read_splits(both, dev=both[0]).train) == 2 * len(splits.train)


@pytest.mark.parametrize("other", ["train.small.tsv", "train.old.tsv", "dev.gold.tsv"])
def test_of_several_files_of_a_part_the_shortest_name_counts(other: str, tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv", other):
        written(tmp_path, name, f"text\tlabel\n{name} one\tgood\n{name} two\tbad\n")
    splits = read_splits(tmp_path)
    assert {e.texts[0].split()[0] for e in (*splits.train.examples, *splits.dev.examples)} == {"train.tsv", "dev.tsv"}
    assert any(f"{other} is passed over" in line for line in splits.said) or list(splits.others) == [other[:-4]]


def test_shards_with_a_hash_in_their_names_are_one_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for at, mark in enumerate(("b3bb9e0af1", "6fd3deadbeef0000")):
            rows = [{"text": f"{part} {at} {n}", "label": n % 2} for n in range(4)]
            written(tmp_path, f"{part}-0000{at}-of-00002-{mark}.jsonl", rows)
    parts = find_parts(tmp_path)
    assert {name: len(files) for name, files in parts.items()} == {"train": 2, "test": 2}


def test_a_word_without_a_tag_has_its_line_and_changes_no_task(tmp_path: Path) -> None:
    text = "Ada\tB-PER\nmet\tO\n\nParis\t\nwas\tO\n\nBob\tB-PER\nleft\tO\n"
    with pytest.raises(UserError, match=r"a\.conll:4: a word without a tag"):
        read_examples(written(tmp_path, "a.conll", text))
    found = read_examples(written(tmp_path, "a.conll", text), skip_bad=True)
    assert len(found) == 2 and found.task.scheme == "iob2"
    with pytest.raises(UserError, match=r"word 2 has no tag"):
        read_examples(written(tmp_path, "b.jsonl", [{"tokens": ["Ada", "met"], "tags": ["B-PER", ""]}] * 2))
    bare = read_examples(written(tmp_path, "c.conll", "-DOCSTART-\tO\n\nAda\t\nmet\t\n"), found.task, labelled=None)
    assert [example.label for example in bare.examples] == [None]
    half = read_examples(written(tmp_path, "d.conll", text), found.task, labelled=False)  # asked, its tags passed over
    assert len(half) == 3


def test_choices_alone_can_be_held_out(tmp_path: Path) -> None:
    rows = [{"choice1": f"it is {n}", "choice2": f"it was {n}", "label": n % 2} for n in range(40)]
    splits = read_splits(written(tmp_path, "a.jsonl", rows))
    assert len(splits.train) + len(splits.dev) == 40 and len(splits.dev) > 0


def test_rows_may_have_paragraphs_and_questions_numbers(tmp_path: Path) -> None:
    rows = [{"paragraphs": ["a", "b"], "text": f"row {n}", "label": n % 2} for n in range(4)]
    assert len(read_examples(written(tmp_path, "a.jsonl", rows))) == 4
    asked = [{"id": n, "question": f"who is {n}?", "answers": [{"text": "Ada", "answer_start": 0}]} for n in range(3)]
    asked[2]["answers"] = [{"text": "Bob", "answer_start": 0}]
    data = {"version": 2, "data": [{"title": "2", "paragraphs": [{"context": "Ada is 2.", "qas": asked}]}]}
    text = json.dumps(data, indent=1)
    line = next(at for at, one in enumerate(text.split("\n"), 1) if "who is 2?" in one)
    with pytest.raises(UserError, match=rf"a\.json:{line} \(question 2\)"):
        read_examples(written(tmp_path, "a.json", text))


@pytest.mark.parametrize("before", ["", '"version": "1", "about": {"a": [1]},'], ids=["alone", "not the first"])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_may_hold_the_rows(before: str, indent: int | None, tmp_path: Path) -> None:
    rows = [{"text": f"text {at}", "label": at % 2} for at in range(4)]
    for name in ("data", "rows"):
        text = json.dumps({name: rows}, indent=indent).replace("{", "{" + before, 1)
        found = read_examples(written(tmp_path, "a.json", text))
        assert [example.texts for example in found.examples] == [(row["text"],) for row in rows]


def test_a_row_is_a_row_whatever_it_holds(tmp_path: Path) -> None:
    """Lists inside it are not the file's rows: of one of several lines, deeper inside, or where the name says lines."""
    row = {"text": "a", "label": 0, "more": {"data": [{"text": "b"}]}}
    for name, rows in (("a.json", [row]), ("b.jsonl", [row | {"data": [{"text": "b"}]}])):
        table = read_table(list_sources([str(written(tmp_path, name, rows))])[0], "json", Gate())
        assert [one.values["text"] for one in table.rows] == ["a"]
    many = {"splits": [{"data": [{"text": "no"}]}] * 9, "about": 'a "data": [{', "data": [{"text": "yes"}]}
    table = read_table(list_sources([str(written(tmp_path, "d.json", many))])[0], "json", Gate())
    assert [one.values["text"] for one in table.rows] == ["yes"]
    deep = {"meta": {"data": [{"text": "no"}]}, "rows": [{"text": "yes"}]}
    table = read_table(list_sources([str(written(tmp_path, "c.json", "\n" + json.dumps(deep)))])[0], "json", Gate())
    assert [one.values["text"] for one in table.rows] == ["yes"]


ROWS = [("a fine film", 1), ("a bad film", 0), ('he said "no', 0), ("a good one", 1)] * 3


def test_a_tsv_stays_one_though_a_line_is_empty_or_too_long(tmp_path: Path) -> None:
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in ROWS)]
    for odd in ("", "a\tb\t1"):
        found = read_examples(
            written(tmp_path, "a.tsv", "\n".join([*lines[:4], odd, *lines[4:]]) + "\n"), skip_bad=True
        )
        assert found.task.output == "class" and [e.texts[0] for e in found.examples] == [text for text, _ in ROWS]
    found = read_examples(written(tmp_path, "b.tsv", "Ada\tB-PER\nmet\tO\n\nBob\tB-PER\nleft\tO\n"))
    assert found.task.output == "tokens" and len(found) == 2  # which words and tags are, under any name


def test_a_quotation_mark_that_is_never_closed_has_its_line(tmp_path: Path) -> None:
    text = 'label,text\n1,a film\n0,"He said\n0,another\n1,and more\n'
    with pytest.raises(UserError, match=r"a\.csv:3: a quotation mark opens here, and none closes the text"):
        read_examples(written(tmp_path, "a.csv", text))
    assert len(read_examples(written(tmp_path, "b.csv", 'label,text\n1,a film\n0,"He said\nand left"\n'))) == 2


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ('0,"He said\n0,another\n0,"and so\n', None),
        ('0,"x\ny"\n', 3), ('0,"x\ny" \n', 3), ('0,"open\n\n', 3),
        ('0,5" pipe\n1,"a\nb, 5"" long"\n', 4), ("   \n0,c\n", 3), ('0,"a\rb"\n1,"x1\nx2"\n', 4),
    ],
)  # fmt: skip
def test_quotation_marks_of_a_table_pair_or_are_told(body: str, count: int | None, tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "label,text\n1,a film\n0,b film\n" + body)
    if count is None:
        with pytest.raises(UserError, match="none closes the text"):
            read_examples(path)
    else:
        assert len(read_examples(path)) == count


def test_words_and_texts_are_told_apart_under_a_name_that_says_table(tmp_path: Path) -> None:
    words = "text\tO\nAda\tB-PER\n10 000\tO\n\n" + "Bob\tB-PER\nleft\tO\n\n" * 20
    assert read_examples(written(tmp_path, "words.tsv", words)).task.output == "tokens"
    for body in (
        "\na fine film\t1\na bad one\t0\n",
        "这部电影真的非常好看值得一看再看大家都应该去看看它\t1\n\n这部电影非常糟糕千万不要去看因为它根本就不值得一看啊\t0\n",
    ):
        found = read_examples(written(tmp_path, "texts.tsv", "text\tlabel\n" + body))
        assert found.task.output == "class" and len(found) == 2
    wide = "Hunde\tNN\tcase=nom|number=pl|gender=masc\tO\nAda\tNE\tnumber=sg|gender=fem|case=nom\tB-PER\n\n" * 5
    assert len(read_examples(written(tmp_path, "wide.txt", wide))) == 5
    blank = "北\tB-LOC\n \tO\n京\tI-LOC\n\n"
    assert len(read_examples(written(tmp_path, "a.conll", blank)).examples) == 1


def test_a_folder_with_training_data_is_no_folder_of_classes(tmp_path: Path) -> None:
    for name in ("train/x.tsv", "validation/x.tsv"):
        written(tmp_path, name, "text\tlabel\na fine film\t1\na bad one\t0\n")
    for name in ("docs/a.md", "train/README.md", "validation/README.md", "baselines/b.md"):
        written(tmp_path, name, "Read me.")
    assert set(find_parts(tmp_path)) == {"train", "dev"}
    for at, stray in enumerate(("train.py", "train.log", "train_ids.txt", ".train.swp", "training/1.txt")):
        folder = tmp_path / str(at)
        for name in ("ham/1.txt", "ham/2.txt", "spam/1.txt", "spam/2.txt", stray):
            written(folder, name, f"A text, {name}.")
        assert find_parts(folder) == {"train": str(folder)}
        assert len(read_examples(folder)) == 4 + (stray == "training/1.txt")


def test_an_amount_called_goal_is_no_text(tmp_path: Path) -> None:
    rows = [
        {"blurb": f"we make a fine thing of kind {at}", "goal": 1000 + at, "state": "ab"[at % 2]} for at in range(30)
    ]
    assert read_examples(written(tmp_path, "a.jsonl", rows)).roles.texts == ("blurb",)
    csv = "goal,sol1,sol2,label\n" + "open the jar,twist lid,smash it,0\n" * 3
    assert read_examples(written(tmp_path, "a.csv", csv)).roles.texts == ("goal",)
    bare = [
        {"choice1": "one way", "choice2": "another way", "split": "train", "tags": ["x", "y"], "label": at}
        for at in (0, 1)
    ]
    assert read_examples(written(tmp_path, "b.jsonl", bare)).roles.texts == ()


def test_lists_that_are_empty_hold_nothing(tmp_path: Path) -> None:
    rows = [
        {"statement": f"text number {at}", "flags": ["x"] * (at % 3 == 0), "verdict": "abc"[at % 3]} for at in range(30)
    ]
    assert read_examples(written(tmp_path, "a.jsonl", rows)).roles.label == "verdict"


def test_a_choice_called_none_is_one(tmp_path: Path) -> None:
    rows = [{"premise": "s", "choices": [{"text": "Some"}, {"text": "None"}], "label": at} for at in ("None", "Some")]
    assert [e.label for e in read_examples(written(tmp_path, "a.jsonl", rows)).examples] == [1, 0]


def test_nothing_behind_an_array_is_lost(tmp_path: Path) -> None:
    rows = json.dumps([{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    with pytest.raises(UserError, match="more after the end of the array"):
        read_examples(written(tmp_path, "a.json", f"{rows}\n{rows}\n"))


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"goal": "to sit", "sol1": "a", "sol2": "b"}, ("to sit",)),
        ({"ctx": "She sat", "endings": ["a", "b"]}, ("She sat",)),
        ({"premise": "It fell.", "choice1": "a", "choice2": "b", "question": "cause"}, ("It fell.", "cause")),
        ({"article": "Long.", "question": "Who?", "options": ["a", "b"]}, ("Long.", "Who?")),
        ({"question_stem": "The sky is", "choices": [{"text": "a"}, {"text": "b"}]}, ("The sky is",)),
    ],
)  # fmt: skip
def test_what_choices_are_of_is_read_too(row: dict[str, Any], texts: tuple[str, ...], tmp_path: Path) -> None:
    found = read_examples(written(tmp_path, "a.jsonl", [row | {"label": at} for at in (0, 1, 1)]))
    assert {e.texts for e in found.examples} == {texts} and {e.choices for e in found.examples} == {("a", "b")}
    for column, texts in (
        ("题目", ("下列哪一项是正确的？", "哪一项是错误的？")),
        ("q", ("Why?", "What does he want?")),
    ):
        odd_rows = [{column: text, "choices": ["one", "two"], "label": 0} for text in texts]
        with pytest.raises(UserError, match=f"chosen for .{column}."):
            read_examples(written(tmp_path, "b.jsonl", odd_rows))
    odd = {"what": "to sit", "sol1": "a", "sol2": "b", "label": 0}
    with pytest.raises(
        UserError, match=r"no column that looks like what they are chosen for \(what\); name it with --text"
    ):
        read_examples(written(tmp_path, "b.jsonl", [odd]))


def test_choices_count_alike_in_all_files_and_hold_something(tmp_path: Path) -> None:
    def rows(*labels: int) -> list[dict[str, Any]]:
        return [{"premise": "s", "choice1": "a", "choice2": "b", "choice3": "c", "label": at} for at in labels]

    files = [written(tmp_path, "one.jsonl", rows(0, 2)), written(tmp_path, "two.jsonl", rows(1, 2))]
    assert [example.label for example in read_examples(files).examples] == [0, 2, 1, 2]
    found = read_examples(written(tmp_path, "a.csv", "question,choice1,choice2,choice3,label\nq,a,b,,1\nq,a,b,c,0\n"))
    assert [example.choices for example in found.examples] == [("a", "b"), ("a", "b", "c")]
    with pytest.raises(UserError, match="choice 2 is no text"):
        read_examples(written(tmp_path, "b.csv", "question,choice1,choice2,choice3,label\nq,a,,c,1\n"))


def test_a_row_of_choices_that_is_left_out_shifts_no_label(tmp_path: Path) -> None:
    rows = [
        {"premise": f"s {at}", "choice1": "a", "choice2": two, "label": at}
        for at, two in ((1, "b"), (1, "b\ud83d"), (2, "b"))
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(path, skip_bad=True)
    assert [e.label for e in found.examples] == [0, 1] and len(found.left_out) == 1


def test_nought_and_false_are_labels_as_one_and_true_are(tmp_path: Path) -> None:
    for values in ((0, 1), (False, True)):
        rows = [{"statement": f"text number {at}", "verdict": values[at % 2]} for at in range(20)]
        found = read_examples(written(tmp_path, "a.jsonl", rows))
        assert found.roles.label == "verdict" and len(found.task.labels) == 2


def test_entities_that_nobody_marked_are_not_none(tmp_path: Path) -> None:
    marked = {"text": "Ada met Bob", "entities": [[0, 3, "PER"]]}
    written(tmp_path, "train.jsonl", [marked, {"text": "Nobody there", "entities": []}] * 5)
    written(tmp_path, "test.jsonl", [{"text": "Carl in Cork"}])
    found = read_splits(tmp_path)
    assert found.test is not None and [e.label for e in found.test.examples] == [None]
    assert any(e.label and not any(tag for *_, tag in e.label) for e in found.train.examples)


def test_tags_keep_no_blanks_and_are_all_there(tmp_path: Path) -> None:
    found = read_examples(written(tmp_path, "a.conll", "EU\tB-ORG \nrejects\tO \n\nUN\tB-ORG\nis\tO\n"))
    assert found.task.scheme and found.task.metric == "span_f1" and "B-ORG " not in found.task.labels
    with pytest.raises(UserError, match="word 2 has no tag"):
        read_examples(written(tmp_path, "a.jsonl", [{"tokens": ["a", "b"], "ner_tags": ["B-X", None]}]))


def test_a_class_may_be_called_valid(tmp_path: Path) -> None:
    for name in ("valid", "invalid", "unclear"):
        for number in range(2):
            written(tmp_path, f"{name}/{number}.txt", f"{name} text {number}")
    assert set(read_splits(tmp_path).task.labels) == {"valid", "invalid", "unclear"}


@pytest.mark.parametrize(
    ("name", "content", "how", "said"),
    [
        ("a.jsonl", [{"text": "hi", "summary": "bad \ud83d"}], {"output": "sequence"}, "lone surrogate"),
        ("a.jsonl", [{"id": "\ud800", "text": "hi", "label": "a"}, {"text": "a", "label": "b"}], {}, "lone surrogate"),
        ("a.jsonl", [{"tokens": ["a"], "ner_tags": ["B-\ud83d"]}], {}, "lone surrogate"),
        ("a.jsonl", [{"text": "a", "labels": ["x\ud83d", "y"]}], {}, "lone surrogate"),
        ("a.csv", "text,label\na,b\n", {"columns": Columns(text="²")}, "no column '²'"),
        ("a.jsonl", [{"premise": "s", "choice1": "a", "choice2": "b", "label": "²"}], {}, "none of 2 choices"),
        ("a.jsonl", [{"premise": "s", "choice1": "a", "choice2": "b", "label": "1" * 5000}], {}, "none of 2 choices"),
        ("a.jsonl", [{"text": "a", "label": at} for at in (" ", "a", "b")], {}, "no label"),
    ],
)
def test_odd_characters_are_a_line(name: str, content: Any, how: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else content)
    with pytest.raises(UserError, match=said):
        read_examples(path, **how)


def test_the_first_row_of_several_classes_may_have_none(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": []}, {"text": "b", "labels": ["x"]}, {"text": "c", "labels": ["x", "y"]}]
    assert read_examples(written(tmp_path, "a.jsonl", rows)).task.output == "classes"


def test_lines_may_end_as_they_did_on_old_machines(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv"):
        text = "text\tlabel\rone film\tx\rtwo films\ty\r".replace("\t", "\t" if name == "a.tsv" else ",")
        assert [e.texts for e in read_examples(written(tmp_path, name, text)).examples] == [
            ("one film",),
            ("two films",),
        ]
