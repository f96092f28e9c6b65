"""Several tasks trained together: every step is a batch of one of them, drawn by how many examples each has.

    together(recipe_of(read_suite("tasks.yaml"), Tuning(model="runs/mine")), out)
    resume_together(out)

The model is one stock with a head for each task, and with whatever the strategy puts around it for each
(`bertkin.models.many`). Which task a step is of depends on the seed and the number of the step alone, and each task goes
through its own examples as if it were trained alone, so that a run that is stopped goes on to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch

from bertkin.errors import UserError
from bertkin.models.adapt import trainable
from bertkin.models.continuing import set_dropout
from bertkin.models.folders import BESIDE
from bertkin.models.many import Many, begin_many, save_many
from bertkin.models.names import in_stack
from bertkin.tasks.carrying import as_measured, carry_out
from bertkin.tasks.concluding import conclude_all
from bertkin.tasks.finetune import FineTuning, TaskBatch
from bertkin.tasks.joining import Found, Together, gather_all, load_together
from bertkin.tasks.metrics import METRICS
from bertkin.tasks.sampling import chances, drawn, exponent
from bertkin.train.folder import RECIPE, TASKS, TESTED, begun
from bertkin.train.loop import Result, Training
from bertkin.train.parallel import World
from bertkin.train.price import Price, bytes_of
from bertkin.train.progress import Listener
from bertkin.train.state import Position, kept_evaluation, read_log, write_text

RIGHT_OR_WRONG = METRICS["accuracy"].outputs
"""Answers that have an accuracy; of the others the loop knows the headline by that name."""


@dataclass(frozen=True)
class Turn:
    """A batch of one task."""

    task: int
    examples: TaskBatch

    @property
    def n_tokens(self) -> int:
        return self.examples.n_tokens

    @property
    def idle(self) -> bool:
        return self.examples.idle

    def slice(self, rank: int, world: int) -> Turn:
        """The rank-th of `world` nearly equal shares, in whole examples."""
        return Turn(self.task, self.examples.slice(rank, world))

    def split(self, n: int) -> list[Turn]:
        """The batch in n shares of whole examples."""
        return [self.slice(i, n) for i in range(n)]


class Joint:
    """The work of training several tasks together; see `bertkin.train.work.Work`."""

    kind = "tasks"
    headline = "mean"

    def __init__(self, found: Found, device: str) -> None:
        self.recipe, self.train = found.recipe, found.recipe.train
        self.works = {name: FineTuning(part, device) for name, part in found.parts.items()}
        self.each = list(self.works.values())
        self.sizes = [len(work.examples.examples) for work in self.each]

    def first_model(self) -> Many:
        many = begin_many(
            self.each[0].stock, [work.answer for work in self.each], self.recipe.strategy, seed=self.train.seed
        )
        set_dropout(many, self.recipe.dropout, self.recipe.attention_dropout)
        for work, model in zip(self.each, many.models, strict=True):
            work.to_units(model)
        return many

    def epochs(self, position: Position) -> float:
        return sum(position.row(task) for task in range(len(self.each))) / sum(self.sizes)

    def batch(self, position: Position, progress: float) -> Turn:
        """The next examples of the task whose turn it is."""
        task = self.turn(position.step, progress)
        return Turn(task, self.each[task].batch(self.own(position, task), progress))

    def turn(self, step: int, progress: float) -> int:
        """Whose turn a step is."""
        return drawn(chances(self.sizes, self.alpha(progress)), self.train.seed, step)

    def alpha(self, progress: float) -> float:
        """The power of their sizes that tasks are drawn by, now."""
        return exponent(self.recipe.sampling, progress, self.train.epochs)

    def own(self, position: Position, task: int) -> Position:
        """Where a task is among its own examples."""
        return Position(rows={"0": position.row(task)})

    def advance(self, position: Position, progress: float) -> None:
        task = self.turn(position.step - 1, progress)  # the loop has counted the step that was taken
        own = self.own(position, task)
        self.each[task].advance(own, progress)
        position.rows[str(task)] = own.row(0)

    def counts(self, batch: Turn) -> tuple[int, int]:
        return self.each[batch.task].counts(batch.examples)

    def learn(self, model: Many, part: Turn, counts: tuple[int, int], sums: list[float]) -> None:
        self.each[part.task].learn(model.models[part.task], part.examples, counts, sums)

    def learnt(self, world: World) -> None:
        """Nothing to share."""

    def evaluate(self, model: Many, world: World) -> dict[str, float]:
        """Every task's loss and metrics on its dev examples, as NAME/METRIC; the means of losses and of headlines."""
        scored = {
            name: work.measured(one, work.dev)
            for (name, work), one in zip(self.works.items(), model.models, strict=True)
        }
        found = self.joined(scored)
        return found | {"score": found["mean"]}

    def joined(self, scored: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The scores of some of the tasks as NAME/METRIC, and the means of their losses and headlines."""
        found: dict[str, float] = {}
        for name, scores in scored.items():
            right = self.works[name].task.output in RIGHT_OR_WRONG
            found |= {f"{name}/{one}": value for one, value in scores.items() if right or one != "accuracy"}
        headline = mean(scores[self.works[name].task.metric] for name, scores in scored.items())
        return {"loss": mean(s["loss"] for s in scored.values()), "accuracy": headline, "mean": headline} | found

    def show(self, finished: Many) -> list[dict[str, Any]]:
        return []

    def told(self, progress: float) -> dict[str, float]:
        return {"alpha": round(self.alpha(progress), 4)}

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def export(self, finished: Many, folder: Path, facts: dict[str, Any]) -> None:
        """What is each task's own, the stock once where it was trained, and which tasks there are."""
        extras = [facts | work.facts() | {"stock": self.recipe.model} for work in self.each]
        names, tokenizer = list(self.works), self.each[0].tokenizer
        with ExitStack() as stack:
            for work, model in zip(self.each, finished.models, strict=True):
                stack.enter_context(work.in_units(model))
            save_many(finished, folder, names, stock=self.recipe.model, extras=extras, tokenizer=tokenizer)
        write_text(folder / BESIDE, json.dumps(facts | {"tasks": names}, indent=1, ensure_ascii=False) + "\n")

    def opening(self, listener: Listener) -> dict[str, Any] | None:
        return None

    def price(self, model: Many, **machine: Any) -> Price:
        """The prices of the tasks together; of a budget that is not in epochs each has its share."""
        prices = [work.price(one, **machine) for work, one in zip(self.each, model.models, strict=True)]
        share = 1.0 if self.train.epochs else 1 / len(prices)
        trained, parameters = trainable(model)
        return replace(
            prices[0],
            parameters=parameters,
            tokens=int(share * sum(price.tokens for price in prices)),
            steps=int(share * sum(price.steps for price in prices)),
            flops=share * sum(price.flops for price in prices),
            bytes=bytes_of(parameters, trained),
            minutes=self.train.minutes or share * sum(price.minutes for price in prices),
            corpus_tokens=sum(price.corpus_tokens for price in prices),
        )

    def notes(self, model: Many) -> list[str]:
        wide = max(map(len, self.works))
        said = [
            f"task        {name:<{wide}}  {work.task}; examples {size:,}, dev {len(work.dev.examples):,}"
            for (name, work), size in zip(self.works.items(), self.sizes, strict=True)
        ]
        for name, work in self.works.items():
            said += work.cut(f"{name:<{wide}}  ")
        trained, parameters = trainable(model)
        shared = sum(p.numel() for name, p in model.named_parameters() if in_stack(name))
        how = "left as it is" if self.recipe.strategy.light else "trained"
        own = (parameters - shared) // len(self.works)
        said.append(f"stock       {shared:,} parameters, once, {how}; about {own:,} are each task's own")
        said.append(f"strategy    {self.recipe.strategy.kind}: {trained:,} of {parameters:,} are trained")
        return said


def together(recipe: Together, out: Path, *, listener: Listener | None = None, overwrite: bool = False) -> Result:
    """Fine-tune a pretrained model on several tasks together, into a run folder.

    Its `model/` has a folder for each task, which `bertkin.models.light.open_light` opens.

    Raises:
        UserError: as `gather_all`; or the disk refuses.
    """
    return _run(recipe, out, listener, overwrite=overwrite)


def resume_together(out: Path, *, listener: Listener | None = None) -> Result:
    """Go on with such a training from its newest whole checkpoint, to the same bits.

    Raises:
        UserError: its data or its model have changed since.
    """
    return _run(load_together(out / RECIPE), out, listener, resumed=True)


def _run(recipe: Together, out: Path, listener: Listener | None, **how: bool) -> Result:
    def end(found: Found, training: Training, listener: Listener) -> None:
        joint, finished = cast(Joint, training.work), as_measured(training)
        each = zip(found.parts.items(), joint.each, finished.models, strict=True)
        tested = conclude_all(
            out, {n: (part, model, partial(w.asked, model)) for (n, part), w, model in each}, listener
        )
        if tested:
            scored = {name: round(value, 5) for name, value in joint.joined(tested).items()}
            write_text(out / TESTED, json.dumps(scored, indent=1) + "\n")
            listener.message(f"test        mean {scored['mean']:.4f} of {len(tested)} tasks, in {out / TESTED}")

    return carry_out(
        out,
        listener,
        device=recipe.train.device,
        about=TASKS,
        gather=lambda device: gather_all(recipe, device),
        begin=partial(_begin, out),
        work=Joint,
        end=end,
        needed=[path for name in recipe.tasks for path in recipe.tuning(name).paths],
        **how,
    )


def _begin(out: Path, found: Found) -> bool:
    """Clear away the run that is there, if any, and write what says what this one is."""
    about = {"tasks": {name: part.task.to_mapping() for name, part in found.parts.items()}}
    told = about | {"stock": found.recipe.model, "fingerprint": found.fingerprint}
    with begun(out, found.recipe, {"store": found.fingerprint, "folder": ""}):
        write_text(out / TASKS, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return True


def table(run: Path) -> str:
    """Every task's metric at the evaluation whose weights a run kept, and their mean, as a table in Markdown.

    Raises:
        UserError: it was not evaluated yet.
    """
    kept = kept_evaluation(read_log(run))
    if kept is None:
        raise UserError("not evaluated yet", where=run, mend=f"go on with: bertkin resume {run}")
    tasks = json.loads((run / TASKS).read_text(encoding="utf-8"))["tasks"]
    lines = ["| task | metric | score |", "|---|---|---:|"]
    for name, task in tasks.items():
        headline = task["metric"]
        lines.append(f"| {name} | {headline} | {100 * kept[f'{name}/{headline}']:.1f} |")
    return "\n".join([*lines, f"| mean | | {100 * kept['mean']:.1f} |"])
