"""Denoising: source and target together are the text, whatever the noise, and a row is its own whoever makes it."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.config import Objective
from bertkin.errors import UserError
from bertkin.objectives.denoise import check_noise, parse_noise
from bertkin.objectives.make import make_batch
from bertkin.objectives.noises import PARTERS, SPOILERS
from bertkin.text.batches import Batch, Pieces, Specials, cut, plan
from memory_split import MemorySplit, distinct, document_lengths, long_lengths, realistic, seeds, split_of
from memory_split import specials_of as plain_specials
from unframed import UNK, asking, source_of, unframed, with_sentinels

LENGTH = 32
NOISES = [*SPOILERS, *PARTERS, "permutation+infilling", "infilling+rotation+permutation", "infilling:0.5,prefix:0.5"]
CASES = [
    (noise, frame) for noise in (*SPOILERS, *PARTERS) for frame in ("BART", "T5") if (noise, frame) != ("spans", "BART")
]


def marks(ids: Specials, frame: str) -> Specials:
    return with_sentinels(ids) if frame == "T5" else ids


def make(split: MemorySplit, ids: Specials, objective: Objective, *, seed: int = 0, row: int = 0, n: int = 4) -> Batch:
    return make_batch(split, ids, seed=seed, first_row=row, n_rows=n, length=LENGTH, objective=objective)


def pieces_of(split: MemorySplit, *, seed: int, row: int, n: int = 4) -> Pieces:
    starts, _ = plan(split, seed=seed, first_row=row, n_rows=n, length=LENGTH)
    return cut(split, starts, LENGTH)


def ends_of(noise: str, split: MemorySplit, pieces: Pieces) -> list[bool] | None:
    """Which pieces are asked for their end: of a text that is gone on with, those that the document ends with."""
    after = pieces.first + pieces.count
    return [bool(end in set(split.documents[1:].tolist())) for end in after] if noise == "prefix" else None


def text_of(split: MemorySplit, pieces: Pieces) -> list[tuple[list[int], list[list[int]]]]:
    """Each piece of a document, and its sentences."""
    out = []
    for document, first, count in zip(pieces.document, pieces.first, pieces.count, strict=True):
        if document >= 0:
            inner = [int(s) for s in split.sentences if first < s < first + count]
            ends = itertools.pairwise([int(first), *inner, int(first + count)])
            parts = [split.tokens[a:b].astype(int).tolist() for a, b in ends]
            out.append((split.tokens[first : first + count].astype(int).tolist(), parts))
    return out


# Source and target give the text back.


def infilled(source: list[int], text: list[int], mask: int) -> bool:
    """Whether what is left stands in order, with a [MASK] wherever something is missing (tokens are distinct)."""
    place = {token: i for i, token in enumerate(text)}
    at, masked = 0, False
    for token in source:
        if token == mask:
            masked = True
            continue
        if place[token] != at and not (masked and place[token] > at):
            return False
        at, masked = place[token] + 1, False
    return at == len(text) or masked


def expanded(source: list[int], written: list[int], ids: Specials) -> list[int]:
    """T5's source with each sentinel replaced by what is written after it."""
    sentinels = ids.sentinels.tolist()
    used = [token for token in written if token in sentinels]
    assert used == [token for token in source if token in sentinels] == sentinels[: len(used)]
    spans: dict[int, list[int]] = {}
    for token in written:
        if token in sentinels:
            spans[token] = []
        else:
            spans[used[len(spans) - 1]].append(token)
    assert all(spans.values())
    return [t for token in source for t in spans.get(token, [token])]


def concatenates(source: list[int], sentences: list[list[int]]) -> bool:
    """Whether the source is these sentences in some order (tokens are distinct)."""
    by_first = {sentence[0]: sentence for sentence in sentences}
    at, seen = 0, 0
    while at < len(source):
        sentence = by_first.get(source[at], [-1])
        if source[at : at + len(sentence)] != sentence:
            return False
        at, seen = at + len(sentence), seen + 1
    return seen == len(sentences)


def gives_back(
    noise: str, source: list[int], written: list[int], text: list[int], sentences: list[list[int]], ids: Specials
) -> bool:
    if noise in SPOILERS and written != text:
        return False
    if noise == "masking":
        return len(source) == len(text) and all(a in (b, ids.mask) for a, b in zip(source, text, strict=True))
    if noise == "deletion":
        return source == [token for token in text if token in set(source)]
    if noise == "infilling":
        return infilled(source, text, ids.mask)
    if noise == "permutation":
        return concatenates(source, sentences)
    if noise == "rotation":
        at = source.index(text[0])
        return source[at:] + source[:at] == text
    if noise == "mass":
        hidden = [place for place, token in enumerate(source) if token == ids.mask]
        at = hidden[0]
        return len(hidden) == max(1, len(text) // 2) and source[:at] + written + source[at + len(hidden) :] == text
    if noise == "spans":
        return expanded(source, written, ids) == text
    if noise == "drop":
        return sorted([*source, *written]) == text and source == sorted(source) and written == sorted(written)
    assert noise == "prefix"
    return source + written == text and len(source) >= 1 and (len(written) >= 1 or len(text) == 1)


@pytest.mark.parametrize(("noise", "frame"), CASES)
def test_source_and_target_give_the_text_back(noise: str, frame: str) -> None:
    @given(document_lengths, seeds, st.sampled_from([0.15, 0.5, 0.9]), st.sampled_from([1.0, 3.0]))
    def property_(documents: list[int], seed: int, rate: float, mean: float) -> None:
        split, plain = distinct(documents)
        ids = marks(plain, frame)
        batch = make(split, ids, asking(noise, rate=rate, span_mean=mean), seed=seed)
        pieces = pieces_of(split, seed=seed, row=0)
        texts, ends = text_of(split, pieces), ends_of(noise, split, pieces)
        for (source, written), (text, sentences) in zip(unframed(batch, ids, ends), texts, strict=True):
            assert gives_back(noise, source, written, text, sentences, ids)

    property_()


@given(long_lengths, seeds)
def test_joined_noises_follow_each_other(documents: list[int], seed: int) -> None:
    split, ids = distinct(documents)
    texts = text_of(split, pieces_of(split, seed=seed, row=0))
    made = unframed(make(split, ids, asking("permutation+deletion"), seed=seed), ids)
    for (source, written), (text, sentences) in zip(made, texts, strict=True):
        assert written == text
        left = [[token for token in sentence if token in set(source)] for sentence in sentences]
        assert concatenates(source, [sentence for sentence in left if sentence])
    twice = unframed(make(split, ids, asking("permutation+permutation"), seed=seed), ids)
    assert all(concatenates(source, sentences) for (source, _), (_, sentences) in zip(twice, texts, strict=True))
    for source, written in unframed(make(split, ids, asking("rotation+infilling"), seed=seed), ids):
        visible = [token for token in source if token != ids.mask]
        falls = sum(a > b for a, b in itertools.pairwise(visible))
        assert falls <= 1 and set(visible) <= set(written)


@pytest.mark.parametrize(("noise", "frame"), CASES)
def test_marks_in_the_text_are_neither_hidden_nor_asked(noise: str, frame: str) -> None:
    @given(long_lengths, seeds, st.sampled_from([0.15, 0.9]))
    def property_(documents: list[int], seed: int, rate: float) -> None:
        split, plain = distinct(documents)
        split.tokens[np.random.default_rng(seed).random(split.n_tokens) < 0.3] = UNK
        ids = marks(plain, frame)
        batch = make(split, ids, asking(noise, rate=rate), seed=seed)
        pieces = pieces_of(split, seed=seed, row=0)
        texts, ends = text_of(split, pieces), ends_of(noise, split, pieces)
        for (source, written), (text, _) in zip(unframed(batch, ids, ends), texts, strict=True):
            here = source + written if noise == "prefix" else source
            assert here.count(UNK) == text.count(UNK)
            if noise == "spans":
                assert expanded(source, written, ids) == text
        assert len(batch.ids) <= 4 * LENGTH and len(source_of(batch).ids) <= 4 * LENGTH

    property_()


@given(long_lengths, seeds, st.integers(1, 3))
def test_spans_that_marks_in_the_text_break_use_no_sentinel_twice(documents: list[int], seed: int, n: int) -> None:
    split, plain = distinct(documents)
    split.tokens[1::2] = UNK
    ids = with_sentinels(plain, n)
    batch = make(split, ids, asking("spans", rate=0.5, span_mean=6.0), seed=seed)
    texts = text_of(split, pieces_of(split, seed=seed, row=0))
    for (source, written), (text, _) in zip(unframed(batch, ids), texts, strict=True):
        assert expanded(source, written, ids) == text


# A row is its own.


def parts_of(batch: Batch) -> dict[str, Any]:
    source = source_of(batch)
    return {
        "ids": batch.ids,
        "targets": batch.targets,
        "positions": batch.layout.positions,
        "source": source.ids,
        "source positions": source.layout.positions,
    }


def offsets_of(batch: Batch) -> dict[str, Any]:
    source = source_of(batch)
    return {
        "asked": (batch.asked, batch.n_tokens - len(source.ids)),
        "starts": (batch.layout.starts[1:], len(batch.ids)),
        "rows": (batch.row_starts[1:], len(batch.ids)),
        "source starts": (source.layout.starts[1:], len(source.ids)),
        "source rows": (source.row_starts[1:], len(source.ids)),
    }


def same(one: Batch, two: Batch) -> bool:
    mine, theirs = parts_of(one) | offsets_of(one), parts_of(two) | offsets_of(two)
    return all(np.array_equal(np.hstack(mine[name]), np.hstack(theirs[name])) for name in mine)


noises = st.sampled_from([*NOISES, "spans:0.25,masking:0.25,drop:0.5"])


@given(document_lengths, noises, seeds, st.integers(1, 4))
def test_a_row_is_the_same_whatever_batch_it_is_made_in(
    documents: list[int], noise: str, seed: int, world: int
) -> None:
    split, plain = distinct(documents)
    ids = with_sentinels(plain) if "spans" in noise else plain
    whole = make(split, ids, asking(noise), seed=seed, n=4)
    assert same(whole, make(split, ids, asking(noise), seed=seed, n=4))
    for row in range(4):
        assert same(whole.slice(row, 4), make(split, ids, asking(noise), seed=seed, row=row, n=1))
    shares = whole.split(world)
    for name, expected in parts_of(whole).items():
        assert np.array_equal(np.concatenate([parts_of(share)[name] for share in shares]), expected)
    for name, (expected, _) in offsets_of(whole).items():
        moved, begin = [], 0
        for share in shares:
            places, size = offsets_of(share)[name]
            moved.append(places + begin)
            begin += size
        assert np.array_equal(np.concatenate(moved), expected)


@given(document_lengths, noises, seeds, st.sampled_from([0.05, 0.5, 1.0]), st.sampled_from([1.0, 3.0, 30.0]))
def test_neither_source_nor_target_outgrows_its_row(
    documents: list[int], noise: str, seed: int, rate: float, mean: float
) -> None:
    split, plain = distinct(documents)
    ids = with_sentinels(plain) if "spans" in noise else plain
    batch = make(split, ids, asking(noise, rate=rate, span_mean=mean), seed=seed)
    pieces = pieces_of(split, seed=seed, row=0)
    room = pieces.count + 2 * (pieces.document >= 0)
    source = source_of(batch)
    assert (batch.layout.lengths <= room).all() and (source.layout.lengths <= room).all()
    assert len(batch.row_starts) == len(source.row_starts) == 5
    for layout, starts in ((batch.layout, batch.row_starts), (source.layout, source.row_starts)):
        assert np.isin(starts, layout.starts).all()
        if layout.row_length:
            assert (np.diff(starts) == layout.row_length).all()


def test_epochs_draw_other_noise_unless_it_is_static() -> None:
    split, ids = split_of([300] * 4, vocab=500), plain_specials(500)
    for static in (False, True):
        n = -(-(1200 + 8) // (LENGTH - 2))
        found = []
        for epoch in (0, 1):
            rows = [make(split, ids, asking("infilling", static=static), row=epoch * n + r, n=1) for r in range(n)]
            found.append({(row.ids.tobytes(), source_of(row).ids.tobytes()) for row in rows})
        assert (found[0] == found[1]) is static


# What is written in a recipe.


def test_noise_is_read() -> None:
    assert parse_noise("infilling") == ((("infilling",), 1.0),)
    assert parse_noise("permutation + infilling") == ((("permutation", "infilling"), 1.0),)
    assert parse_noise("spans:0.5, rotation+deletion:0.5") == ((("spans",), 0.5), (("rotation", "deletion"), 0.5))


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (None, "no noise to repair"),
        ("", "no noise to repair"),
        ("infiling", "did you mean infilling"),
        ("spans,prefix", "'spans' has no share"),
        ("spans:half,prefix:0.5", "'half' is not a share"),
        ("spans:0.5,prefix:0.4", "a sum of 1"),
        ("spans:1.5,prefix:-0.5", "above 0"),
        ("spans:nan,prefix:0.5", "above 0"),
        ("spans:0.5,", "'' is not a noise"),
        ("permutation+spans", "spans cannot be joined to another noise"),
        ("mass+mass", "write mass once"),
    ],
)
def test_noise_that_cannot_be_read_is_refused_in_one_line(noise: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_noise(noise)
    assert "--objective.noise" in str(caught.value) and "\n" not in str(caught.value)


def test_a_noise_without_its_token_is_refused() -> None:
    ids = plain_specials(100)
    with pytest.raises(UserError, match="no sentinels, which the noise spans needs"):
        check_noise(asking("infilling:0.5,spans:0.5"), ids)
    without = replace(with_sentinels(ids), mask=-1)
    for noise in ("masking", "rotation+infilling", "mass"):
        with pytest.raises(UserError, match="no mask token"):
            check_noise(asking(noise), without)
        check_noise(asking(noise), ids)
    for noise in ("deletion", "permutation", "rotation", "spans", "drop", "prefix"):
        check_noise(asking(noise), without)
    with pytest.raises(UserError, match="no sentinels"):
        make(split_of([50], vocab=100), ids, asking("spans"))


@pytest.mark.parametrize("noise", [name for name in NOISES if name != "spans"])
def test_a_batch_is_made_far_faster_than_it_is_trained_on(noise: str) -> None:
    split, ids = realistic(2000), plain_specials(2000)
    times = []
    for i in range(15):
        begin = time.perf_counter()
        make_batch(split, ids, seed=0, first_row=32 * i, n_rows=32, length=128, objective=asking(noise))
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.008
