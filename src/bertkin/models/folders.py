"""A folder of weights under transformers' names, and the parameters of our modules: filled from one, written to one.

Nothing is unpickled, no code from a folder is run, and what comes from outside is checked before use.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bertkin.errors import MissingExtra, UserError, disk_errors
from bertkin.models.architecture import Architecture
from bertkin.models.names import OWN, STACKS, UNREAD, beginnings, canonical, in_stack, prefix_of, theirs, turned

WEIGHTS, BESIDE = "model.safetensors", "bertkin.json"
_DISAGREE = "see that config.json and the weights are of the same model"


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
    """A hub id's folder, with its weights, configuration and tokenizer only."""
    return fetched(name, ["*.json", "*.safetensors", "*.txt"], missing="no such folder, and ")


def fetched(
    name: str,
    patterns: list[str],
    *,
    missing: str = "",
    mend: str = "",
    repo_type: str = "model",
    revision: str = "main",
) -> Path:
    """What the hub has under an id, in the cache of huggingface_hub: downloaded once, and read there without a network.

    Args:
        patterns: of the files that are wanted.
        missing: what was looked for before, for the error.
        repo_type: model or dataset.

    Raises:
        UserError: the hub does not give it.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub", f"{name}: {missing}looking on the hub") from None
    refusals = _refusals(errors)
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=patterns))
    except refusals as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{missing}the hub does not give it ({why})", where=name, mend=mend) from None


def _refusals(errors: Any) -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a hub or a network refuses; its client's own errors are none of the system's."""
    names = ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError", "HTTPError")
    return (OSError, *(getattr(errors, name) for name in names if hasattr(errors, name)))


def told(folder: Path) -> dict[str, Any]:
    """What a model of ours remembers beside its weights (bertkin.json): its objective, task, scores. {} of a stranger's, or
    where it cannot be read."""
    try:
        content = json.loads((folder / BESIDE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def fill(model: nn.Module, weights: Weights, a: Architecture, *, begins: bool = False) -> list[str]:
    """Give a model made on no device its memory, and every parameter its weights.

    Args:
        model: with a method `tie`, as all that share a table.
        begins: whether it is the beginning of another model, whose head may have other sizes than the folder's: what does not
            fit of a head is then left unset.

    Returns:
        The parameters of heads that are still unset.

    Raises:
        UserError: a weight is missing, of another shape, or unknown; no memory was taken.
    """
    absent = _missing(model, weights, a, begins=begins)
    model.to_empty(device="cpu")
    model.tie()  # type: ignore[operator]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in absent:
                weights.fill(parameter, name, a)
    return absent


def _missing(model: nn.Module, weights: Weights, a: Architecture, *, begins: bool) -> list[str]:
    """Parameters of the heads that are not taken from the folder (see `fill`), once everything else is known to be there and
    to fit."""
    missing: list[str] = []
    family = weights.family
    used: set[str] = set()
    layers = [name for name, _ in model.named_parameters() if name.startswith("stack.layers.")]
    there = any(part in weights.names for name in layers for part in theirs(name, family))
    if a.both and layers and not there:  # a T5 that was taught to tag
        mend = "begin with the model it was fine-tuned from"
        raise UserError("an encoder without the decoder that is to answer", where=weights.folder, mend=mend)
    for name, parameter in model.named_parameters():
        parts, inner = theirs(name, family), in_stack(name)
        sizes = _rows(name, parameter, len(parts), a)
        wanted = [_shape_on_disk(name, (rows, *parameter.shape[1:]), family) for rows in sizes]
        there = all(part in weights.names for part in parts)
        if not inner and not (there and (not begins or list(map(weights.shape, parts)) == wanted)):
            missing.append(name)
            continue
        for part, shape in zip(parts, wanted, strict=True):
            weights.require((part,), shape)
        used.update(parts)
    known = family.partition(":")[0] in STACKS
    inside = beginnings(family) if known else OWN  # heads come and go
    decoder = f"{prefix_of(family)}decoder." if known else "stack."
    alone = not any(name.startswith("stack.") for name, _ in model.named_parameters())  # T5 tags with its encoder alone
    for name in weights.names:
        idle = UNREAD.search(name) or (alone and name.startswith(decoder)) or name == "source.embeddings.tokens"
        if name.startswith(inside) and name not in used and not idle:
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


def write(
    model: nn.Module,
    folder: Path,
    a: Architecture,
    family: str,
    config: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    extra: Mapping[str, Any] | None = None,
    goes_on: bool = False,
) -> None:
    """Write the weights of a model, its configuration, what goes beside them (bertkin.json) and its tokenizer.

    Each file is written aside and renamed, the weights first, so that a crash leaves the old one or the new one.

    Args:
        a: as it is described in the configuration; a model's own may count positions from another padding id.
        family: the table of names (`bertkin.models.names.named`).
        goes_on: whether it goes on with a text, as `Tokenizer.save` has it.
    """
    offset = getattr(model, "architecture", a).position_offset
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parts = theirs(name, family)
        whole = parameter.detach().to("cpu", torch.float32)
        if name == "stack.embeddings.positions" and a.position_offset != offset:
            used = whole[offset:]
            whole = torch.cat([used.new_zeros(a.position_offset, a.hidden), used])
        for part, chunk in zip(parts, whole.split(_rows(name, whole, len(parts), a)), strict=True):
            shape = _shape_on_disk(name, (len(chunk), *chunk.shape[1:]), family)
            tensors[part] = (chunk.t() if turned(name, family) else chunk).reshape(shape).contiguous()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_aside(folder / "config.json", as_json(config))
        if extra is not None:
            write_aside(folder / BESIDE, as_json(extra))
        if tokenizer is not None:
            tokenizer.save(folder, a.max_length, segments=a.segments > 1, goes_on=goes_on)


class Weights:
    """The tensors of a folder, in one safetensors file or several, read one by one."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        self.files = {path.name: open_tensors(path) for path in _weight_files(folder)}
        owners = {name: file for file, opened in self.files.items() for name in opened.keys()}  # noqa: SIM118
        self.names = canonical(list(owners), family)
        self.owners = owners

    def shape(self, part: str) -> tuple[int, ...]:
        """Of a tensor that is here."""
        name = self.names[part]
        return tuple(self.files[self.owners[name]].get_slice(name).get_shape())

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


def matrix_size(folder: Path) -> float:
    """How large the numbers in a model's layers are: the median over its matrices of their root mean square, tables of
    words and positions left out. About 0.05 in BERT; several times as much where Muon trained them."""
    found = []
    for path in _weight_files(folder):
        opened = open_tensors(path)
        for name in opened.keys():  # noqa: SIM118
            if "embed" not in name and len(opened.get_slice(name).get_shape()) == 2:
                found.append(float(opened.get_tensor(name).float().square().mean().sqrt()))
    return statistics.median(found) if found else 0.0


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


def open_tensors(path: Path) -> Any:
    """A safetensors file, to read tensors from one by one.

    Raises:
        UserError: it is not there, or not whole.
    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError("a part of the weights is missing", where=path, mend="download the folder again") from None
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"not a whole safetensors file ({why})", where=path, mend="copy or download it again") from None


def as_json(values: Any) -> bytes:
    """Plain data as it is written into a folder."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def write_aside(path: Path, content: bytes) -> None:
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
