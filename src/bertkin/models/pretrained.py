"""A transformers folder and our modules, both ways.

The names are tables in `bertkin.models.names`, the configuration a pair of functions a family in
`bertkin.models.configs`. Nothing is unpickled, no code from a folder is run, and what comes from outside is checked
before use.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bertkin.errors import MissingExtra, UserError, disk_errors
from bertkin.models.architecture import Architecture
from bertkin.models.configs import OURS, read_config, write_config
from bertkin.models.heads import AnyModel, LanguageModel, Replaced
from bertkin.models.names import PREFIX, UNREAD, canonical, named, theirs, turned
from bertkin.models.transformer import initialise

WEIGHTS = "model.safetensors"


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
    weights = _Weights(folder, family)
    weights.require(
        theirs(f"stack.layers.{(a.groups or a.decoder_layers or a.layers) - 1}.attention.out.weight", family)
    )
    with torch.device("meta"):  # no memory is taken before all shapes are known to agree
        sentence = set(theirs("sentence.classifier.weight", family)) <= weights.names.keys()
        boundary = set(theirs("boundary.places", family)) <= weights.names.keys()
        model = LanguageModel(a, sentence=sentence, boundary=boundary)
    model.missing = tuple(_missing(model, weights, family))
    model.to_empty(device="cpu")
    model.tie()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in model.missing:
                weights.fill(parameter, name, a)
    if model.missing:
        initialise(model, a, torch.Generator().manual_seed(0), model.missing)
        told = [name for name in model.missing if name != "head.bias" or a.family != "bart"]  # zeros are what it has
        if told:
            warnings.warn(f"{folder} has no {', '.join(told)}; random numbers for now", stacklevel=2)
    return model.to(dtype).eval()


def _missing(model: LanguageModel, weights: _Weights, family: str) -> list[str]:
    """Parameters of the heads that the folder does not have, once everything else is known to be there and to fit."""
    missing: list[str] = []
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        parts = theirs(name, family)
        if not name.startswith(("stack.", "source.")) and any(part not in weights.names for part in parts):
            missing.append(name)
            continue
        for part, rows in zip(parts, _rows(name, parameter, len(parts), model.architecture), strict=True):
            weights.require((part,), _shape_on_disk(name, (rows, *parameter.shape[1:]), family))
        used.update(parts)
    inside = PREFIX.get(family, "")
    for name in weights.names:
        if name.startswith(inside) and name not in used and not UNREAD.search(name):
            raise UserError(f"the configuration has no place for {name}", where=weights.folder, mend=_DISAGREE)
    return missing


def _rows(name: str, parameter: Tensor, parts: int, a: Architecture) -> list[int]:
    """How many rows of a tensor of ours each of its `parts` on disk has."""
    if parts == 3 and ".qkv." in name and a.key_heads != a.heads:
        return [a.heads * a.head_dim, *2 * [a.key_heads * a.head_dim]]
    return [len(parameter) // parts] * parts


def _shape_on_disk(name: str, shape: tuple[int, ...], family: str) -> tuple[int, ...]:
    """GPT-2 keeps its matrices the other way round; BART its bias as a matrix of one row."""
    if turned(name, family):
        return shape[::-1]
    return (1, *shape) if family == "bart" and name == "head.bias" else shape


_DISAGREE = "see that config.json and the weights are of the same model"
GENERATOR = "generator"
"""The folder, inside an ELECTRA's, of the small model that fills its blanks."""


def save_model(
    model: AnyModel, folder: str | Path, *, tokenizer: Any = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model as a folder that transformers opens as it is, in float32.

    Each file is written aside and renamed, the weights first, so that a crash leaves the old one or the new one. Of an
    ELECTRA's two models, the one that finds replaced tokens is in the folder, and its generator in a folder inside.

    Args:
        tokenizer: a `bertkin.text.tokenizer.Tokenizer`, saved beside the model and named in its configuration.
        extra: plain data that transformers has no place for (recipe, step, scores), for bertkin.json.

    Raises:
        UserError: the disk refuses.
    """
    if isinstance(model, Replaced):
        save_model(model.generator, Path(folder) / GENERATOR, tokenizer=tokenizer, extra=extra)
        model = model.model
    folder, a = Path(folder), model.architecture
    if tokenizer is not None:
        a = replace(a, pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)
        if a.family == "roberta":  # it counts positions from its padding id on
            a = replace(a, position_offset=a.pad_id + 1)
        if a.both:
            a = replace(a, start_id=tokenizer.pad_id if len(tokenizer.sentinels) else tokenizer.sep_id)
    config = write_config(a, sentence=model.sentence is not None)
    family = OURS if config["model_type"] == OURS else named(a)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parts = theirs(name, family)
        whole = parameter.detach().to("cpu", torch.float32)
        if name == "stack.embeddings.positions" and a.position_offset != model.architecture.position_offset:
            used = whole[model.architecture.position_offset :]
            whole = torch.cat([used.new_zeros(a.position_offset, a.hidden), used])
        for part, chunk in zip(parts, whole.split(_rows(name, whole, len(parts), a)), strict=True):
            shape = _shape_on_disk(name, (len(chunk), *chunk.shape[1:]), family)
            tensors[part] = (chunk.t() if turned(name, family) else chunk).reshape(shape).contiguous()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        _write(folder / "config.json", _json(config))
        if extra is not None:
            _write(folder / "bertkin.json", _json(extra))
        if tokenizer is not None:
            tokenizer.save(folder, a.max_length)


def find_folder(path: str | Path) -> Path:
    """The folder of a model: a folder with a config.json, a run folder (its `model/`), or a hub id, downloaded once.

    Raises:
        UserError: there is no such folder, and no such model on the hub.
    """
    folder = Path(path)
    if folder.is_dir():
        inner = folder / "model"
        return inner if not (folder / "config.json").exists() and (inner / "config.json").exists() else folder
    if folder.exists():
        raise UserError("a file; a model is a folder", where=folder, mend="give the folder it is in")
    if isinstance(path, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise UserError("no such folder", where=path)
    return _download(path)


def _download(name: str) -> Path:
    """A hub id's folder in the cache of huggingface_hub, with its weights, configuration and tokenizer only."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub", f"{name}: no such folder; looking on the hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"no such folder, and the hub does not give it ({why})", where=name) from None


class _Weights:
    """The tensors of a folder, in one safetensors file or several, read one by one."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        self.files = {path.name: _open(path) for path in _weight_files(folder)}
        owners = {name: file for file, opened in self.files.items() for name in opened.keys()}  # noqa: SIM118
        self.names = canonical(list(owners), family)
        self.owners = owners

    def require(self, parts: tuple[str, ...], shape: tuple[int, ...] | None = None) -> None:
        """See that tensors are here, are real numbers and have this shape.

        Raises:
            UserError: naming the first that is not.
        """
        for part in parts:
            if part not in self.names:
                raise UserError(f"no weight named {part}", where=self.folder, mend=_DISAGREE)
            name = self.names[part]
            found = self.files[self.owners[name]].get_slice(name)
            if shape is not None and tuple(found.get_shape()) != shape:
                problem = f"{name} has shape {list(found.get_shape())}, the configuration says {list(shape)}"
                raise UserError(problem, where=self.folder, mend=_DISAGREE)
            if found.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise UserError(f"{name} holds {found.get_dtype()}, not real numbers", where=self.folder)

    def fill(self, parameter: Tensor, ours: str, a: Architecture) -> None:
        """Copy what goes into a parameter of ours: one tensor, or several one after the other along the first axis."""
        parts = theirs(ours, self.family)
        for part, place in zip(parts, parameter.split(_rows(ours, parameter, len(parts), a)), strict=True):
            name = self.names[part]
            found = self.files[self.owners[name]].get_tensor(name)
            place.copy_(found.t() if turned(ours, self.family) else found.reshape(place.shape))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            inside = [folder / name for name in names if Path(name).name == name]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"not an index of weights ({type(error).__name__}: {error})", where=index) from None
        if len(inside) < len(names):
            raise UserError("names files outside its folder", where=index)
        return inside
    if (folder / "pytorch_model.bin").exists() or (folder / "pytorch_model.bin.index.json").exists():
        raise UserError(
            "only has pickled weights (pytorch_model.bin), which can run any code and are never read here",
            where=folder,
            mend="convert it with transformers: AutoModelForMaskedLM.from_pretrained(here).save_pretrained(there)",
        )
    raise UserError(f"no {WEIGHTS} here", where=folder, mend="give the folder of a model")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError("a part of the weights is missing", where=path, mend="download the folder again") from None
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"not a whole safetensors file ({why})", where=path, mend="copy or download it again") from None


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """Write aside, reach the disk, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
