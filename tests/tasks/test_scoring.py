"""A sentence scores what its definition says, for every member that can score one, and in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import load_model, save_model
from bertkin.tasks.scoring import Method, _word_ends, pseudo_log_likelihood, score_sentences, ways
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

from .support import TEXT, grown

SENTENCES = ["The cats sleep.", "the dogs", "A grandmother reads unbelievable stories under the table.", "我们 sleep!"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=90)


@pytest.fixture(scope="module")
def with_sentinels() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=93, sentinels=3)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return grown(tokenizer)


# Hiding tokens.


@torch.no_grad()
def one_at_a_time(
    model: LanguageModel, tokenizer: Tokenizer, text: str, *, within_word: bool = False, shifted: bool = False
) -> float:
    """The definition, read aloud: hide a token, ask for it, put it back."""
    ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
    score = 0.0
    for place in range(1, len(ids) - 1):
        seen = list(ids)
        seen[place] = tokenizer.mask_id
        after = place + 1
        while within_word and after < len(ids) - 1 and tokenizer.token(ids[after]).startswith("##"):
            seen[after] = tokenizer.mask_id
            after += 1
        reach = np.full(len(ids), len(ids), np.int32) if shifted else None
        logits = model.logits(torch.tensor(seen), Layout.from_lengths([len(seen)], reach=reach).to("cpu"))
        score += float(logits[place - shifted].double().log_softmax(-1)[ids[place]])
    return score


def test_a_sign_is_no_part_of_the_word_before_it() -> None:
    """Of a byte-level tokenizer, too, whose tokens begin a word only after a blank."""
    text = "The cats sleep. (The dogs don't.)"
    tokenizer = train_tokenizer([text] * 20, kind="byte-bpe", vocab_size=280)
    ids = np.array([tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id])
    ends = _word_ends(ids, np.array([0]), tokenizer)
    pieces = [tokenizer.decode([token]).strip() for token in ids]
    for at, piece in enumerate(pieces):
        if piece in ("sleep", "dogs"):
            assert ends[at] == at + 1, pieces[at : ends[at]]
    assert {"sleep", "dogs"} <= set(pieces)


@pytest.mark.parametrize("family", ["bert", "roberta", "modern", "albert"])
@pytest.mark.parametrize("within_word", [False, True])
def test_a_sentence_scores_what_hiding_its_tokens_one_at_a_time_gives(
    tokenizer: Tokenizer, family: str, within_word: bool
) -> None:
    model = grown(tokenizer, family)
    scores = pseudo_log_likelihood(model, tokenizer, SENTENCES, within_word=within_word, batch_tokens=40)
    slow = [one_at_a_time(model, tokenizer, text, within_word=within_word) for text in SENTENCES]
    np.testing.assert_allclose(scores, slow, atol=1e-3)


def test_hiding_the_rest_of_the_word_changes_only_sentences_with_words_in_pieces(
    tokenizer: Tokenizer, model: LanguageModel
) -> None:
    texts = ["the the", "unbelievable"]
    assert len(tokenizer.encode(texts[0])) == 2 and len(tokenizer.encode(texts[1])) > 1
    plain = pseudo_log_likelihood(model, tokenizer, texts)
    within = pseudo_log_likelihood(model, tokenizer, texts, within_word=True)
    assert plain[0] == within[0] and plain[1] != within[1]


@pytest.mark.parametrize("family", ["modern", "gpt2", "llama"])
def test_a_hybrid_model_answers_one_place_before_and_sees_both_sides(tokenizer: Tokenizer, family: str) -> None:
    model = grown(tokenizer, family)
    scores = score_sentences(model, tokenizer, SENTENCES, objective="hybrid")
    slow = [one_at_a_time(model, tokenizer, text, shifted=True) for text in SENTENCES]
    np.testing.assert_allclose(scores, slow, atol=1e-3)


# From the left, with transformers as the judge.


@torch.no_grad()
def from_the_left(model: Any, text: list[int], cls: int) -> float:
    """transformers' log-likelihood of a text after what begins it."""
    ids = torch.tensor([[cls, *text]])
    chances = model(ids).logits[0].double().log_softmax(-1)
    return float(chances[:-1].gather(1, ids[0, 1:, None]).sum())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_writer_s_scores_are_those_of_transformers(tokenizer: Tokenizer, family: str, tmp_path: Path) -> None:
    import transformers

    model = grown(tokenizer, family)
    save_model(model, tmp_path, tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = [from_the_left(theirs, tokenizer.encode(text), tokenizer.cls_id) for text in SENTENCES]
    np.testing.assert_allclose(score_sentences(load_model(tmp_path), tokenizer, SENTENCES), expected, atol=1e-3)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_repairs_an_emptied_input_as_transformers_does(
    tokenizer: Tokenizer, with_sentinels: Tokenizer, family: str, tmp_path: Path
) -> None:
    import transformers

    chosen = with_sentinels if family == "t5" else tokenizer
    save_model(grown(chosen, family), tmp_path, tokenizer=chosen)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)
    blank = "<extra_id_0>" if family == "t5" else tokens.mask_token
    source = tokens(blank, return_tensors="pt").input_ids
    start = [
        theirs.config.decoder_start_token_id,
        tokens.convert_tokens_to_ids(blank) if family == "t5" else tokens.cls_token_id,
    ]
    expected = []
    for text in SENTENCES:
        ids = torch.tensor([[*start, *chosen.encode(text)]])
        with torch.no_grad():
            chances = theirs(input_ids=source, decoder_input_ids=ids).logits[0].double().log_softmax(-1)
        expected.append(float(chances[1:-1].gather(1, ids[0, 2:, None]).sum()))
    np.testing.assert_allclose(score_sentences(load_model(tmp_path), chosen, SENTENCES), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("noise", "source", "family"),
    [
        ("masking", "nnn", "bart"),
        ("mass", "nnn", "bart"),
        ("permutation+infilling", "n", "bart"),
        ("deletion", "", "bart"),
        ("infilling", "n", "t5"),
        ("prefix:0.5,drop:0.5", "", "t5"),
        ("spans:0.5,prefix:0.5", "s", "t5"),
    ],
)
def test_an_input_is_emptied_as_the_noise_that_was_learnt_would_empty_it(
    tokenizer: Tokenizer, with_sentinels: Tokenizer, noise: str, source: str, family: str
) -> None:
    tokens = with_sentinels if family == "t5" else tokenizer
    model, text = grown(tokens, family), tokens.encode("the cats sleep")[:3]
    marks = {"n": tokens.mask_id, "s": int(tokens.sentinels[0]) if family == "t5" else -1}
    first = [] if family == "t5" else [tokens.cls_id]
    read = [*first, *(marks[mark] for mark in source), tokens.sep_id]
    begin = [model.architecture.start_id, *first, *([marks["s"]] if source == "s" else [])]
    ids = torch.tensor([*begin, *text])
    layouts = [Layout.from_lengths([len(part)]).to("cpu") for part in (ids, read)]
    with torch.no_grad():
        logits = model.logits(ids, layouts[0], None, (torch.tensor(read), layouts[1])).double().log_softmax(-1)
    expected = logits[len(begin) - 1 : -1].gather(1, ids[len(begin) :, None]).sum()
    found = score_sentences(model, tokens, [tokens.decode(text)], noise=noise)
    assert tokens.encode(tokens.decode(text)) == text
    assert found[0] == pytest.approx(float(expected), abs=1e-3)


def test_an_electra_s_score_is_that_no_token_was_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    save_model(grown(tokenizer, "electra"), tmp_path, tokenizer=tokenizer)
    theirs = transformers.ElectraForPreTraining.from_pretrained(tmp_path).eval()
    expected = []
    for text in SENTENCES:
        ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]])
        with torch.no_grad():
            expected.append(float((1 - theirs(ids).logits[0, 1:-1].double().sigmoid()).log().sum()))
    np.testing.assert_allclose(score_sentences(load_model(tmp_path), tokenizer, SENTENCES), expected, atol=1e-3)


@pytest.mark.parametrize("objective", ["causal", "prefix", "hybrid"])
def test_an_encoder_that_learnt_to_write_scores_without_seeing_what_comes(tokenizer: Tokenizer, objective: str) -> None:
    """A sentence scores the sum of what its words add, each of which the later ones cannot change."""
    model = grown(tokenizer, "modern")

    def score(*texts: str) -> Any:
        return score_sentences(model, tokenizer, texts, "causal", objective=objective)

    one, two, other = (score(text)[0] for text in ("the", "the dogs", "the cats"))
    ids = torch.tensor([tokenizer.cls_id, *tokenizer.encode("the")])
    layout = Layout.from_lengths([len(ids)], reach=np.arange(1, len(ids) + 1, dtype=np.int32)).to("cpu")
    with torch.no_grad():
        chances = model.logits(ids, layout)[-1].double().log_softmax(-1)
    for total, word in ((two, "dogs"), (other, "cats")):
        first = tokenizer.encode(word)[0]
        assert total - one <= float(chances[first]) + 1e-3
    # Torch's float32 products round by how many rows they have: the last bit, and no more, may be another.
    assert one == pytest.approx(score("the", "the dogs and the cats")[0], rel=1e-6)


# Whatever the way.

WAYS: list[tuple[str, str | None, Method]] = [
    ("bert", None, "masked"),
    ("modern", "hybrid", "masked"),
    ("modern", "hybrid", "causal"),
    ("gpt2", None, "causal"),
    ("llama", None, "causal"),
    ("electra", None, "detect"),
    ("bart", None, "decoder"),
    ("t5", None, "decoder"),
]
WORDS = st.lists(
    st.sampled_from(["the", "cats", "grandmother", "unbelievable", ",", "我们", "zebra", "sleeping"]), max_size=8
)


@pytest.mark.parametrize(("family", "objective", "method"), WAYS, ids=str)
def test_a_score_does_not_depend_on_the_sentences_beside_it(
    tokenizer: Tokenizer, with_sentinels: Tokenizer, family: str, objective: str | None, method: Method
) -> None:
    tokens = with_sentinels if family == "t5" else tokenizer
    model = grown(tokens, family)

    @settings(max_examples=15)
    @given(texts=st.lists(WORDS.map(" ".join), max_size=6), batch_tokens=st.integers(1, 300))
    def holds(texts: list[str], batch_tokens: int) -> None:
        scores = score_sentences(model, tokens, texts, method, objective=objective, batch_tokens=batch_tokens)
        alone = [score_sentences(model, tokens, [text], method, objective=objective)[0] for text in texts]
        np.testing.assert_allclose(scores, np.array(alone).reshape(-1), atol=1e-3)
        assert np.all(scores <= 0)
        assert all(score == 0 for score, text in zip(scores, texts, strict=True) if not text)

    holds()


def test_the_same_tokens_get_the_same_score_to_the_bit(tokenizer: Tokenizer, model: LanguageModel) -> None:
    scores = pseudo_log_likelihood(model, tokenizer, ["The cats sleep.", *SENTENCES, "the  CATS sleep ."])
    assert scores[0] == scores[1] == scores[-1]


def test_scoring_leaves_the_model_as_it_was(tokenizer: Tokenizer, model: LanguageModel) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    model.train()
    pseudo_log_likelihood(model, tokenizer, SENTENCES)
    assert model.training
    model.eval()
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, model.parameters(), strict=True))


# What is refused.


@pytest.mark.parametrize(("family", "room"), [("modern", 46), ("gpt2", 48), ("bart", 47), ("electra", 46)])
def test_a_sentence_too_long_for_the_model_is_refused(tokenizer: Tokenizer, family: str, room: int) -> None:
    model = grown(tokenizer, family)
    with pytest.raises(UserError, match=f"of {room + 1} tokens .* reads at most {room}"):
        score_sentences(model, tokenizer, ["the " * (room + 1)])
    assert score_sentences(model, tokenizer, ["the " * room]) < 0


def test_a_tokenizer_larger_than_the_model_is_refused(model: LanguageModel) -> None:
    other = train_tokenizer([*TEXT, "quite other words: zebra, xylophone, jazz, quick, vow, fjord"] * 3, vocab_size=120)
    with pytest.raises(UserError, match="the model only"):
        pseudo_log_likelihood(model, other, SENTENCES)


def test_a_way_the_model_does_not_know_is_refused(tokenizer: Tokenizer) -> None:
    gpt, bert = grown(tokenizer, "gpt2"), grown(tokenizer, "bert")
    with pytest.raises(UserError, match="a gpt2 cannot be scored by 'masked'; choose causal"):
        score_sentences(gpt, tokenizer, SENTENCES, "masked")
    with pytest.raises(UserError, match="trained with masked cannot be scored by 'causal'; choose masked"):
        score_sentences(bert, tokenizer, SENTENCES, "causal", objective="masked")
    with pytest.raises(UserError, match="--within-word"):
        score_sentences(gpt, tokenizer, SENTENCES, within_word=True)
    bare = grown(tokenizer, "bert")
    bare.missing = ("head.bias",)
    with pytest.raises(UserError, match="no head that answers"):
        score_sentences(bare, tokenizer, SENTENCES)


def test_a_tokenizer_without_a_blank_cannot_hide_anything(tokenizer: Tokenizer) -> None:
    words = train_tokenizer(TEXT * 3, kind="byte-bpe", vocab_size=300)
    blind = Tokenizer.from_str(words.backend.to_str().replace(words.token(words.mask_id), "<nothing>"))
    assert not blind.has("mask")
    for family in ("bert", "bart"):
        with pytest.raises(UserError, match="no mask token"):
            score_sentences(grown(blind, family), blind, SENTENCES)
    assert ways(grown(blind, "gpt2"), blind, "hybrid") == ("causal",)
