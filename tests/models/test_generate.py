"""Writing gives the tokens that transformers writes, and every prompt the same ones alone as in company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertkin.models import generate as room
from bertkin.models import kernels
from bertkin.models.generate import Decoding, Manner, Reader, candidates, choose, write
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import load_model, save_model
from bertkin.text.layout import Layout

from .support import VOCABULARY, hushed, ours
from .test_family import reference

GREEDY = Decoding(max_new_tokens=20, temperature=0)
PROMPTS = [[5, 9, 7, 30, 11], [8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51]]
WRITERS = [
    "gpt2",
    "llama",
    "llama with shared keys",
    "llama with wide heads",
    "bart",
    "t5",
    "t5 1.1",
    "t5 with wide heads",
]
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"kv_heads": 2},
    "bart": {"decoder_layers": 2},
    "t5": {"decoder_layers": 2},
    "bert": {},
    "modern": {"local_window": 8},
    "albert": {"embedding": 16, "groups": 2},
}
"""Families whose weights may write; encoders by what their layout says each token sees."""


def manner(model: LanguageModel, **more: Any) -> Manner:
    return Manner(start=(model.architecture.start_id,) if model.architecture.both else (), **more)


def written(model: LanguageModel, prompts: list[list[int]], how: Decoding = GREEDY, **more: Any) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in prompts]
    more = {"manner": manner(model), **more}
    for step in write(model, prompts, how, **more):
        for place, token in step:
            texts[place].append(token)
    return texts


def theirs(model: Any, prompt: list[int], **options: Any) -> list[int]:
    """What transformers' generate writes, without what it fills up with after the end."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 20, **options}
    with hushed():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    new = out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]
    ends = options["eos_token_id"]
    last = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
    return list(new[: last + 1])


def ends_of(text: list[int]) -> list[list[int]]:
    """Ends that never come, and two sets of which some come in the middle of a text."""
    return [[3], [3, *text[4:6]], list(range(3, VOCABULARY, 5))]


@pytest.mark.parametrize("member", WRITERS)
@pytest.mark.parametrize("beams", [1, 4])
def test_the_tokens_are_those_of_transformers_with_and_without_its_cache(
    member: str, beams: int, tmp_path: Path
) -> None:
    their = reference(member)
    their.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    first = written(model, PROMPTS[:1])[0]
    for ends in ends_of(first):
        found = written(model, PROMPTS, replace(GREEDY, beams=beams), ends=ends)
        for prompt, text in zip(PROMPTS, found, strict=True):
            for use_cache in (True, False):
                assert text == theirs(their, prompt, num_beams=beams, eos_token_id=ends, use_cache=use_cache)


@pytest.mark.parametrize("member", ["gpt2", "t5 1.1"])
@pytest.mark.parametrize("options", [{"length_penalty": 2.0}, {"length_penalty": -0.5}, {"repetition_penalty": 1.4}])
@pytest.mark.parametrize("beams", [1, 3])
def test_penalties_are_those_of_transformers(
    member: str, options: dict[str, float], beams: int, tmp_path: Path
) -> None:
    if beams == 1 and "length_penalty" in options:
        pytest.skip("a single text has no rivals")
    their = reference(member)
    their.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    how = replace(GREEDY, beams=beams, **options)
    ends = list(range(3, VOCABULARY, 7))
    for prompt, text in zip(PROMPTS, written(model, PROMPTS, how, ends=ends), strict=True):
        assert text == theirs(their, prompt, num_beams=beams, eos_token_id=ends, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "t5"])
def test_what_a_model_trained_here_writes_transformers_writes(family: str, tmp_path: Path) -> None:
    """Briefly trained, so that its texts are not one token again and again."""
    import transformers

    model = trained(family)
    save_model(model, tmp_path)
    kind = "AutoModelForSeq2SeqLM" if model.architecture.both else "AutoModelForCausalLM"
    their = getattr(transformers, kind).from_pretrained(tmp_path)
    for beams in (1, 4):
        found = written(model, PROMPTS, replace(GREEDY, beams=beams), ends=[3])
        assert max(len(set(text)) for text in found) > 3
        for prompt, text in zip(PROMPTS, found, strict=True):
            assert text == theirs(their, prompt, num_beams=beams, eos_token_id=[3])


def trained(family: str) -> LanguageModel:
    """A model that learnt to count in threes: 10 13 16 …"""
    model = ours(family, **KINDS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = np.random.default_rng(0)
    for _ in range(60):
        first = draw.integers(4, VOCABULARY, (16, 1))
        ids = (first + 3 * np.arange(12)) % (VOCABULARY - 4) + 4
        layout = Layout.from_lengths([12] * 16).to("cpu")
        flat = torch.from_numpy(ids.astype(np.int64)).flatten()
        asked = torch.arange(len(flat)).view(16, 12)[:, :-1].flatten()
        source = (flat, layout) if model.architecture.both else None
        losses = model.loss(flat, layout, asked, flat[asked + 1], source=source)
        optimizer.zero_grad()
        (losses.loss_sum / losses.n).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("way", ["left", "prefix", "blank"])
def test_a_step_gives_what_reading_all_again_gives(family: str, way: str) -> None:
    """The cache changes nothing: scores after each token are those of the whole text read at once."""
    model = ours(family, **KINDS[family])
    both = model.architecture.both
    if both and way != "left":
        pytest.skip("the prompt is the encoder's")
    how = manner(model, both_sides=way == "prefix", blank=4 if way == "blank" else None)
    with torch.inference_mode():
        reader = Reader(model, PROMPTS, 9, how)
        texts = [list(begin) for begin in reader.begins]
        scores = reader.first()
        for _ in range(9):
            for row, text in enumerate(texts):
                whole = [*text, 4] if way == "blank" else text
                places = np.arange(len(whole))
                reach = np.maximum(places + 1, len(PROMPTS[row]) if way == "prefix" else 0)
                layout = Layout.from_lengths([len(whole)], reach=None if both else reach.astype(np.int32)).to("cpu")
                source = None
                if both:
                    source = (torch.tensor(PROMPTS[row]), Layout.from_lengths([len(PROMPTS[row])]).to("cpu"))
                last = torch.tensor([len(whole) - 1])
                alone = model.logits(torch.tensor(whole), layout, last, source)
                assert float((alone[0] - scores[row]).abs().max()) < 1e-4
            tokens = scores.argmax(-1)
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.append(token)
            scores = reader.next(tokens)


@given(st.lists(st.integers(1, 18), min_size=1, max_size=6), st.integers(0, 5), st.booleans())
@example([8, 18, 13], 0, True)  # two tokens with all but the same chance, which company made change places
@settings(max_examples=25, deadline=None)
def test_a_prompt_is_continued_alike_in_any_company(lengths: list[int], seed: int, drawn: bool) -> None:
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(5, VOCABULARY, n).tolist() for n in lengths]
    ends = draw.integers(5, VOCABULARY, 6).tolist()
    drawn = drawn and kernels.get() is not None  # else last bits differ, and one draw in a million falls between them
    how = replace(GREEDY, temperature=0.7 if drawn else 0.0, max_new_tokens=12, seed=seed)
    for family in ("gpt2", "llama", "bart", "t5", "modern"):
        model = MODELS[family]
        together = written(model, prompts, how, ends=ends)
        for number, (prompt, text) in enumerate(zip(prompts, together, strict=True)):
            assert written(model, [prompt], how, ends=ends, numbers=[number]) == [text]
            assert 1 <= len(text) <= 12 and not set(text[:-1]) & set(ends)


MODELS = {family: ours(family, **KINDS[family]) for family in ("gpt2", "llama", "bart", "t5", "modern")}


def test_beams_are_alike_in_any_company() -> None:
    how = replace(GREEDY, beams=3)
    ends = list(range(3, VOCABULARY, 9))
    for model in MODELS.values():
        together = written(model, PROMPTS, how, ends=ends)
        assert together == [written(model, [prompt], how, ends=ends)[0] for prompt in PROMPTS]


def test_a_text_ends_where_the_model_reads_no_further() -> None:
    for family in ("gpt2", "llama"):
        model = MODELS[family]
        longest = model.architecture.max_length
        prompts = [[7] * (longest - 3), [7] * longest, [7]]
        for beams in (1, 2):
            how = Decoding(max_new_tokens=longest + 9, temperature=0, beams=beams)
            assert [len(text) for text in written(model, prompts, how)] == [4, 1, longest]


@given(
    st.floats(0.3, 2.0),
    st.integers(0, 30),
    st.sampled_from([1.0, 0.95, 0.6, 0.2]),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_may_be_drawn_is_what_transformers_leaves(t: float, k: int, p: float, least: float, seed: int) -> None:
    from transformers.generation import logits_process as hf

    scores = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    wanted = scores / t
    if k:
        wanted = hf.TopKLogitsWarper(k)(None, wanted)
    if p < 1:
        wanted = hf.TopPLogitsWarper(p)(None, wanted)
    if least:
        wanted = hf.MinPLogitsWarper(least)(None, wanted)
    how = Decoding(temperature=t, top_k=k, top_p=p, min_p=least)
    assert torch.allclose(left(scores, how), wanted.softmax(-1), atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:  # so few that for some rows they are not enough
        patch.setattr(room, "FEW", 4)
        assert torch.allclose(left(scores, how), wanted.softmax(-1), atol=1e-5)


def left(scores: torch.Tensor, how: Decoding) -> torch.Tensor:
    """The chances of all tokens, in order."""
    found = torch.full_like(scores, torch.nan)
    for rows, chances, tokens in candidates(scores, how):
        whole = chances if tokens is None else torch.zeros_like(scores[rows]).scatter(1, tokens, chances)
        found[rows] = whole / whole.sum(-1, keepdim=True)
    return found


def test_all_tokens_are_looked_at_only_for_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FEW", 10)
    scores = torch.stack([torch.linspace(0, 30, VOCABULARY), torch.zeros(VOCABULARY)])
    (sure, short, tokens), (flat, whole, none) = candidates(scores, Decoding(temperature=1.0, top_p=0.9))
    assert (sure.tolist(), short.shape, flat.tolist(), whole.shape) == ([0], (1, 10), [1], (1, VOCABULARY))
    assert tokens is not None and none is None
    assert int((whole > 0).sum()) == 88  # 0.9 of 97


def test_draws_follow_the_chances() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(20_000, 4)
    draws = np.random.default_rng(0).random(20_000)
    for how in (Decoding(temperature=1.0, top_p=1.0), Decoding(temperature=1.0, top_k=4, top_p=1.0)):
        found = choose(scores, how, draws).bincount(minlength=4) / 20_000
        assert torch.allclose(found, scores[0].softmax(-1), atol=0.02)
    only = choose(scores, Decoding(temperature=1.0, top_p=0.5), draws)
    assert set(only.tolist()) == {0}


def test_a_seed_is_a_text_and_another_is_another() -> None:
    how = Decoding(max_new_tokens=20, temperature=5.0)
    first, again, other = (written(MODELS["gpt2"], PROMPTS, replace(how, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    twice = written(MODELS["gpt2"], [PROMPTS[0], PROMPTS[0]], how)
    assert twice[0] != twice[1]


def test_who_stops_is_asked_after_each_token() -> None:
    asked: list[tuple[int, int]] = []

    def stopped(row: int, token: int) -> bool:
        asked.append((row, token))
        return sum(one == row for one, _ in asked) == row + 2

    texts = written(MODELS["gpt2"], PROMPTS, stopped=stopped)
    assert [len(text) for text in texts] == [2, 3, 4]
    assert sorted(asked) == sorted((row, token) for row, text in enumerate(texts) for token in text)


@pytest.fixture(params=["fused", "eager"], autouse=True)
def paths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every claim here holds with the fused kernels and without them."""
    if request.param == "fused" and kernels.get() is None:
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "eager":
            patch.setattr(kernels, "get", lambda: None)
        yield
