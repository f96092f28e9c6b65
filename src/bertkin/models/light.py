"""What a light strategy leaves on disk: what changed, and which stock it belongs to; and many such over one stock.

    save_light(model, folder, "runs/mine")      a few megabytes
    model, about = open_light(folder)           the stock it names, and what changed in it
    open_light(other, stock=model)              another task over the same weights, which are in memory once

LoRA is written as PEFT writes it (`bertkin.models.peft`). A stock is known by a hash of its weights: changes are only ever
put on the weights they were learnt on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bertkin.errors import UserError, disk_errors
from bertkin.models.adapt import apply, changed, fingerprint, restore, stock_of, strategy_of
from bertkin.models.configs import OURS, read_config, write_config
from bertkin.models.folders import as_json, find_folder, open_tensors, write_aside
from bertkin.models.heads import LanguageModel
from bertkin.models.names import in_stack
from bertkin.models.peft import CONFIG, TENSORS, answer_of_peft, read_peft, stock_named, write_peft
from bertkin.models.pretrained import load_model
from bertkin.models.pretrained_tasks import begin_task_model, shared
from bertkin.models.strategy import Strategy, check
from bertkin.models.task_heads import Answer, TaskModel
from bertkin.models.writers import begin_writer

CHANGED, ABOUT = "changed.safetensors", "bertkin.json"
Model = TaskModel | LanguageModel


def save_light(model: Model, folder: str | Path, stock: str | Path, *, extra: Mapping[str, Any] | None = None) -> int:
    """Write what a strategy changed, in float32, and the stock it began from.

    Args:
        stock: folder or hub id of the stock, written down for whoever opens this; a folder that stays beside this one may
            be given by its way from here, such as ../stock.
        extra: plain data (labels, recipe, scores) for bertkin.json.

    Returns:
        How many bytes it is.

    Raises:
        UserError: the disk refuses.
    """
    strategy = strategy_of(model)
    if strategy is None or strategy.kind == "full":
        raise ValueError("what trains everything is saved as a model")
    folder, answer = Path(folder), model.answer if isinstance(model, TaskModel) else None
    light = {
        "strategy": asdict(strategy),
        "answer": None if answer is None else asdict(answer),
        "stock": str(stock),
        "fingerprint": stock_of(model),
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if strategy.kind == "lora" and _in_transformers(model):
            write_peft(model, folder, str(stock))
            (folder / CHANGED).unlink(missing_ok=True)  # what was here before
        else:
            write_aside(folder / CHANGED, save(changed(model), metadata={"format": "pt"}))
            for name in (CONFIG, TENSORS):
                (folder / name).unlink(missing_ok=True)
        write_aside(folder / ABOUT, as_json(dict(extra or {}) | {"light": light}))
        return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def is_light(folder: str | Path) -> bool:
    """Whether a folder holds what a light strategy changed, ours or PEFT's."""
    return (Path(folder) / CONFIG).is_file() or (Path(folder) / CHANGED).is_file()


def light_in(path: str | Path) -> Path | None:
    """The folder of a run, or the folder itself, that holds what a light strategy changed; None where neither does."""
    return next((folder for folder in (Path(path), Path(path) / "model") if is_light(folder)), None)


def no_changes(path: str | Path) -> UserError:
    """What is said where a stock is given for a model that needs none."""
    return UserError("no changes to a stock here, but a whole model", where=path, mend="leave the stock out")


def lacks_stock(folder: Path) -> bool:
    """Whether the stock that a folder of changes names is a folder that is not there any more."""
    try:
        return named_stock(folder) is None
    except UserError:
        return True


def open_light(folder: str | Path, stock: str | Path | Model | None = None) -> tuple[Model, dict[str, Any]]:
    """A model as it was saved by `save_light` or PEFT, in evaluation mode, and what is beside it in bertkin.json.

    Args:
        stock: folder, hub id, or a model that was loaded (and stays as it is: weights that neither changes are shared); by
            default the one that the folder names.

    Raises:
        UserError: nothing of the kind there, it belongs to another stock, or it cannot be read.
    """
    folder = Path(folder)
    if not is_light(folder):
        raise UserError("no changes to a model here", where=folder, mend=f"give a folder with {CONFIG} or {CHANGED}")
    about = _about(folder)
    light = about.get("light") or {}
    stock = named_stock(folder) if stock is None else stock
    if stock is None:
        raise UserError("does not say what stock it belongs to", where=folder, mend="give the model as well")
    foreign = (folder / CONFIG).is_file()
    if foreign and "answer" not in light:
        answer = answer_of_peft(folder, _architecture(stock))
    else:
        answer = None if light["answer"] is None else Answer(**light["answer"])
    model = _begin(stock, answer)
    known = light.get("fingerprint")
    if known and known != fingerprint(model):
        given = "the model given" if isinstance(stock, nn.Module) else stock
        mend = f"give the one it was trained on, as it was then: {light['stock']}"
        raise UserError(f"trained on another stock than {given}", where=folder, mend=mend)
    if foreign:
        read_peft(model, folder)
        _own(model)
    else:
        apply(model, _strategy(light["strategy"], folder))
        _own(model)
        opened = open_tensors(folder / CHANGED)
        restore(model, {name: opened.get_tensor(name) for name in opened.keys()}, folder)  # noqa: SIM118
    return model.eval(), about


def named_stock(folder: str | Path) -> str | None:
    """The folder or hub id of the stock that a folder of changes names: one beside them is found wherever both are.

    Raises:
        UserError: it is a folder that is not there any more.
    """
    folder = Path(folder)
    found: str | None = (_about(folder).get("light") or {}).get("stock") or stock_named(folder)
    if found is not None and (folder / found / "config.json").is_file():
        return str((folder / found).resolve())
    if found is not None and Path(found).is_absolute() and not Path(found).exists():
        mend = "say where it is now (--stock FOLDER)"
        raise UserError(f"its stock is no longer there: {found}", where=folder, mend=mend)
    return found


def answer_told(folder: str | Path) -> Answer | None:
    """What the model of a folder of changes answers; None of a language model, or where only the weights say it."""
    told = (_about(Path(folder)).get("light") or {}).get("answer")
    return None if told is None else Answer(**told)


def beside(stock: Model, answer: Answer | None) -> Model:
    """Another model that reads with the same weights, which are in memory once; its head is new, of zeros.

    Args:
        answer: None for a language model.

    Raises:
        UserError: the family has no such head, or the stock lacks a part of what the other reads with.
    """
    with torch.device("meta"):
        made = LanguageModel(stock.architecture) if answer is None else TaskModel(stock.architecture, answer)
    weights = dict(stock.named_parameters(remove_duplicate=False))
    missing = set(stock.missing)
    for name, parameter in list(made.named_parameters(remove_duplicate=False)):
        held: Tensor | None = weights.get(name) if in_stack(name) or isinstance(made, type(stock)) else None
        if held is None or held.shape != parameter.shape:
            if in_stack(name):
                raise UserError(f"the stock has no {name}", mend="load the whole model, with any head")
            held = torch.zeros(parameter.shape)
            missing.add(name)
        path, _, last = name.rpartition(".")
        # A parameter of its own over the same numbers: whether it is trained is each model's own matter.
        setattr(made.get_submodule(path), last, nn.Parameter(held.detach()))
    for name, part in made.named_children():  # the last layer has a type of its own (`Classifier`)
        if not in_stack(f"{name}."):
            part.to(next(stock.parameters()).dtype)
    made.tie()
    made.missing = tuple(sorted(missing & {name for name, _ in made.named_parameters()}))
    return made


def _own(model: Model) -> None:
    """Trained weights are not shared with the stock."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()


def _begin(stock: str | Path | Model, answer: Answer | None) -> Model:
    if isinstance(stock, nn.Module):
        return beside(stock, answer)
    if answer is not None:
        return begin_task_model(stock, answer)
    # One that found replaced tokens has no words to answer with: those that were drawn are among the changes.
    return begin_writer(stock, "prefix") if _architecture(stock).head == "detect" else load_model(stock)


def _architecture(stock: str | Path | Model) -> Any:
    if isinstance(stock, nn.Module):
        return stock.architecture
    return read_config(find_folder(stock) / "config.json")[0]


def _in_transformers(model: Model) -> bool:
    """Whether transformers makes the same model of the stock's own configuration. PEFT has no place for a head of words
    that was drawn: it is tied to a table of the stock's."""
    if isinstance(model, TaskModel):
        return shared(model.architecture, model.answer)
    return write_config(model.architecture)["model_type"] != OURS and not model.missing


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        light = about.get("light") or {}
        Answer(**(light.get("answer") or {"head": "class", "outputs": 1}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot be read ({str(error).splitlines()[0]})", where=path) from None
    if not (folder / CONFIG).is_file() and not {"strategy", "answer", "stock", "fingerprint"} <= light.keys():
        raise UserError("does not say what strategy and stock these changes are of", where=path)
    found: dict[str, Any] = about
    return found


def _strategy(values: Mapping[str, Any], folder: Path) -> Strategy:
    try:
        return check(Strategy(**{**values, "matrices": tuple(values["matrices"])}), f"{folder / ABOUT}: strategy.")
    except (TypeError, KeyError) as error:
        raise UserError(f"not a strategy ({error})", where=folder / ABOUT) from None
