"""The same numbers as transformers, both ways, for every member of the family: logits, gradients, packed and padded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkin.models import kernels
from bertkin.models.heads import draw
from bertkin.models.names import named, turned
from bertkin.models.names import theirs as names_of
from bertkin.models.pretrained import load_model, save_model
from bertkin.text.layout import Layout

from .support import LENGTHS, VOCABULARY, flat_batch, hushed, lively, ours, padded_batch

SOURCE = (11, 5, 17, 2)
"""Lengths of what an encoder reads, for the sequences of `LENGTHS`."""


def _bert_like(config: str, model: str, **more: Any) -> Callable[[Any], Any]:
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    common |= {"intermediate_size": 48, "max_position_embeddings": 40, "attn_implementation": "eager"}
    return lambda hf: getattr(hf, model)(getattr(hf, config)(**common, **more))


def _gpt2(hf: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48, "n_positions": 40}
    ids = {"bos_token_id": 2, "eos_token_id": 3}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, **sizes, **ids, attn_implementation="eager"))


def _llama(**more: Any) -> Callable[[Any], Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"max_position_embeddings": 40, "attn_implementation": "eager", "vocab_size": VOCABULARY}
    return lambda hf: hf.LlamaForCausalLM(hf.LlamaConfig(**(sizes | more)))


def _bart(hf: Any) -> Any:
    sizes = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "max_position_embeddings": 40}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_attention_heads": 4, f"{half}_ffn_dim": 48}
    return hf.BartForConditionalGeneration(
        hf.BartConfig(vocab_size=VOCABULARY, **sizes, attn_implementation="eager", forced_eos_token_id=None)
    )


def _t5(**more: Any) -> Callable[[Any], Any]:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "vocab_size": VOCABULARY}
    return lambda hf: hf.T5ForConditionalGeneration(
        hf.T5Config(**(sizes | more), decoder_start_token_id=0, attn_implementation="eager")
    )


MEMBERS: dict[str, Callable[[Any], Any]] = {
    "albert": _bert_like("AlbertConfig", "AlbertForMaskedLM", embedding_size=16),
    "albert in two groups": _bert_like("AlbertConfig", "AlbertForMaskedLM", embedding_size=16, num_hidden_groups=2),
    "electra's generator": _bert_like("ElectraConfig", "ElectraForMaskedLM", embedding_size=16),
    "electra": _bert_like("ElectraConfig", "ElectraForPreTraining", embedding_size=16),
    "electra without a projection": _bert_like("ElectraConfig", "ElectraForPreTraining", embedding_size=32),
    "gpt2": _gpt2,
    "llama": _llama(),
    "llama with shared keys": _llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama with wide heads": _llama(num_key_value_heads=1, head_dim=16),
    "bart": _bart,
    "t5": _t5(),
    "t5 1.1": _t5(feed_forward_proj="gated-gelu"),
    "t5 with wide heads": _t5(d_kv=16),
}


@pytest.fixture(params=["fused", "eager"], autouse=True)
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim here holds with the fused kernels and without them."""
    if request.param == "fused" and kernels.get() is None:
        pytest.skip("no C++ compiler")
    if request.param == "eager":
        monkeypatch.setattr(kernels, "get", lambda: None)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def reference(member: str) -> Any:
    import transformers as hf

    torch.manual_seed(0)
    return lively(MEMBERS[member](hf))


def both_batches(model: Any) -> tuple[torch.Tensor, Layout, tuple[torch.Tensor, Layout] | None, dict[str, Any]]:
    """Ids and layout, a source where there is an encoder, and all of it as transformers takes it."""
    ids, layout = flat_batch(LENGTHS)
    if not model.architecture.both:
        return ids, layout, None, padded_batch(ids, layout, 0)
    source, source_layout = flat_batch(SOURCE)
    batch = padded_batch(source, source_layout, 0)
    batch |= {f"decoder_{name}": value for name, value in padded_batch(ids, layout, 0).items()}
    return ids, layout, (source, source_layout), batch


def answers(model: Any, ids: torch.Tensor, layout: Layout, source: Any) -> torch.Tensor:
    return model.replaced(ids, layout) if model.head is None else model.logits(ids, layout, None, source)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_transformers_model_gives_the_same_numbers_here(member: str, tmp_path: Path) -> None:
    their = reference(member)
    their.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load_model(tmp_path)
    ids, layout, source, batch = both_batches(model)
    with torch.no_grad():
        assert far(answers(model, ids, layout, source), layout.flat(their(**batch).logits)) < 1e-5


@pytest.mark.parametrize("member", [name for name in MEMBERS if name != "electra without a projection"])
def test_gradients_are_the_same(member: str, tmp_path: Path) -> None:
    their = reference(member)
    their.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids, layout, source, batch = both_batches(model)
    if model.head is None:
        wrong = (ids % 3 == 0).float()
        found = layout.flat(their(**batch).logits)
        torch.nn.functional.binary_cross_entropy_with_logits(found, wrong).backward()
        torch.nn.functional.binary_cross_entropy_with_logits(model.replaced(ids, layout), wrong).backward()
    else:
        asked = torch.arange(0, len(ids), 3)
        targets = ids.flip(0)[asked]
        scores = layout.flat(their(**batch).logits)[asked]
        torch.nn.functional.cross_entropy(scores, targets).backward()
        losses = model.loss(ids, layout, asked, targets, source=source)
        (losses.loss_sum / losses.n).backward()
    expected = {name: parameter.grad for name, parameter in their.named_parameters()}
    family = named(model.architecture)
    for name, parameter in model.named_parameters():
        if name == "head.bias" and family == "bart":
            continue  # a constant there
        grads = [expected[part] for part in names_of(name, family)]
        assert parameter.grad is not None, name
        joined = torch.cat([grad.t() if turned(name, family) else grad for grad in grads])
        assert far(parameter.grad, joined) < 1e-4, name


OURS: dict[str, tuple[str, dict[str, Any], str]] = {
    "albert": ("albert", {"embedding": 16, "groups": 2}, "AutoModelForMaskedLM"),
    "gpt2": ("gpt2", {}, "AutoModelForCausalLM"),
    "llama": ("llama", {"kv_heads": 2}, "AutoModelForCausalLM"),
    "bart": ("bart", {"decoder_layers": 2}, "AutoModelForSeq2SeqLM"),
    "t5": ("t5", {"decoder_layers": 2}, "AutoModelForSeq2SeqLM"),
}


@pytest.mark.parametrize("member", OURS)
def test_our_model_gives_the_same_numbers_in_transformers(member: str, tmp_path: Path) -> None:
    import transformers

    family, changes, auto = OURS[member]
    model = ours(family, **changes)
    save_model(model, tmp_path)
    their = opened(getattr(transformers, auto), tmp_path)
    ids, layout, source, batch = both_batches(model)
    with torch.no_grad():
        expected = layout.flat(their(**batch).logits)
        assert far(answers(model, ids, layout, source), expected) < 1e-5
        assert far(answers(load_model(tmp_path), ids, layout, source), answers(model, ids, layout, source)) == 0


def test_the_generator_draws_words_by_their_chances() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, -1.0, 0.5, -30.0, 1.0])
    drawn = draw(logits.expand(40_000, -1).to(torch.bfloat16))
    found = drawn.bincount(minlength=5) / len(drawn)
    torch.testing.assert_close(found, logits.softmax(-1), atol=0.01, rtol=0.0)
    assert found[3] == 0


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_word_that_is_certain_is_drawn_wherever_it_stands(place: int) -> None:
    logits = torch.full((200, 7), -100.0)
    logits[:, place] = 0.0
    assert (draw(logits) == place).all()


def test_both_models_of_an_electra_open_in_transformers(tmp_path: Path) -> None:
    import transformers

    model = ours("electra", embedding=16, generator=0.25)
    save_model(model, tmp_path)
    ids, layout = flat_batch(LENGTHS)
    batch = padded_batch(ids, layout, 0)
    for part, folder, auto in (
        (model.model, tmp_path, transformers.AutoModelForPreTraining),
        (model.generator, tmp_path / "generator", transformers.AutoModelForMaskedLM),
    ):
        their = opened(auto, folder)
        with torch.no_grad():
            assert far(answers(part, ids, layout, None), layout.flat(their(**batch).logits)) < 1e-5
            assert far(answers(load_model(folder), ids, layout, None), answers(part, ids, layout, None)) == 0


def opened(auto: Any, folder: Path) -> Any:
    """The folder in transformers, where nothing may be missing or too much."""
    with hushed():
        their, report = auto.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert type(their).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    return their


@pytest.mark.parametrize("member", OURS)
def test_packed_equals_alone(member: str) -> None:
    family, changes, _ = OURS[member]
    model = ours(family, **changes)
    ids, layout, source, _ = both_batches(model)
    with torch.no_grad():
        packed = answers(model, ids, layout, source)
        for s in range(layout.n_sequences):
            own = slice(int(layout.starts[s]), int(layout.starts[s + 1]))
            beside = None
            if source is not None:
                theirs = slice(int(source[1].starts[s]), int(source[1].starts[s + 1]))
                beside = (source[0][theirs], Layout.from_lengths([SOURCE[s]]).to("cpu"))
            alone = answers(model, ids[own], Layout.from_lengths([LENGTHS[s]]).to("cpu"), beside)
            assert far(packed[own], alone) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "t5"])
def test_no_output_moves_when_a_later_token_changes(family: str) -> None:
    """In value, and in gradient: a later token's row gets none from an earlier answer."""
    model = ours(family)
    ids, layout, source, _ = both_batches(model)
    for s, place in ((0, 5), (2, 20)):
        at, last = int(layout.starts[s]) + place, int(layout.starts[s + 1])
        changed = ids.clone()
        changed[at] = (changed[at] + 1) % VOCABULARY
        with torch.no_grad():
            before, after = answers(model, ids, layout, source), answers(model, changed, layout, source)
        same = torch.ones(len(ids), dtype=torch.bool)
        same[at:last] = False
        assert torch.equal(before[same], after[same])
        assert not torch.equal(before[at], after[at])
    table = model.stack.embeddings.tokens
    only = torch.arange(len(ids)) % VOCABULARY  # every token of the first sequence is another one
    model.zero_grad()
    hidden = model.hidden(only, layout, None, source)
    hidden[4].sum().backward()
    assert table.grad is not None
    fed = set() if source is None else set(source[0].tolist())
    for place in range(5, LENGTHS[0]):
        if int(only[place]) not in fed:
            assert not table.grad[only[place]].any()
    assert table.grad[only[4]].any()
