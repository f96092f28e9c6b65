"""On a GPU a model computes what it computes on the processor."""

from __future__ import annotations

import pytest
import torch

from bertkin.models.presets import build

from .support import flat_batch, lively, shape

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("family", ["bert", "roberta", "modern", "albert", "gpt2", "llama"])
def test_logits_and_gradients_are_those_of_the_processor(family: str) -> None:
    ids, layout = flat_batch()
    found = []
    for device in ("cpu", "cuda"):
        model = lively(build(shape(family))).to(device)
        logits = model.logits(ids.to(device), layout.to(device), torch.arange(len(ids), device=device))
        logits.square().mean().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for here, there in zip(*found, strict=True):
        assert float((here - there.cpu()).norm()) < 1e-4 * float(here.norm()) + 1e-7
