"""Our optimisers are the ones of their papers, with the fused kernels and without, in float32 and over bfloat16."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bertkin.config import Model, Train
from bertkin.models import kernels
from bertkin.models.presets import build, resolve_model
from bertkin.text.layout import Layout
from bertkin.train import optim
from bertkin.train.optim import MOMENTUM, Optimizer, is_hidden_matrix, orthogonalise, stacked

PRESETS = ("bert", "roberta", "modern")


@pytest.fixture(params=["fused", "eager"], autouse=True)
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim here holds with the fused kernels and without them."""
    if request.param == "fused" and kernels.get() is None:
        pytest.skip("no C++ compiler")
    if request.param == "eager":
        monkeypatch.setattr(kernels, "get", lambda: None)


def train(optimizer: str = "adamw", **fields: Any) -> Train:
    plain = {"lr": 3e-3, "matrix_lr": 0.03, "weight_decay": 0.1, "beta2": 0.98, "clip": 0.0}
    return Train(optimizer=optimizer, **(plain | fields))  # type: ignore[arg-type]


def tiny(family: str = "modern", dtype: torch.dtype = torch.float32, *, sentence: bool = False) -> Any:
    shape = Model(family=family, layers=2, hidden=32, heads=2, intermediate=48, max_length=24)  # type: ignore[arg-type]
    return build(resolve_model(shape, 61), sentence=sentence, seed=1).to(dtype)


def give_gradients(model: nn.Module, step: int, size: float = 1.0) -> None:
    """Gradients of the parameters' own types that differ from step to step and from place to place."""
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draw) * size * (1 + torch.rand(1, generator=draw))
        parameter.grad = noise.to(parameter.dtype)


def learn(model: nn.Module, optimizer: Optimizer, steps: int, *, first: int = 0, size: float = 0.1) -> None:
    for step in range(first, first + steps):
        give_gradients(model, step, size)
        optimizer.step(1.0 / (1 + step), optimizer.gradient_norm())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        far = float((one[name].float() - other[name].float()).abs().max())
        assert far <= tolerance, f"{name} is {far} off"


# AdamW


@pytest.mark.parametrize("family", PRESETS)
def test_adamw_is_torchs_with_no_decay_on_norms_and_biases(family: str) -> None:
    """Loshchilov & Hutter 2019, as torch has it."""
    model, reference = tiny(family, sentence=True), tiny(family, sentence=True)
    t = train()
    norms = {id(p) for m in reference.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    free = [p for n, p in reference.named_parameters() if id(p) in norms or n.endswith("bias")]
    decayed = [p for n, p in reference.named_parameters() if id(p) not in norms and not n.endswith("bias")]
    assert free and all(p.ndim == 1 for p in free) and all(p.ndim == 2 for p in decayed)
    groups = [{"params": decayed, "weight_decay": t.weight_decay}, {"params": free, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=t.lr, betas=(0.9, t.beta2), eps=1e-8)
    ours = Optimizer(model, t)
    for step in range(6):
        give_gradients(model, step)
        give_gradients(reference, step)
        ours.step(1.0 / (1 + step), ours.gradient_norm())
        for group in theirs.param_groups:
            group["lr"] = t.lr / (1 + step)
        theirs.step()
    assert_close(weights(model), weights(reference), 2e-6)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    """As torch does: nothing to learn, no decay either."""
    model = tiny(sentence=True)
    optimizer, before = Optimizer(model, train()), weights(model)
    give_gradients(model, 0)
    model.sentence.classifier.weight.grad = None
    optimizer.step(1.0, 1.0)
    after = weights(model)
    assert torch.equal(after["sentence.classifier.weight"], before["sentence.classifier.weight"])
    assert not torch.equal(after["sentence.dense.weight"], before["sentence.dense.weight"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_of_a_table_that_never_had_a_gradient_are_passed_over_with_the_same_bits() -> None:
    """Most words of a vocabulary are in none of a task's texts; weight decay reaches them all the same."""
    outcomes = []
    for passing in (True, False):
        model = tiny(dtype=torch.bfloat16)
        optimizer = Optimizer(model, train())
        table = next(slot for slot in optimizer.slots if slot.moved is not None)
        for step in range(4):
            give_gradients(model, step)
            assert table.parameter.grad is not None
            table.parameter.grad[[row for row in range(61) if row % 7 != step]] = 0  # others with every step
            if not passing:
                table.moved.fill_(1)
            optimizer.step(1.0, optimizer.gradient_norm())
        outcomes.append(optimizer.state())
    assert all(torch.equal(a, outcomes[1][name]) for name, a in outcomes[0].items())


def test_rows_that_had_a_gradient_are_known_again_when_a_run_is_taken_up() -> None:
    model = tiny(dtype=torch.bfloat16)
    optimizer = Optimizer(model, train())
    table = next(slot for slot in optimizer.slots if slot.moved is not None)
    give_gradients(model, 0)
    assert table.parameter.grad is not None
    table.parameter.grad[10:] = 0
    optimizer.step(1.0, 1.0)
    other = Optimizer(tiny(dtype=torch.bfloat16), train())
    other.load({name: tensor.clone() for name, tensor in optimizer.state().items()}, 1)
    again = next(slot for slot in other.slots if slot.moved is not None)
    assert again.moved is not None and again.moved.tolist() == [1] * 10 + [0] * 51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tensors_together_are_updated_as_each_alone(dtype: torch.dtype) -> None:
    """What a GPU does, here on the processor."""
    one, other = tiny(dtype=dtype), tiny(dtype=dtype)
    alone, together = Optimizer(one, train()), Optimizer(other, train())
    for step in range(5):
        for model in (one, other):
            give_gradients(model, step)
        alone.step(0.5, 1.0)
        for slot in together.slots:
            slot.updates += 1
        with torch.no_grad():
            together._adamw_together(together.slots, 0.5 * train().lr, 1.0)
    assert_close(alone.weights(), together.weights(), 2e-6)
    assert_close(weights(one), weights(other), 2e-6 if dtype == torch.float32 else 0.01)


# LAMB


def test_lamb_is_the_papers() -> None:
    """Algorithm 2 of You et al. 2020 written out plainly, with the identity for phi; norms and biases not scaled."""
    model = tiny("bert")
    t = train("lamb")
    w = {name: tensor.double() for name, tensor in weights(model).items()}
    m = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
    optimizer = Optimizer(model, t)
    for step in range(1, 6):
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            g = parameter.grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = t.beta2 * v[name] + (1 - t.beta2) * g * g
            r = (m[name] / (1 - 0.9**step)) / ((v[name] / (1 - t.beta2**step)).sqrt() + 1e-6)
            trust = 1.0
            if parameter.ndim == 2:
                r = r + t.weight_decay * w[name]
                trust = float(w[name].norm() / r.norm())
            w[name] = w[name] - t.lr * trust * r
        optimizer.step(1.0, optimizer.gradient_norm())
    assert_close(weights(model), w, 5e-6)


# Muon


DTYPES = st.sampled_from([torch.bfloat16, torch.float32])


@settings(max_examples=20)
@given(
    rows=st.integers(4, 64),
    cols=st.integers(4, 64),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    dtype=DTYPES,
)
def test_singular_values_come_near_one(rows: int, cols: int, seed: int, scale: float, dtype: torch.dtype) -> None:
    """Of any shape and scale, where the matrix has no singular value below a fiftieth of the largest."""
    draw = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(2, rows, cols, generator=draw), full_matrices=False)
    g = u @ torch.diag_embed(s.clamp(min=s.max() / 50)) @ v * scale
    near = torch.linalg.svdvals(orthogonalise(g, dtype).float())
    assert near.min() > 0.4 and near.max() < 1.6


@settings(max_examples=20)
@given(width=st.sampled_from([4, 8, 64]), rank=st.integers(1, 8), seed=st.integers(0, 99), dtype=DTYPES)
def test_few_directions_never_run_away(width: int, rank: int, seed: int, dtype: torch.dtype) -> None:
    """A gradient of low rank has singular values at the upper bound, where rounding could drive them off."""
    draw = torch.Generator().manual_seed(seed)
    g = torch.randn(4, width, rank, generator=draw) @ torch.randn(4, rank, width, generator=draw)
    assert torch.linalg.svdvals(orthogonalise(g, dtype).float()).max() < 1.6


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    g = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    turned = u.transpose(1, 2) @ orthogonalise(g).float() @ v.transpose(1, 2)
    spread = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert spread.abs().max() < 0.05 and turned.diagonal(dim1=1, dim2=2).min() > 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_are_made_orthogonal_in_the_type_of_the_model(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """In float32 training, too, bfloat16 was used: seventy times as slow where the processor has no such products."""
    seen = set()

    def watched(g: Tensor, used: torch.dtype) -> Tensor:
        seen.add(used)
        return orthogonalise(g, used)

    monkeypatch.setattr(optim, "orthogonalise", watched)
    model = tiny("bert", dtype=dtype)
    optimizer = Optimizer(model, train("muon"))
    give_gradients(model, 0)
    optimizer.step(1.0, optimizer.gradient_norm())
    assert seen == {dtype}


def test_nothing_made_orthogonal_is_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 8, 12)).float(), torch.zeros(2, 8, 12))


def test_muon_is_for_the_matrices_between_embeddings_and_answers() -> None:
    model = tiny("bert", sentence=True)
    optimizer = Optimizer(model, train("muon"))
    matrices = {slot.name for slot in optimizer.slots if slot.second is None}
    inner = ("attention.qkv.weight", "attention.out.weight", "up.weight", "down.weight")
    wanted = {n for n, p in model.named_parameters() if n.startswith("stack.layers") and p.ndim == 2}
    assert matrices == wanted | {"head.dense.weight"}
    assert len(wanted) == 2 * len(inner)
    assert not any(is_hidden_matrix(n, p) for n, p in model.named_parameters() if p.ndim != 2 or "embeddings" in n)


def test_queries_keys_values_and_a_gate_are_made_orthogonal_apart() -> None:
    model = tiny("modern")
    parts = {n: stacked(n, model) for n, p in model.named_parameters() if is_hidden_matrix(n, p)}
    assert {n: k for n, k in parts.items() if k > 1} == {
        n: (3 if "qkv" in n else 2) for n in parts if "qkv" in n or n.endswith("up.weight")
    }
    plain = tiny("bert")
    assert all(stacked(n, plain) == 1 for n, p in plain.named_parameters() if n.endswith("up.weight"))


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_muon_is_momentum_made_orthogonal(family: str) -> None:
    """Jordan et al. 2024 with Nesterov's look ahead, each stacked matrix by itself, written out plainly."""
    model = tiny(family)
    t = train("muon")
    names = [n for n, p in model.named_parameters() if is_hidden_matrix(n, p)]
    w = {n: weights(model)[n] for n in names}
    momentum = {n: torch.zeros_like(w[n]) for n in names}
    optimizer = Optimizer(model, t)
    for step in range(4):
        give_gradients(model, step)
        for name in names:
            g = model.get_parameter(name).grad
            momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * g
            ahead = (1 - MOMENTUM) * g + MOMENTUM * momentum[name]
            parts = [orthogonalise(part[None], torch.float32)[0] for part in ahead.chunk(stacked(name, model))]
            lr = t.matrix_lr * max(1.0, parts[0].shape[0] / parts[0].shape[1]) ** 0.5
            w[name] = (1 - lr * t.weight_decay) * w[name] - lr * torch.cat(parts)
        optimizer.step(1.0, optimizer.gradient_norm())
    assert_close({n: weights(model)[n] for n in names}, w, 1e-5)


def test_what_is_no_matrix_is_adamws_under_muon() -> None:
    one, other = tiny(), tiny()
    learn(one, Optimizer(one, train("muon")), 3)
    learn(other, Optimizer(other, train("adamw")), 3)
    rest = [n for n, p in one.named_parameters() if not is_hidden_matrix(n, p)]
    assert_close({n: weights(one)[n] for n in rest}, {n: weights(other)[n] for n in rest}, 0.0)


# Clipping and averaging


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_table_of_tokens_may_have_a_rate_of_its_own(family: str) -> None:
    own, same = tiny(family), tiny(family)
    before, apart = weights(own), Optimizer(own, train(weight_decay=0.0, table_lr=12e-3))
    learn(own, apart, 1)
    learn(same, Optimizer(same, train(weight_decay=0.0)), 1)
    tables = {"stack.embeddings.tokens", "head.table"}
    for name, after in weights(same).items():
        share = 4.0 if name in tables else 1.0
        torch.testing.assert_close(
            weights(own)[name] - before[name], share * (after - before[name]), rtol=1e-3, atol=1e-6
        )


def test_the_norm_is_that_of_all_gradients_together() -> None:
    model = tiny()
    give_gradients(model, 0)
    together = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert Optimizer(model, train()).gradient_norm() == pytest.approx(float(together.norm()), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_a_number_shows_in_the_norm(bad: float) -> None:
    model = tiny()
    give_gradients(model, 0)
    model.head.dense.weight.grad[3, 1] = bad
    assert not math.isfinite(Optimizer(model, train()).gradient_norm())


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_clipping_is_the_same_as_smaller_gradients(optimizer: str) -> None:
    one, other = tiny(), tiny()
    clipped, plain = Optimizer(one, train(optimizer, clip=1.0)), Optimizer(other, train(optimizer))
    for step in range(3):
        give_gradients(one, step)
        norm = clipped.gradient_norm()
        assert norm > 1
        give_gradients(other, step, 1 / norm)
        clipped.step(1.0, norm)
        plain.step(1.0, 1.0)
    # Adam's size does not depend on the gradients' (but for eps); Muon's follows their direction.
    assert_close(weights(one), weights(other), 2e-3 if optimizer == "muon" else 2e-5)


def test_a_norm_below_the_clip_changes_nothing() -> None:
    one, other = tiny(), tiny()
    learn(one, Optimizer(one, train(clip=1e6)), 3)
    learn(other, Optimizer(other, train(clip=0.0)), 3)
    assert_close(weights(one), weights(other), 0.0)


def test_the_average_follows_the_weights_and_is_what_is_saved() -> None:
    model = tiny()
    optimizer = Optimizer(model, train(ema=0.75))
    wanted = weights(model)
    for step in range(4):
        learn(model, optimizer, 1, first=step)
        wanted = {name: 0.75 * wanted[name] + 0.25 * tensor for name, tensor in weights(model).items()}
    assert_close(optimizer.weights(), wanted, 1e-6)
    assert_close(
        optimizer.weights(), {n.removeprefix("average/"): t for n, t in optimizer.state().items() if "av" in n}, 0
    )
    plain = Optimizer(model, train())
    assert_close(plain.weights(), weights(model), 0.0)


# Master weights and state


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_a_bfloat16_model_is_the_rounding_of_float32_masters(optimizer: str) -> None:
    model, exact = tiny(dtype=torch.bfloat16), tiny()
    ours = Optimizer(model, train(optimizer, lr=1e-5, matrix_lr=1e-4))
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(ours.weights()[name])
    reference = Optimizer(exact, train(optimizer, lr=1e-5, matrix_lr=1e-4))
    for step in range(8):
        give_gradients(model, step)
        for parameter, twin in zip(exact.parameters(), model.parameters(), strict=True):
            parameter.grad = twin.grad.float()
        ours.step(1.0, 1.0)
        reference.step(1.0, 1.0)
    assert_close(weights(model), {n: t.bfloat16() for n, t in ours.weights().items()}, 0.0)
    # Steps far smaller than bfloat16 can hold add up all the same.
    assert_close(ours.weights(), weights(exact), 1e-4 if optimizer == "muon" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_saved_state_goes_on_with_the_same_bits(optimizer: str, dtype: torch.dtype, ema: float) -> None:
    t = train(optimizer, ema=ema, clip=1.0)
    model, resumed = tiny(dtype=dtype), tiny(dtype=dtype)
    whole = Optimizer(model, t)
    learn(model, whole, 3)
    table = {name: tensor.clone() for name, tensor in whole.state().items()}
    assert all(tensor.dtype == torch.float32 for tensor in table.values())
    learn(model, whole, 3, first=3)
    half = Optimizer(resumed, t)
    half.load(table, 3)
    learn(resumed, half, 3, first=3)
    assert_close(weights(resumed), weights(model), 0.0)
    assert_close(half.state(), whole.state(), 0.0)


def test_a_state_of_another_optimiser_or_model_is_refused() -> None:
    state = Optimizer(tiny(), train("muon")).state()
    with pytest.raises(KeyError):
        Optimizer(tiny(), train("adamw")).load(state, 1)
    with pytest.raises((KeyError, RuntimeError)):
        Optimizer(tiny("bert"), train("muon")).load(state, 1)


@pytest.mark.parametrize("paths", ["fused"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_the_kernels_take_the_same_steps_as_torch(
    optimizer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, eager = tiny(dtype=dtype), tiny(dtype=dtype)
    t = train(optimizer, clip=1.0)
    one, other = Optimizer(fused, t), Optimizer(eager, t)
    learn(fused, one, 5)
    monkeypatch.setattr(kernels, "get", lambda: None)
    learn(eager, other, 5)
    # Muon's momentum looks ahead in the gradient's type in the kernel, in float32 in torch.
    rough = optimizer == "muon" and dtype == torch.bfloat16
    assert_close(one.weights(), other.weights(), 5e-3 if rough else 2e-3 if optimizer == "muon" else 2e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_each_optimiser_learns_a_batch_by_heart(optimizer: str) -> None:
    model = tiny()
    ours = Optimizer(model, train(optimizer, lr=0.03, weight_decay=0.0, clip=1.0))
    ids = torch.randint(5, 61, (48,), generator=torch.Generator().manual_seed(3))
    layout, asked = Layout.from_lengths([24, 24]).to("cpu"), torch.arange(0, 48, 5)
    losses = []
    for _ in range(30):
        total = model(ids, layout, asked, ids[asked] % 7, scale=1 / len(asked)).loss_sum
        total.backward()
        losses.append(float(total.detach()))
        ours.step(1.0, ours.gradient_norm())
    assert losses[-1] < 0.6 * losses[0]
