"""What a layout, a rule and asked positions promise, whatever the family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.models import kernels
from bertkin.models.attention import Rule, attention, attention_weights, rotary_tables, tiles_of
from bertkin.models.embeddings import sinusoids
from bertkin.models.presets import build
from bertkin.text.layout import Layout

from .support import FAMILIES, LENGTHS, VOCABULARY, flat_batch, ours, shape

CPU = torch.device("cpu")


@pytest.fixture(params=["fused", "eager"])
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing: with the fused kernels and without them."""
    if request.param == "fused" and kernels.get() is None:
        pytest.skip("no C++ compiler")
    if request.param == "eager":
        monkeypatch.setattr(kernels, "get", lambda: None)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_reads_the_same_alone_and_in_company(family: str) -> None:
    model = ours(family)
    ids, layout = flat_batch()
    with torch.no_grad():
        together = model.logits(ids, layout)
        for begin, end in zip(layout.starts[:-1].tolist(), layout.starts[1:].tolist(), strict=True):
            alone = model.logits(ids[begin:end], Layout.from_lengths([end - begin]).to("cpu"))
            assert torch.allclose(alone, together[begin:end], atol=1e-5)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_give_the_same_logits(family: str) -> None:
    model = ours(family)
    ids, layout = flat_batch()
    mask = layout.padded(torch.ones_like(ids), 0)
    again, index = Layout.from_mask(mask)
    with torch.no_grad():
        padded = model.logits(layout.padded(ids, 0).reshape(-1)[index], again)
        assert torch.equal(padded, model.logits(ids, layout))


ASKED = {
    "some": [0, 2, 13, 14, 20, 49],
    "one": [13],
    "none in the first sequences": [44, 45],
    "all": list(range(sum(LENGTHS))),
    "none": [],
}


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("family", FAMILIES)
def test_asking_some_positions_gives_the_numbers_of_asking_all(family: str, asked: list[int]) -> None:
    model = ours(family)
    ids, layout = flat_batch()
    places = torch.tensor(asked, dtype=torch.int64)
    with torch.no_grad():
        every = model.logits(ids, layout)
        assert torch.allclose(model.logits(ids, layout, places), every[places], atol=1e-5)
        assert torch.allclose(model.stack(ids, layout, places), model.encode(ids, layout)[places], atol=1e-5)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_asked_positions_are_those_of_selecting_them_afterwards(family: str) -> None:
    short, whole = ours(family), ours(family)
    ids, layout = flat_batch()
    asked = torch.tensor([1, 5, 17, 40])
    targets = ids[asked]
    short.loss(ids, layout, asked, targets).loss_sum.backward()
    logits = whole.logits(ids, layout)[asked]
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    expected = dict(whole.named_parameters())
    for name, parameter in short.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, expected[name].grad, atol=2e-4), name  # type: ignore[arg-type]


@pytest.mark.usefixtures("paths")
def test_losses_are_sums_so_that_parts_add_up() -> None:
    model = ours("bert", sentence=True)
    ids, layout = flat_batch(pairs=True)
    asked, pairs = torch.tensor([1, 5, 14, 40]), layout.starts[:-1].long()
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        both = model.loss(ids, layout, asked, ids[asked], pairs, labels, z_loss=0.1)
        words = model.loss(ids, layout, asked, ids[asked], z_loss=0.1)
        parts = [model.loss(ids, layout, asked[i : i + 1], ids[asked[i : i + 1]], z_loss=0.1) for i in range(4)]
        logits = model.logits(ids, layout, asked)
        assert model.sentence is not None
        scores = model.sentence(model.encode(ids, layout)[pairs])
    expected = torch.nn.functional.cross_entropy(logits, ids[asked], reduction="sum")
    expected = expected + 0.1 * logits.logsumexp(-1).square().sum()
    assert float(words.loss_sum) == pytest.approx(float(expected), rel=1e-5)
    assert float(both.loss_sum) == pytest.approx(float(expected), rel=1e-5)
    assert sum(float(part.loss_sum) for part in parts) == pytest.approx(float(expected), rel=1e-5)
    assert both.n == 4 and int(both.n_correct) == int((logits.argmax(-1) == ids[asked]).sum())
    assert both.n_pairs == 4 and both.pair_loss_sum is not None and both.pair_correct is not None
    pair_loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    assert float(both.pair_loss_sum) == pytest.approx(float(pair_loss), rel=1e-5)
    assert int(both.pair_correct) == int((scores.argmax(-1) == labels).sum())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 4),
    causal=st.booleans(),
    turned=st.booleans(),
    data=st.data(),
)
def test_attention_is_the_textbook_formula(
    lengths: list[int], window: int | None, causal: bool, turned: bool, data: Any
) -> None:
    n, heads, dim = sum(lengths), 2, 6
    generator = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(n, 3, heads, dim, generator=generator).unbind(1)
    rows = data.draw(st.sampled_from([0, n]))
    layout = Layout.from_lengths(lengths, row_length=rows).to("cpu")
    asked = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    queries = data.draw(st.sampled_from([None, torch.tensor(asked)]))
    rotary = rotary_tables(16, dim, 100.0, CPU) if turned else None
    rule = Rule(window, causal)
    result = attention(q if queries is None else q[queries], k, v, layout, rule, queries=queries, rotary=rotary).view(
        -1, heads, dim
    )
    owner, place = layout.sequence_ids(), layout.positions
    for row, i in enumerate(range(n) if queries is None else asked):
        seen = [
            j
            for j in range(n)
            if owner[j] == owner[i]
            and (window is None or abs(int(place[j]) - int(place[i])) <= window)
            and (not causal or place[j] <= place[i])
        ]
        for h in range(heads):
            query = _turned(q[i, h], int(place[i])) if turned else q[i, h]
            keys = torch.stack([_turned(k[j, h], int(place[j])) if turned else k[j, h] for j in seen])
            weights = (keys @ query / dim**0.5).softmax(0)
            assert torch.allclose(result[row, h], weights @ v[seen, h], atol=1e-5)


def _turned(x: torch.Tensor, place: int) -> torch.Tensor:
    """Rotary position as complex multiplication: another way of writing it than the code's."""
    half = len(x) // 2
    angles = torch.tensor([place / 100.0 ** (2 * i / len(x)) for i in range(half)])
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), angles)
    return torch.cat([turned.real, turned.imag])


def test_weights_are_shares_of_what_may_be_seen() -> None:
    q, k = torch.randn(9, 2, 4), torch.randn(9, 2, 4)
    layout = Layout.from_lengths([6, 3]).to("cpu")
    weights = attention_weights(q, k, layout, Rule(window=2))
    assert weights.shape == (2, 2, 6, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 6))
    assert float(weights[0, :, 0, 3:].abs().max()) == 0 and float(weights[1, :, :3, 3:].abs().max()) == 0


def test_many_short_sequences_in_long_rows_are_computed_by_row() -> None:
    short = Layout.from_lengths([2] * 31 + [62 + 2], row_length=63 + 63).to("cpu")
    assert tiles_of(short).n_sequences == 1
    assert tiles_of(Layout.from_lengths([64, 64], row_length=128).to("cpu")).n_sequences == 2


def test_no_gradient_is_lost_to_padding() -> None:
    model = ours("modern")
    ids, layout = flat_batch((1, 30))
    model.logits(ids, layout).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_give_nearly_the_same_numbers(family: str) -> None:
    model = ours(family)
    half = copy.deepcopy(model).to(torch.bfloat16)
    ids, layout = flat_batch()
    with torch.no_grad():
        exact, rough = model.logits(ids, layout), half.logits(ids, layout)
    assert rough.dtype == torch.bfloat16
    assert float((exact - rough.float()).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_only(family: str) -> None:
    model = ours(family, dropout=0.3, attention_dropout=0.3)
    ids, layout = flat_batch()
    with torch.no_grad():
        assert torch.equal(model.encode(ids, layout), model.encode(ids, layout))
        model.train()
        assert not torch.equal(model.encode(ids, layout), model.encode(ids, layout))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_one_model_whatever_was_drawn_before(family: str) -> None:
    first = build(shape(family), seed=3)
    torch.manual_seed(123)
    again, other = build(shape(family), seed=3), build(shape(family), seed=4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    table = first.stack.embeddings.tokens.detach()
    assert not torch.equal(table, other.stack.embeddings.tokens)
    assert float(table.abs().max()) <= 0.04 and 0.015 < float(table.std()) < 0.02


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_saying_position_tells_orders_apart(family: str, positions: str) -> None:
    model = ours(family, positions=positions, global_every=1)
    layout = Layout.from_lengths([3, 3]).to("cpu")
    with torch.no_grad():
        a, b = model.encode(torch.tensor([7, 8, 9, 9, 8, 7]), layout).view(2, 3, -1)
    assert not torch.allclose(a[1], b[1], atol=1e-4)


def test_sinusoids_are_those_of_the_paper_at_the_size_of_the_token_table() -> None:
    table = sinusoids(50, 8, CPU)
    assert float(table.square().mean().sqrt()) == pytest.approx(0.02, rel=1e-5)
    angle = 7 / 10_000 ** (2 * 1 / 8)
    size = 0.02 * 2**0.5
    assert float(table[7, 1]) == pytest.approx(size * float(torch.tensor(angle).sin()), abs=1e-6)
    assert float(table[7, 5]) == pytest.approx(size * float(torch.tensor(angle).cos()), abs=1e-6)
    assert sinusoids(4, 7, CPU).shape == (4, 7)


def test_a_sequence_longer_than_the_model_reads_is_refused() -> None:
    ids = torch.full((41,), 9)
    with pytest.raises(ValueError, match="41 tokens; the model reads at most 40"):
        ours("bert").encode(ids, Layout.from_lengths([41]).to("cpu"))


def test_a_table_may_have_more_rows_than_the_tokenizer_has_tokens() -> None:
    assert shape("bert", vocab_size=VOCABULARY + 31).vocab_size == VOCABULARY + 31
