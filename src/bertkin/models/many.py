"""Models of several tasks over one stock: trained together, saved as one stock and what is each task's own.

    many = begin_many("runs/mine", [Answer("class", 2), Answer("tokens", 17)], Strategy("pals"))
    many.tasks[1](ids, layout)
    save_many(many, folder, ["films", "names"], stock="runs/mine")

Whatever the strategy does not train, or trains in the stock as a whole, is one parameter of all tasks; what it changes of
the stock for a task (adapters, biases, the last layers …) each task has to itself, and a head of its own always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bertkin.models.adapt import apply, restore, strategy_of
from bertkin.models.architecture import Architecture
from bertkin.models.configs import FAMILIES, OURS, STEMS, write_config
from bertkin.models.folders import write
from bertkin.models.light import beside, save_light
from bertkin.models.names import named
from bertkin.models.pretrained import marked
from bertkin.models.pretrained_tasks import begin_task_model
from bertkin.models.strategy import Strategy
from bertkin.models.task_heads import Answer, TaskModel
from bertkin.models.transformer import Stack
from bertkin.text.shuffle import mix

STOCK = "stock"
"""Folder of a stock that was trained with its tasks, among theirs."""


class Many(nn.Module):
    """Task models whose stock is one.

    Args:
        stock: a plain model, whose stack they share.
        models: of the tasks, each with the same strategy applied to the same weights. Each is made to share before the next
            is asked for, so that there are no more than two stocks in memory while they are made.
    """

    def __init__(self, stock: TaskModel, models: Iterable[TaskModel]) -> None:
        super().__init__()
        self.architecture: Architecture = stock.architecture
        self.stack, self.source = stock.stack, stock.source
        shared = dict(self.named_parameters(remove_duplicate=False))
        kept = []
        for model in models:
            light = _strategy(model).light
            self.requires_grad_(not light)
            for name, parameter in list(model.named_parameters(remove_duplicate=False)):
                if name in shared and not (light and parameter.requires_grad):
                    path, _, last = name.rpartition(".")
                    setattr(model.get_submodule(path), last, shared[name])
            kept.append(model)
        self.tasks = nn.ModuleList(kept)

    @property
    def models(self) -> list[TaskModel]:
        """Of each task."""
        return [model for model in self.tasks if isinstance(model, TaskModel)]


def begin_many(path: str | Path, answers: Sequence[Answer], strategy: Strategy, *, seed: int = 0) -> Many:
    """A pretrained model with a head, and whatever the strategy puts around it, for each of several tasks.

    Args:
        path: as for `begin_task_model`.
        seed: of the first head and what the strategy puts around it; each other task has one of its own, by a hash of the two,
            so that the next seed's tasks do not begin with the same numbers.

    Raises:
        UserError: as for `begin_task_model` and `apply`.
    """

    def begun(number: int, answer: Answer) -> TaskModel:
        own = seed if number == 0 else int((mix(seed, number) >> np.uint64(33))[0])
        model = begin_task_model(path, answer, seed=own)
        apply(model, replace(strategy, seed=strategy.seed + own))
        return model

    # Of an encoder–decoder, tags need the encoder alone: the stock is what the others need.
    widest = next((answer for answer in answers if answer.head != "tokens"), answers[0])
    return Many(begin_task_model(path, widest), (begun(*one) for one in enumerate(answers)))


def save_many(
    many: Many,
    folder: str | Path,
    names: Sequence[str],
    *,
    stock: str | Path,
    extras: Sequence[Mapping[str, Any]],
    tokenizer: Any = None,
) -> None:
    """Write what is each task's own as folder/NAME, for `open_light`; and the stock they share, where it was trained
    too, once, as folder/stock.

    Args:
        stock: what a stock that was not trained is found by.
        extras: plain data for each task's bertkin.json.
        tokenizer: saved beside a stock that was trained.

    Raises:
        UserError: the disk refuses.
    """
    folder, models = Path(folder), many.models
    light = _strategy(models[0]).light
    if not light:
        save_stock(many, folder / STOCK, tokenizer)
    for model, name, extra in zip(models, names, extras, strict=True):
        if light:
            save_light(model, folder / name, stock, extra=extra)
        else:
            save_light(apart(model), folder / name, f"../{STOCK}", extra=extra)


def save_apart(model: TaskModel, folder: str | Path, *, tokenizer: Any, extra: Mapping[str, Any]) -> None:
    """Write a model whose stock was trained together with what was put around it, as both: folder/stock and what is
    added to it, for `open_light`.

    Raises:
        UserError: the disk refuses.
    """
    plain = beside(model, model.answer)
    assert isinstance(plain, TaskModel)
    save_stock(plain, Path(folder) / STOCK, tokenizer)
    save_light(apart(model), folder, STOCK, extra=extra)


def apart(model: TaskModel) -> TaskModel:
    """The same model, over the same weights, as if its stock, such as it is now, had been there before and stayed as it
    was: only the head, and what was put around the stock, count as trained."""
    strategy = _strategy(model)
    kept = Strategy("frozen") if strategy.kind == "full" else replace(strategy, frozen=True)
    made = beside(model, model.answer)
    assert isinstance(made, TaskModel)
    apply(made, kept)
    weights = dict(model.named_parameters())
    restore(made, {name: weights[name] for name, p in made.named_parameters() if p.requires_grad})
    return made


def save_stock(model: Many | TaskModel, folder: str | Path, tokenizer: Any = None) -> None:
    """Write a stock without any head, in float32, as a folder that transformers opens with AutoModel.

    Args:
        model: with nothing put around its stack.

    Raises:
        UserError: the disk refuses.
    """
    a = marked(model.architecture, tokenizer)
    config = write_config(a)
    bare = Bare(model.architecture, model.stack, model.source)
    if config["model_type"] == OURS:
        write(bare, Path(folder), a, OURS, config, tokenizer=tokenizer)
        return
    stem = STEMS.get(a.family) or FAMILIES[a.family].head.partition("For")[0]
    only_reads = a.both and model.stack is None
    config["architectures"] = [stem + ("EncoderModel" if only_reads else "Model")]
    write(bare, Path(folder), a, named(a), config, tokenizer=tokenizer)


class Bare(nn.Module):
    """The stacks of a model under their own names, without what answers."""

    def __init__(self, a: Architecture, stack: Stack | None, source: Stack | None) -> None:
        super().__init__()
        self.architecture, self.stack, self.source = a, stack, source


def _strategy(model: TaskModel) -> Strategy:
    found = strategy_of(model)
    assert found is not None
    return found
