"""The kernels are their eager twins: values and gradients, whatever the lengths, the kind and who sees whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bertkin.models.attention as attention_module
from bertkin.models import fused, kernels, ops, products
from bertkin.models.attention import Rule, attention, attention_weights, cached_attention, rotary_tables
from bertkin.text.layout import Layout

pytestmark = pytest.mark.usefixtures("multiplied_by")

needs_compiler = pytest.mark.skipif(kernels.get() is None, reason="no C++ compiler")
needs_kernel = pytest.mark.skipif(not kernels.has_dots(), reason="no bf16 dot products here")
HALF = torch.bfloat16
KINDS = pytest.mark.parametrize(
    ("dtype", "share"),
    [pytest.param(torch.float32, 1e-5, marks=needs_compiler), pytest.param(HALF, 0.02, marks=needs_kernel)],
)
"""The types that attention has kernels for, and how far from exact each may be."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = HALF) -> Tensor:
    """Normal numbers, the same for a shape and seed."""
    generator = torch.Generator().manual_seed(seed * 1000 + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def off(ours: Tensor, exact: Tensor) -> float:
    """How far apart, as a share of the size and a fifth more; a half, where all numbers are near zero or few: a softmax over
    one key has no gradient, but what cancels there, products over a head, is larger than one and rounded."""
    ours, exact = ours.detach().double(), exact.detach().double()
    root = exact.numel() ** 0.5
    more = 0.5 if exact.norm() < 0.05 * root or exact.numel() <= 64 else 0.2
    return float((ours - exact).norm() / (exact.norm() + more * root + 1e-9))


def agree(call: Callable[..., Any], inputs: list[Tensor | None], share: float) -> None:
    """`call` of the inputs with kernels, and of their float64 copies without: the same values and gradients."""
    outcomes = []
    for wide in (False, True):
        given = [None if x is None else (x.double() if wide else x.clone()).requires_grad_() for x in inputs]
        found = call(*given)
        found = [x for x in (found if isinstance(found, tuple) else (found,)) if x.requires_grad]
        torch.autograd.backward(found, [draw(*x.shape, seed=7).to(x.dtype) for x in found])
        outcomes.append([*found, *(x.grad for x in given if x is not None)])
    for i, (ours, exact) in enumerate(zip(*outcomes, strict=True)):
        assert off(ours, exact) < share, f"number {i} of outputs and gradients"


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.sampled_from([1, 15, 16, 40, 256]),
    rms=st.booleans(),
    adds=st.booleans(),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, HALF]),
)
def test_norms(rows: int, cols: int, rms: bool, adds: bool, has_bias: bool, dtype: torch.dtype) -> None:
    x = draw(rows, cols, seed=1, dtype=dtype) if adds else None
    bias = draw(cols, seed=2, dtype=dtype) if has_bias and not rms else None
    inputs = [draw(rows, cols, dtype=dtype) + 0.5, x, draw(cols, seed=3, dtype=dtype), bias]
    share = 1e-4 if dtype == torch.float32 else 0.02
    agree(lambda *given: ops.add_norm(*given, 1e-3, rms=rms), inputs, share)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("kind", ["gelu", "gelu-tanh", "relu", "geglu", "geglu-tanh", "swiglu"])
def test_bends(kind: ops.Kind, dtype: torch.dtype) -> None:
    agree(lambda x: ops.bend(x, kind), [3 * draw(7, 70, dtype=dtype)], 1e-5 if dtype == torch.float32 else 0.01)
    far = torch.tensor([[-1e4, -200.0, -30.0, 30.0, 200.0, 1e4]], dtype=dtype).requires_grad_()
    bent = ops.bend(far, kind)
    bent.sum().backward()
    assert bent.isfinite().all() and far.grad is not None and far.grad.isfinite().all()


@needs_kernel
@pytest.mark.parametrize("kind", ["gelu", "gelu-tanh", "relu", "geglu", "geglu-tanh", "swiglu"])
def test_feed_forward(kind: ops.Kind) -> None:
    wide = 260 if kind in ops.GATED else 130
    inputs: list[Tensor | None] = [draw(70, 64), 0.2 * draw(wide, 64), draw(wide), 0.2 * draw(64, 130), draw(64)]
    agree(lambda *given: ops.feed_forward(*given, kind=kind), inputs, 0.02)
    # Bending inside the product gives the bits of bending afterwards.
    x, up, up_bias, down, down_bias = inputs
    assert x is not None and up is not None and down is not None and products.usable(x, up, down)
    apart = ops.linear(ops.bend(ops.linear(x, up, up_bias), kind), down, down_bias)
    assert torch.equal(ops.feed_forward(x, up, up_bias, down, down_bias, kind=kind), apart)


LENGTHS = st.lists(st.integers(1, 110), min_size=1, max_size=4)


@KINDS
@settings(max_examples=120, deadline=None)
@given(
    lengths=LENGTHS,
    window=st.none() | st.integers(0, 60),
    sight=st.sampled_from(["all", "causal", "reach"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    dim=st.sampled_from([32, 64]),
    turned=st.booleans(),
    offsets=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    some=st.booleans(),
    data=st.data(),
)
def test_attention(
    lengths: list[int],
    window: int | None,
    sight: str,
    kv_heads: int,
    dim: int,
    turned: bool,
    offsets: bool,
    scale: float | None,
    some: bool,
    data: st.DataObject,
    dtype: torch.dtype,
    share: float,
) -> None:
    layout = Layout.from_lengths(lengths).to("cpu")
    if sight == "reach":
        prefixes = torch.tensor([data.draw(st.integers(1, n)) for n in lengths])[layout.sequence_ids()]
        layout = replace(layout, reach=torch.maximum(prefixes, layout.positions + 1).int())
    n, heads = layout.n_tokens, 4
    picked = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=60))) if some else None
    queries = None if picked is None else torch.tensor(picked)
    rotary = rotary_tables(128, dim, 100.0, torch.device("cpu")) if turned else None
    longest = layout.max_length + data.draw(st.integers(0, 3))
    distances = draw(heads, 2 * longest - 1, seed=3, dtype=torch.float32) if offsets else None

    def call(q: Tensor, k: Tensor, v: Tensor, distances: Tensor | None) -> Tensor:
        rule = Rule(window, causal=sight == "causal")
        return attention(q, k, v, layout, rule, queries=queries, rotary=rotary, distances=distances, scale=scale)

    asked = n if queries is None else len(queries)
    keys = [draw(n, kv_heads, dim, seed=seed, dtype=dtype) for seed in (1, 2)]
    agree(call, [draw(asked, heads, dim, dtype=dtype), *keys, distances], share)


@KINDS
@settings(max_examples=25, deadline=None)
@given(
    lengths=LENGTHS,
    dropped=st.floats(0.05, 0.8),
    kv_heads=st.sampled_from([1, 4]),
    window=st.none() | st.integers(0, 60),
    causal=st.booleans(),
)
def test_attention_drops_the_same_weights_there_and_back(
    lengths: list[int],
    dropped: float,
    kv_heads: int,
    window: int | None,
    causal: bool,
    dtype: torch.dtype,
    share: float,
) -> None:
    layout, heads, dim = Layout.from_lengths(lengths).to("cpu"), 4, 32
    n, longest, rule = layout.n_tokens, layout.max_length, Rule(window, causal)
    q = draw(n, heads, dim, dtype=dtype)
    k, v = (draw(n, kv_heads, dim, seed=seed, dtype=dtype) for seed in (1, 2))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(5)
        return attention(q, k, v, layout, rule, dropout=dropped).view(n, heads, dim)

    # What comes out of values that are one at a key's own place is that key's weight: 32 keys at a time.
    kept = torch.zeros(n, heads, longest + dim)
    for first in range(0, longest, dim):
        places = layout.positions.long() - first
        mine = ((places >= 0) & (places < dim))[:, None] * torch.nn.functional.one_hot(places.clamp(0, dim - 1), dim)
        kept[:, :, first : first + dim] = call(
            q, k, mine[:, None].expand(n, kv_heads, dim).contiguous().to(dtype)
        ).float()
    there = layout.padded(kept[:, :, :longest] != 0).transpose(1, 2)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = attention_weights(q, k, layout, rule).double() * there / (1 - dropped)
        values = layout.padded(v.repeat_interleave(heads // kv_heads, dim=1)).transpose(1, 2)
        return layout.flat((weights @ values).transpose(1, 2))

    outcomes = []
    for wide in (False, True):
        given = [(x.double() if wide else x.clone()).requires_grad_() for x in (q, k, v)]
        found = (exact if wide else call)(*given)
        found.backward(draw(n, heads, dim, seed=7).to(found.dtype))
        outcomes.append([found, *(x.grad for x in given)])
    for ours, theirs in zip(*outcomes, strict=True):
        assert off(ours, theirs) < 1.5 * share
    asked = layout.padded(torch.ones(n, dtype=torch.bool))[:, None, :, None]  # what rows of padding see means nothing
    seen = (attention_weights(q.float(), k.float(), layout, rule) > 1e-4) & asked
    if int(seen.sum()) > 5000:
        assert there[seen].float().mean() == pytest.approx(1 - dropped, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    window=st.none() | st.integers(0, 60),
    causal=st.booleans(),
    kind=st.sampled_from(["plain", "rotary", "distances", "across"]),
    some=st.booleans(),
    data=st.data(),
)
def test_torchs_own_attention_sees_what_ours_does(
    lengths: list[int], window: int | None, causal: bool, kind: str, some: bool, data: st.DataObject
) -> None:
    # What a GPU uses, here on the processor.
    layout = Layout.from_lengths(lengths).to("cpu")
    others = Layout.from_lengths([data.draw(st.integers(1, 40)) for _ in lengths]).to("cpu")
    given: dict[str, Any] = {"asking": others if kind == "across" else None}
    given["rotary"] = rotary_tables(128, 8, 100.0, torch.device("cpu")) if kind == "rotary" else None
    given["distances"] = 3 * draw(4, 2 * layout.max_length - 1, seed=3).float() if kind == "distances" else None
    n = others.n_tokens if kind == "across" else layout.n_tokens
    if some:
        given["queries"] = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=20))))
        n = len(given["queries"])
    inputs = [draw(n, 4, 8), draw(layout.n_tokens, 2, 8, seed=1), draw(layout.n_tokens, 2, 8, seed=2)]
    outcomes = []
    for torchs in (False, True):
        wanted = [x.float().requires_grad_() for x in inputs]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "_torchs_own", lambda q, torchs=torchs: torchs)
            found = attention(*wanted, layout, Rule(window, causal), **given)
        found.backward(draw(*found.shape, seed=7).float())
        outcomes.append([found, *(x.grad for x in wanted)])
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (3, 17), (40, 33), (300, 64)]),
    share=st.floats(0.0, 0.9),
    dtype=st.sampled_from([torch.float32, HALF]),
    seed=st.integers(0, 9),
)
def test_dropout_keeps_a_number_whole_and_its_gradient_with_it(
    shape: tuple[int, int], share: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (draw(*shape, dtype=dtype).abs() + 0.5).requires_grad_()
    y = ops.dropout(x, share)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x.float() / (1 - share)).to(dtype)[kept], rtol=0.01, atol=0.0)
    y.backward(torch.ones_like(y))
    assert x.grad is not None and torch.equal(x.grad != 0, kept)
    torch.manual_seed(seed)
    assert torch.equal(ops.dropout(x, share), y)
    if x.numel() > 10_000 and share > 0.01:
        assert kept.float().mean() == pytest.approx(1 - share, abs=0.02)
        assert not torch.equal(ops.dropout(x, share) != 0, kept)


@needs_compiler
def test_dropout_strikes_neighbours_rows_and_calls_independently() -> None:
    torch.manual_seed(0)
    one, other = (ops.dropout(torch.ones(1024, 1024), 0.5) == 0 for _ in range(2))
    for a, b in ((one, other), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one[:, 16:], one[:, :-16])):
        assert (a & b).float().mean() == pytest.approx(0.25, abs=0.002)


@KINDS
@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, kv_heads=st.sampled_from([1, 2, 4]), some=st.booleans(), data=st.data())
def test_attention_to_other_sequences(
    lengths: list[int], kv_heads: int, some: bool, data: st.DataObject, dtype: torch.dtype, share: float
) -> None:
    # Neither the rule nor the reach of what is looked at matters to those who look from outside.
    layout = Layout.from_lengths(lengths).to("cpu")
    layout = replace(layout, reach=layout.positions + 1)
    asking = Layout.from_lengths([data.draw(st.integers(0 if some else 1, 60)) for _ in lengths]).to("cpu")
    n = asking.n_tokens
    picked = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=20))) if some and n else None
    queries = None if picked is None else torch.tensor(picked, dtype=torch.int64)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, layout, Rule(3, causal=True), asking=asking, queries=queries)

    keys = [draw(layout.n_tokens, kv_heads, 32, seed=seed, dtype=dtype) for seed in (1, 2)]
    agree(call, [draw(n if queries is None else len(queries), 4, 32, dtype=dtype), *keys], share)


def test_weights_are_what_attention_mixes_with() -> None:
    layout = Layout.from_lengths([5, 9]).to("cpu")
    asking = Layout.from_lengths([4, 2]).to("cpu")
    q, k, v = draw(6, 4, 8, dtype=torch.float32), draw(14, 2, 8, dtype=torch.float32), draw(14, 2, 8, seed=1).float()
    weights = attention_weights(q, k, layout, Rule(), asking=asking)
    assert weights.shape == (2, 4, 4, 9) and float(weights[0, :, :, 5:].abs().max()) == 0
    mixed = weights @ layout.padded(v).repeat_interleave(2, dim=2).transpose(1, 2)
    found = attention(q, k, v, layout, Rule(), asking=asking)
    assert torch.allclose(asking.flat(mixed.transpose(1, 2)).flatten(1), found, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout.from_lengths([5, 9]).to("cpu")
    q = draw(14, 2, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="1 sequences ask, 2 are asked"):
        attention(q, q, q, layout, Rule(), asking=Layout.from_lengths([14]).to("cpu"))
    with pytest.raises(ValueError, match="15 offsets are too few for sequences of 9 tokens"):
        attention(q, q, q, layout, Rule(), distances=torch.zeros(2, 15))


def test_tokens_that_the_layout_does_not_have_are_refused() -> None:
    layout = Layout.from_lengths([5, 9]).to("cpu")
    q, k = draw(14, 2, 32, dtype=torch.float32), draw(13, 2, 32, dtype=torch.float32)
    for heads, more in (((q, k, k), {}), ((k, q, q), {}), ((q, q, q), {"queries": torch.tensor([1, 3])})):
        with pytest.raises(ValueError, match="14 tokens"):
            attention(*heads, layout, Rule(), **more)


def test_values_of_another_width_are_mixed_without_the_kernel() -> None:
    layout, wide = Layout.from_lengths([5, 9]).to("cpu"), draw(14, 2, 64, dtype=torch.float32)
    q, k = draw(14, 2, 32, dtype=torch.float32), draw(14, 2, 32, seed=1, dtype=torch.float32)
    found = attention(q, k, wide, layout, Rule()).view(14, 2, 64)
    halves = [attention(q, k, wide[:, :, at : at + 32].contiguous(), layout, Rule()).view(14, 2, 32) for at in (0, 32)]
    assert torch.allclose(found, torch.cat(halves, dim=-1), atol=1e-5)


@KINDS
def test_what_is_no_number_shows(dtype: torch.dtype, share: float) -> None:
    """A run that diverges must not look well: no kernel makes a number of NaN."""
    layout, sick = Layout.from_lengths([40]).to("cpu"), draw(40, 2, 32, dtype=dtype)
    sick[7, 1, 3] = torch.nan
    well = draw(40, 2, 32, seed=1, dtype=dtype)
    assert attention(sick, well, well, layout, Rule())[7, 32:].isnan().all()
    assert attention(well, sick, well, layout, Rule())[:, 32:].isnan().all()
    for kind in ("gelu", "gelu-tanh", "relu"):
        assert ops.bend(sick.flatten(1), kind)[7, 35].isnan()
    hidden, table = sick.flatten(1), draw(300, 64, seed=2, dtype=dtype)
    assert ops.vocabulary_loss(hidden, table, None, torch.arange(40))[0].isnan()


@KINDS
def test_a_second_derivative_is_refused(dtype: torch.dtype, share: float) -> None:
    layout, q = Layout.from_lengths([5, 9]).to("cpu"), draw(14, 2, 32, dtype=dtype).requires_grad_()
    (once,) = torch.autograd.grad(attention(q, q, q, layout, Rule()).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@KINDS
def test_numbers_are_the_same_to_the_bit_whatever_the_number_of_threads(dtype: torch.dtype, share: float) -> None:
    layout = Layout.from_lengths([60, 3, 100]).to("cpu")
    q, k, v = (draw(163, n, 32, seed=seed, dtype=dtype) for seed, n in enumerate((4, 2, 2)))
    inputs = q, k, v, draw(4, 199, dtype=torch.float32)
    hidden, table, targets = draw(163, 64), 0.1 * draw(3000, 64), torch.arange(163)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            given = [x.clone().requires_grad_() for x in (*inputs, hidden, table)]
            out = attention(*given[:3], layout, Rule(causal=True), distances=given[3])
            loss, right = ops.vocabulary_loss(given[4], given[5], None, targets, z_loss=1e-3)
            torch.autograd.backward([out, loss], [draw(163, 128, seed=3, dtype=dtype), None])
            found.append([out, loss, right, ops.linear(hidden[:9], table), *(x.grad for x in given)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 150),
    vocab=st.sampled_from([33, 700, 1111]),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, HALF]),
    z_loss=st.sampled_from([0.0, 0.01]),
    size=st.sampled_from([0.05, 0.5, 3.0]),
    chunk=st.sampled_from([40, 64, 1000]),
)
def test_vocabulary_loss(
    rows: int, vocab: int, has_bias: bool, dtype: torch.dtype, z_loss: float, size: float, chunk: int
) -> None:
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(rows))
    hidden, table = draw(rows, 64, dtype=dtype), (size * draw(vocab, 64, dtype=torch.float32)).to(dtype)
    if size == 3.0:
        # Targets a hundred nats from the top, where powers of e leave float32; whole numbers, so that bfloat16 is exact.
        hidden, table = hidden.round(), table.round()
    bias = draw(vocab, dtype=dtype) if has_bias else None
    loss, correct, gradients = [], [], []
    for wide in (False, True):
        given = [
            None if x is None else (x.double() if wide else x.clone()).requires_grad_() for x in (hidden, table, bias)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "CHUNK", chunk * vocab * hidden.element_size())
            total, n = ops.vocabulary_loss(*given, targets, z_loss=z_loss, scale=0.25)  # type: ignore[arg-type]
        (2 * total).backward()
        loss.append(float(total.detach())), correct.append(int(n.sum()))
        gradients.append([x.grad for x in given if x is not None])
    share = 2e-4 if dtype == torch.float32 else 0.02
    assert loss[0] == pytest.approx(loss[1], rel=share)
    assert correct[0] == pytest.approx(correct[1], abs=0 if dtype == torch.float32 else 0.02 * rows + 1)
    for ours, exact in zip(*gradients, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < share


@needs_kernel
def test_the_vocabulary_loss_adds_to_gradients_that_are_there_and_keeps_no_logits() -> None:
    hidden, table = draw(200, 64).requires_grad_(), (0.1 * draw(3000, 64)).requires_grad_()
    targets = torch.arange(200)
    ops.vocabulary_loss(hidden, table, None, targets)[0].backward()
    assert table.grad is not None and hidden.grad is not None
    once = table.grad.clone()
    loss, _ = ops.vocabulary_loss(hidden, table, None, targets)
    loss.backward(retain_graph=True)
    assert off(table.grad, 2 * once) < 0.01
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()
    with torch.no_grad():
        again, _ = ops.vocabulary_loss(hidden, table, None, targets)
    assert torch.equal(again, loss.detach())


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    out=st.sampled_from([1, 4, 5, 63, 515]),
    into=st.sampled_from([1, 31, 64, 200]),
    has_bias=st.booleans(),
)
def test_products_of_few_rows(rows: int, out: int, into: int, has_bias: bool) -> None:
    x, weight, bias = draw(rows, into), draw(out, into, seed=1), draw(out, seed=2) if has_bias else None
    with torch.no_grad():
        ours = ops.linear(x, weight, bias)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        assert torch.allclose(ours.double(), exact, rtol=2**-7, atol=1e-5)
        # A row's numbers are its own, whatever rows stand beside it, as long as they are few.
        if rows < products.THIN:
            assert torch.equal(ours[:1], ops.linear(x[:1], weight, bias))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 4]),
    dim=st.sampled_from([8, 32, 64, 160]),
    dtype=st.sampled_from([torch.float32, HALF]),
    scale=st.sampled_from([None, 1.0]),
    window=st.none() | st.integers(0, 40),
    offsets=st.booleans(),
    spare=st.integers(0, 20),
)
def test_a_token_sees_what_is_kept_as_it_would_in_the_whole_sequence(
    lengths: list[int],
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    scale: float | None,
    window: int | None,
    offsets: bool,
    spare: int,
) -> None:
    heads, layout = 4, Layout.from_lengths(lengths).to("cpu")
    k, v = (draw(layout.n_tokens, kv_heads, dim, seed=seed, dtype=dtype) for seed in (1, 2))
    q, capacity = 0.3 * draw(len(lengths), heads, dim, dtype=dtype), max(lengths) + spare
    distances = draw(heads, 2 * capacity - 1, dtype=torch.float32) if offsets else None
    # A part of a longer cache, and nothing of meaning where nothing was kept.
    keys, values = torch.full((2, len(lengths) + 1, capacity + 3, kv_heads, dim), float("nan"), dtype=dtype)
    at = layout.sequence_ids(), layout.positions.long()
    keys[at], values[at] = k, v
    kept = keys[: len(lengths), :capacity], values[: len(lengths), :capacity], layout.lengths
    with torch.no_grad():
        found = cached_attention(q, *kept, scale, window=window, distances=distances)
        queries = (layout.starts[1:] - 1).long()
        wide = [x.double() for x in (q, k, v)]
        exact = attention(*wide, layout, Rule(window), queries=queries, distances=distances, scale=scale)
    assert off(found, exact) < (1e-5 if dtype == torch.float32 else 0.02)


@needs_kernel
def test_a_token_that_wants_gradients_has_them() -> None:
    q, keys = draw(2, 2, 32, dtype=torch.float32).requires_grad_(), draw(2, 5, 2, 32, dtype=torch.float32)
    cached_attention(q, keys, keys, torch.tensor([5, 2], dtype=torch.int32)).sum().backward()
    assert q.grad is not None and float(q.grad.abs().max()) > 0
