"""The recipe of several tasks that are trained together, and what each of them is cooked from.

recipe_of(tasks, common)    from a suite's tasks and what is said for all of them
gather_all(recipe, device)  all of it, with nothing left open, or one line on what is wrong
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from bertkin.config import Train, from_mapping, load_yaml, merge, rooted, to_mapping
from bertkin.errors import UserError
from bertkin.models.configs import read_config
from bertkin.models.many import STOCK
from bertkin.models.strategy import Strategy
from bertkin.tasks.completing import complete
from bertkin.tasks.fingerprints import joint
from bertkin.tasks.gathering import Gathered, gather
from bertkin.tasks.metrics import metric
from bertkin.tasks.sampling import Sampling
from bertkin.tasks.suites import FOLDER
from bertkin.tasks.tuning import Tuning
from bertkin.train.folder import RECIPE, TASKS

SHARED = ("model", "batch", "dropout", "attention_dropout", "strategy", "train")
"""Fields of `Tuning` that are the same for all tasks."""
ALONE = ("merge", "reinit")
"""Fields that are for a model with a stock of its own."""


@dataclass(frozen=True)
class Together:
    """The recipe of several tasks trained together."""

    model: str = ""
    """The pretrained model: a run folder, a model folder, or a hub id."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """For each task by name, the fields of `Tuning` that are its own: data, text, metric …"""
    sampling: Sampling = "annealed"
    """How the task of a step is drawn: annealed, proportional, sqrt, uniform; see `bertkin.tasks.sampling`."""
    batch: int = 32
    """Examples a step."""
    dropout: float = 0.1
    """Dropout after embeddings, attention and feed-forward."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    strategy: Strategy = field(default_factory=Strategy)
    """How much of the model is trained, and what each task has to itself."""
    train: Train = field(default_factory=Train)
    """Budget, optimiser and schedule; an epoch is as many examples as all tasks have."""

    def tuning(self, name: str) -> Tuning:
        """The recipe of one task, as if it were alone.

        Raises:
            UserError: a field that is none.
        """
        own = from_mapping(Tuning, self.tasks[name], name)
        same = {field: getattr(self, field) for field in SHARED}
        return cast(Tuning, replace(own, **same))


def recipe_of(
    tasks: Mapping[str, Tuning], common: Tuning, sampling: Sampling = "annealed", given: Collection[str] = ()
) -> Together:
    """A recipe from the tasks of a suite and what is said for all of them.

    Args:
        tasks: from `bertkin.tasks.suites.read_suite`.
        common: fields for all tasks, where they differ from the defaults.
        given: names of fields that are said for all tasks though they be the default.

    Raises:
        UserError: a name that cannot be a folder's, a task that says of itself what is the same for all, or what tasks that
            are trained together do not have.
    """
    for where, tuning in (("--", common), *((f"{name}: ", tuning) for name, tuning in tasks.items())):
        for one in ALONE:
            if getattr(tuning, one):
                raise UserError("not for several tasks over one stock", where=f"{where}{one}", mend="leave it out")
    plain, own = to_mapping(Tuning()), {}
    for name, tuning in tasks.items():
        if not FOLDER.fullmatch(name) or name.lower() == STOCK:
            raise UserError(f"{name!r} cannot be a task's folder", mend="name tasks by letters, digits, - and _")
        said = to_mapping(tuning)
        for one in SHARED:
            if said.get(one) != plain.get(one):
                raise UserError("the same for all tasks", where=f"{name}: {one}", mend="say it beside the tasks")
        values = to_mapping(merge(tuning, common)) | {one: getattr(common, one) for one in given if one not in SHARED}
        own[name] = {one: v for one, v in values.items() if one not in SHARED and v != plain[one]}
    same = {one: getattr(common, one) for one in SHARED}
    return Together(tasks=own, sampling=sampling, **same)


@dataclass(frozen=True)
class Found:
    """A recipe with nothing left open, and what each task is cooked from."""

    recipe: Together
    parts: dict[str, Gathered]

    @property
    def said(self) -> list[str]:
        """What was found out of each task's data."""
        return [f"{name}: {line}" for name, part in self.parts.items() for line in part.said]

    @property
    def fingerprint(self) -> str:
        """Hash of all tasks' examples and of the model that is begun with."""
        return joint({name: part.fingerprint for name, part in self.parts.items()})

    def like(self, fingerprint: str) -> str:
        """The same, of the kind of one that was written down."""
        return joint({name: part.like(fingerprint) for name, part in self.parts.items()})


def gather_all(recipe: Together, device: str) -> Found:
    """Read every task's data, and fill in the recipe by all of their examples.

    Raises:
        UserError: as `bertkin.tasks.gathering.gather`; or there is no task.
    """
    if not recipe.tasks:
        raise UserError("no tasks", mend="name some, each with its data")
    tunings = {name: recipe.tuning(name) for name in recipe.tasks}
    parts = {name: gather(tuning, device) for name, tuning in tunings.items()}
    for name, part in parts.items():
        if part.task.output == "sequence":
            raise UserError("models that write are trained alone", where=name, mend="fine-tune it by itself")
        if not metric(part.task.metric, part.task).higher:
            what = f"the mean of all scores judges the training, to which {part.task.metric} cannot be added"
            raise UserError(what, where=f"{name}: metric", mend="choose pearson, spearman or pearson_spearman")
    name, first = next(iter(parts.items()))
    examples = sum(len(part.train.examples) for part in parts.values())
    a, _ = read_config(first.stock / "config.json")
    train = complete(tunings[name], first.task, examples, a, first.stock).train
    train = replace(train, precision=first.tuning.train.precision)
    parts = {name: replace(part, tuning=replace(part.tuning, train=train)) for name, part in parts.items()}
    own = {name: recipe.tasks[name] | _settled(part.tuning) for name, part in parts.items()}
    return Found(replace(recipe, model=str(first.stock.resolve()), tasks=own, train=train), parts)


def _settled(tuning: Tuning) -> dict[str, Any]:
    """What was found out of a task, and where its data lie wherever the run is gone on with."""
    paths = {name: getattr(tuning, name) for name in ("dev", "test")}
    told: dict[str, Any] = {"data": [rooted(path) for path in tuning.data]}
    told |= {name: rooted(path) for name, path in paths.items() if path}
    return told | {"length": tuning.length, "pooling": tuning.pooling}


def load_together(path: Path) -> Together:
    """The recipe of such a run folder.

    Raises:
        UserError: as `bertkin.config.load_recipe`.
    """
    loaded: Together = from_mapping(Together, load_yaml(path), str(path))
    return loaded


def is_together(run: Path) -> bool:
    """Whether a folder is the run of several tasks trained together."""
    return (run / TASKS).is_file() and (run / RECIPE).is_file()
