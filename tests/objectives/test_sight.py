"""What a batch's `reach` says is what a model sees: a token out of sight moves nothing, in value and in gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bertkin.config import Model
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build, resolve_model
from bertkin.objectives.make import EVALUATION, SERVES, make_batch
from memory_split import specials_of, split_of

VOCABULARY = 200
WRITTEN = ("causal", "prefix", "hybrid", "unilm")
CASES = [(family, kind) for family, kinds in SERVES.items() for kind in kinds if kind in WRITTEN]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_what_is_out_of_reach_moves_nothing(family: Any, kind: Any) -> None:
    shape = Model(family=family, layers=2, hidden=32, heads=2, max_length=64)
    model = build(resolve_model(shape, VOCABULARY), seed=1).eval()
    assert isinstance(model, LanguageModel)
    split, ids = split_of([40, 9, 70, 25, 60, 12, 33], vocab=VOCABULARY), specials_of(VOCABULARY)
    objective = replace(EVALUATION, kind=kind)
    batch = make_batch(split, ids, seed=2, first_row=0, n_rows=4, length=48, objective=objective)
    layout, tokens = batch.layout.to("cpu"), torch.from_numpy(batch.ids)
    sequence = batch.layout.sequence_ids()
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _given: object, made: torch.Tensor) -> None:
        made.retain_grad()
        embedded.append(made)

    model.stack.embeddings.register_forward_hook(keep)
    before = model.logits(tokens, layout)
    blind = 0
    for place in np.random.default_rng(3).choice(len(tokens), 12, replace=False):
        sees = (sequence == sequence[place]) & (batch.layout.reach > batch.layout.positions[place])
        other = tokens.clone()
        other[place] = 5 + (other[place] + 1) % (VOCABULARY - 5)
        after = model.logits(other, layout)
        moved = (after - before).abs().amax(-1).detach().numpy()
        assert (moved[~sees] < 1e-6).all() and moved[place] > 1e-6
        embedded[-1].grad = None
        after[torch.from_numpy(np.flatnonzero(~sees))].square().sum().backward()
        gradient = embedded[-1].grad
        assert gradient is not None and not gradient[place].any() and gradient.any()
        blind += int((~sees & (sequence == sequence[place])).sum())
    assert blind > 0, "some token was out of sight of one of its own sequence"
