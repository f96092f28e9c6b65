"""Texts longer than a row: read in windows, answered once; what is cut is said."""

from __future__ import annotations

import json
import random
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkin
from bertkin.cli import main
from bertkin.config import Model
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.tasks.answering import answers, by_example, loss_of
from bertkin.tasks.encoding import encode, packed
from bertkin.tasks.task import Example, Task
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

FILL = ["film", "town", "song", "road", "house", "river"]
TELLING = {"good": "lovely", "bad": "dreadful"}
LENGTH = 16
OPTIONS = [
    "--length",
    str(LENGTH),
    "--train.lr",
    "2e-3",
    "--train.precision",
    "float32",
    "--train.threads",
    "1",
    "--quiet",
]


def document(draw: random.Random) -> tuple[str, str]:
    """Forty words of which the last alone tells."""
    label = draw.choice(list(TELLING))
    return " ".join([*(draw.choice(FILL) for _ in range(39)), TELLING[label]]), label


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and documents longer than it is let read."""
    desk, draw = tmp_path_factory.mktemp("windows"), random.Random(0)
    rows = [document(draw) for _ in range(160)]
    for part, some in (("train", rows[:128]), ("dev", rows[128:])):
        (desk / "data").mkdir(exist_ok=True)
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in some)]
        (desk / "data" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    tokenizer = train_tokenizer([text for text, _ in rows], vocab_size=68)
    shape = Model(family="bert", layers=1, hidden=64, heads=2, max_length=32, start="random")
    save_model(build(resolve_model(shape, tokenizer.vocab_size)), desk / "stock", tokenizer=tokenizer)  # type: ignore[arg-type]
    return desk


SIGNS = [chr(0x4E00 + 7 * i) for i in range(60)]


@pytest.fixture(scope="module")
def signs() -> Tokenizer:
    """A tokenizer that reads each of sixty signs as a token of its own, so that a token tells where it stood."""
    return train_tokenizer(["".join(SIGNS)] * 3, vocab_size=len(SIGNS) + 5)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    beside=st.integers(0, 12),
    windows=st.integers(2, 9),
    first=st.booleans(),
    more=st.booleans(),
)
def test_windows_cover_a_text_in_order_unless_they_are_too_few(
    signs: Tokenizer, length: int, beside: int, windows: int, first: bool, more: bool
) -> None:
    long, short = "".join(SIGNS[:length]), "".join(SIGNS[::-1][:beside])
    texts = [long, *([short] if short else []), *([SIGNS[0]] if more and short else [])]
    texts = texts if first else texts[::-1]
    task = Task("class", len(texts), ("bad", "good"))
    rows = encode([Example(tuple(texts), 1)], task, signs, max_length=LENGTH, windows=windows)
    whole = encode([Example(tuple(texts), 1)], task, signs, max_length=LENGTH)
    assert len(rows.rows) <= windows and all(len(row.ids) <= LENGTH and row.target == 1 for row in rows.rows)
    if not whole.cut:  # what fits is read as ever
        assert len(rows.rows) == 1 and rows.rows[0].ids.tolist() == whole.rows[0].ids.tolist()
        return
    parts = [_parts(row.ids.tolist(), signs) for row in rows.rows]
    ids = [signs.encode(text) for text in texts]
    slides = max(range(len(ids)), key=lambda i: len(ids[i]))
    for number, text in enumerate(ids):
        if number != slides:  # the others stand beside each window, cut only where they leave it too little room
            assert len({tuple(part[number]) for part in parts}) == 1
            assert rows.cut or parts[0][number] == text
    places = [[ids[slides].index(one) for one in part[slides]] for part in parts]
    assert all(piece == list(range(piece[0], piece[0] + len(piece))) for piece in places)
    assert places[0][0] == 0 and all(a[0] < b[0] <= a[-1] + 1 for a, b in pairwise(places))
    if not rows.cut:
        assert places[-1][-1] == len(ids[slides]) - 1
    else:
        assert len(rows.rows) == windows or sum(map(len, ids)) - len(ids[slides]) > (LENGTH - 1 - len(texts)) // 2


def _parts(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """A row's texts: what stands between [CLS] and [SEP]s."""
    found: list[list[int]] = [[]]
    for one in ids[1:-1]:
        if one == tokenizer.sep_id:
            found.append([])
        else:
            found[-1].append(one)
    return found


@pytest.mark.parametrize("output", ["class", "classes", "score"])
def test_the_answer_and_its_loss_are_of_the_mean_of_the_windows(desk: Path, output: str) -> None:
    tokenizer, draw = Tokenizer.load(desk / "stock"), random.Random(1)
    labels = () if output == "score" else ("bad", "good")
    task = Task(output, 1, labels, high=5.0 if output == "score" else 0.0)  # type: ignore[arg-type]
    label = {"class": 1, "classes": (0,), "score": 2.5}[output]
    examples = [Example((text,), label) for text in ("film town", document(draw)[0], document(draw)[0])]
    rows = encode(examples, task, tokenizer, max_length=LENGTH, windows=8)
    assert len(rows.rows) > len(examples)
    scores = torch.randn(len(rows.rows), max(len(labels), 1), generator=torch.Generator().manual_seed(0))
    means = torch.stack([scores[low:high].mean(0) for low, high in zip(rows.groups[:-1], rows.groups[1:], strict=True)])
    merged, firsts = by_example(scores, rows.rows)
    torch.testing.assert_close(merged, means)
    assert [row.example for row in firsts] == [0, 1, 2]
    loss, _, count = loss_of(task, scores, rows.rows, packed(rows.rows)[1])
    alone = encode(examples, task, tokenizer, max_length=LENGTH)
    expected, _, _ = loss_of(task, means, alone.rows, packed(alone.rows)[1])
    torch.testing.assert_close(loss, expected)
    assert count == 3
    same = zip(answers(task, rows, list(scores.numpy())), answers(task, alone, list(means.numpy())), strict=True)
    for found, wanted in same:
        np.testing.assert_allclose(found.answer, wanted.answer, rtol=1e-6)


def test_what_only_the_end_tells_is_learnt_and_remembered(desk: Path) -> None:
    stock, data = str(desk / "stock"), str(desk / "data")
    how = ["--windows", "8", "--pooling", "max", "--dropout", "0", "--train.epochs", "20"]
    assert main(["finetune", stock, data, *how, "--out", str(desk / "all"), *OPTIONS]) == 0
    review = json.loads((desk / "all" / "review.json").read_text())
    assert review["dev"]["scores"]["accuracy"]["value"] > 0.95
    assert "in at most 8 windows" in (desk / "all" / "model" / "README.md").read_text()
    text, label = document(random.Random(7))
    with pytest.warns(UserWarning, match=r"1 of 1 inputs are longer .* lost their ends"):
        bertkin.predict(desk / "all", [text], windows=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all of it is read, and nothing said
        assert bertkin.predict(desk / "all", [text])[0]["label"] == label
    with pytest.warns(UserWarning, match="1 of 1 inputs are longer"):
        assert main(["predict", str(desk / "all"), text, "--windows", "1"]) == 0


def test_without_windows_the_beginning_alone_is_read_and_that_is_said(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [one for one in OPTIONS if one != "--quiet"]
    command = ["finetune", str(desk / "stock"), str(desk / "data"), "--train.steps", "2", "--out", str(desk / "cut")]
    assert main([*command, *options]) == 0
    assert "128 examples are longer than 16 tokens" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--windows", "0"], "--windows: 0 is out of range"),
        (
            ["--windows", "4", "--task", "sequence"],
            "--windows: a task of sequence is not answered by the mean of windows",
        ),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    desk: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", str(desk / "stock"), str(desk / "data"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*command, *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_vectors_of_texts_that_are_cut_come_with_a_warning(desk: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 32 tokens, and lost their ends"):
        bertkin.embed(desk / "stock", ["film town", document(random.Random(3))[0]])
