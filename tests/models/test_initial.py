"""How a model begins: drawn from a seed, and with heads that look at their neighbours where positions are learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkin.config import AUTO, Model
from bertkin.errors import UserError
from bertkin.models.attention import attention_weights
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build, preset, resolve_model
from bertkin.models.pretrained import load_model, save_model
from bertkin.text.layout import Layout

from .support import VOCABULARY, shape

LENGTH = 40
BOTH = [-1, 1, -2, 2]
LEFT = [-1, -2, -3, -4]


def begun(family: str, start: str, **more: Any) -> LanguageModel:
    """A new model of BERT-mini's width."""
    sizes: dict[str, Any] = {"layers": 2, "hidden": 256, "heads": 4, "max_length": LENGTH, "start": start}
    model = build(resolve_model(Model(family=family, **(sizes | more)), VOCABULARY))  # type: ignore[arg-type]
    assert isinstance(model, LanguageModel)
    return model


def looked_at(model: LanguageModel, layer: int = 0, *, encoder: bool = False) -> torch.Tensor:
    """How far away each head's most seen token stands, [heads, LENGTH], of random tokens."""
    ids = torch.randint(5, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(1))
    layout = Layout.from_lengths([LENGTH]).to("cpu")
    stack = model.source if encoder else model.stack
    assert stack is not None
    with torch.no_grad():
        block = stack.blocks[layer]
        _, x = block.read(stack.embed(ids, layout), None)
        q, k, _ = block.attention.project(x)
        assert block.attention.rule is not None
        weights = attention_weights(q, k, layout, block.attention.rule)[0]
    return weights.argmax(-1) - torch.arange(LENGTH)


@pytest.mark.parametrize(
    ("family", "distances"), [("bert", BOTH), ("roberta", BOTH), ("gpt2", LEFT)], ids=["bert", "roberta", "gpt2"]
)
def test_each_head_of_the_first_layer_begins_by_looking_at_one_neighbour(family: str, distances: list[int]) -> None:
    away = looked_at(begun(family, "neighbours"))
    for head, distance in enumerate(distances):
        inside = slice(max(0, -distance), LENGTH - max(0, distance))
        assert (away[head, inside] == distance).float().mean() > 0.75  # the words have a say too


def test_an_encoder_looks_to_both_sides_and_its_decoder_to_the_left() -> None:
    model = begun("bart", "neighbours")
    for encoder, distances in ((True, BOTH), (False, LEFT)):
        away = looked_at(model, encoder=encoder)
        assert [int(one) for one in away[:, 8:-8].mode(dim=1).values] == distances


def test_drawn_heads_and_later_layers_look_at_nothing_of_the_kind() -> None:
    for model, layer in ((begun("bert", "random"), 0), (begun("bert", "neighbours"), 1)):
        away = looked_at(model, layer)
        assert all((away[head] == distance).float().mean() < 0.3 for head, distance in enumerate(BOTH))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "bart"])
def test_all_else_is_drawn_as_without(family: str) -> None:
    first, second = (dict(begun(family, start).named_parameters()) for start in ("neighbours", "random"))
    own = {name for name, value in first.items() if not torch.equal(value, second[name])}
    assert all(name.endswith("embeddings.positions") or "layers.0.attention.qkv" in name for name in own)
    stacks = 2 if family == "bart" else 1
    assert len(own) == 2 * stacks  # each has a table and a first layer
    width = 256
    for name in own:
        if "qkv" in name:  # values are drawn
            assert torch.equal(first[name][2 * width :], second[name][2 * width :])


@pytest.mark.parametrize(
    ("hidden", "heads"), [(32, 4), (33, 3), (256, 2), (48, 16)], ids=["small", "odd", "wide heads", "narrow heads"]
)
def test_any_shape_can_begin_so(hidden: int, heads: int) -> None:
    built = begun("bert", "neighbours", hidden=hidden, heads=heads)
    assert all(bool(value.isfinite().all()) for value in built.parameters())
    drawn = dict(begun("bert", "random", hidden=hidden, heads=heads).named_parameters())
    name = "stack.layers.0.attention.qkv.weight"
    changed = (drawn[name] != dict(built.named_parameters())[name]).any(1).view(3, heads, -1).sum(2)
    assert changed.tolist() == [[hidden // heads // 2 * 2] * heads] * 2 + [
        [0] * heads
    ]  # an odd number's last one is drawn


def test_who_begins_so_by_default() -> None:
    chosen = {
        name: resolve_model(preset(f"{name}-tiny").model, VOCABULARY).start for name in ("bert", "roberta", "gpt2")
    }
    assert set(chosen.values()) == {"neighbours"}
    for family in ("modern", "albert", "electra", "llama", "bart", "t5"):
        assert resolve_model(preset(f"{family}-tiny").model, VOCABULARY).start == "random", family
    assert shape("bert", positions="rotary").start == "random"


@pytest.mark.parametrize(
    ("family", "more"),
    [("modern", {}), ("albert", {"embedding": 16}), ("bert", {"positions": "sinusoidal"}), ("t5", {})],
)
def test_a_model_that_cannot_begin_so_says_why(family: str, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.start: .* cannot begin by looking at neighbours; leave it out"):
        shape(family, start="neighbours", **more)


def test_what_was_resolved_resolves_to_itself() -> None:
    once = shape("bert")
    assert resolve_model(once, VOCABULARY) == once
    assert resolve_model(replace(once, start=AUTO), VOCABULARY) == once


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_such_a_start_is_saved_and_read_like_any(family: str, tmp_path: Path) -> None:
    model = begun(family, "neighbours")
    save_model(model, tmp_path)
    assert torch.equal(looked_at(load_model(tmp_path)), looked_at(model))
