"""Models with a task's head: begun from a pretrained folder, saved as transformers' own class, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.configs import OURS, TASK_CLASSES, read_config, task_class, write_config
from bertkin.models.folders import Weights, fill, find_folder, write
from bertkin.models.initial import initialise
from bertkin.models.names import named
from bertkin.models.pretrained import marked
from bertkin.models.task_heads import Answer, TaskModel, usual_pooling

PROBLEMS = {"class": "single_label_classification", "classes": "multi_label_classification", "score": "regression"}
"""transformers' names of what the scores of a sequence mean."""


def begin_task_model(path: str | Path, answer: Answer, *, seed: int = 0) -> TaskModel:
    """A pretrained model with a head: whatever of it the folder has is taken, the rest is drawn, and named in `missing`. The
    last layer of another kind of task, or of another size, is drawn as well.

    Args:
        path: a folder, run folder or hub id; with a head of its pretraining, of another task, or none.
        seed: of the head.

    Raises:
        UserError: as for `bertkin.models.pretrained.load_model`, or the family has no such head.
    """
    model = _read(path, answer, begins=True)
    initialise(model, model.architecture, torch.Generator().manual_seed(seed), model.missing)
    return model


def load_task_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[TaskModel, dict[str, Any]]:
    """Read a model with a task's head, in evaluation mode, and its config.json.

    Raises:
        UserError: as for `bertkin.models.pretrained.load_model`; or the folder has no such head.
    """
    folder = find_folder(path)
    a, _ = read_config(folder / "config.json")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    answer = answer_of(a, config)
    if answer is None:
        found = ", ".join(config.get("architectures") or ["none"])
        raise UserError(f"no head of a task here ({found})", where=folder, mend="fine-tune it: bertkin finetune")
    model = _read(folder, answer)
    if model.missing:
        raise UserError(f"no weights of {', '.join(model.missing)}", where=folder, mend="save or download it again")
    return model.to(dtype).eval(), config


def answer_of(a: Architecture, config: Mapping[str, Any]) -> Answer | None:
    """What the model of a folder answers, or None where it has no head of a task."""
    if isinstance(config.get("bertkin_answer"), dict):
        return Answer(**config["bertkin_answer"])
    names = config.get("architectures") or [""]
    head = next((head for head, end in TASK_CLASSES.items() if str(names[0]).endswith(end)), None)
    if head is None:
        return None
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    outputs = {"choice": 1, "span": 2}.get(head, count)
    return Answer(head, outputs, usual_pooling(a))  # type: ignore[arg-type]


def save_task_model(
    model: TaskModel,
    folder: str | Path,
    *,
    labels: Sequence[str] = (),
    problem: str = "class",
    tokenizer: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a folder that transformers opens with its head, in float32.

    Args:
        labels: names of the outputs, in order.
        problem: class, classes or score: what the scores of a sequence mean.
        tokenizer, extra: as for `bertkin.models.pretrained.save_model`.

    Raises:
        UserError: the disk refuses.
    """
    a, answer = marked(model.architecture, tokenizer), model.answer
    if a.family == "modern" and answer.pooling in ("first", "mean"):  # its configuration can say both
        a = replace(a, pooling=answer.pooling)  # type: ignore[arg-type]
    config = write_config(a)
    if not shared(a, answer):
        config = {"model_type": OURS, "architectures": ["TaskModel"], **asdict(a), "bertkin_answer": asdict(answer)}
        family = OURS
    else:
        config["architectures"] = [task_class(a, answer.head)]
        family = named(a, answer.head)
    if answer.head in ("class", "tokens"):
        names = list(labels) or [f"LABEL_{i}" for i in range(answer.outputs)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    if answer.head == "class":
        config["problem_type"] = PROBLEMS[problem]
    write(model, Path(folder), a, family, config, tokenizer=tokenizer, extra=extra)


def shared(a: Architecture, answer: Answer) -> bool:
    """Whether transformers has a class for a model of this configuration with this head."""
    usual = answer.pooling == usual_pooling(a) or answer.head in ("tokens", "span")
    return usual and not answer.crf and write_config(a)["model_type"] != OURS


def _read(path: str | Path, answer: Answer, *, begins: bool = False) -> TaskModel:
    """The model with whatever weights the folder has; `missing` names the others, which are unset.

    Args:
        begins: whether it is the beginning of another model, and need not have the folder's head.
    """
    folder = find_folder(path)
    a, kind = read_config(folder / "config.json")
    family = kind if kind == OURS else named(a, answer.head)
    with torch.device("meta"):  # no memory is taken before all shapes are known to agree
        model = TaskModel(a, answer)
    absent = {*fill(model, Weights(folder, family), a, begins=begins)}
    if begins:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        before = answer_of(a, config)
        if before is not None and before.head != answer.head:  # of the same size, and yet of no use here
            absent |= {f"classifier.{name}" for name, _ in model.classifier.named_parameters()}
    model.missing = tuple(name for name, _ in model.named_parameters() if name in absent)
    return model
