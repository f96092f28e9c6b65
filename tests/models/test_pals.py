"""Projected attention layers: what they compute, where they begin, what is shared; and several tasks over one stock."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertkin.errors import UserError
from bertkin.models.adapt import Strategy, apply, changed, merge, restore
from bertkin.models.light import open_light
from bertkin.models.many import begin_many, save_apart, save_many
from bertkin.models.pretrained import save_model
from bertkin.models.strategy import check
from bertkin.models.task_heads import Answer, TaskModel
from bertkin.models.transformer import Block
from bertkin.text.layout import Layout

from .support import flat_batch, hushed, lively, ours
from .test_adapt import OWN, adapted, far, learn, model_of, scores

PALS = Strategy("pals", size=12, heads=3)


def plain_attention(x: Tensor, aside: Any, causal: bool) -> Tensor:
    """What stands beside a layer, of one sequence [tokens, hidden], in PyTorch's own words."""
    low = F.linear(x, aside.down.weight, aside.down.bias)
    q, k, v = (
        part.view(len(x), aside.heads, -1).transpose(0, 1)
        for part in F.linear(low, aside.qkv.weight, aside.qkv.bias).chunk(3, dim=1)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1).flatten(1)
    return F.linear(mixed, aside.up.weight, aside.up.bias)


def norm(x: Tensor, module: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_layer_is_the_published_sum(family: str) -> None:
    """Post-norm: norm(a + feed forward(a) + PAL(h)), where a = norm(h + attention(h)). Pre-norm: the same sum, of the
    normed states that attention reads, and no norm at the end."""
    model = lively(adapted(family, PALS))
    stack = model.stack
    block: Block = stack.layers[1]
    torch.manual_seed(0)
    states, layout = torch.randn(9, stack.architecture.hidden), Layout.from_lengths([9]).to("cpu")
    with torch.no_grad():
        pre = family == "gpt2"
        read = norm(states, block.attention_norm) if pre else states
        seen = states + block.attention(read, layout, stack.places(layout)(block), None)
        middle = seen if pre else norm(seen, block.attention_norm)
        wide = block.feed_forward(norm(seen, block.feed_forward_norm) if pre else middle)
        wanted = middle + wide + plain_attention(read, block.aside, causal=pre)
        wanted = wanted if pre else norm(wanted, block.feed_forward_norm)
        stream, update = block(states, None, layout, stack.places(layout)(block))
        assert far(stream if update is None else stream + update, wanted) < 1e-5


def test_the_small_attention_sees_its_own_sequence_alone_and_answers_for_whoever_is_asked() -> None:
    model = lively(adapted("bert", PALS))
    ids, layout = flat_batch()
    with torch.no_grad():
        x = model.stack.embed(ids, layout)
        aside = model.stack.layers[0].aside
        every = aside(x, layout)
        asked = torch.tensor([0, 3, len(ids) - 1])
        assert far(aside(x, layout, asked), every[asked]) < 1e-6
        edges = layout.starts.tolist()
        alone = [plain_attention(x[a:b], aside, False) for a, b in pairwise(edges)]
        assert far(torch.cat(alone), every) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modern", "albert", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("frozen", [True, None])
def test_it_begins_where_the_stock_was_and_everything_of_it_learns(family: str, frozen: bool | None) -> None:
    model = adapted(family, Strategy("pals", size=8, heads=2, frozen=frozen))
    assert far(scores(model), scores(model_of(family))) < 1e-6
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model, 4)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == changed(model).keys()
    beside = {name for name in moved if ".aside." in name}
    assert beside == {name for name in before if ".aside." in name}
    assert bool([name for name in moved - beside if name.startswith("stack.")]) is not bool(frozen)


def test_down_and_up_are_one_for_all_layers_and_attention_each_layers_own() -> None:
    model = adapted("bert", PALS)
    asides = [block.aside for block in model.stack.layers]
    assert len({id(a.down.weight) for a in asides}) == len({id(a.up.weight) for a in asides}) == 1
    assert len({id(a.qkv.weight) for a in asides}) == len(asides)
    h, s, n = model.architecture.hidden, 12, len(asides)
    count = sum(p.numel() for name, p in model.named_parameters() if ".aside." in name)
    assert count == (h * s + s) + (s * h + h) + n * (3 * s * s + 3 * s)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="12 numbers cannot be shared by 5 heads"):
        check(Strategy("pals", size=12, heads=5))
    with pytest.raises(UserError, match="pals is for models of a task"):
        apply(ours("bert"), PALS)
    with pytest.raises(UserError, match="does not fold"):
        merge(adapted("bert", PALS))


def stock(family: str, folder: Path) -> Path:
    save_model(ours(family, **OWN.get(family, {})), folder)
    return folder


@pytest.mark.parametrize("strategy", [PALS, Strategy("layers", frozen=False)])
@pytest.mark.parametrize("family", ["bert", "modern", "gpt2"])
def test_a_stock_that_learnt_with_what_is_around_it_is_saved_beside_it(
    family: str, strategy: Strategy, tmp_path: Path
) -> None:
    model = model_of(family)
    apply(model, strategy)
    learn(model)
    save_apart(model, tmp_path / "run", tokenizer=None, extra={"task": "films"})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    again, about = open_light(tmp_path / "elsewhere")
    assert far(scores(again), scores(model)) < 1e-6 and about["task"] == "films"


ANSWERS = [Answer("class", 3), Answer("tokens", 5), Answer("class", 2)]


def taught(path: Path, strategy: Strategy) -> Any:
    """Three tasks, each after some steps of its own."""
    many = begin_many(path, ANSWERS, strategy)
    for model in many.models:
        learn(model, 2)
    return many


@pytest.mark.parametrize("strategy", [PALS, Strategy("full"), Strategy("adapter", size=4), Strategy("bias")])
def test_tasks_share_one_stock_in_training_and_on_disk(strategy: Strategy, tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    many = taught(path, strategy)
    names = ["films", "names", "moods"]
    save_many(many, tmp_path / "out", names, stock=path, extras=[{"n": i} for i in range(3)])
    assert (tmp_path / "out" / "stock").exists() is not strategy.light
    for number, (name, model) in enumerate(zip(names, many.models, strict=True)):
        again, about = open_light(tmp_path / "out" / name)
        assert far(scores(again), scores(model)) < 1e-6 and about["n"] == number
        assert model.stack.embeddings.tokens is many.stack.embeddings.tokens
        size = sum(file.stat().st_size for file in (tmp_path / "out" / name).iterdir())
        assert size < 0.6 * sum(4 * p.numel() for p in many.parameters())
    mine = {id(p) for p in many.models[0].parameters() if p.requires_grad}
    both = mine & {id(p) for p in many.models[2].parameters()}
    assert bool(both) is not strategy.light
    assert len(list(many.named_parameters())) == len({id(p) for p in many.parameters()})


def test_a_step_of_one_task_leaves_what_is_anothers_alone(tmp_path: Path) -> None:
    many = begin_many(stock("bert", tmp_path / "stock"), ANSWERS, PALS)
    own = {name: p.detach().clone() for name, p in many.models[1].named_parameters() if "aside" in name}
    shared = many.stack.layers[0].feed_forward.up.weight.detach().clone()
    learn(many.models[0])
    assert all(torch.equal(p, dict(many.models[1].named_parameters())[name]) for name, p in own.items())
    assert not torch.equal(shared, many.models[1].stack.layers[0].feed_forward.up.weight)


def test_a_shared_stock_stays_one_when_its_type_changes(tmp_path: Path) -> None:
    many = begin_many(stock("bert", tmp_path / "stock"), ANSWERS, Strategy("lora")).to(torch.bfloat16)
    tables = {model.stack.embeddings.tokens.data_ptr() for model in many.models}
    assert tables == {many.stack.embeddings.tokens.data_ptr()}
    assert many.stack.embeddings.tokens.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_both_halves_of_an_encoder_decoder_are_the_tasks(family: str, tmp_path: Path) -> None:
    path = stock(family, tmp_path / "stock")
    answers = [Answer("tokens", 4)] if family == "t5" else []
    many = begin_many(path, [*answers, Answer("class", 3, "last")], PALS)
    learn(many.models[-1])
    names = ["tags", "kinds"][-len(many.models) :]
    save_many(many, tmp_path / "out", names, stock=path, extras=[{}] * len(names))
    for name, model in zip(names, many.models, strict=True):
        assert far(scores(open_light(tmp_path / "out" / name)[0]), scores(model)) < 1e-6


def test_a_saved_stock_opens_in_transformers(tmp_path: Path) -> None:
    import transformers as hf

    many = taught(stock("bert", tmp_path / "stock"), PALS)
    save_many(many, tmp_path / "out", ["a", "b", "c"], stock="", extras=[{}] * 3)
    with hushed():
        theirs = hf.AutoModel.from_pretrained(tmp_path / "out" / "stock", add_pooling_layer=False).eval()
    ids, layout = flat_batch((7,))
    with torch.no_grad():
        assert far(theirs(input_ids=ids[None]).last_hidden_state[0], many.stack.eval()(ids, layout)) < 1e-5


def test_what_is_restored_must_fit() -> None:
    model: TaskModel = adapted("bert", PALS)
    with pytest.raises(UserError, match="does not fit"):
        restore(adapted("bert", Strategy("pals", size=6)), changed(model))
