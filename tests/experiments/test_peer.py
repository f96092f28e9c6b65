"""The experiments' own ground: the same questions and the same text for both sides, and a peer that trains."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.models.pretrained import load_model
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import english_mini
import heldout
import peer
import sharing


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cats sleep on the warm mat and the dogs sleep under it"] * 3, vocab_size=45)


def split_of(lengths: list[int], vocabulary: int = 45, seed: int = 0) -> Any:
    """Documents of these lengths, of random tokens."""
    tokens = np.random.default_rng(seed).integers(5, vocabulary, sum(lengths)).astype(np.uint16)
    documents = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(tokens=tokens, documents=documents, n_tokens=len(tokens), n_documents=len(lengths))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_the_stream_is_every_document_between_its_marks(tokenizer: Tokenizer, lengths: list[int]) -> None:
    split = split_of(lengths)
    expected: list[int] = []
    for low, high in zip(split.documents[:-1], split.documents[1:], strict=True):
        expected += [tokenizer.cls_id, *split.tokens[low:high], tokenizer.sep_id]
    joined = peer.stream(split, tokenizer)
    assert joined.tolist() == expected and joined.dtype == np.uint16
    chunks = peer.Chunks(joined, 4)
    cut = [token for i in range(len(chunks)) for token in chunks[i]["input_ids"]]
    assert cut == expected[: len(expected) // 4 * 4]


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=60))
def test_a_row_lies_inside_one_document_and_only_its_text_is_asked(tokenizer: Tokenizer, lengths: list[int]) -> None:
    split = split_of(lengths)
    if max(lengths) < 126:
        with pytest.raises(UserError, match="no held-out document has 126 tokens"):
            heldout.evaluation_rows(split, tokenizer)
        return
    rows = heldout.evaluation_rows(split, tokenizer)
    asked = rows.labels != heldout.IGNORED
    original = np.where(asked, rows.labels, rows.inputs)
    assert len(original) == min(512, sum(length // 126 for length in lengths))
    assert (original[:, 0] == tokenizer.cls_id).all() and (original[:, -1] == tokenizer.sep_id).all()
    assert not asked[:, [0, -1]].any()
    pieces = {
        split.tokens[begin : begin + 126].astype(np.int64).tobytes()
        for low, high in zip(split.documents[:-1], split.documents[1:], strict=True)
        for begin in range(low, high - 125, 126)
    }
    assert all(row[1:-1].tobytes() in pieces for row in original)
    assert heldout.evaluation_rows(split, tokenizer).sha256 == rows.sha256


def test_fifteen_percent_are_asked_and_eight_of_ten_hidden(tokenizer: Tokenizer) -> None:
    rows = heldout.evaluation_rows(split_of([70_000]), tokenizer)
    asked = rows.labels != heldout.IGNORED
    assert asked[:, 1:-1].mean() == pytest.approx(0.15, abs=0.01)
    hidden = rows.inputs[asked] == tokenizer.mask_id
    kept = rows.inputs[asked] == rows.labels[asked]
    assert hidden.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.02)
    assert not np.isin(rows.inputs[asked & (rows.inputs != tokenizer.mask_id)], tokenizer.special_ids).any()


def test_the_peer_trains_and_opens_here_with_the_same_answers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = peer.stream(split_of([700, 900], seed=1), tokenizer)
    rows = heldout.evaluation_rows(split_of([300, 1500]), tokenizer)
    shape = peer.Shape(tokenizer.vocab_size, layers=1, hidden=32, heads=2, intermediate=48, max_length=128)
    run = peer.train(tokens, tokenizer, shape, rows, tmp_path, peer.Settings(batch=4), steps=3, every=2)
    assert [point["step"] for point in run.curve] == [2, 3] and len(run.seconds) == 3
    assert json.loads((tmp_path / "peer.json").read_text())["curve"] == run.curve
    assert Tokenizer.load(run.folder).fingerprint == tokenizer.fingerprint
    loss, accuracy = heldout.ask(load_model(run.folder), rows)
    assert loss == pytest.approx(run.curve[-1]["loss"], abs=1e-4) and accuracy == pytest.approx(
        run.curve[-1]["accuracy"], abs=1e-4
    )
    assert len(peer.throughput(tokens, tokenizer, shape, peer.Settings(batch=4), steps=2, warmup=1)) == 2


def test_a_peer_that_was_broken_off_goes_on_from_its_last_evaluation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = peer.stream(split_of([700, 900], seed=1), tokenizer)
    rows = heldout.evaluation_rows(split_of([300, 1500]), tokenizer)
    shape = peer.Shape(tokenizer.vocab_size, layers=1, hidden=32, heads=2, intermediate=48, max_length=128)

    def breaks(point: dict[str, float]) -> None:
        if point["step"] == 4:
            raise OSError("the machine went away")

    def train(out: Path, told: Callable[[dict[str, float]], None] = lambda _: None) -> peer.Run:
        return peer.train(tokens, tokenizer, shape, rows, out, peer.Settings(batch=4), steps=6, every=2, told=told)

    whole = train(tmp_path / "whole")
    with pytest.raises(OSError):
        train(tmp_path / "broken", breaks)
    again = train(tmp_path / "broken")
    assert [point["step"] for point in again.curve] == [2, 4, 6] and len(again.seconds) == 6
    assert again.curve[0] == whole.curve[0]
    # Not the same bits: the Trainer draws masks a batch ahead of its checkpoint, and draws that batch's anew.
    assert again.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], abs=0.01)
    assert not (tmp_path / "broken" / "checkpoints").exists()


def test_a_step_that_was_disturbed_does_not_make_the_peer_slower() -> None:
    assert peer.quiet([1.0] * 15 + [9.0] * 5) == 1.0


def test_a_part_is_made_once_for_its_settings(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"n": len(made)}

    assert sharing.once(tmp_path, {"minutes": 1}, make) == {"n": 1}
    assert sharing.once(tmp_path, {"minutes": 1}, make) == {"n": 1}
    assert sharing.once(tmp_path, {"minutes": 1, "steps": 5}, make) == {"n": 2}
    assert sharing.once(tmp_path, {"minutes": 1}, make) == {"n": 2}  # made with more settings than are asked
    assert sharing.once(tmp_path, {"minutes": 2}, make) == {"n": 3}


def test_the_picture_and_the_table_show_every_part(tmp_path: Path) -> None:
    curve = [{"step": 1, "minutes": 0.5, "loss": 7.0, "accuracy": 0.1}]
    part = {"what": "some part", "minutes": 0.5, "steps": 1, "loss": 7.0, "accuracy": 0.1, "blimp": {"mean": 0.5}}
    content = {"parts": {"ours": {**part, "curve": curve}}}
    english_mini.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert "some part" in english_mini.table(content) and "50.0%" in english_mini.table(content)
