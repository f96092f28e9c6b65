"""What follows a prompt scores what transformers gives it, token by token, whatever is asked beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.models.pretrained import load_model, save_model
from bertkin.tasks import continuations as room
from bertkin.tasks.continuations import divided, score_blanks, score_continuations
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

from .support import TEXT, filler, grown, writer

PROMPTS = ["the cats sleep on", "the", "the grandmother reads stories under", "the cats sleep on", ""]
CHOICES = ["the mat", "the unbelievable table", "it", "mat", "the dogs"]


@pytest.fixture(scope="module", params=["wordpiece", "byte-bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXT * 30, kind=request.param, vocab_size=300 if request.param == "byte-bpe" else None)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=90)


@pytest.fixture(scope="module")
def with_sentinels() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=93, sentinels=3)


# Where a prompt ends.


@settings(max_examples=100)
@given(
    prompt=st.text(st.sampled_from("the cats,\n"), max_size=20),
    choices=st.lists(st.text(st.sampled_from("the dog. "), min_size=1, max_size=8), min_size=1, max_size=4),
)
def test_the_cut_keeps_the_tokens_of_the_whole_text(tokenizer: Tokenizer, prompt: str, choices: list[str]) -> None:
    begin, answers = divided(tokenizer, prompt, choices)
    for choice, answer in zip(choices, answers, strict=True):
        assert [*begin, *answer] == tokenizer.encode(prompt + choice)


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_word_that_follows() -> None:
    tokenizer = train_tokenizer(TEXT * 30, kind="byte-bpe", vocab_size=300)
    assert divided(tokenizer, "the cats ", ["sleep", "dogs"]) == divided(tokenizer, "the cats", [" sleep", " dogs"])
    begin, answers = divided(tokenizer, "the cats ", ["sleep"])
    assert begin == tokenizer.encode("the cats") and tokenizer.decode(answers[0]) == " sleep"


# Writers.


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_writer_s_scores_are_those_of_transformers(tokenizer: Tokenizer, family: str, tmp_path: Path) -> None:
    import transformers

    save_model(grown(tokenizer, family, max_length=64), tmp_path, tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    found = score_continuations(writer(load_model(tmp_path), tokenizer), PROMPTS, [" " + c for c in CHOICES])
    for prompt, choice, score, n in zip(PROMPTS, CHOICES, *found, strict=True):
        begin, (answer,) = divided(tokenizer, prompt, [" " + choice])
        ids = torch.tensor([[tokenizer.cls_id, *begin, *answer]])
        with torch.no_grad():
            logits = theirs(ids).logits[0].double().log_softmax(-1)
        expected = logits[:-1].gather(1, ids[0, 1:, None])[-len(answer) :].sum()
        assert n == len(answer)
        assert score == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_s_scores_are_those_of_transformers(
    words: Tokenizer, with_sentinels: Tokenizer, family: str, tmp_path: Path
) -> None:
    import transformers

    tokens = with_sentinels if family == "t5" else words
    save_model(grown(tokens, family), tmp_path, tokenizer=tokens)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = score_continuations(writer(load_model(tmp_path), tokens), PROMPTS, CHOICES)
    start = [theirs.config.decoder_start_token_id, *([] if family == "t5" else [tokens.cls_id])]
    for prompt, choice, score in zip(PROMPTS, CHOICES, found.scores, strict=True):
        answer = tokens.encode(choice)
        with torch.no_grad():
            logits = theirs(
                input_ids=encode(prompt, return_tensors="pt").input_ids,
                decoder_input_ids=torch.tensor([[*start, *answer]]),
            ).logits[0]
        chances = logits.double().log_softmax(-1)[len(start) - 1 : -1]
        assert score == pytest.approx(float(chances.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-3)


MANNERS: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "causal", {}),
    ("modern", "prefix", {"both_sides": True}),
    ("bert", "unilm", {"blank": -1}),
]


@pytest.mark.parametrize(("family", "objective", "manner"), MANNERS, ids=str)
def test_a_choice_scores_the_sum_of_its_tokens_each_after_those_before(
    words: Tokenizer, family: str, objective: str, manner: dict[str, Any]
) -> None:
    """Each token is asked anew of the whole text before it, with no cache between."""
    manner = {name: words.mask_id if name == "blank" else value for name, value in manner.items()}
    one = writer(grown(words, family), words, **manner)
    found = score_continuations(one, PROMPTS, CHOICES)
    for prompt, choice, score in zip(PROMPTS, CHOICES, found.scores, strict=True):
        begin, (answer,) = divided(words, prompt, [choice])
        seen, expected = [words.cls_id, *begin], 0.0
        sight = len(seen) if one.manner.both_sides else 1
        for token in answer:
            text = [*seen, words.mask_id] if one.manner.blank is not None else seen
            reach = np.maximum(np.arange(1, len(text) + 1), sight).astype(np.int32)
            with torch.no_grad():
                logits = one.model.logits(torch.tensor(text), Layout.from_lengths([len(text)], reach=reach).to("cpu"))
            expected += float(logits[-1].double().log_softmax(-1)[token])
            seen.append(token)
        assert score == pytest.approx(expected, abs=1e-3)


PAIRS = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from([*CHOICES, "the mat the mat", "我们"])), min_size=1, max_size=8
)


@pytest.mark.parametrize("family", ["gpt2", "bart", "t5"])
def test_a_score_does_not_depend_on_what_is_asked_beside_it(
    words: Tokenizer, with_sentinels: Tokenizer, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = with_sentinels if family == "t5" else words
    one = writer(grown(tokens, family), tokens)

    @settings(max_examples=15)
    @given(pairs=PAIRS, kept=st.sampled_from([1, 30, 100, 10**6]))
    def holds(pairs: list[tuple[str, str]], kept: int) -> None:
        monkeypatch.setattr(room, "KEPT", kept)
        found = score_continuations(one, *zip(*pairs, strict=True))
        alone = [score_continuations(one, [prompt], [choice]) for prompt, choice in pairs]
        np.testing.assert_allclose(found.scores, [part.scores[0] for part in alone], atol=1e-3)
        assert found.tokens.tolist() == [part.tokens[0] for part in alone]

    holds()


# Fillers.


@pytest.mark.parametrize(("family", "objective"), [("bert", None), ("modern", "hybrid"), ("gpt2", "hybrid")])
def test_a_choice_in_a_blank_is_asked_from_left_to_right(words: Tokenizer, family: str, objective: str | None) -> None:
    model = grown(words, family)
    blanks = [("the cats ", "on the mat."), ("", "dogs"), ("the cats ", "on the mat."), ("the dogs sleep ", "")]
    choices = ["sleep", "unbelievable", "unbelievable dogs", "the"]
    found = score_blanks(filler(model, words, objective), blanks, choices)
    for (before, after), choice, score, n in zip(blanks, choices, *found, strict=True):
        left, right, answer = words.encode(before), words.encode(after), words.encode(choice)
        assert n == len(answer)
        expected = 0.0
        for place, token in enumerate(answer):
            ids = [words.cls_id, *left, *answer[:place], *[words.mask_id] * (n - place), *right, words.sep_id]
            reach = np.full(len(ids), len(ids), np.int32) if objective else None
            with torch.no_grad():
                logits = model.logits(torch.tensor(ids), Layout.from_lengths([len(ids)], reach=reach).to("cpu"))
            expected += float(logits[1 + len(left) + place - bool(objective)].double().log_softmax(-1)[token])
        assert score == pytest.approx(expected, abs=1e-3)


def test_many_choices_in_many_blanks_score_what_each_scores_alone(
    words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROWS", 3)
    loaded = filler(grown(words, "bert"), words)
    blanks = [(before, after) for before in ("the cats ", "the ") for after in ("", "on the mat") for _ in range(4)]
    choices = ["sleep", "unbelievable", "dogs", "the mat"] * 4
    found = score_blanks(loaded, blanks, choices)
    alone = [score_blanks(loaded, [blank], [choice]).scores[0] for blank, choice in zip(blanks, choices, strict=True)]
    np.testing.assert_allclose(found.scores, alone, atol=1e-3)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_repairs_a_blank(words: Tokenizer, with_sentinels: Tokenizer, family: str) -> None:
    tokens = with_sentinels if family == "t5" else words
    model = grown(tokens, family)
    blanks, choices = [("the cats ", "on the mat."), ("the dogs ", "")], ["sleep", "are sleeping"]
    found = score_blanks(filler(model, tokens), blanks, choices)
    start = model.architecture.start_id
    for (before, after), choice, score in zip(blanks, choices, found.scores, strict=True):
        left, right, answer = tokens.encode(before), tokens.encode(after), tokens.encode(choice)
        if family == "t5":
            blank = int(tokens.sentinels[0])
            source, target = [*left, blank, *right, tokens.sep_id], [start, blank, *answer]
        else:
            source = [tokens.cls_id, *left, tokens.mask_id, *right, tokens.sep_id]
            target = [start, tokens.cls_id, *left, *answer]
        with torch.no_grad():
            logits = model.logits(
                torch.tensor(target),
                Layout.from_lengths([len(target)]).to("cpu"),
                None,
                (torch.tensor(source), Layout.from_lengths([len(source)]).to("cpu")),
            )
        chances = logits.double().log_softmax(-1)[-len(answer) - 1 : -1]
        assert score == pytest.approx(float(chances.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-3)


def test_who_learnt_a_mark_for_each_token_reads_as_many_as_the_choice_has(words: Tokenizer) -> None:
    model = grown(words, "bart")
    blanks, choices = [("the cats ", "on the mat.")] * 2, ["sleep", "are sleeping"]
    found = score_blanks(filler(model, words, "denoise", "mass"), blanks, choices)
    for choice, score in zip(choices, found.scores, strict=True):
        answer = words.encode(choice)
        masks = [words.mask_id] * len(answer)
        source = [words.cls_id, *words.encode("the cats"), *masks, *words.encode("on the mat."), words.sep_id]
        target = [model.architecture.start_id, words.cls_id, *answer]
        layouts = [Layout.from_lengths([len(part)]).to("cpu") for part in (target, source)]
        with torch.no_grad():
            logits = model.logits(torch.tensor(target), layouts[0], None, (torch.tensor(source), layouts[1]))
        chances = logits.double().log_softmax(-1)[1:-1]
        assert score == pytest.approx(float(chances.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-3)


# Limits.


def test_the_longest_prompt_that_fits_is_scored_and_a_longer_one_refused(words: Tokenizer) -> None:
    one = writer(grown(words, "gpt2"), words)
    assert score_continuations(one, ["the " * 46], ["the the"]).tokens.tolist() == [2]  # the last is never read
    with pytest.raises(UserError, match="choice 2: prompt and choice have 49 tokens, the model reads 48"):
        score_continuations(one, ["the " * 46] * 2, ["the", "the the the"])
    blind = filler(grown(words, "bert"), words)
    score_blanks(blind, [("the " * 45, "")], ["the"])
    with pytest.raises(UserError, match="has 49 tokens, the model reads 48"):
        score_blanks(blind, [("the " * 45, "")], ["the the"])


def test_a_shorter_choice_beside_a_long_one_needs_no_more_room_than_it_has(words: Tokenizer) -> None:
    one = writer(grown(words, "gpt2"), words)
    both = score_continuations(one, ["the " * 46, "the"], ["the the", "the " * 20])
    assert both.scores[0] == pytest.approx(score_continuations(one, ["the " * 46], ["the the"]).scores[0], abs=1e-3)


def test_a_writer_has_no_blanks_and_a_filler_does_not_write(words: Tokenizer) -> None:
    with pytest.raises(UserError, match="'masked'"):
        score_blanks(filler(grown(words, "gpt2"), words), [("the", "")], ["mat"])
    with pytest.raises(UserError, match="cannot write"):
        score_continuations(filler(grown(words, "bert"), words), ["the"], ["mat"])
