"""Small models of each family, with answers that differ from word to word, that the tests of this folder ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bertkin.config import Model
from bertkin.models.generate import Manner
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import marked
from bertkin.tasks.fill import Loaded
from bertkin.tasks.generate import Writer
from bertkin.text.tokenizer import Tokenizer

TEXT = [
    "The cats sleep on the warm mat, and the dogs are sleeping under the table.",
    "A grandmother who reads unbelievable stories never sleeps; her grandchildren do.",
    "Sie schlafen nicht. 我们不睡觉。",
]
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48, "max_length": 48}


def grown(tokenizer: Tokenizer, family: str = "modern", **more: Any) -> LanguageModel:
    """A model with random weights large enough that its answers differ from word to word."""
    shape = SHAPE | ({"decoder_layers": 2} if family in ("bart", "t5") else {}) | more
    model = build(resolve_model(Model(family=family, **shape), tokenizer.vocab_size))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model = getattr(model, "model", model)  # of an ELECTRA's two, the one that is kept
    assert isinstance(model, LanguageModel)
    if model.architecture.both:
        model.architecture = marked(model.architecture, tokenizer)
    return model.eval()


def writer(model: LanguageModel, tokenizer: Tokenizer, **manner: Any) -> Writer:
    """A model that writes, in the manner of its family."""
    a = model.architecture
    if a.both:
        manner = {"start": (a.start_id,) if len(tokenizer.sentinels) else (a.start_id, tokenizer.cls_id)}
    return Writer(Path(), model, tokenizer, Manner(**manner))


def filler(model: LanguageModel, tokenizer: Tokenizer, objective: str | None = None, noise: str = "") -> Loaded:
    """A model that fills blanks, as if its folder said what it was trained with."""
    loaded = Loaded(Path(), model, tokenizer)
    loaded.__dict__["told"] = {"objective": objective, "noise": noise}
    return loaded
