"""A transformers folder and our models, both ways.

The names are tables in `bertkin.models.names`, the configuration a pair of functions a family in
`bertkin.models.configs`; `bertkin.models.folders` fills and writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bertkin.errors import disk_errors
from bertkin.models.architecture import Architecture
from bertkin.models.configs import OURS, read_config, write_config
from bertkin.models.folders import WEIGHTS, Weights, as_json, fill, find_folder, write, write_aside
from bertkin.models.heads import AnyModel, LanguageModel, Replaced
from bertkin.models.initial import initialise
from bertkin.models.names import named, theirs

__all__ = ["GENERATOR", "WEIGHTS", "find_folder", "load_model", "marked", "save_generation", "save_model"]

GENERATOR = "generator"
"""The folder, inside an ELECTRA's, of the small model that fills its blanks."""


def load_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Read a model from a folder, a run folder, or the hub.

    Args:
        path: see `find_folder`.
        dtype: of the weights in memory.

    Returns:
        The model, in evaluation mode. Heads that the folder does not have hold random numbers; `missing` names them,
        and a warning says so.

    Raises:
        UserError: nothing there, no configuration or one we cannot read, a weight missing, of another shape, or unknown.
    """
    folder = find_folder(path)
    a, kind = read_config(folder / "config.json")
    family = kind if kind == OURS else named(a)
    weights = Weights(folder, family)
    weights.require(
        theirs(f"stack.layers.{(a.groups or a.decoder_layers or a.layers) - 1}.attention.out.weight", family)
    )
    with torch.device("meta"):  # no memory is taken before all shapes are known to agree
        sentence = set(theirs("sentence.classifier.weight", family)) <= weights.names.keys()
        boundary = set(theirs("boundary.places", family)) <= weights.names.keys()
        model = LanguageModel(a, sentence=sentence, boundary=boundary)
    model.missing = tuple(fill(model, weights, a))
    if model.missing:
        initialise(model, a, torch.Generator().manual_seed(0), model.missing)
        told = [name for name in model.missing if name != "head.bias" or a.family != "bart"]  # zeros are what it has
        if told:
            warnings.warn(f"{folder} has no {', '.join(told)}; random numbers for now", stacklevel=2)
    return model.to(dtype).eval()


def save_model(
    model: AnyModel,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    extra: Mapping[str, Any] | None = None,
    goes_on: bool = False,
) -> None:
    """Write a model as a folder that transformers opens as it is, in float32.

    Each file is written aside and renamed, the weights first, so that a crash leaves the old one or the new one. Of an
    ELECTRA's two models, the one that finds replaced tokens is in the folder, and its generator in a folder inside.

    Args:
        tokenizer: a `bertkin.text.tokenizer.Tokenizer`, saved beside the model and named in its configuration.
        extra: plain data that transformers has no place for (recipe, step, scores), for bertkin.json.
        goes_on: whether it goes on with a text: then transformers' pipelines put no end after that.

    Raises:
        UserError: the disk refuses.
    """
    if isinstance(model, Replaced):
        save_model(model.generator, Path(folder) / GENERATOR, tokenizer=tokenizer, extra=extra)
        model = model.model
    a = marked(model.architecture, tokenizer)
    config = write_config(a, sentence=model.sentence is not None)
    family = OURS if config["model_type"] == OURS else named(a)
    write(model, Path(folder), a, family, config, tokenizer=tokenizer, extra=extra, goes_on=goes_on)


def save_generation(folder: Path, tokenizer: Any, start: Sequence[int] = (), most: int | None = None) -> None:
    """Write generation_config.json: how transformers begins and ends a text as the model was taught to.

    Args:
        start: what a decoder reads before the first word (`bertkin.models.writers.start_of`).
        most: words at most.
    """
    how: dict[str, Any] = {"eos_token_id": tokenizer.sep_id, "pad_token_id": tokenizer.pad_id}
    if most is not None:
        how |= {"max_new_tokens": most + len(start[1:])}
    how |= {"decoder_start_token_id": start[0]} if start else {}
    how |= {"forced_bos_token_id": start[1]} if start[1:] else {}
    with disk_errors(folder):
        write_aside(folder / "generation_config.json", as_json(how))


def marked(a: Architecture, tokenizer: Any) -> Architecture:
    """The architecture with the ids of a tokenizer's special tokens, where there is one."""
    if tokenizer is None:
        return a
    a = replace(a, pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)
    if a.family == "roberta":  # it counts positions from its padding id on
        a = replace(a, position_offset=a.pad_id + 1)
    if a.both and not a.one_table:
        a = replace(a, start_id=tokenizer.cls_id)
    elif a.both:
        a = replace(a, start_id=tokenizer.pad_id if len(tokenizer.sentinels) else tokenizer.sep_id)
    return a
