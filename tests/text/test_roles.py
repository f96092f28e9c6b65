"""Who begins, ends and fills up a text, in the tokenizers of every member; and T5's sentinels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkin.errors import UserError
from bertkin.text.batches import Specials
from bertkin.text.cache import tokenizer_for
from bertkin.text.encoder import Encoder
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

KINDS = ["wordpiece", "bpe", "byte-bpe", "unigram", "character", "word"]
TEXTS = [f"the cat number {n} sat on a mat, while rain fell and children sang old songs." for n in range(200)]
MARKS = [f"<extra_id_{n}>" for n in range(7)]


@pytest.fixture(scope="module", params=KINDS)
def t5(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, kind=request.param, sentinels=7)


def theirs(folder: Path, marks: list[str], config: dict[str, Any]) -> Tokenizer:
    """A tokenizer as others make them: these special tokens first, and this tokenizer_config.json."""
    from tokenizers import AddedToken, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    letters = {letter: number for number, letter in enumerate([*marks, *pre_tokenizers.ByteLevel.alphabet()])}
    backend = Backend(BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


def roles(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token(i) for i in (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)]


# Other people's tokenizers.


def test_gpt2_has_one_mark_for_everything(tmp_path: Path) -> None:
    named = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")
    for config in (named, {}):
        tokenizer = theirs(tmp_path, ["<|endoftext|>"], config)
        assert roles(tokenizer) == ["<|endoftext|>"] * 3
        assert tokenizer.special_ids.tolist() == [0] and len(tokenizer.sentinels) == 0
        assert not tokenizer.has("mask")
        with pytest.raises(UserError, match="no mask token"):
            _ = tokenizer.mask_id
        ids = Specials.of(tokenizer)
        assert (ids.cls, ids.sep, ids.pad, ids.mask, len(ids.sentinels)) == (0, 0, 0, -1, 0)


def test_llama_begins_and_ends_with_marks_of_its_own(tmp_path: Path) -> None:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert roles(theirs(tmp_path, ["<unk>", "<s>", "</s>"], named)) == ["<s>", "</s>", "</s>"]
    newer = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    marks = ["<|begin_of_text|>", "<|end_of_text|>"]
    assert roles(theirs(tmp_path, marks, newer)) == [*marks, "<|end_of_text|>"]
    assert roles(theirs(tmp_path, marks, {})) == [*marks, "<|end_of_text|>"]
    odd = {"bos_token": "<go>", "eos_token": {"content": "<halt>"}, "pad_token": "<fill>"}
    assert roles(theirs(tmp_path, ["<fill>", "<go>", "<halt>"], odd)) == ["<go>", "<halt>", "<fill>"]


def test_t5_has_an_end_and_sentinels_and_no_beginning(tmp_path: Path) -> None:
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = theirs(tmp_path, ["<pad>", "</s>", "<unk>", *reversed(MARKS)], named)
    assert roles(tokenizer) == ["</s>", "</s>", "<pad>"]
    assert tokenizer.sentinels.tolist() == [9, 8, 7, 6, 5, 4, 3]
    assert not tokenizer.has("mask") and set(tokenizer.sentinels) <= set(tokenizer.special_ids)


def test_bart_is_robertas(tmp_path: Path) -> None:
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = theirs(tmp_path, marks, {})
    assert roles(tokenizer) == ["<s>", "</s>", "<pad>"] and tokenizer.token(tokenizer.mask_id) == "<mask>"


def test_a_borrowed_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, marks in {
        "gpt2": ["<|endoftext|>"],
        "llama": ["<unk>", "<s>", "</s>"],
        "t5": ["<pad>", "</s>", "<unk>", *reversed(MARKS)],
        "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    }.items():
        (tmp_path / name).mkdir()
        tokenizer = theirs(tmp_path / name, marks, {})
        again = Tokenizer.load(tokenizer.save(tmp_path / f"{name}-saved"))
        assert roles(again) == roles(tokenizer) and again.has("mask") == tokenizer.has("mask")
        assert again.sentinels.tolist() == tokenizer.sentinels.tolist()
        opened = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{name}-saved")
        assert (opened.eos_token_id, opened.pad_token_id) == (tokenizer.sep_id, tokenizer.pad_id)
        assert opened.bos_token_id == (None if name == "t5" else tokenizer.cls_id)
        assert opened("a cat", add_special_tokens=False)["input_ids"] == tokenizer.encode("a cat")


# Our own, with sentinels.


def test_sentinels_end_the_vocabulary_and_the_first_is_last(t5: Tokenizer) -> None:
    n = t5.vocab_size
    assert t5.sentinels.tolist() == list(range(n - 1, n - 8, -1))
    assert [t5.token(i) for i in t5.sentinels] == MARKS
    assert set(t5.sentinels) <= set(t5.special_ids)
    ids = Specials.of(t5)
    assert np.array_equal(ids.sentinels, t5.sentinels) and not ids.ordinary[t5.sentinels].any()


def test_a_sentinel_is_one_token_and_in_a_corpus_plain_text(t5: Tokenizer) -> None:
    text = "the cat <extra_id_0> on<extra_id_6>"
    ids = t5.encode(text)
    assert [i for i in ids if i in t5.sentinels] == [t5.sentinels[0], t5.sentinels[6]]
    assert not np.isin(Encoder(t5).encode([text]).ids, t5.sentinels).any()
    assert t5.encode(TEXTS[0]) == [i for i in t5.encode(TEXTS[0]) if i not in t5.sentinels]


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_that_is_asked_counts_the_sentinels(kind: str) -> None:
    full = train_tokenizer(TEXTS, kind=kind).vocab_size  # type: ignore[arg-type]
    size = full - 3
    made = train_tokenizer(TEXTS, kind=kind, vocab_size=size, sentinels=7)  # type: ignore[arg-type]
    plain = train_tokenizer(TEXTS, kind=kind, vocab_size=size - 7)  # type: ignore[arg-type]
    assert made.vocab_size == size and len(made.sentinels) == 7
    if kind != "unigram":  # whose training breaks ties by chance
        assert [made.token(i) for i in range(size - 7)] == [plain.token(i) for i in range(size - 7)]
        assert made.encode_batch(TEXTS) == plain.encode_batch(TEXTS)


def test_a_default_size_counts_the_sentinels(monkeypatch: pytest.MonkeyPatch) -> None:
    from bertkin.text import training

    monkeypatch.setattr(training, "default_vocab_size", lambda words: 500 if words > 10**9 else 60)
    assert train_tokenizer(TEXTS, sentinels=7).vocab_size == 60


def test_too_many_sentinels_or_fewer_than_none_are_refused() -> None:
    with pytest.raises(UserError, match="no room for text beside 100 sentinels"):
        train_tokenizer(TEXTS, vocab_size=100, sentinels=100)
    with pytest.raises(UserError, match="-1 sentinels"):
        train_tokenizer(TEXTS, sentinels=-1)


@pytest.mark.parametrize("model_type", [None, "t5", "bart", "gpt2", "llama"])
def test_transformers_knows_the_sentinels_and_the_ends(t5: Tokenizer, tmp_path: Path, model_type: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    t5.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (t5.cls_id, t5.sep_id, t5.pad_id)
    assert set(t5.sentinels.tolist()) <= set(opened.all_special_ids)
    for text in (TEXTS[0], "the cat <extra_id_0> on <extra_id_6>"):
        assert opened(text, add_special_tokens=False)["input_ids"] == t5.encode(text)
    assert opened(TEXTS[0])["input_ids"] == [*t5.encode(TEXTS[0]), t5.sep_id]  # as T5: an end, no beginning
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == t5.fingerprint and again.sentinels.tolist() == t5.sentinels.tolist()


def test_a_trained_tokenizer_without_sentinels_begins_and_ends_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("wordpiece", "byte-bpe"):
        tokenizer = train_tokenizer(TEXTS, kind=kind)  # type: ignore[arg-type]
        opened = transformers.AutoTokenizer.from_pretrained(tokenizer.save(tmp_path / kind))
        assert (opened.bos_token_id, opened.eos_token_id) == (tokenizer.cls_id, tokenizer.sep_id)
        assert len(tokenizer.sentinels) == 0


def test_the_cache_tells_tokenizers_with_and_without_sentinels_apart(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(TEXTS))
    made = [tokenizer_for([corpus], sentinels=n, cache=tmp_path / "cache") for n in (0, 7, 0, 7, 3)]
    assert [len(tokenizer.sentinels) for tokenizer in made] == [0, 7, 0, 7, 3]
    assert made[1].fingerprint == made[3].fingerprint != made[4].fingerprint
