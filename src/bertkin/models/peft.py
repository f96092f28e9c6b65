"""Low-rank changes as PEFT keeps them: adapter_config.json and adapter_model.safetensors, written and read.

Queries, keys and values are one projection here and three modules there (in most families), so that each change, which is
to one matrix alone, is one of theirs. Where theirs are one module as well (GPT-2, ModernBERT), changes to its parts are
written as one of as many ranks as they have together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import pad

from bertkin.errors import UserError, disk_errors
from bertkin.models.adapt import freeze, projections, rows_of, strategy_of, thaw, wrap_low
from bertkin.models.architecture import Architecture
from bertkin.models.fields import read_json
from bertkin.models.folders import as_json, open_tensors, write_aside
from bertkin.models.heads import LanguageModel
from bertkin.models.names import canonical, in_stack, named, prefix_of, theirs
from bertkin.models.strategy import Strategy
from bertkin.models.task_heads import Answer, TaskModel, usual_pooling
from bertkin.models.wraps import Low, LowRank

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."
"""What PEFT puts before the name of a module."""
PLAIN: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "alora_invocation_tokens": None,
    "layer_replication": None,
}
"""What a LoRA must not say otherwise to be a change of matrices and nothing else."""
CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Beginnings for which PEFT takes something off the stock's own weights, again whenever it opens them."""
TASKS = {"class": "SEQ_CLS", "tokens": "TOKEN_CLS", "span": "QUESTION_ANS"}
"""What PEFT calls the tasks it knows."""


def write_peft(model: TaskModel | LanguageModel, folder: Path, stock: str) -> None:
    """Write the low-rank changes and the head of a model, in float32, as a folder that PEFT opens over the same stock.

    Args:
        stock: folder or hub id of the stock, for those who open it.

    Raises:
        UserError: the disk refuses.
    """
    strategy, family = strategy_of(model), family_of(model)
    assert strategy is not None
    usual = strategy.alpha / strategy.rank
    tensors: dict[str, Tensor] = {}
    targets, ranks, alphas = [], {}, {}
    for path, _, matrices in projections(model):
        wrapped = model.get_submodule(path)
        if not isinstance(wrapped, LowRank):
            continue
        disk = theirs(f"{path}.weight", family)
        for matrix, name in zip(matrices if len(disk) > 1 else [None], disk, strict=True):
            lows = [low for own, low in wrapped.low.items() if matrix in (None, own)]
            if not lows:
                continue
            target = name.removesuffix(".weight")
            a, b = _joined(wrapped, lows, whole=matrix is None)  # type: ignore[arg-type]
            if len(a) != strategy.rank:
                ranks[target], alphas[target] = len(a), usual * len(a)
            tensors[f"{BEFORE}{target}.lora_A.weight"], tensors[f"{BEFORE}{target}.lora_B.weight"] = a, b / usual
            targets.append(target)
    kept = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not in_stack(name):
            (part,) = theirs(name, family)
            tensors[f"{BEFORE}{part}"] = parameter
            kept.add(part.removeprefix(prefix_of(family)).partition(".")[0])
    plain = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    config = {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        "base_model_name_or_path": stock,
        "inference_mode": True,
        "r": strategy.rank,
        "lora_alpha": strategy.alpha,
        "lora_dropout": strategy.dropout,
        "target_modules": sorted(targets),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": sorted(kept) or None,
        "fan_in_fan_out": family.startswith("gpt2"),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / TENSORS, save(plain, metadata={"format": "pt"}))
        write_aside(folder / CONFIG, as_json(config))


def answer_of_peft(folder: Path, a: Architecture) -> Answer | None:
    """What a model answers whose changes PEFT saved, or None for a language model.

    Raises:
        UserError: PEFT's folder does not say.
    """
    config, tensors = _config(folder), open_tensors(folder / TENSORS)
    head = next((head for head, task in TASKS.items() if task == config.get("task_type")), None)
    if head is None:
        return None
    rows = [tensors.get_slice(name).get_shape()[0] for name in tensors.keys() if _LAST.search(name)]  # noqa: SIM118
    if len(rows) != 1:
        problem = f"a change for {config['task_type']}, but the head's last projection is not in it"
        raise UserError(problem, where=folder, mend="save it with PEFT's modules_to_save")
    return Answer(head, rows[0], usual_pooling(a))  # type: ignore[arg-type]


_LAST = re.compile(r"\.(classifier|score|qa_outputs|out_proj)\.weight$")


def read_peft(model: TaskModel | LanguageModel, folder: Path) -> None:
    """Put what PEFT saved around a model of the same stock, and its head into it, in place.

    Raises:
        UserError: it is no LoRA, of a kind that we do not have, or not for this model.
    """
    config, family = _config(folder), family_of(model)
    opened = open_tensors(folder / TENSORS)
    tensors = {name.removeprefix(BEFORE): opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    names = canonical(list(tensors), family)
    lows, used = _read_lows(model, names, tensors, config, folder)
    head: dict[nn.Parameter, Tensor] = {}
    for name, parameter in model.named_parameters():
        if in_stack(name):
            continue
        (part,) = theirs(name, family)
        if part in names and tensors[names[part]].shape == parameter.shape:
            head[parameter] = tensors[names[part]]
            used.add(part)
        elif name in model.missing:
            raise UserError(f"no weights of {part}, here or in the stock", where=folder, mend="save it with the head")
    left = sorted(names.keys() - used)
    if left:
        raise UserError(f"{left[0]} does not fit the stock", where=folder, mend="give the model it was trained on")
    rank, alpha = _whole(config, "r"), float(config.get("lora_alpha", 8))
    new = freeze(model, Strategy("lora", rank=rank, alpha=alpha, dropout=float(config.get("lora_dropout", 0.0))))
    for path, found in lows.items():
        wrap_low(model, path, found, float(config.get("lora_dropout", 0.0)))
        thaw(model.get_submodule(f"{path}.low").parameters())
    thaw(new)
    for parameter, tensor in head.items():  # not in place: the numbers may be another model's too
        parameter.data = tensor.to(parameter.device, parameter.dtype)


def family_of(model: TaskModel | LanguageModel) -> str:
    """The table of names of a model."""
    return named(model.architecture, model.answer.head if isinstance(model, TaskModel) else "")


def _read_lows(
    model: TaskModel | LanguageModel,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    folder: Path,
) -> tuple[dict[str, dict[str, Low]], set[str]]:
    """The changes of each projection by its path, and which names were read."""
    lows: dict[str, dict[str, Low]] = {}
    used: set[str] = set()
    for path, block, matrices in projections(model):
        disk = theirs(f"{path}.weight", family_of(model))
        for matrix, name in zip(matrices if len(disk) > 1 else ["all"], disk, strict=True):
            target = name.removesuffix(".weight")
            parts = f"{target}.lora_A.weight", f"{target}.lora_B.weight"
            if parts[0] not in names:
                continue
            weight = model.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            inputs, start, rows = (weight.shape[1], 0, len(weight)) if matrix == "all" else rows_of(block, matrix)
            a, b = (tensors.get(names.get(part, ""), torch.empty(0)) for part in parts)
            if a.ndim != 2 or a.shape[1] != inputs or b.shape != (rows, len(a)):
                problem = f"{target} is changed by {list(a.shape)} and {list(b.shape)}, but has {rows} x {inputs}"
                raise UserError(problem, where=folder, mend="give the model it was trained on")
            low = Low(inputs, start, rows, len(a), _scale(config, target, len(a)) * len(a))
            with torch.no_grad():
                low.a.copy_(a)
                low.b.copy_(b)
            lows.setdefault(path, {})[matrix] = low
            used |= set(parts)
    return lows, used


def _scale(config: Mapping[str, Any], target: str, rank: int) -> float:
    """Alpha / rank, or / its root (rsLoRA, Kalajdzievski 2023); modules may have an alpha of their own."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((own for pattern, own in patterns.items() if _matches(pattern, target)), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, target: str) -> bool:
    """Whether PEFT takes a module for what a pattern means: an expression for the end of its name."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", target) is not None
    except re.error as error:
        raise UserError(f"{pattern!r} is no pattern of names ({error})", where=f"{CONFIG}: alpha_pattern") from None


def _joined(wrapped: LowRank, lows: list[Low], *, whole: bool) -> tuple[Tensor, Tensor]:
    """Changes as one, times their scale: [ranks, in] and [rows, ranks], of all rows or of the changed ones."""
    if whole:
        ends = [(low.start, len(wrapped.weight) - low.start - low.rows) for low in lows]
        b = torch.cat([pad(low.b * low.scale, (0, 0, *end)) for low, end in zip(lows, ends, strict=True)], dim=1)
    else:
        b = torch.cat([low.b * low.scale for low in lows], dim=1)
    return torch.cat([low.a for low in lows]), b


def _task_type(model: TaskModel | LanguageModel) -> str | None:
    if isinstance(model, TaskModel):
        return TASKS.get(model.answer.head)
    a = model.architecture
    return "SEQ_2_SEQ_LM" if a.both else "CAUSAL_LM" if a.causal else None


def stock_named(folder: Path) -> str | None:
    """The stock that PEFT's configuration names, where there is one.

    Raises:
        UserError: it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        return None
    found = _config(folder).get("base_model_name_or_path")
    return found if isinstance(found, str) and found else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"of PEFT's ways, LORA is read here, not {found}", where=path)
    for name, plain in PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise UserError(f"{name} = {config[name]!r} is not read here", where=path, mend=f"train with {plain!r}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGING):
        mend = "let PEFT convert it to plain LoRA (path_initial_model_for_weight_conversion)"
        raise UserError(f"{start} changes the stock itself, which is not read here", where=path, mend=mend)
    return config


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"{CONFIG}: {name}")
    return value
