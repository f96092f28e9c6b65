"""Strategies as properties: where they begin, what they train, what they save, what folds into the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from bertkin.config import Train
from bertkin.errors import UserError
from bertkin.models import kernels
from bertkin.models.adapt import (
    Strategy,
    apply,
    changed,
    fingerprint,
    flops_per_token,
    layer_shares,
    merge,
    restore,
    stock_of,
    trainable,
)
from bertkin.models.generate import Decoding, Manner, write
from bertkin.models.heads import LanguageModel
from bertkin.models.initial import initialise
from bertkin.models.levels import own_rates
from bertkin.models.presets import build
from bertkin.models.steps import Steps
from bertkin.models.strategy import see_used
from bertkin.models.task_heads import Answer, TaskModel, usual_pooling
from bertkin.models.wraps import Low, LowRank
from bertkin.text.layout import Layout
from bertkin.train.optim import Optimizer

from .support import flat_batch, lively, shape

FAMILIES = ("bert", "roberta", "modern", "albert", "electra", "gpt2", "llama", "bart", "t5")
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding": 16},
    "electra": {"embedding": 16, "generator": 0.0},
    "llama": {"kv_heads": 2},
}
ALL = ("query", "key", "value", "out", "up", "down")
LIGHT = {
    "frozen": Strategy("frozen"),
    "last": Strategy("last", last=2),
    "layers": Strategy("layers"),
    "houlsby": Strategy("adapter", size=5),
    "pfeiffer": Strategy("adapter", size=5, where="feed-forward"),
    "lora": Strategy("lora", rank=3),
    "lora everywhere": Strategy("lora", rank=3, alpha=7.0, matrices=ALL),
    "bias": Strategy("bias"),
    "prefix": Strategy("prefix", length=6),
}
UNBIASED = ("modern", "llama", "t5")
PAIRS = [(f, s) for f in FAMILIES for s in LIGHT if not (s == "bias" and f in UNBIASED)]
MOVES = ("layers", "prefix")
"""What cannot begin where the stock was."""


def model_of(family: str, head: Any = "class") -> TaskModel:
    """A tiny task model, every weight moved. T5's a little less: it does not scale its scores."""
    a = build(shape(family, **OWN.get(family, {}))).architecture
    model = TaskModel(a, Answer(head, 2 if head == "span" else 3, usual_pooling(a)))
    initialise(model, a, torch.Generator().manual_seed(0))
    return lively(model, by=0.05 if family == "t5" else 0.15)


def adapted(family: str, strategy: Strategy, head: Any = "class") -> TaskModel:
    model = model_of(family, head)
    apply(model, strategy)
    return model


def scores(model: TaskModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(*flat_batch())


def learn(model: TaskModel, steps: int = 3) -> None:
    """A few steps of training, as the one loop takes them."""
    optimizer = Optimizer(model, Train(optimizer="adamw", lr=3e-3, beta2=0.999, weight_decay=0.01))
    ids, layout = flat_batch()
    model.train()
    for _ in range(steps):
        model(ids, layout).square().mean().backward()
        optimizer.step(1.0, optimizer.gradient_norm())
    model.eval()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(("family", "name"), [(f, s) for f, s in PAIRS if s not in MOVES])
def test_a_strategy_begins_where_the_stock_was(family: str, name: str) -> None:
    assert far(scores(adapted(family, LIGHT[name])), scores(model_of(family))) < 1e-6


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_only_what_is_trained_gets_gradients_and_moves(family: str, name: str) -> None:
    model = adapted(family, LIGHT[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids, layout = flat_batch()
    model.train()(ids, layout).square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == changed(model).keys()
    learn(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == changed(model).keys()


@pytest.mark.parametrize("head", ["tokens", "span"])
@pytest.mark.parametrize("name", LIGHT)
def test_strategies_serve_every_head(name: str, head: str) -> None:
    model = adapted("bert", LIGHT[name], head)
    learn(model)
    assert scores(model).shape == (len(flat_batch()[0]), 3 if head == "tokens" else 2)
    assert changed(model).keys() >= {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_what_changed_is_all_there_is_to_save(family: str, name: str) -> None:
    trained = adapted(family, LIGHT[name])
    learn(trained)
    again = adapted(family, replace(LIGHT[name], seed=9))
    assert far(scores(again), scores(trained)) > 1e-5
    restore(again, changed(trained))
    assert torch.equal(scores(again), scores(trained))
    assert stock_of(again) == stock_of(trained) == fingerprint(model_of(family))


@pytest.mark.parametrize("name", ["lora", "lora everywhere"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_it_is_an_ordinary_model_with_the_same_scores(family: str, name: str) -> None:
    model = adapted(family, LIGHT[name])
    learn(model)
    expected = scores(model)
    merge(model)
    plain = model_of(family)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert not any(isinstance(module, LowRank) for module in model.modules())
    assert far(scores(model), expected) < 1e-5
    assert far(expected, scores(plain)) > 1e-4
    plain.load_state_dict(model.state_dict())
    assert torch.equal(scores(plain), scores(model))
    apply(model, Strategy("bias") if family not in UNBIASED else Strategy("last"))  # and may be adapted again


@pytest.mark.parametrize("name", ["houlsby", "prefix", "layers"])
def test_what_is_put_around_a_model_does_not_fold_into_it(name: str) -> None:
    with pytest.raises(UserError, match="does not fold into the weights"):
        merge(adapted("bert", LIGHT[name]))


HIDDEN, LAYERS, WIDE, OUTPUTS = 32, 4, 48, 3
HEAD = HIDDEN * HIDDEN + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS
FORMULAS = {
    "frozen": 0,
    "last": 2 * (4 * HIDDEN * HIDDEN + 4 * HIDDEN + 2 * HIDDEN * WIDE + WIDE + HIDDEN + 4 * HIDDEN),
    "layers": LAYERS + 1 + 1,
    "houlsby": LAYERS * (2 * (2 * HIDDEN * 5 + 5 + HIDDEN) + 4 * HIDDEN),
    "pfeiffer": LAYERS * (2 * HIDDEN * 5 + 5 + HIDDEN),
    "lora": LAYERS * 2 * 3 * 2 * HIDDEN,
    "lora everywhere": LAYERS * 3 * (4 * 2 * HIDDEN + 2 * (HIDDEN + WIDE)),
    "bias": HIDDEN + LAYERS * (4 * HIDDEN + WIDE + HIDDEN + 2 * HIDDEN),
    "prefix": LAYERS * 2 * 6 * HIDDEN,
}


@pytest.mark.parametrize("name", LIGHT)
def test_as_many_numbers_are_trained_as_the_formula_says(name: str) -> None:
    model = adapted("bert", LIGHT[name])
    trained, total = trainable(model)
    assert trained == FORMULAS[name] + HEAD
    assert total == sum(p.numel() for p in model.parameters())
    assert sum(t.numel() for t in changed(model).values()) == trained


def test_heads_of_keys_that_are_shared_are_fewer_rows_to_change() -> None:
    model = adapted("llama", Strategy("lora", rank=2, matrices=("query", "key", "value", "up")))
    head = HIDDEN * OUTPUTS
    assert trainable(model)[0] == LAYERS * 2 * (2 * HIDDEN + 2 * (HIDDEN + HIDDEN // 2) + 2 * (HIDDEN + WIDE)) + head


def test_full_trains_everything() -> None:
    model = adapted("bert", Strategy("full"))
    trained, total = trainable(model)
    assert trained == total


def test_a_step_costs_what_is_computed_forward_passed_back_and_trained() -> None:
    base = model_of("bert")
    read = sum(p.numel() for name, p in base.named_parameters() if "embeddings" not in name)
    block = sum(p.numel() for p in base.stack.layers[0].parameters())

    def cost(strategy: Strategy) -> int:
        return flops_per_token(adapted("bert", strategy))

    assert cost(Strategy("full")) == 6 * read
    assert cost(Strategy("frozen")) < 2 * read + 4 * (read - LAYERS * block)
    two, one = (cost(Strategy("last", last=k)) for k in (2, 1))
    assert two - one == 4 * block
    assert cost(Strategy("frozen")) < one < cost(Strategy("lora", rank=1)) < cost(Strategy("full"))


def test_a_low_rank_change_is_scaled_by_alpha_over_rank() -> None:
    model = adapted("bert", Strategy("lora", rank=4, alpha=6.0, matrices=("value",)))
    base = model_of("bert")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Low):
                module.b.normal_(generator=torch.Generator().manual_seed(1))
        for layer, wrapped in zip(base.stack.layers, model.stack.layers, strict=True):
            low = wrapped.attention.qkv.low["value"]
            layer.attention.qkv.weight[2 * HIDDEN :] += 6.0 / 4 * low.b @ low.a
    assert far(scores(model), scores(base)) < 1e-5


def test_weighted_layers_begin_as_the_mean_of_all_states() -> None:
    model, plain = adapted("bert", LIGHT["layers"], "tokens"), model_of("bert", "tokens")
    ids, layout = flat_batch()
    with torch.no_grad():
        states = plain.stack.trace(ids, layout).hidden
        assert len(states) == LAYERS + 1
        assert far(model(ids, layout), plain.scores(torch.stack(states).mean(0))) < 1e-5
    assert layer_shares(model) == pytest.approx([1 / (LAYERS + 1)] * (LAYERS + 1))


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bart"])
def test_states_of_all_layers_end_in_what_the_stack_gives(family: str) -> None:
    model = model_of(family)
    ids, layout = flat_batch()
    asked = torch.tensor([0, 3, 13, 20])
    with torch.no_grad():
        memory = None if model.source is None else (model.source(ids, layout), layout)
        states = model.stack.states(ids, layout, asked, memory)
        assert far(states[-1], model.stack(ids, layout, asked, memory)) < 1e-6
        whole = model.stack.states(ids, layout, None, memory)
    assert all(torch.equal(few, every[asked]) for few, every in zip(states, whole, strict=True))


def test_layers_may_be_weighted_over_a_stock_that_is_trained() -> None:
    model = adapted("bert", Strategy("layers", frozen=False))
    trained, total = trainable(model)
    assert trained == total
    # At the rate of a stock the shares would stay alike; alone they go at the strategy's.
    assert set(own_rates(model)) == {"stack.levels", "stack.gain"}
    assert set(own_rates(adapted("t5", Strategy("layers", frozen=False)))) == {"stack.levels", "stack.gain"}
    assert not own_rates(adapted("bert", Strategy("layers")))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_keeps_texts_apart(family: str) -> None:
    model = adapted(family, LIGHT["prefix"])
    learn(model)
    ids, layout = flat_batch()
    together = scores(model)
    for s in range(layout.n_sequences):
        own = ids[int(layout.starts[s]) : int(layout.starts[s + 1])]
        with torch.no_grad():
            assert far(model(own, Layout.from_lengths([len(own)]).to("cpu")), together[s : s + 1]) < 1e-5


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_prefix_is_words_before_the_text_where_positions_do_not_count(family: str) -> None:
    # Keys and values of one layer, taken from a text that stands before: the same as reading both, but for positions.
    model = adapted(family, replace(LIGHT["prefix"], length=4), "tokens")
    attention = model.stack.layers[0].attention
    generator = torch.Generator().manual_seed(2)
    x, before = (torch.randn(n, HIDDEN, generator=generator) for n in (5, 4))
    layout, wide = (Layout.from_lengths([n]).to("cpu") for n in (5, 9))
    with torch.no_grad():
        k, v = attention.keys_values(before)
        attention.keys.copy_(k)
        attention.values.copy_(v)
        from bertkin.models.transformer import NOWHERE, Attention

        found = attention(x, layout, NOWHERE, None)
        expected = Attention.forward(attention, torch.cat([before, x]), wide, NOWHERE, None)[4:]
    assert far(found, expected) < 1e-5


def test_a_prefix_holds_with_a_reach_of_each_token() -> None:
    model = adapted("gpt2", LIGHT["prefix"], "tokens")
    ids, layout = flat_batch()
    with torch.no_grad():
        causal = model(ids, layout)
        said = model(ids, replace(layout, reach=layout.positions + 1))
        ahead = model(ids, replace(layout, reach=layout.lengths[layout.sequence_ids()]))
    assert far(causal, said) < 1e-6
    assert far(causal, ahead) > 1e-4


@pytest.mark.parametrize("name", ["frozen", "last", "layers"])
def test_nothing_is_propagated_below_what_is_trained(name: str) -> None:
    model = adapted("bert", LIGHT[name])
    seen: list[int] = []
    for number, layer in enumerate(model.stack.layers):

        def watch(module: Any, given: Any, found: Any, number: int = number) -> None:
            if found[0].requires_grad:
                seen.append(number)

        layer.register_forward_hook(watch)
    model.train()(*flat_batch()).sum().backward()
    assert seen == ([2, 3] if name == "last" else [])


def test_the_last_of_shared_layers_is_all_of_them() -> None:
    model = adapted("albert", Strategy("last", last=1))
    names = changed(model)
    assert any(name.startswith("stack.layers.0.attention") for name in names)
    assert not any(name.startswith("stack.embeddings") for name in names)


def test_the_optimizer_holds_nothing_for_what_is_frozen() -> None:
    model = adapted("bert", LIGHT["lora"])
    optimizer = Optimizer(model, Train(optimizer="adamw", lr=1e-3, beta2=0.999))
    assert {slot.name for slot in optimizer.slots} == changed(model).keys() == optimizer.weights().keys()
    assert set(optimizer.state()) == {f"{part}/{n}" for part in ("weight", "first", "second") for n in changed(model)}


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("name", ["houlsby", "lora everywhere", "prefix", "layers"])
def test_strategies_train_in_bfloat16(family: str, name: str) -> None:
    model = adapted(family, LIGHT[name])
    learn(model)
    expected = scores(model)
    half = scores(copy.deepcopy(model).to(torch.bfloat16))
    assert half.dtype == torch.float32, "the last layer's few numbers are not rounded"
    assert far(half, expected) < 0.1 * float(expected.abs().max()) + 0.05
    learn(model.to(torch.bfloat16))


def test_the_fingerprint_is_of_the_stock_alone_and_of_any_type() -> None:
    model = model_of("bert")
    stock = fingerprint(model)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    assert fingerprint(model) == stock
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == stock
    apply(model, LIGHT["lora"])
    assert stock_of(model) == stock
    with torch.no_grad():
        model.stack.layers[0].feed_forward.up.weight[0, 0] += 1
    assert fingerprint(model) != stock


def test_what_another_strategy_saved_is_refused() -> None:
    saved = changed(adapted("bert", LIGHT["lora"]))
    with pytest.raises(UserError, match=r"saved for another strategy, head or model: stack\.layers"):
        restore(adapted("bert", LIGHT["lora everywhere"]), saved)
    with pytest.raises(UserError, match=r"saved for another strategy, head or model: .*a does not fit"):
        restore(adapted("bert", replace(LIGHT["lora"], rank=4)), saved)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy("lorra"), r"strategy.kind: 'lorra' is not a strategy; did you mean lora\?"),  # type: ignore[arg-type]
        (Strategy("lora", rank=0), "strategy.rank: expected a whole number of at least 1, found 0"),
        (Strategy("lora", alpha=-1), "strategy.alpha: expected a number above 0, found -1"),
        (Strategy("lora", dropout=1.0), "strategy.dropout: expected a share"),
        (Strategy("lora", matrices=()), "strategy.matrices: no matrix to change"),
        (Strategy("lora", matrices=("values",)), "'values' is not a matrix of a layer"),  # type: ignore[arg-type]
        (Strategy("adapter", where="norms"), "strategy.where: 'norms' is no place"),  # type: ignore[arg-type]
        (Strategy("last", last=5), "strategy.last: there are only 4 layers"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(strategy: Strategy, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(model_of("bert"), strategy)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy("full", rank=4), "strategy.rank: of lora, but the strategy is full"),
        (Strategy("adapter", frozen=False), "strategy.frozen: of layers and pals, but the strategy is adapter"),
    ],
)
def test_what_is_asked_of_another_strategy_is_refused_and_what_was_saved_so_is_not(
    strategy: Strategy, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        see_used(strategy)
    apply(model_of("bert"), strategy)


@pytest.mark.parametrize("strategy", [LIGHT["lora everywhere"], LIGHT["houlsby"]], ids=["lora", "adapter"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_language_model_writes_with_what_is_wrapped_around_it(family: str, strategy: Strategy) -> None:
    sizes = {"hidden": 96, "heads": 3, "intermediate": 160} | ({"decoder_layers": 2} if family == "t5" else {})
    model: LanguageModel = lively(build(shape(family, **sizes)), by=0.05)
    assert Steps.usable(model.to(torch.bfloat16)) is kernels.has_dots()
    apply(model.float(), strategy)
    lively(model, by=0.05)
    assert not Steps.usable(copy.deepcopy(model).to(torch.bfloat16))
    prompts = [[5, 6, 7, 8], [9, 10], [11] * 7]
    begin = (model.architecture.start_id,) if model.architecture.both else ()
    found: list[list[int]] = [[] for _ in prompts]
    for step in write(model, prompts, Decoding(max_new_tokens=6, temperature=0), manner=Manner(start=begin)):
        for row, token in step:
            found[row].append(token)
    for prompt, text in zip(prompts, found, strict=True):
        expected: list[int] = []
        for _ in range(6):
            own = [*begin, *expected] if begin else [*prompt, *expected]
            ids, layout = torch.tensor(own), Layout.from_lengths([len(own)]).to("cpu")
            source = (torch.tensor(prompt), Layout.from_lengths([len(prompt)]).to("cpu")) if begin else None
            with torch.no_grad():
                expected.append(int(model.logits(ids, layout, source=source)[-1].argmax()))
        assert text == expected


def test_what_a_language_model_cannot_write_with_is_refused() -> None:
    for name in ("layers", "prefix"):
        with pytest.raises(UserError, match=f"{name} is for models of a task; use lora or adapter"):
            apply(build(shape("gpt2")), LIGHT[name])


@pytest.mark.parametrize("family", UNBIASED)
def test_a_model_without_biases_says_so(family: str) -> None:
    with pytest.raises(UserError, match=f"{family} has no biases to train; lora and adapter"):
        apply(model_of(family), Strategy("bias"))
