"""How far below the answer a parameter is, in every family; and what goes by that: rates, opening, fresh layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bertkin.config import Train
from bertkin.models.adapt import Strategy, apply
from bertkin.models.initial import initialise
from bertkin.models.levels import levels, lowest_layer, redraw
from bertkin.models.presets import build
from bertkin.models.task_heads import Answer, TaskModel, usual_pooling
from bertkin.train.optim import Optimizer

from .support import shape


def made(family: str, head: Any = "class", **more: Any) -> TaskModel:
    a = build(shape(family, **more)).architecture
    model = TaskModel(a, Answer(head, 3, usual_pooling(a)))
    initialise(model, a, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "class"), ("albert", "class"), ("bart", "class"), ("t5", "tokens")]
)
def test_the_lowest_layer_is_known_without_the_model(family: str, head: Any) -> None:
    for more in ({}, {"groups": 2}) if family == "albert" else ({},):
        model = made(family, head, **more)
        below = max(levels(model).values()) - 1
        assert lowest_layer(model.architecture, reads=model.reads) == below


def level(model: nn.Module, begins: str) -> set[int]:
    return {at for name, at in levels(model).items() if name.startswith(begins)}


@pytest.mark.parametrize("family", ["bert", "modern", "gpt2", "electra"])
def test_heads_are_above_layers_and_layers_above_embeddings(family: str) -> None:
    model = made(family)
    assert model.stack is not None
    depth = model.stack.depth
    assert level(model, "classifier") == {0}
    assert [level(model, f"stack.layers.{at}.") for at in range(depth)] == [{depth - at} for at in range(depth)]
    assert level(model, "stack.embeddings") == {depth + 1}
    assert level(model, "stack.norm") <= {0}


def test_an_encoder_is_below_its_decoder() -> None:
    model = made("bart")
    assert model.stack is not None and model.source is not None
    top, depth = model.stack.depth, model.stack.depth + model.source.depth
    assert level(model, f"stack.layers.{top - 1}.") == {1} and level(model, "stack.layers.0.") == {top}
    assert level(model, f"source.layers.{model.source.depth - 1}.") == {top + 1}
    assert level(model, "source.layers.0.") == {depth}
    assert level(model, "stack.embeddings") | level(model, "source.embeddings") == {depth + 1}


def test_the_last_norm_of_an_encoder_goes_with_its_top_layer() -> None:
    """T5's: it is not drawn anew with the decoder's top layer, nor open before the encoder is."""
    model = made("t5")
    assert model.stack is not None and model.source is not None
    assert level(model, "stack.norm") == {0} and level(model, "source.norm") == {model.stack.depth + 1}
    with torch.no_grad():
        model.source.norm.weight.fill_(3.0)
    redraw(model, model.architecture, 1, seed=3)
    assert model.source.norm.weight.eq(3.0).all()


def test_a_layer_that_serves_several_times_counts_as_the_highest() -> None:
    model = made("albert")
    assert level(model, "stack.layers.0.") == {1} and level(model, "stack.project") == {2}


def test_what_a_strategy_puts_into_a_layer_is_of_its_level() -> None:
    model = made("bert")
    apply(model, Strategy("lora", rank=2))
    added = {at for name, at in levels(model).items() if "low" in name}
    assert added == {1, 2, 3, 4}


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_each_layer_moves_at_its_share_of_the_rate_of_the_one_above(optimizer: Any) -> None:
    moved = {}
    for decay in (1.0, 0.5):
        model = made("bert")
        train = Train(
            optimizer=optimizer, lr=1e-3, matrix_lr=1e-3, weight_decay=0.0, beta2=0.9, clip=0.0, layer_decay=decay
        )
        steps, before = Optimizer(model, train), {name: p.detach().clone() for name, p in model.named_parameters()}
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        steps.step(1.0, 1.0)
        moved[decay] = {name: float((p.detach() - before[name]).norm()) for name, p in model.named_parameters()}
    for name, at in levels(model).items():
        assert moved[0.5][name] == pytest.approx(moved[1.0][name] * 0.5**at, rel=2e-2, abs=1e-6), name


def test_layers_open_from_the_top_one_after_the_other() -> None:
    model = made("bert")
    train = Train(optimizer="adamw", lr=1e-3, weight_decay=0.0, beta2=0.9, unfreeze=0.6)
    optimizer, found = Optimizer(model, train), levels(model)
    deepest = max(found.values())
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        optimizer.unfreeze(progress)
        learns = {found[name] for name, p in model.named_parameters() if p.requires_grad}
        assert learns == {at for at in range(deepest + 1) if 0.6 * at / deepest <= progress}
    optimizer.unfreeze(0.0)
    still = [p.detach().clone() for name, p in model.named_parameters() if found[name]]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step(1.0, 1.0)
    assert all(
        torch.equal(a, p) for a, p in zip(still, (p for n, p in model.named_parameters() if found[n]), strict=True)
    )


def test_the_top_layers_are_drawn_anew_and_the_rest_stays() -> None:
    model = made("bert")
    found, before = levels(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    redraw(model, model.architecture, 1, seed=3)
    for name, parameter in model.named_parameters():
        fixed = found[name] > 1 or parameter.ndim == 1  # biases and norms are drawn as they were: zeros and ones
        assert torch.equal(parameter, before[name]) == fixed, name
