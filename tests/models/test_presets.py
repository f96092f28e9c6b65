"""Every preset builds what it says, and a shape that cannot be built says what could."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bertkin.config import AUTO, Model, dump_recipe
from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import SIZES, architecture, names, preset, resolve_model


def parameters(name: str, vocab_size: int) -> int:
    with torch.device("meta"):
        model = LanguageModel(architecture(resolve_model(preset(name).model, vocab_size)))
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_sizes_are_those_that_the_issue_lists() -> None:
    assert {name: (s.layers, s.hidden) for name, s in SIZES.items()} == {
        "tiny": (2, 128),
        "mini": (4, 256),
        "small": (4, 512),
        "medium": (8, 512),
        "base": (12, 768),
        "large": (24, 1024),
    }


@pytest.mark.parametrize("name", names())
def test_every_preset_is_complete(name: str) -> None:
    recipe = preset(name)
    assert recipe.preset == name
    model = resolve_model(recipe.model, 8192)
    assert AUTO not in [getattr(model, f) for f in ("heads", "intermediate", "positions", "max_length", "global_every")]
    assert recipe.objective.rate and recipe.train.lr and recipe.train.optimizer
    assert dump_recipe(replace(recipe, model=model))
    assert resolve_model(model, 8192) == model


PUBLISHED = [
    ("bert-base", 30522, 109.5),
    ("bert-large", 30522, 335.2),
    ("roberta-base", 50265, 124.7),
    ("albert-base", 30000, 11.2),
    ("gpt2-base", 50257, 124.0),  # 124.4 with its 1,024 positions; ours read 512
]


@pytest.mark.parametrize(("name", "vocab_size", "millions"), PUBLISHED)
def test_the_originals_have_as_many_parameters_as_published(name: str, vocab_size: int, millions: float) -> None:
    assert parameters(name, vocab_size) / 1e6 == pytest.approx(millions, abs=0.2)


@pytest.mark.parametrize("size", SIZES)
def test_a_modern_model_is_about_as_large_as_the_bert_of_its_name(size: str) -> None:
    assert parameters(f"modern-{size}", 8192) == pytest.approx(parameters(f"bert-{size}", 8192), rel=0.07)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'modern-mimi'.*modern-mini"):
        preset("modern-mimi")
    with pytest.raises(UserError, match="gpt2-tiny"):
        preset("gpt")


IMPOSSIBLE = [
    ({"heads": 5}, "5 heads do not divide the width of 256.*choose 4 heads or 8"),
    ({"hidden": 0}, "model.hidden: expected a whole number of at least 1, found 0"),
    ({"layers": -1}, "model.layers"),
    ({"heads": 0}, "model.heads"),
    ({"intermediate": -4}, "model.intermediate"),
    ({"max_length": 0}, "model.max_length"),
    ({"hidden": 12, "heads": 4}, "a head is 3 wide"),
    ({"dropout": 1.5}, "model.dropout: expected a share"),
    ({"local_window": 1}, "model.local_window: a window of 1 tokens sees no neighbour"),
    ({"global_every": 0}, "model.global_every"),
    ({"family": "moderm"}, "model.family: unknown family 'moderm'; did you mean modern"),
    ({"positions": "rotory"}, "model.positions.*did you mean rotary"),
    ({"vocab_size": 100}, "model.vocab_size: a table of 100 rows cannot hold the tokenizer's 8192 tokens"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE, ids=[str(changes) for changes, _ in IMPOSSIBLE])
def test_an_impossible_shape_says_what_is_wrong_and_what_could_be(changes: dict[str, object], message: str) -> None:
    model = replace(preset("modern-mini").model, **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        resolve_model(model, 8192)


def test_what_follows_from_other_fields_follows_what_the_user_set() -> None:
    model = resolve_model(replace(preset("modern-mini").model, hidden=384), 8192)
    assert (model.intermediate, model.heads) == (1024, 4)
    bare = resolve_model(Model(family="bert", layers=1, hidden=128), 8192)
    assert (bare.heads, bare.intermediate, bare.max_length) == (2, 512, 512)


def test_a_model_without_a_vocabulary_says_so() -> None:
    with pytest.raises(UserError, match=r"model.vocab_size: is not set"):
        resolve_model(preset("bert-tiny").model)


@pytest.mark.parametrize(
    ("name", "changes", "embedding", "generator"),
    [
        ("electra-small", {}, 128, 0.25),
        ("electra-base", {}, 768, 1 / 3),
        ("electra-large", {}, 1024, 0.25),
        ("electra-base", {"hidden": 512, "heads": 8}, 128, 0.25),
        ("electra-mini", {"hidden": 768, "heads": 12}, 768, 1 / 3),
    ],
)
def test_electra_is_sized_as_published(name: str, changes: dict[str, int], embedding: int, generator: float) -> None:
    """Clark et al. (2020), their table 6."""
    model = resolve_model(replace(preset(name).model, **changes), 30_522)  # type: ignore[arg-type]
    assert (model.embedding, model.generator) == (embedding, pytest.approx(generator))
