"""Tiny models of each family, ours and transformers', that the tests of this folder compare."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch

from bertkin.config import Model
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build, resolve_model
from bertkin.text.layout import Layout

FAMILIES = ("bert", "roberta", "modern")
VOCABULARY = 97
LENGTHS = (13, 1, 29, 7)


def shape(family: str, **changes: Any) -> Model:
    """A model small enough for a test, with both kinds of layers and sequences longer than the window where it has one."""
    sizes: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 4, "intermediate": 48, "max_length": 40}
    if family == "modern":
        sizes |= {"local_window": 8, "global_every": 3}
    return resolve_model(Model(family=family, **(sizes | changes)), VOCABULARY)  # type: ignore[arg-type]


def lively(model: torch.nn.Module, seed: int = 0, by: float = 0.15) -> Any:
    """The model with every weight, norms and biases too, moved off its first value, so that none can go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return model.eval()


def ours(family: str, *, sentence: bool = False, **changes: Any) -> LanguageModel:
    model: LanguageModel = lively(build(shape(family, **changes), sentence=sentence))
    return model


def theirs(family: str) -> Any:
    """A tiny transformers model of the family, with random weights."""
    import transformers as hf

    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    common |= {"intermediate_size": 48, "attn_implementation": "eager"}
    if family == "bert":
        model = hf.BertForMaskedLM(hf.BertConfig(**common, max_position_embeddings=40))
    elif family == "roberta":
        positions = {"max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        model = hf.RobertaForMaskedLM(hf.RobertaConfig(**common, **positions))
    else:
        ids = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        model = hf.ModernBertForMaskedLM(
            hf.ModernBertConfig(**common, **ids, max_position_embeddings=40, local_attention=8)
        )
    return lively(model)


def flat_batch(lengths: tuple[int, ...] = LENGTHS, *, pairs: bool = False) -> tuple[torch.Tensor, Layout]:
    """Random ids [tokens], none of them special, and their layout; with segments where `pairs`."""
    generator = torch.Generator().manual_seed(1)
    n = sum(lengths)
    ids = torch.randint(5, VOCABULARY, (n,), generator=generator)
    segments = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int32).numpy() if pairs else None
    return ids, Layout.from_lengths(lengths, segments=segments).to("cpu")


def padded_batch(ids: torch.Tensor, layout: Layout, pad_id: int) -> dict[str, torch.Tensor]:
    """The same batch as transformers takes it."""
    batch = {"input_ids": layout.padded(ids, pad_id), "attention_mask": layout.padded(torch.ones_like(ids), 0)}
    if layout.segments is not None:
        batch["token_type_ids"] = layout.padded(layout.segments.long(), 0)
    return batch


@contextlib.contextmanager
def hushed() -> Any:
    """Without transformers' loading bars and advice."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
