"""The same numbers as transformers, both ways, for every family: logits, hidden states, attention, gradients."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkin.models import kernels
from bertkin.models.names import theirs as names_of
from bertkin.models.pretrained import load_model, save_model

from .support import FAMILIES, LENGTHS, flat_batch, hushed, ours, padded_batch, theirs

SHAPES = {"packed, of different lengths": LENGTHS, "all of one length": (20, 20, 20), "alone": (33,)}
PAD = {"bert": 0, "roberta": 1, "modern": 0}


@pytest.fixture(params=["fused", "eager"], autouse=True)
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim here holds with the fused kernels and without them."""
    if request.param == "fused" and kernels.get() is None:
        pytest.skip("no C++ compiler")
    if request.param == "eager":
        monkeypatch.setattr(kernels, "get", lambda: None)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_model_gives_the_same_numbers_here(
    family: str, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    reference = theirs(family)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.missing == ()
    ids, layout = flat_batch(lengths, pairs=family == "bert")
    batch = padded_batch(ids, layout, PAD[family])
    with torch.no_grad():
        expected = reference(**batch, output_hidden_states=True, output_attentions=True)
        trace = model.stack.trace(ids, layout)
        assert far(model.logits(ids, layout), layout.flat(expected.logits)) < 1e-5
        assert far(model.encode(ids, layout), layout.flat(expected.hidden_states[-1])) < 1e-5
    assert len(trace.hidden) == len(expected.hidden_states)
    for mine, their in zip(trace.hidden, expected.hidden_states, strict=True):
        assert far(mine, layout.flat(their)) < 1e-5
    for weights, expected_weights in zip(trace.attention, expected.attentions, strict=True):
        assert far(layout.flat(weights.transpose(1, 2)), layout.flat(expected_weights.transpose(1, 2))) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same(family: str, tmp_path: Path) -> None:
    reference = theirs(family)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids, layout = flat_batch(pairs=family == "bert")
    asked = torch.arange(0, len(ids), 3)
    targets = ids.flip(0)[asked]
    labels = torch.full_like(ids, -100).index_copy(0, asked, targets)
    batch = padded_batch(ids, layout, PAD[family])
    reference(**batch, labels=layout.padded(labels, -100)).loss.backward()
    losses = model.loss(ids, layout, asked, targets)
    (losses.loss_sum / losses.n).backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        grads = [expected[part] for part in names_of(name, model.architecture.family)]
        assert parameter.grad is not None, name
        assert far(parameter.grad, torch.cat(grads)) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_our_model_gives_the_same_numbers_in_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = ours(family)
    save_model(model, tmp_path, extra={"step": 7})
    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        reference, report = AutoModelForMaskedLM.from_pretrained(
            tmp_path, output_loading_info=True, attn_implementation="eager"
        )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert type(reference).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    ids, layout = flat_batch()
    with torch.no_grad():
        expected = reference(**padded_batch(ids, layout, PAD[family])).logits
        assert far(model.logits(ids, layout), layout.flat(expected)) < 1e-5
        assert far(load_model(tmp_path).logits(ids, layout), model.logits(ids, layout)) == 0


@dataclass
class Marks:
    """What saving a model asks of a tokenizer."""

    pad_id: int
    cls_id: int = 2
    sep_id: int = 4
    length: int = 0

    def save(self, folder: Path, max_length: int, *, segments: bool, goes_on: bool) -> None:
        self.length = max_length


@pytest.mark.parametrize("pad_id", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_padding_id_keeps_the_positions(family: str, pad_id: int, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model, marks = ours(family), Marks(pad_id)
    save_model(model, tmp_path, tokenizer=marks)
    assert marks.length == 40
    with hushed():
        reference = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert (reference.config.pad_token_id, reference.config.sep_token_id) == (pad_id, 4)
    ids, layout = flat_batch()
    with torch.no_grad():
        expected = layout.flat(reference(**padded_batch(ids, layout, pad_id)).logits)
        assert far(model.logits(ids, layout), expected) < 1e-5
        assert far(load_model(tmp_path).logits(ids, layout), expected) < 1e-5


def test_a_bert_with_a_sentence_objective_opens_as_the_original_with_both_heads(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    model = ours("bert", sentence=True)
    save_model(model, tmp_path)
    ids, layout = flat_batch(pairs=True)
    with hushed():
        reference, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    first = layout.starts[:-1].long()
    with torch.no_grad():
        expected = reference.eval()(**padded_batch(ids, layout, 0))
        hidden = model.encode(ids, layout)
        assert model.sentence is not None
        assert far(model.sentence(hidden[first]), expected.seq_relationship_logits) < 1e-5
        assert far(model.logits(ids, layout), layout.flat(expected.prediction_logits)) < 1e-5
    again = load_model(tmp_path)
    assert again.sentence is not None and again.missing == ()


def test_the_sentence_head_of_any_family_survives_the_disk(tmp_path: Path) -> None:
    for family in ("roberta", "modern"):
        model = ours(family, sentence=True)
        save_model(model, tmp_path / family)
        assert_same_weights(model, load_model(tmp_path / family))


CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"positions": "rotary"}),
    ("bert", {"positions": "sinusoidal"}),
    ("bert", {"local_window": 8, "global_every": 2}),
    ("modern", {"positions": "learned"}),
    ("modern", {"global_every": 1}),
    ("roberta", {"positions": "sinusoidal"}),
]


@pytest.mark.parametrize(("family", "changes"), CHOICES, ids=[f"{f}-{c}" for f, c in CHOICES])
def test_choices_that_transformers_does_not_have_are_kept_under_a_type_of_our_own(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = ours(family, **changes)
    save_model(model, tmp_path)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind == ("modernbert" if changes == {"global_every": 1} else "bertkin")
    again = load_model(tmp_path)
    assert again.architecture == model.architecture
    assert_same_weights(model, again)


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    mine, theirs_ = dict(a.named_parameters()), dict(b.named_parameters())
    assert mine.keys() == theirs_.keys()
    for name, parameter in mine.items():
        assert torch.equal(parameter, theirs_[name]), name


def test_the_configuration_also_reads_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    model = ours("modern")
    save_model(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("layer_types", "rope_parameters"):
        del config[name]
    path.write_text(json.dumps(config))
    assert load_model(tmp_path).architecture == model.architecture
