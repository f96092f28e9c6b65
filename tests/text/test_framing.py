"""Framed documents: every field between its marks, every order alike, nothing else changed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.config import Objective
from bertkin.errors import UserError
from bertkin.objectives.make import make_batch
from bertkin.text.batches import IGNORED, Specials
from bertkin.text.cache import tokenizer_for
from bertkin.text.encoder import Encoder
from bertkin.text.fields import check_found, encode_framed, frame, frames_of, parse_fields, parts, plain, with_frames
from bertkin.text.readers import read_documents
from bertkin.text.store import prepare
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

NAMES = ("title", "body", "date")
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "runs",
    "home",
    "over",
    "hill",
    "[MASK]",
    "<|title|>",
    "<|/body|>",
    "1",
    "2019",
    ".",
]
RECORDS = [
    {"title": f"the cat {i}", "body": f"a dog runs over hill {i} . the cat sees it .", "date": 1990 + i % 20}
    for i in range(200)
]

text = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
records = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, text)).filter(bool)


@pytest.fixture(scope="module", params=["wordpiece", "byte-bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    lines = [f"{r['title']} {r['body']} {r['date']}" for r in RECORDS]
    sizes = {"wordpiece": 80, "byte-bpe": 330, "unigram": 40}
    return with_frames(train_tokenizer(lines, kind=request.param, vocab_size=sizes[request.param]), NAMES)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@given(record=records)
def test_a_record_comes_back_whole(record: dict[str, str]) -> None:
    document = frame(record, NAMES, "here", "")
    assert dict(parts(document)) == {name: value for name, value in record.items() if value.strip()}
    assert document == frame(dict(reversed(record.items())), NAMES, "here", "")
    assert sorted(plain(document).split()) == sorted(" ".join(record.values()).split())


def test_every_order_is_drawn_alike() -> None:
    orders = Counter(
        tuple(name for name, _ in parts(frame({"title": f"t{i}", "body": f"b{i}", "date": i}, NAMES, "", "")))
        for i in range(3000)
    )
    assert set(orders) == set(permutations(NAMES))
    assert all(400 < count < 600 for count in orders.values())


@settings(max_examples=60)
@given(rows=st.lists(records, min_size=1, max_size=5))
def test_ids_are_marks_and_what_each_text_is_by_itself(tokenizer: Tokenizer, rows: list[dict[str, str]]) -> None:
    """The names of marks and of [MASK] in a text are plain text."""
    documents = [frame(row, NAMES, "", "") for row in rows]
    encoder, frames = Encoder(tokenizer), frames_of(tokenizer)
    encoded = encode_framed(encoder, documents, frames)
    expected, lengths, firsts = [], [], []
    for document in documents:
        before = len(expected)
        for name, value in parts(document):
            firsts.append(len(expected))
            expected += [frames[name][0], *encoder.encode([value]).ids.tolist(), frames[name][1]]
        lengths.append(len(expected) - before)
    assert encoded.ids.tolist() == expected and encoded.lengths.tolist() == lengths
    assert set(firsts) <= set(encoded.sentences.tolist())
    assert sorted(set(encoded.sentences.tolist())) == encoded.sentences.tolist()
    marks = {mark for pair in frames.values() for mark in pair}
    assert sum(number in marks for number in expected) == 2 * len(firsts)


def test_a_sentence_begins_where_it_did(tokenizer: Tokenizer) -> None:
    document = frame({"body": "A dog runs. The cat sees it."}, ("body",), "", "")
    encoder = Encoder(tokenizer)
    alone, framed = encoder.encode(["A dog runs. The cat sees it."]), encode_framed(encoder, [document], encoder.frames)
    assert framed.sentences.tolist() == [0, *(alone.sentences[1:] + 1)]
    assert framed.words.tolist() == alone.words.tolist()


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = [{name: str(value) for name, value in row.items()} for row in RECORDS]
    lines = written(tmp_path / "a.jsonl", rows)
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            table = csv.DictWriter(file, list(NAMES), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    expected = list(read_documents([lines], field=NAMES))
    assert len(expected) == len(rows)
    for name in ("a.csv", "a.tsv"):
        assert list(read_documents([tmp_path / name], field=NAMES)) == expected
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_documents([tmp_path / "a.parquet"], field=NAMES)) == expected


def test_numbers_lists_and_dates_are_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"title": ["a", "b"], "body": None, "date": 2019}])
    assert dict(parts(next(read_documents([path], field=NAMES)))) == {"title": "a, b", "date": "2019"}
    import datetime

    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = arrow.Table.from_pylist([{"title": "x", "date": datetime.date(2019, 4, 1)}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (document,) = read_documents([tmp_path / "a.parquet"], field=("title", "date"))
    assert dict(parts(document)) == {"title": "x", "date": "2019-04-01"}


def test_a_store_of_records_and_what_is_asked_of_it(tmp_path: Path) -> None:
    path, cache = written(tmp_path / "a.jsonl", RECORDS), tmp_path / "cache"
    tokenizer = tokenizer_for([path], kind="byte-bpe", vocab_size=330, field=NAMES, cache=cache)
    assert tokenizer.vocab_size == 330 and list(frames_of(tokenizer)) == list(NAMES)
    store = prepare([path], tokenizer, field=NAMES, heldout=0.1, workers=1, cache=cache)
    two = prepare([path], tokenizer, field=NAMES, heldout=0.1, workers=2, cache=tmp_path / "other")
    assert np.array_equal(store.train.tokens, two.train.tokens)
    opens, closes = (np.array([pair[side] for pair in frames_of(tokenizer).values()]) for side in (0, 1))
    for split in (store.train, store.heldout):
        assert np.isin(split.tokens[split.documents[:-1]], opens).all()
        assert np.isin(split.tokens[split.documents[1:] - 1], closes).all()
    ids = Specials.of(tokenizer)
    read = {"seed": 1, "first_row": 0, "n_rows": 16, "length": 64}
    asked = make_batch(store.train, ids, **read, objective=Objective(kind="causal"))  # type: ignore[arg-type]
    assert set(opens) | set(closes) <= set(asked.targets.tolist())  # whoever writes closes and opens fields
    mixed = Objective(kind="denoise", noise="infilling", rate=0.3, span_mean=3.0)
    asked = make_batch(store.train, ids, **read, objective=mixed, rate=0.3)  # type: ignore[arg-type]
    assert set(opens) | set(closes) <= set(asked.targets.tolist()) - {IGNORED}
    hidden = Objective(kind="masked", unit="token", rate=0.5, mask_share=0.5, random_share=0.5, sentence="none")
    batch = make_batch(store.train, ids, **read, objective=hidden)  # type: ignore[arg-type]
    assert not set(batch.targets.tolist()) & (set(opens) | set(closes))  # but they are never hidden, nor drawn
    plain_ids = make_batch(store.train, ids, **read, objective=Objective(kind="causal"))  # type: ignore[arg-type]
    marks = np.concatenate([opens, closes])
    assert np.array_equal(np.isin(batch.ids, marks), np.isin(plain_ids.ids, marks))


def test_marks_are_added_once_and_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert with_frames(tokenizer, ("body",)) is tokenizer
    more = with_frames(tokenizer, ("body", "author"))
    assert more.vocab_size == tokenizer.vocab_size + 2
    more.save(tmp_path)
    assert frames_of(Tokenizer.load(tmp_path)) == frames_of(more)
    assert set(np.ravel(list(frames_of(more).values()))) <= set(more.special_ids.tolist())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "some text\n", "plain text has no fields"),
        ("a.jsonl", '{"titel": "x", "text": "y"}\n', "none of the fields title, body, date.*among: titel, text"),
        ("a.jsonl", '"a text alone"\n', "expected a JSON object"),
        ("a.jsonl", '{"title": {"en": "x"}}\n', "holds a dict, not text"),
        ("a.csv", "title,text,date\nx,y,z\n", "no column 'body'.*among: title, text, date"),
    ],
)
def test_what_has_no_fields_is_a_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        list(read_documents([tmp_path / name], field=NAMES))


def test_a_field_that_no_document_has_is_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"title": "x", "body": "y"}, {"title": "z"}])
    check_found(("title", "body"), read_documents([path], field=("title", "body")), "here")
    with pytest.raises(UserError, match="no document has a field date or author"):
        check_found(("date", "title", "author"), read_documents([path], field=("date", "title", "author")), "here")


def test_names_of_fields() -> None:
    assert parse_fields("title, body") == ("title", "body") and parse_fields(None) == ()
    for wrong, said in (("a,,b", "no name"), ("a,b,a", "twice"), ("a|b", "no name"), ("<x>", "no name")):
        with pytest.raises(UserError, match=said):
            parse_fields(wrong)
