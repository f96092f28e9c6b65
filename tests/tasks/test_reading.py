"""Labelled files: what each format means, which columns are what, and what is wrong said in one line with its place."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.tasks.data.answers import locate
from bertkin.tasks.data.files import Gate
from bertkin.tasks.data.parts import find_parts
from bertkin.tasks.reading import Columns, read_examples, read_splits, split_by_hash
from bertkin.tasks.task import Example, Task, spaceless

DATA = Path(os.environ.get("BERTKIN_DATA") or "nowhere")
real = pytest.mark.skipif(not DATA.is_dir(), reason="BERTKIN_DATA names no folder of real data")


def written(folder: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    """A file of text as it is, of bytes, of JSON lines, or of one JSON value."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    if isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def squad(
    *questions: dict[str, Any], context: str = "Ada Lovelace lived in London. London is large."
) -> dict[str, Any]:
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


REVIEWS = 'text,label\nA joy.,good\n"Long, and dull",bad\nFine.,good\n'


# Tables.


def test_a_csv_is_quoted_as_spreadsheets_do_and_rows_know_their_lines(tmp_path: Path) -> None:
    text = 'review,stars\r\n"One ""good"", long\r\nday",good\r\nBad,bad\r\n'
    found = read_examples(written(tmp_path, "a.csv", text))
    assert [example.texts for example in found.examples] == [('One "good", long\nday',), ("Bad",)]
    assert [example.where.split(":")[-1] for example in found.examples] == ["2", "4"]
    assert found.task == Task("class", 1, ("bad", "good"))
    assert [example.label for example in found.examples] == [1, 0]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_may_part_its_columns_by_something_else(tmp_path: Path, separator: str) -> None:
    rows = [["text", "label"], ["a, b, and c", "x"], ["d, e", "y"]]
    path = written(tmp_path, "a.csv", "\n".join(separator.join(row) for row in rows))
    assert [e.texts[0] for e in read_examples(path).examples] == ["a, b, and c", "d, e"]


def test_a_tsv_is_not_quoted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", 'sentence\tlabel\n"Who?" he said.\t1\nAn open " mark\t0\n"\t1\n')
    assert [e.texts[0] for e in read_examples(path).examples] == ['"Who?" he said.', 'An open " mark', '"']


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_the_data(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.tsv", b"\xef\xbb\xbfQuality\t#1 ID\t#1 String\t#2 String\r\n1\t7\ta\tb\r\n0\t8\tc\td\r\n"
    )
    found = read_examples(path)
    assert found.roles.label == "Quality" and found.roles.texts == ("#1 String", "#2 String")
    assert [(e.texts, e.label) for e in found.examples] == [(("a", "b"), 1), (("c", "d"), 0)]
    assert "text = #1 String + #2 String, label = Quality" in found.said[0]


def test_a_table_without_a_header_is_told_by_its_content(tmp_path: Path) -> None:
    lines = [
        "gj04\t1\t\tThe sailors rode the breeze.",
        "gj04\t0\t*\tThe sailors rode breeze the.",
        "bc01\t1\t\tIt is.",
    ] * 3
    found = read_examples(written(tmp_path, "train.tsv", "\n".join(lines)))
    assert (found.roles.texts, found.roles.label, len(found)) == (("4",), "2", 9)
    assert "no header" in found.said[0]


def test_a_first_row_that_looks_like_those_below_is_no_header(tmp_path: Path) -> None:
    rows = [
        f"{'不' * (at % 3)}这间酒店环境很好，价钱也便宜 {at}\t{'positive' if at % 2 else 'negative'}" for at in range(8)
    ]
    found = read_examples(written(tmp_path, "a.tsv", "\n".join(rows)))
    assert len(found) == 8 and found.task.labels == ("negative", "positive")
    assert (
        len(read_examples(written(tmp_path, "a.tsv", "\n".join(rows)), header=True, columns=Columns("1", "", "2"))) == 7
    )


def test_a_header_of_unknown_names_is_one_all_the_same(tmp_path: Path) -> None:
    rows = "".join(f"Das ist Satz Nummer {at}, und er ist lang.;{'ja' if at % 2 else 'nein'}\n" for at in range(8))
    found = read_examples(written(tmp_path, "a.csv", "Kommentar;Urteil\n" + rows))
    assert (found.roles.texts, found.roles.label, len(found)) == (("Kommentar",), "Urteil", 8)


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("id,premise,hypothesis,label", ("premise", "hypothesis"), "label"),
        ("is_duplicate,question1,question2,qid1", ("question1", "question2"), "is_duplicate"),
        ("sentence1,sentence2,genre,score", ("sentence1", "sentence2"), "score"),
        ("Label,Title,Text,x", ("Text",), "Label"),
        ("category,headline,q,w", ("headline",), "category"),
    ],
)
def test_columns_are_known_by_the_names_people_use(
    tmp_path: Path, header: str, texts: tuple[str, ...], label: str
) -> None:
    found = read_examples(written(tmp_path, "a.csv", f"{header}\n1,2,3,4\n5,6,7,8\n"))
    assert (found.roles.texts, found.roles.label) == (texts, label)


def test_what_the_user_says_of_columns_goes_before_guesses(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,other,label,kind\na,b,0,x\nc,d,1,y\n")
    assert read_examples(path, columns=Columns(text="other", label="kind")).examples[0].texts == ("b",)
    found = read_examples(path, columns=Columns(text="TEXT", text2="2", label="kind"))
    assert found.examples[1].texts == ("c", "d") and found.task.labels == ("x", "y")


def test_json_lines_an_array_and_an_object_of_rows_are_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "id": 7}, {"text": "b\nc", "label": 1, "id": 8}]
    lines = read_examples(written(tmp_path, "a.jsonl", rows))
    array = read_examples(written(tmp_path, "a.json", json.dumps(rows, indent=1)))
    inside = read_examples(written(tmp_path, "b.json", json.dumps({"data": rows}, indent=1)))
    contents = [[(e.texts, e.label, e.id) for e in one.examples] for one in (lines, array, inside)]
    assert contents[0] == contents[1] == contents[2] == [(("a",), 0, "7"), (("b\nc",), 1, "8")]
    assert [e.where.split(":")[-1] for e in lines.examples] == ["1", "2"]
    assert [e.where.split(":")[-1] for e in array.examples] == ["2", "7"]


def test_parquet_is_read_like_any_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [1, 0]}), path)
    found = read_examples(path)
    assert [(e.texts, e.label) for e in found.examples] == [(("a", "c"), 1), (("b", "d"), 0)]
    assert found.examples[1].where.endswith("row 2")


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("ab,\";'\t\n é北", min_size=1), st.sampled_from(["x", "y"])), min_size=2, max_size=12)
)
def test_any_text_comes_back_from_csv_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [("the first", "x"), ("the second", "y"), *rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    read = [(e.texts[0], "xy"[e.label]) for e in read_examples(path).examples]
    assert read == [(text.strip(), label) for text, label in rows]


# Which task.


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([1, 0, 1], Task("class", 1, ("0", "1"))),
        ([10, 9, 2], Task("class", 1, ("2", "9", "10"))),
        ([True, False, True], Task("class", 1, ("false", "true"))),
        (["+", "-", "+"], Task("class", 1, ("-", "+"))),
        ([4.2, 3.75, 5.0], Task("score", 1, low=3, high=5)),
        (["5.000", "4.750", "0.000"], Task("score", 1, low=0, high=5)),
        ([["b"], ["a", "b"], []], Task("classes", 1, ("a", "b"))),
    ],
)
def test_the_task_is_told_by_its_labels(tmp_path: Path, labels: list[Any], task: Task) -> None:
    rows = [{"text": "t", "label": label} for label in labels]
    assert read_examples(written(tmp_path, "a.jsonl", rows)).task == task


def test_a_task_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\na,1\nb,2\nc,1|2\nd,\n")
    found = read_examples(path, output="classes", labelled=None)
    assert [e.label for e in found.examples] == [(0,), (1,), (0, 1), None]
    path = written(tmp_path, "b.csv", "text,label\na,1\nb,3\n")
    assert read_examples(path, output="score").task == Task("score", 1, low=1, high=3)


def test_texts_to_write_are_no_classes(tmp_path: Path) -> None:
    rows = [{"article": f"long text {at}", "summary": f"a short one about {at}"} for at in range(6)]
    found = read_examples(written(tmp_path, "a.jsonl", rows))
    assert found.task == Task("sequence") and found.examples[2].label == "a short one about 2"
    assert found.examples[2].references == ("a short one about 2",)


def test_labels_keep_their_numbers_in_another_file(tmp_path: Path) -> None:
    train = read_examples(written(tmp_path, "a.csv", "text,label\na,1\nb,0\n"))
    dev = read_examples(written(tmp_path, "b.csv", "label,text\n1.0,c\n"), train.task, roles=train.roles)
    assert dev.examples[0].label == train.examples[0].label == 1


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([{"sent1": "s", "sent2": "t", "ending0": "a", "ending1": "b", "label": at} for at in (0, 1)], [0, 1]),
        ([{"premise": "s", "choice1": "a", "choice2": "b", "label": at} for at in (1, 2)], [0, 1]),
        ([{"question": "s", "option_a": "a", "option_b": "b", "answerKey": at} for at in "AB"], [0, 1]),
        ([{"question": "s", "choices": ["a", "b", "c"], "label": at} for at in "ca"], [2, 0]),
        (
            [{"question": "s", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": at} for at in "21"],
            [1, 0],
        ),
    ],
)
def test_choices_are_read_however_they_are_numbered(tmp_path: Path, rows: list[Any], labels: list[int]) -> None:
    found = read_examples(written(tmp_path, "a.jsonl", rows))
    assert found.task.output == "choice" and found.task.inputs == len(found.examples[0].texts) + 1
    assert [e.label for e in found.examples] == labels
    assert found.examples[0].choices[:2] == ("a", "b")


def test_the_first_choice_has_the_number_it_has_in_training(tmp_path: Path) -> None:
    def rows(*labels: int) -> list[dict[str, Any]]:
        return [{"premise": "s", "choice1": "a", "choice2": "b", "label": at} for at in labels]

    for training, first in (((0, 1), 1), ((1, 2), 0)):
        written(tmp_path, "train.jsonl", rows(*training))
        written(tmp_path, "dev.jsonl", rows(1, 1))
        found = read_splits(tmp_path)
        assert [example.label for example in found.dev.examples] == [first, first]


def test_a_number_may_be_the_text_of_a_choice(tmp_path: Path) -> None:
    """What is seven less four: the label says the answer, not its place; in data to measure on as in training."""
    rows = [{"premise": "s", "choice1": one, "choice2": two, "choice3": three, "label": label} for one, two, three, label in
            (("7", "3", "9", "3"), ("1", "2", "5", "5"), ("12", "4", "1", "12"))]  # fmt: skip
    written(tmp_path, "train.jsonl", rows)
    written(tmp_path, "dev.jsonl", rows[:1])
    found = read_splits(tmp_path)
    assert [example.label for example in found.train.examples] == [1, 2, 0]
    assert [example.label for example in found.dev.examples] == [1]
    stray = [*rows, {**rows[0], "label": "5"}]  # which is none of its own choices
    with pytest.raises(UserError, match="'5' is none of 3 choices"):
        read_examples(written(tmp_path, "stray.jsonl", stray))


def test_codes_with_an_underscore_are_no_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"text {at}", "label": f"{at % 40}_1"} for at in range(80)]
    assert read_examples(written(tmp_path, "a.jsonl", rows)).task.output == "class"


def test_zero_and_one_are_classes_though_written_with_a_point(tmp_path: Path) -> None:
    """As pandas writes whole numbers of a column that has gaps."""
    assert read_examples(written(tmp_path, "a.csv", "text,label\na,1.0\nb,0.0\n")).task == Task(
        "class", 1, ("0.0", "1.0")
    )
    assert read_examples(written(tmp_path, "b.csv", "text,label\na,1.0\nb,4.0\n")).task.output == "score"


def test_rows_of_several_classes_have_some(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", [{"text": "a", "labels": []}, {"text": "b", "labels": []}])
    with pytest.raises(UserError, match="no row has any class"):
        read_examples(path, output="classes")


def test_choices_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    row = {"question": "q"} | {f"choice{at}": f"text {at}" for at in range(1, 12)} | {"label": 10}
    (example,) = read_examples(written(tmp_path, "a.jsonl", [row])).examples
    assert example.choices == tuple(f"text {at}" for at in range(1, 12)) and example.label == 9


def test_files_are_the_parts_that_their_names_say(tmp_path: Path) -> None:
    """As a folder's: what is named dev or test is never trained on."""
    files = [
        written(tmp_path, f"{name}.csv", "text,label\n" + "".join(f"{name} {at},{at % 2}\n" for at in range(4)))
        for name in ("train", "more", "dev", "test")
    ]
    found = read_splits(files)
    assert [example.texts[0].split()[0] for example in found.train.examples] == ["train"] * 4 + ["more"] * 4
    assert {example.texts[0].split()[0] for example in found.dev.examples} == {"dev"}
    assert found.test is not None and {example.texts[0].split()[0] for example in found.test.examples} == {"test"}
    assert len(read_splits(files[2]).train) + len(read_splits(files[2]).dev) == 4  # alone, it is all there is


# Words.


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nNew JJ B-LOC\nYork NNP I-LOC\n\nPeter NNP B-PER\n"


def test_words_and_tags_stand_in_columns(tmp_path: Path) -> None:
    found = read_examples(written(tmp_path, "a.conll", CONLL))
    assert found.task == Task("tokens", 1, ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"), scheme="iob2")
    first, second = found.examples
    assert first.texts == ("EU rejects New York",) and first.words == ("EU", "rejects", "New", "York")
    assert [found.task.labels[tag] for _, _, tag in first.label] == ["B-ORG", "O", "B-LOC", "I-LOC"]
    assert (first.where[-2:], second.where[-2:]) == (":3", ":8")
    parts = read_examples(tmp_path / "a.conll", columns=Columns(label="2"))
    assert parts.task.labels == ("JJ", "NNP", "VBZ") and parts.task.metric == "accuracy"


@pytest.mark.parametrize(
    ("tags", "scheme"), [("I-X I-X B-X O", "iob1"), ("B-X E-X S-X O", "bioes"), ("B-X E-X B-X E-X", "bioes")]
)
def test_every_scheme_becomes_iob2(tmp_path: Path, tags: str, scheme: str) -> None:
    lines = "".join(f"w{at} {tag}\n" for at, tag in enumerate(tags.split()))
    text = (lines + "\n") * 2 + "a I-X\n\n"
    found = read_examples(written(tmp_path, "a.conll", text), scheme=scheme)
    assert found.task.labels == ("O", "B-X", "I-X") and found.task.scheme == scheme
    names = [found.task.labels[tag] for _, _, tag in found.examples[0].label]
    assert names[:3] == ["B-X", "I-X", "B-X"]


def test_comments_stand_among_words_from_the_first_line_on(tmp_path: Path) -> None:
    text = "# id 1 domain=en\nParis B-LOC\n# O\n\n# id 2 domain=en\nfell O\n"
    found = read_examples(written(tmp_path, "a.conll", text))
    assert [example.texts for example in found.examples] == [("Paris #",), ("fell",)]


def test_a_comment_of_two_parts_is_no_word(tmp_path: Path) -> None:
    text = "# newdoc\n# id=7\nAda B-PER\nfell O\n# O\n\n# newpar\nRome B-LOC\n"
    found = read_examples(written(tmp_path, "a.conll", text))
    assert found.task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and found.task.metric == "span_f1"
    assert [example.words for example in found.examples] == [("Ada", "fell", "#"), ("Rome",)]


def test_a_pattern_is_all_that_it_matches(tmp_path: Path) -> None:
    for at in range(3):
        written(tmp_path, f"part-{at}.tsv", f"text\tlabel\nrow {at}\t{at % 2}\n")
    assert len(read_examples(tmp_path / "part-*.tsv").examples) == 3
    assert len(read_splits(tmp_path / "part-[01].tsv", dev=tmp_path / "part-?.tsv").dev) == 3
    odd = written(tmp_path, "odd[1].tsv", "text\tlabel\na\t0\nb\t1\n")
    assert len(read_examples(odd).examples) == 2
    with pytest.raises(UserError, match="no file matches"):
        read_examples(tmp_path / "other-*.tsv")


@pytest.mark.parametrize("column", ["text", "text2", "label"])
def test_a_file_without_names_of_columns_has_none_to_choose(tmp_path: Path, column: str) -> None:
    file = written(tmp_path, "a.json", squad({"id": "1", "question": "Who?", "answers": []}))
    with pytest.raises(UserError, match=rf"--{column}\): such a file has no column to name so"):
        read_examples(file, columns=Columns(**{column: "1"}))
    if column == "text2":
        with pytest.raises(UserError, match="such a file has no column"):
            read_examples(written(tmp_path, "a.conll", "Ada B-PER\nfell O\n"), columns=Columns(text2="1"))


def test_a_word_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.conll", "1\tParis\tB-LOC\n2\t\tO\n")
    with pytest.raises(UserError, match=r"a.conll:2: a tag without a word"):
        read_examples(path, columns=Columns(text="2"))


def test_characters_of_chinese_stand_together(tmp_path: Path) -> None:
    lines = [("高", "B-NAME"), ("勇", "E-NAME"), ("：", "O"), ("男", "O"), ("，", "O"), ("I", "B-T"), ("T", "E-T")]
    more = "\n".join(f"{word} {tag}" for word, tag in lines * 3)
    found = read_examples(written(tmp_path, "a.bmes", more + "\n\n高 B-NAME\n健 M-NAME\n勇 E-NAME\n"))
    assert found.task.scheme == "bmes"
    assert found.examples[0].texts[0].startswith("高勇：男，IT高勇")
    assert found.examples[1].words == ("高", "健", "勇")


CONLLU = """# sent_id = one
# text = Don't go zum Markt!
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t0\troot\t_\t_
2\tn't\tnot\tPART\tRB\t_\t1\tadv\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t1\tx\t_\t_
3.1\t_\t_\t_\t_\t_\t_\t_\t_\t_
4-5\tzum\t_\t_\t_\t_\t_\t_\t_\t_
4\tzu\tzu\tADP\tIN\t_\t1\tx\t_\t_
5\tdem\tdem\tDET\tDT\t_\t1\tx\t_\t_
6\tMarkt\tMarkt\tNOUN\tNN\t_\t1\tx\t_\tSpaceAfter=No
7\t!\t!\tPUNCT\t.\t_\t1\tx\t_\t_
"""


def test_conllu_gives_syntactic_words_with_the_blanks_the_file_says(tmp_path: Path) -> None:
    found = read_examples(written(tmp_path, "a.conllu", CONLLU))
    (example,) = found.examples
    assert example.texts == ("Don't go zu dem Markt!",)
    assert example.words == ("Do", "n't", "go", "zu", "dem", "Markt", "!")
    assert [found.task.labels[tag] for _, _, tag in example.label] == [
        "AUX",
        "PART",
        "VERB",
        "ADP",
        "DET",
        "NOUN",
        "PUNCT",
    ]
    assert (example.id, example.where[-2:]) == ("one", ":3")
    assert read_examples(tmp_path / "a.conllu", columns=Columns(label="xpos")).task.labels[0] == "."


def test_rows_of_words_and_tags(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["New", "York", "!"], "ner_tags": ["B-LOC", "I-LOC", "O"]},
        {"tokens": ["Hi"], "ner_tags": ["O"]},
    ]
    found = read_examples(written(tmp_path, "a.jsonl", rows))
    assert found.task.labels == ("O", "B-LOC", "I-LOC") and found.examples[0].words == ("New", "York", "!")


def test_entities_by_character_offsets_become_words(tmp_path: Path) -> None:
    rows = [
        {"text": "Ada moved to London.", "entities": [{"start": 0, "end": 3, "label": "PER"}, [13, 19, "LOC"]]},
        {"text": "在北京大学学习", "entities": [[1, 5, "ORG"]]},
        {"text": "pre-Lovelace", "entities": [[4, 12, "PER"]]},
        {"text": "No one.", "entities": []},
    ]
    found = read_examples(written(tmp_path, "a.jsonl", rows))
    tagged = [
        [(w, found.task.labels[t]) for w, (_, _, t) in zip(e.words, e.label, strict=True)] for e in found.examples
    ]
    assert tagged[0] == [("Ada", "B-PER"), ("moved", "O"), ("to", "O"), ("London", "B-LOC"), (".", "O")]
    assert tagged[1][1:5] == [("北", "B-ORG"), ("京", "I-ORG"), ("大", "I-ORG"), ("学", "I-ORG")]
    assert tagged[2] == [("pre", "O"), ("-", "O"), ("Lovelace", "B-PER")]
    assert {tag for _, tag in tagged[3]} == {"O"}


@given(st.text("ab 北京é.-\n", min_size=1, max_size=30), st.data())
def test_words_of_marked_texts_cover_all_but_blanks_and_keep_the_marks(text: str, data: st.DataObject) -> None:
    from bertkin.tasks.data.schemes import spans_of
    from bertkin.tasks.data.words import words_of_marks

    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip():
        return
    raw = words_of_marks(text, [[start, end, "X"]], "here", Gate())
    assert raw is not None
    covered = {at for low, high in raw.places for at in range(low, high)}
    assert covered == {at for at, character in enumerate(text) if not character.isspace()}
    (span,) = spans_of(raw.label)
    assert text[raw.places[span.start][0] : raw.places[span.end - 1][1]] == text[start:end].strip()
    assert all(high - low == 1 for low, high in raw.places if spaceless(text[low]))


# Answers in a text.


def test_squad_with_and_without_an_answer(tmp_path: Path) -> None:
    known = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada Lovelace", "answer_start": 0}] * 2}
    none = {"id": "q2", "question": "When?", "answers": [], "is_impossible": True}
    found = read_examples(written(tmp_path, "a.json", squad(known, none)))
    assert found.task == Task("span", 2, unanswerable=True)
    assert found.examples[0].label == ((0, 12),) and found.examples[0].references == ("Ada Lovelace",) * 2
    assert found.examples[1].label == () and found.examples[1].references == ("",)
    assert found.examples[0].texts == ("Who?", "Ada Lovelace lived in London. London is large.")


def test_an_answer_that_is_not_at_its_offset_is_found_nearby(tmp_path: Path) -> None:
    question = {"id": "q", "question": "Where?", "answers": [{"text": "London", "answer_start": 28}]}
    found = read_examples(written(tmp_path, "a.json", squad(question)))
    assert found.examples[0].label == ((30, 36),)
    assert any("1 answers moved" in line and "(question q)" in line for line in found.said)


def test_an_answer_that_is_nowhere_is_named_with_its_line(tmp_path: Path) -> None:
    bad = {"id": "q7", "question": "Who?", "answers": [{"text": "Byron", "answer_start": 3}]}
    good = {"id": "q8", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}, *bad["answers"]]}
    path = written(tmp_path, "a.json", json.dumps(squad(good, bad), indent=1))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if '"q7"' in text)
    with pytest.raises(UserError, match=rf"a.json:{line} \(question q7\): the answer 'Byron' is not in its text"):
        read_examples(path)
    found = read_examples(path, skip_bad=True)
    assert [e.id for e in found.examples] == ["q8"]
    assert (found.examples[0].label, found.examples[0].references) == (((0, 3),), ("Ada", "Byron"))


def test_an_offset_outside_the_text_is_said(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ada.", "answers": {"text": ["Byron"], "answer_start": [400]}}
    with pytest.raises(UserError, match=r"a.jsonl:1: the answer 'Byron' at character 400 of a text of 4 is not"):
        read_examples(written(tmp_path, "a.jsonl", [row]))


def test_flat_rows_of_questions(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Who?", "context": "Ada did.", "answers": {"text": ["Ada"], "answer_start": [0]}},
        {"id": "b", "question": "Who?", "context": "Ada did.", "answers": {"text": [], "answer_start": []}},
    ]
    assert [e.label for e in read_examples(written(tmp_path, "a.jsonl", rows)).examples] == [((0, 3),), ()]


@given(
    st.text("ab \n", max_size=20),
    st.text("ab \n", min_size=1, max_size=3),
    st.text("ab", max_size=9),
    st.integers(-1, 40),
)
def test_a_located_answer_has_its_text_but_for_blanks(before: str, answer: str, after: str, start: int) -> None:
    context = before + answer + after
    found = locate(answer, context, start)
    if not answer.strip():
        assert found is None or context[slice(*found)].strip() == ""
        return
    assert found is not None
    piece = context[slice(*found)]
    assert "".join(piece.split()) == "".join(answer.split())
    if context.startswith(answer, start) and start >= 0:
        assert found[0] - (len(answer) - len(answer.lstrip())) == start


# Parts and folders.


def test_the_parts_of_a_folder_are_found_by_name(tmp_path: Path) -> None:
    for name in ("train.csv", "dev_matched.csv", "dev_mismatched.csv", "README.md", "vocabulary.csv"):
        written(tmp_path, name, REVIEWS)
    written(tmp_path, "test.csv", "text\nWho knows.\n")
    parts = {name: Path(path).name for name, path in find_parts(tmp_path).items()}
    assert parts == {
        "train": "train.csv", "dev": "dev_matched.csv", "dev_mismatched": "dev_mismatched.csv", "test": "test.csv",
    }  # fmt: skip
    splits = read_splits(tmp_path)
    assert splits.test is not None and [e.label for e in splits.test.examples] == [None]
    assert list(splits.others) == ["dev_mismatched"] and len(splits.dev) == 3


def test_a_folder_of_folders_is_a_class_each(tmp_path: Path) -> None:
    for part, label, number in [(p, c, n) for p in ("train", "test") for c in ("neg", "pos") for n in range(3)]:
        written(tmp_path, f"{part}/{label}/{number}.txt", f"A {label} review, number {number} of {part}.")
    splits = read_splits(tmp_path)
    assert splits.task.labels == ("neg", "pos") and splits.test is not None
    assert len(splits.train) + len(splits.dev) == 6 and len(splits.test) == 6
    assert splits.test.examples[0].texts == ("A neg review, number 0 of test.",)


def test_a_part_to_measure_on_is_made_where_there_is_none(tmp_path: Path) -> None:
    rows = [{"text": f"text number {at}", "label": at % 2} for at in range(200)]
    splits = read_splits(written(tmp_path, "a.jsonl", rows))
    assert len(splits.dev) == 20 and len(splits.train) == 180
    random.Random(1).shuffle(rows)
    again = read_splits(written(tmp_path, "b.jsonl", rows))
    assert {e.texts for e in again.dev.examples} == {e.texts for e in splits.dev.examples}
    assert any("20 of 200 rows are held out" in line for line in splits.said)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=2, max_size=80))
def test_held_out_texts_are_not_trained_on_and_every_class_is(rows: list[tuple[int, int]]) -> None:
    task = Task("class", 1, ("a", "b", "c", "d"))
    examples = [Example((str(text),), label) for text, label in rows]
    if len({e.texts for e in examples}) < 2:
        return
    train, held = split_by_hash(examples, task)
    assert train and held and len(train) + len(held) == len(examples)
    assert not {e.texts for e in train} & {e.texts for e in held}
    if len({e.texts for e in held}) > 1:
        assert {e.label for e in held} <= {e.label for e in train}


def test_no_more_than_some_thousands_are_held_out() -> None:
    examples = [Example((str(at),), at % 2) for at in range(30_000)]
    train, held = split_by_hash(examples, Task("class", 1, ("0", "1")))
    assert (len(train), len(held)) == (28_000, 2_000)


def test_the_questions_of_a_text_stay_together() -> None:
    examples = [Example((f"q{at}", f"context {at // 5}"), ((0, 1),)) for at in range(100)]
    train, held = split_by_hash(examples, Task("span", 2))
    assert len(held) == 10
    assert not {e.texts[1] for e in train} & {e.texts[1] for e in held}


# What can be wrong.

PAIR = Task("class", 2, ("0", "1"))
WRONG: list[tuple[str, str | bytes | list[Any] | dict[str, Any], dict[str, Any], str]] = [
    ("a.csv", "text,label\na,0\nb\nc,1\n", {}, r"a.csv:3: 1 column, but the first line has 2; put .* --skip-bad"),
    ("a.tsv", "text\tlabel\na\t0\nb\tc\t1\n", {}, r"a.tsv:3: 3 columns, but the first line has 2"),
    ("a.csv", "text,label\na,0\nb,\nc,1\n", {}, r"a.csv:3: no label; fill it in"),
    ("a.csv", "text,label\na,1\nb,1\n", {}, r"a.csv: every row has the label '1'; give rows of at least two classes"),
    ("a.csv", "text,label\na,\nb,\n", {}, r"a.csv: every row has the label 'none'"),
    ("a.csv", "text,number\na,b\n", {"labelled": True}, r"a.csv:1: no column looks like a label; .*--label"),
    (
        "a.csv",
        REVIEWS,
        {"columns": Columns(label="lable")},
        r"a.csv:1 \(--label\): no column 'lable'; did you mean label",
    ),
    ("a.csv", REVIEWS, {"columns": Columns(text="zzz")}, r"a.csv:1 \(--text\): no column 'zzz'; there are text, label"),
    ("a.csv", REVIEWS, {"task": PAIR}, r"a.csv:1: only one text \(text\), but the task joins 2; name .*--text2"),
    (
        "a.csv",
        "text,label\na,maybe\n",
        {"task": Task("class", 1, ("no", "yes"))},
        r"a.csv:2: the label 'maybe' is not in",
    ),
    ("a.csv", "text,score\na,1.5\nb,nan\n", {}, r"a.csv:3: the score 'nan' is not a number"),
    ("a.csv", "text,score\na,1.5\nb,high\n", {"output": "score"}, r"a.csv:3: the score 'high' is not a number"),
    ("a.csv", "text,label\na\n", {"skip_bad": True}, r"a.csv:2: no rows left \(1 were left out"),
    ("a.csv", "text,label\n", {}, r"a.csv: no rows left"),
    ("a.csv", b"text,label\n\xff\xe9,1\n", {}, r"a.csv@11: not UTF-8"),
    ("a.csv", "text,label\na,0\nb,1\n".encode("utf-16"), {}, r"a.csv: this is UTF-16; convert it"),
    ("a.csv", "", {}, r"a.csv: the file is empty"),
    ("a.jsonl", '{"text": "a", "label": 0}\n{"text": \n', {}, r"a.jsonl:2: not JSON"),
    ("a.jsonl", '{"text": "a", "label": 0}\n7\n', {}, r"a.jsonl:2: expected a JSON object, found a int"),
    ("a.jsonl", [{"text": "a", "label": 0}, {"label": 1}], {}, r"a.jsonl:2: no field 'text'"),
    ("a.jsonl", [{"text": "a", "label": 0}, {"text": {}, "label": 1}], {}, r"a.jsonl:2: 'text' holds a dict"),
    ("a.json", '[{"text": "a",\n "label": 0},\n {"text" 7}]', {}, r"a.json:3: not JSON"),
    ("a.conll", "a O\nb B-X\nc\n\nd O\n", {}, r"a.conll:3: 1 columns, but the first word has 2"),
    ("a.conll", "a X\nb X\n", {}, r"every word has the tag 'X'"),
    ("a.conll", "a O\nb B-X\n", {"columns": Columns(label="3")}, r"no column '3'; give its number, 1 to 2"),
    ("a.conllu", CONLLU.replace("\tSpaceAfter=No", ""), {}, r"a.conllu:11: 9 columns, but CoNLL-U has 10"),
    ("a.conllu", CONLLU, {"columns": Columns(label="upo")}, r"no column 'upo'; did you mean upos"),
    ("a.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}], {}, r"a.jsonl:1: 2 words, but 1 tags"),
    ("a.jsonl", [{"text": "Ada", "entities": [[0, 9, "X"]]}], {}, r"an entity at characters 0 to 9 of a text of 3"),
    ("a.jsonl", [{"text": "Ada", "entities": [[0, 2, "X"], [1, 3, "Y"]]}], {}, r"entities that overlap"),
    (
        "a.jsonl",
        [{"text": "Ada B", "entities": [{"start": 0, "end": 3, "label": "X", "text": "B"}]}],
        {},
        r"'B' is not at",
    ),
    ("a.json", {"data": [{"paragraphs": [{"qas": []}]}]}, {}, r"a paragraph of article 1 has no 'context'"),
    ("a.json", '{"data": [{"paragraphs": [}', {}, r"a.json:1: not JSON"),
    ("a.jsonl", [{"question": "q", "choices": ["a", "b"], "label": 5}], {}, r"a.jsonl:1: the label '4' is none of 2"),
    ("a.xyz", "just some words\nand others here\n", {}, r"a.xyz: cannot tell what kind of table this is; name it"),
]


@pytest.mark.parametrize(("name", "content", "how", "said"), WRONG, ids=[said for *_, said in WRONG])
def test_what_is_wrong_is_said_in_one_line_with_its_place(
    tmp_path: Path, name: str, content: Any, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_examples(written(tmp_path, name, content), **how)
    assert "\n" not in str(caught.value) and caught.value.mend and caught.value.where


def test_a_broken_line_of_json_is_left_out_where_bad_rows_are(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": 0}', '{"text": "b"', "7", '{"text": "c", "label": 1}']
    found = read_examples(written(tmp_path, "a.jsonl", "\n".join(lines) + "\n"), skip_bad=True)
    assert [example.texts[0] for example in found.examples] == ["a", "c"]
    assert [where.rpartition(":")[2] for where, _ in found.left_out] == ["2", "3"]


def test_a_label_of_dev_that_training_has_not_is_named(tmp_path: Path) -> None:
    written(tmp_path, "train.csv", REVIEWS)
    written(tmp_path, "dev.csv", "text,label\nHm.,odd\n")
    with pytest.raises(
        UserError, match=r"dev.csv:2: the label 'odd' is not in the training data; correct it \(known are bad"
    ):
        read_splits(tmp_path)


def test_a_folder_without_training_data_and_no_file_at_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training data here"):
        read_splits(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_splits(tmp_path / "a.csv")
    with pytest.raises(UserError, match="no data given"):
        read_examples([])


def test_unusable_rows_can_be_left_out_and_are_said(tmp_path: Path) -> None:
    found = read_examples(written(tmp_path, "a.csv", "text,label\na,0\nb\nc,1\nd,\n"), skip_bad=True)
    assert [e.texts[0] for e in found.examples] == ["a", "c"]
    assert [where.split(":")[-1] for where, _ in found.left_out] == ["3", "5"]
    assert any("left out 1: no label" in line for line in found.said)


def test_pairs_on_which_people_did_not_agree_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"premise": "a", "hypothesis": "b", "gold_label": x} for x in ("entailment", "-", "neutral", "contradiction")
    ]
    train = read_examples(written(tmp_path, "a.jsonl", rows[::2] + rows[3:]))
    assert train.task.labels == ("contradiction", "entailment", "neutral")
    found = read_examples(written(tmp_path, "b.jsonl", rows), train.task)
    assert len(found) == 3 and found.left_out[0][0].endswith(":2")
    assert read_examples(tmp_path / "b.jsonl").task.labels == train.task.labels


# Real data.


@real
@pytest.mark.parametrize(
    ("name", "sizes", "task"),
    [
        ("glue/CoLA", (8551, 1043, 1063), Task("class", 1, ("0", "1"))),
        ("glue/SST-2", (67349, 872, 1821), Task("class", 1, ("0", "1"))),
        ("glue/MRPC", (3667, 408, 1725), Task("class", 2, ("0", "1"))),
        ("glue/STS-B", (5749, 1500, 1379), Task("score", 2, low=0, high=5)),
        ("glue/RTE", (2490, 277, 3000), Task("class", 2, ("entailment", "not_entailment"))),
        ("glue/MNLI-part", (7107, 1777, None), Task("class", 2, ("contradiction", "entailment", "neutral"))),
        ("glue/QQP-part", (20000, 3496, None), Task("class", 2, ("0", "1"))),
        ("zh/ChnSentiCorp", (9600, 1200, 1200), Task("class", 1, ("negative", "positive"))),
        ("squad", (11877, 3171, None), Task("span", 2)),
    ],
)
def test_real_data_sets_are_read_without_being_told_anything(
    name: str, sizes: tuple[int, int, int | None], task: Task
) -> None:
    splits = read_splits(DATA / name)
    assert (len(splits.train), len(splits.dev), len(splits.test) if splits.test else None) == sizes
    assert splits.task == task
    assert all(e.label is not None for e in (*splits.train.examples, *splits.dev.examples))


@real
def test_real_words_stand_where_they_are_said_to_stand() -> None:
    for folder, scheme, size in (
        ("ner/resume-zh", "bmes", 3821),
        ("ner/wnut17", "iob2", 3394),
        ("ud/English-EWT", "", 12544),
    ):
        splits = read_splits(DATA / folder)
        assert (splits.task.scheme, len(splits.train)) == (scheme, size)
        for example in splits.dev.examples[:200]:
            assert all(word and not word[0].isspace() for word in example.words)
    assert read_splits(DATA / "ud/English-EWT").dev.examples[0].texts[0] == "From the AP comes this story :"


@real
def test_chinese_answers_that_do_not_match_their_offset_are_found_or_said() -> None:
    found = read_examples(DATA / "cmrc2018/cmrc2018_dev.json")
    assert len(found) == 3219 and sum(map(len, found.notes.values())) == 210
    for example in found.examples:
        for start, end in example.label:
            assert any("".join(a.split()) == "".join(example.texts[1][start:end].split()) for a in example.answers)


PIECES = [
    "text", "label", "a", "b", "1", "0", "-1", "nan", "1.5", "B-X", "I-X", "O", "\t", ",", ";", '"', "\n", "\n\n", " ", "\r\n",
    "{", "}", "[", "]", ":", '"text"', '"label"', '"tokens"', '"tags"', '"entities"', '"context"', '"question"', '"answers"',
    '"choices"', "null", "true", "1\t", "1-2", "\t_" * 8, "#", "-DOCSTART-", "北", "\ufeff", "\0", '"data"',
    '"paragraphs"', '"qas"',
]  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=40),
    st.sampled_from(["csv", "tsv", "jsonl", "json", "conll", "conllu", "txt"]),
    st.booleans(),
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], ending: str, skip_bad: bool
) -> None:
    path = written(tmp_path_factory.mktemp("any"), f"a.{ending}", "".join(pieces))
    try:
        found = read_examples(path, skip_bad=skip_bad, labelled=None)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert found.examples and all(isinstance(e.texts[0], str) for e in found.examples)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(allow_infinity=True)
    | st.sampled_from(["", "a", "O", "B-X"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "start", "label"]), inner),
    max_leaves=6,
)
NAMES = [
    "text",
    "label",
    "tokens",
    "tags",
    "entities",
    "context",
    "question",
    "answers",
    "choices",
    "choice1",
    "choice2",
]


@settings(max_examples=400)
@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5), min_size=1, max_size=3), st.booleans()
)
def test_whatever_json_rows_hold_they_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], skip_bad: bool
) -> None:
    path = written(tmp_path_factory.mktemp("any"), "a.jsonl", rows)
    try:
        found = read_examples(path, skip_bad=skip_bad)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert found.examples


def test_choices_without_names_are_numbered_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for named in (None, 3):
        row = {"question": "what", "choices": {"label": named, "text": ["a", "b"]}, "answer": 1}
        path.write_text(json.dumps(row) + "\n")
        with contextlib.suppress(UserError):
            assert read_examples(path).task.output == "choice"
