"""Models that write an answer, begun from a pretrained one.

decoder    an encoder reads, a decoder writes. BART and T5 come with one. Any other encoder gets a new one, begun from
           the encoder's own layers, with a look at the encoder in each that is drawn (Rothe et al. 2020).
prefix     one stack reads the text and goes on with the answer. GPT-2 and Llama see all of it from the left; a stack
           that sees both sides sees the text so, and the answer from the left (Dong et al. 2019, Raffel et al. 2020).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture, check
from bertkin.models.configs import OURS, read_config
from bertkin.models.folders import Weights, fill, find_folder
from bertkin.models.heads import LanguageModel
from bertkin.models.initial import initialise
from bertkin.models.names import named
from bertkin.text.tokenizer import Tokenizer

Writer = Literal["decoder", "prefix"]
GOES_ON = ("causal", "hybrid", "prefix", "unilm")
"""Objectives that have taught a two-sided stack to write already."""


def writer_for(a: Architecture, objective: str | None = None, wanted: str | None = None) -> Writer:
    """How a model writes: as `wanted`, or as suits its family and what it was trained for.

    Args:
        objective: the kind that it was pretrained with, where that is known.

    Raises:
        UserError: it cannot write as wanted.
    """
    if a.both:
        if wanted == "prefix":
            raise UserError(f"{a.family} has a decoder, and writes with it", where="--writer", mend="leave it out")
        return "decoder"
    if a.causal:
        if wanted == "decoder":
            what = f"{a.family} reads from the left alone, and is no encoder"
            raise UserError(what, where="--writer", mend="leave it out, or choose prefix")
        return "prefix"
    if wanted is not None:
        return "prefix" if wanted == "prefix" else "decoder"
    return "prefix" if objective in GOES_ON else "decoder"


def writing_shape(a: Architecture, writer: Writer, layers: int | None = None) -> Architecture:
    """The architecture of a model that writes.

    Args:
        a: of the pretrained model.
        layers: of a new decoder; by default as many as the encoder's.

    Raises:
        UserError: more of them than the encoder has, or any where no decoder is made.
    """
    if a.head == "detect":  # it found replaced tokens; now it answers in words
        a = replace(a, head="transform", decoder_bias=True)
    a = replace(a, generator=0.0)
    if a.both or writer == "prefix":
        if layers is not None:
            raise UserError("no new decoder is made here", where="--decoder-layers", mend="leave it out")
        return a
    layers = a.layers if layers is None else layers
    if not 1 <= layers <= a.layers:
        what = f"{layers} layers of a decoder, which are begun from the encoder's {a.layers}"
        raise UserError(what, where="--decoder-layers", mend=f"choose from 1 to {a.layers}")
    return check(replace(a, decoder_layers=layers, causal=False))


def start_of(a: Architecture, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What a decoder reads before the first word: BART's its end and its beginning, others one token."""
    if a.one_table and not len(tokenizer.sentinels):
        return a.start_id, tokenizer.cls_id
    return (a.start_id,)


def begin_writer(path: str | Path, writer: Writer, *, layers: int | None = None, seed: int = 0) -> LanguageModel:
    """A pretrained model that is to write: whatever the folder has is taken, the rest is drawn, and named in `missing`.

    A new decoder's layers are the encoder's, evenly spread where there are fewer; its look at the encoder is drawn. The
    halves have a table of words each.

    Args:
        path: a folder, run folder or hub id.
        layers: of a new decoder.
        seed: of what is drawn.

    Raises:
        UserError: as for `bertkin.models.pretrained.load_model` and `writing_shape`.
    """
    folder = find_folder(path)
    found, kind = read_config(folder / "config.json")
    wanted = writing_shape(found, writer, layers)
    a = wanted if wanted.both == found.both else replace(wanted, decoder_layers=0)
    with torch.device("meta"):
        model = LanguageModel(a)
    model.missing = tuple(fill(model, Weights(folder, kind if kind == OURS else named(a)), a))
    if wanted != a:
        model = _with_decoder(model, wanted)
    if model.missing:
        initialise(model, model.architecture, torch.Generator().manual_seed(seed), model.missing)
    return model.eval()


def _with_decoder(one: LanguageModel, a: Architecture) -> LanguageModel:
    """An encoder with a new decoder beside it; what has no origin in the encoder is named in `missing`, undrawn."""
    with torch.device("meta"):
        model = LanguageModel(a)
    model.to_empty(device="cpu")
    model.tie()
    held = dict(one.named_parameters())
    deep, deeper = len(model.stack.layers), len(one.stack.layers)
    missing = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            origin = _origin(name, deep, deeper)
            if origin is None or origin in one.missing:
                missing.append(name)
            else:
                parameter.copy_(held[origin])
    model.missing = tuple(missing)
    return model


def _origin(name: str, deep: int, deeper: int) -> str | None:
    """What a parameter begins as, in the encoder; None for the look at it."""
    if ".cross" in name:
        return None
    if name.startswith("source."):
        return "stack." + name.removeprefix("source.")
    match = re.match(r"stack\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    layer = round(int(match[1]) * (deeper - 1) / max(deep - 1, 1))
    return f"stack.layers.{layer}.{match[2]}"
