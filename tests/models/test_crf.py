"""A CRF against all sequences of tags there are, on chains short enough to write them down."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.models.configs import OURS
from bertkin.models.crf import Chain, Crf
from bertkin.models.presets import build
from bertkin.models.pretrained import save_model
from bertkin.models.pretrained_tasks import begin_task_model, load_task_model, save_task_model
from bertkin.models.task_heads import Answer
from bertkin.tasks.chaining import allowed
from bertkin.tasks.data.schemes import faults, guess_scheme

from .support import shape


def drawn(tags: int, seed: int) -> tuple[Crf, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    crf = Crf(tags)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2)
    return crf, generator


def worth(crf: Crf, scores: torch.Tensor, tags: tuple[int, ...]) -> float:
    """The score of one sequence, added up by hand."""
    first, between, last = (part.detach() for part in (crf.first, crf.between, crf.last))
    total = float(first[tags[0]] + last[tags[-1]]) + sum(float(scores[at, tag]) for at, tag in enumerate(tags))
    return total + sum(float(between[a, b]) for a, b in itertools.pairwise(tags))


CASES = {"tags": st.integers(1, 4), "lengths": st.lists(st.integers(0, 4), min_size=1, max_size=4)}


@settings(max_examples=40, deadline=None)
@given(**CASES, seed=st.integers(0, 9999))
def test_the_loss_is_that_of_writing_down_all_sequences(tags: int, lengths: list[int], seed: int) -> None:
    crf, draw = drawn(tags, seed)
    scores = torch.randn(sum(lengths), tags, generator=draw) * 3
    wanted = torch.randint(tags, (sum(lengths),), generator=draw)
    expected, at = 0.0, 0
    for length in lengths:
        mine = scores[at : at + length]
        if length:
            every = [worth(crf, mine, path) for path in itertools.product(range(tags), repeat=length)]
            expected += math.log(sum(map(math.exp, every))) - worth(crf, mine, tuple(wanted[at : at + length].tolist()))
        at += length
    assert float(crf(scores, wanted, lengths).detach()) == pytest.approx(expected, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(tags=st.integers(1, 4), length=st.integers(1, 4), seed=st.integers(0, 9999))
def test_the_tags_chosen_are_the_best_sequence_that_is_allowed(tags: int, length: int, seed: int) -> None:
    crf, draw = drawn(tags, seed)
    scores = torch.randn(length, tags, generator=draw) * 3
    may = [(torch.rand(shape, generator=draw) < 0.7).numpy() for shape in ((tags,), (tags, tags), (tags,))]

    def fits(path: tuple[int, ...]) -> bool:
        pairs = all(may[1][a, b] for a, b in itertools.pairwise(path))
        return bool(may[0][path[0]] and may[2][path[-1]] and pairs)

    every = [path for path in itertools.product(range(tags), repeat=length) if fits(path)]
    best, sure = Chain.of(crf, *may).decode(scores.numpy())
    if not every:  # nothing is allowed: some answer all the same
        assert len(best) == length
        return
    shares = np.array([math.exp(worth(crf, scores, path)) for path in every])
    shares /= shares.sum()
    assert tuple(best) == every[int(shares.argmax())]
    for at, tag in enumerate(best):
        marginal = sum(share for share, path in zip(shares, every, strict=True) if path[at] == tag)
        assert sure[at] == pytest.approx(marginal, abs=1e-6)


def test_nothing_learnt_and_nothing_forbidden_is_each_tag_by_itself() -> None:
    scores = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    targets = scores.argmin(1)
    loss = torch.nn.functional.cross_entropy(scores, targets, reduction="sum")
    assert float(Crf(4)(scores, targets, [5, 0, 4]).detach()) == pytest.approx(float(loss), abs=1e-4)
    best, sure = Chain.of(Crf(4), *allowed(["NOUN", "VERB", "ADJ", "X"])).decode(scores.numpy())
    assert best.tolist() == scores.argmax(1).tolist()
    np.testing.assert_allclose(sure, scores.softmax(1).max(1).values.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "labels"),
    [
        ("iob2", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
        ("bioes", ("O", "B-X", "I-X", "E-X", "S-X")),
        ("bmes", ("B", "M", "E", "S")),
        ("bioes", ("B-A", "E-A", "S-A", "B-B", "E-B", "O")),
    ],
)
def test_what_may_follow_what_is_what_the_scheme_finds_no_fault_with(scheme: str, labels: tuple[str, ...]) -> None:
    first, between, last = allowed(labels)
    for length in (1, 2, 3, 4):
        for path in itertools.product(range(len(labels)), repeat=length):
            pairs = all(between[a, b] for a, b in itertools.pairwise(path))
            fits = bool(first[path[0]] and last[path[-1]] and pairs)
            tags = [labels[at] for at in path]
            assert fits == (not faults(tags, scheme)), tags
    assert guess_scheme([labels]) == scheme


def test_a_model_with_a_crf_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_model(build(shape("bert")), tmp_path / "stock")
    model = begin_task_model(tmp_path / "stock", Answer("tokens", 3, crf=True), seed=1)
    assert model.crf is not None
    save_task_model(model, tmp_path / "tagger", labels=("O", "B-X", "I-X"), problem="tokens")
    again, config = load_task_model(tmp_path / "tagger")
    assert config["model_type"] == OURS and again.answer == model.answer and again.crf is not None
    for mine, theirs in zip(model.crf.parameters(), again.crf.parameters(), strict=True):
        assert torch.equal(mine, theirs)
