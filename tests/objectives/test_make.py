"""Which objective is for whom, and what every run is measured on."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bertkin.config import Model, Objective
from bertkin.errors import UserError
from bertkin.objectives.make import (
    EVALUATION,
    SERVES,
    check_objective,
    evaluation_batches,
    make_batch,
    measured,
    side_count,
    side_weight,
)
from memory_split import realistic, specials_of

KINDS = typing.get_args(typing.get_type_hints(Objective)["kind"])
FAMILIES = typing.get_args(typing.get_type_hints(Model)["family"])


def test_every_family_serves_something_and_every_kind_is_served() -> None:
    assert set(SERVES) == set(FAMILIES)
    assert {kind for kinds in SERVES.values() for kind in kinds} == set(KINDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_that_a_family_cannot_serve_is_refused_with_those_it_can(family: str, kind: Any) -> None:
    objective = replace(EVALUATION, kind=kind, noise="infilling" if kind == "denoise" else None)
    if kind in SERVES[family]:
        check_objective(objective, family)
        return
    with pytest.raises(UserError, match=f"{family} cannot be asked {kind}") as caught:
        check_objective(objective, family)
    said = str(caught.value)
    assert "--objective.kind" in said and SERVES[family][0] in said
    assert any(other in said for other in FAMILIES if kind in SERVES[other])


@pytest.mark.parametrize(
    ("fields", "family", "named"),
    [
        ({"kind": "causal", "sentence": "order"}, "bert", "--objective.sentence"),
        ({"kind": "replaced", "sentence": "next"}, "electra", "--objective.sentence"),
        ({"boundary": True}, "bert", "--objective.boundary"),
        ({"boundary": True, "unit": "span", "sentence": "next"}, "bert", "--objective.boundary"),
        ({"boundary": True, "unit": "span", "kind": "hybrid"}, "bert", "--objective.boundary"),
        ({"noise": "spans"}, "bert", "--objective.noise"),
        ({"kind": "causal", "unit": "word"}, "gpt2", "--objective.unit: causal hides no units"),
        (
            {"kind": "denoise", "unit": "phrase", "noise": "infilling"},
            "bart",
            "--objective.unit: denoise hides no units",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], family: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_objective(replace(EVALUATION, **fields), family)


@pytest.mark.parametrize("kind", [None, "masked", "replaced"])
def test_masked_models_are_measured_on_the_same_masks_whatever_the_recipe(kind: Any) -> None:
    mine = Objective(kind=kind, unit="span", rate=0.4, mask_share=1.0, random_share=0.0, sentence="order")
    assert measured(mine) == EVALUATION


def test_noise_is_measured_as_it_is_trained() -> None:
    mine = Objective(kind="denoise", noise="spans", rate=0.3)
    assert measured(mine) is mine


def batch_with(kind: Any, **fields: Any) -> tuple[Objective, Any]:
    objective = replace(EVALUATION, kind=kind, **fields)
    split, ids = realistic(50), specials_of(2000)
    return objective, make_batch(split, ids, seed=0, first_row=0, n_rows=16, length=128, objective=objective)


def test_the_second_loss_is_counted_as_it_is_summed() -> None:
    objective, batch = batch_with("masked", sentence="order", sentence_weight=0.5)
    assert (side_count(batch, objective), side_weight(objective)) == (len(batch.pairs), 0.5) and len(batch.pairs)
    objective, batch = batch_with("replaced", replaced_weight=20.0)
    assert (side_count(batch, objective), side_weight(objective)) == (batch.n_tokens, 20.0)
    objective, batch = batch_with("causal")
    assert side_count(batch, objective) == 0
    objective, batch = batch_with("masked", boundary=True, unit="span")
    batch = replace(batch, edges=np.zeros((len(batch.asked), 2), np.int64))
    assert (side_count(batch, objective), side_weight(objective)) == (len(batch.asked), 1.0)


def test_shares_of_a_batch_count_to_the_whole() -> None:
    for kind, fields in [("masked", {"sentence": "next"}), ("replaced", {}), ("hybrid", {})]:
        objective, batch = batch_with(kind, **fields)
        assert sum(side_count(part, objective) for part in batch.split(3)) == side_count(batch, objective)


def test_an_evaluation_needs_no_objective_to_be_the_masked_one() -> None:
    split, ids = realistic(20), specials_of(2000)
    (plain,) = evaluation_batches(split, ids, length=64, n_rows=8, batch_rows=8)
    (mine,) = evaluation_batches(
        split, ids, length=64, n_rows=8, batch_rows=8, objective=replace(EVALUATION, kind="replaced", rate=0.5)
    )
    assert np.array_equal(plain.ids, mine.ids) and np.array_equal(plain.asked, mine.asked)
