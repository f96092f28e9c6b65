"""Which settings suit a task: some are drawn at random, each is a fine-tuning, and the best on the dev data is the result.

    search(tuning, out, trials=20)      a run folder as `finetune` makes it, with search.json and search.md beside
    resume_search(out)                  go on where it was stopped: no trial is made twice

The first trial is the defaults, so that the result is never below them on the dev data. The others are drawn from `space`,
each field by itself (Bergstra & Bengio 2012), by the seed and the number of the trial alone. What a person chose is not
varied. A score that was the best of many on some dev data is too high for others: measure on test data what it is worth.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from bertkin.config import from_mapping, to_mapping
from bertkin.errors import NonFiniteLoss, UserError, disk_errors
from bertkin.models.architecture import Architecture
from bertkin.models.configs import read_config
from bertkin.models.folders import find_folder
from bertkin.models.writers import writing_shape
from bertkin.tasks.card import shown
from bertkin.tasks.completing import complete
from bertkin.tasks.finetune import finetune, is_tuning, resume
from bertkin.tasks.fingerprints import fingerprint_of
from bertkin.tasks.gathering import read_data
from bertkin.tasks.metrics import METRICS
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning, settled
from bertkin.train.folder import (
    RECIPE,
    REVIEW,
    SEARCH,
    SEARCHED,
    TRIALS,
    clear,
    refuse_existing,
    refuse_needed,
)
from bertkin.train.loop import Stopped
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.report import write_report
from bertkin.train.state import kept_evaluation, read_log, write_text

MANY = 10_000
"""Trials where minutes alone are the bound."""


@dataclass(frozen=True)
class Between:
    """Any number from low to high, all powers alike."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        """One of them, to two places."""
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.2g}")


@dataclass(frozen=True)
class Among:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)


@dataclass(frozen=True)
class Trial:
    """What a trial came to.

    Attributes:
        settings: fields of `Tuning`, by dotted names, where they differ from what was asked for; none in the first.
        score: of the weights it kept; None where it ran off to numbers that are none.
        step: of those.
        minutes: it took.
    """

    number: int
    settings: dict[str, Any]
    score: float | None
    step: int
    minutes: float


@dataclass(frozen=True)
class Searched:
    """What a search came to.

    Attributes:
        run: the best trial's run folder, which is the search's own.
        best: that trial.
        trials: all, in order.
    """

    run: Path
    metric: str
    best: Trial
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        """A table in Markdown, the best first."""
        lines = [f"| trial | {self.metric} | minutes | settings |", "|---:|---:|---:|---|"]
        for trial in _ranked(self.trials, self.metric):
            said = (
                ", ".join(f"{_short(name)} {_said(value)}" for name, value in trial.settings.items()) or "the defaults"
            )
            score = "diverged" if trial.score is None else f"{trial.score:.4f}"
            lines.append(f"| {trial.number + 1} | {score} | {trial.minutes:.1f} | {said} |")
        return "\n".join(lines)


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _said(value: Any) -> str:
    return format(value, "g") if isinstance(value, float) else str(value)


def space(
    asked: Tuning, full: Tuning, examples: int, depth: int, fixed: Collection[str] = ()
) -> dict[str, Between | Among]:
    """What is varied, by dotted names: fields that are as they are by default.

    Args:
        asked: what a person chose.
        full: the same with nothing left open.
        examples: to train with; few are looked at in smaller batches.
        depth: layers of the stack that answers.
        fixed: dotted names of fields that a person chose although they are as by default.
    """
    usual = Tuning()
    table: dict[str, Between | Among] = {
        "train.lr": Between(full.train.lr / 4, full.train.lr * 4),
        "batch": Among((16, 32, 64) if examples > 2_000 else (8, 16, 32)),
        "train.warmup": Among((0.0, 0.06, 0.1, 0.2)),
        "train.weight_decay": Among((0.0, 0.01, 0.1)),
        "dropout": Among((0.0, 0.1, 0.2)),
    }
    if not any((asked.train.steps, asked.train.tokens, asked.train.epochs, asked.train.minutes)):
        table["train.epochs"] = Among(tuple(full.train.epochs * share for share in (0.5, 1.0, 2.0)))
    match asked.strategy.kind:
        case "full":
            table["train.layer_decay"] = Among((1.0, 0.95, 0.9, 0.8))
        case "adapter":
            table["strategy.size"] = Among((16, 64, 256))
        case "pals":
            heads = asked.strategy.heads
            table["strategy.size"] = Among(tuple(size for size in (16, 64, 256) if size % heads == 0))
        case "lora":
            table["strategy.rank"] = Among((4, 8, 16, 32))
        case "last":
            table["strategy.last"] = Among(tuple(range(1, min(4, depth) + 1)))
        case "prefix":
            table["strategy.length"] = Among((8, 16, 32))
    open_ = {name for name in table if name not in fixed and _field(asked, name) == _field(usual, name)}
    return {name: values for name, values in table.items() if name in open_}


def answering_depth(a: Architecture, full: Tuning, task: Task) -> int:
    """Layers of the stack whose states a task's answers are read from."""
    if task.output == "sequence":
        a = writing_shape(a, full.writer or "decoder", full.decoder_layers)
    return a.decoder_layers if a.both and task.output != "tokens" else a.layers


def settings_of(number: int, seed: int, varied: Mapping[str, Between | Among]) -> dict[str, Any]:
    """The settings of a trial, none of the first: by the seed and its number alone, whatever the others were."""
    rng = random.Random(f"{seed}/{number}")
    return {name: values.draw(rng) for name, values in varied.items()} if number else {}


def _field(tuning: Any, name: str) -> Any:
    for part in name.split("."):
        tuning = getattr(tuning, part)
    return tuning


def with_settings(tuning: Tuning, settings: Mapping[str, Any]) -> Tuning:
    """A recipe with some fields, by dotted names, set."""
    for name, value in settings.items():
        room, _, last = name.rpartition(".")
        change = {room: replace(getattr(tuning, room), **{last: value})} if room else {last: value}
        tuning = replace(tuning, **change)
    return tuning


def search(
    tuning: Tuning,
    out: Path,
    *,
    trials: int,
    minutes: float | None = None,
    fixed: Collection[str] = (),
    listener: Listener | None = None,
    overwrite: bool = False,
) -> Searched:
    """Fine-tune with the defaults and with settings that are drawn, and keep the best as the run folder `out`.

    Args:
        trials: how many at most, the defaults among them.
        minutes: begin no further trial after so many, over all of them; None for no bound.
        fixed: dotted names of fields that are not varied although they are as by default.
        overwrite: empty the run folder, or what an unfinished search left there, first.

    Raises:
        UserError: as `finetune`; no trial, or no minute.
        Stopped: the person asked to stop; `resume_search` goes on.
    """
    if trials < 1:
        raise UserError(f"{trials} trials", where="--search", mend="choose at least 1")
    if minutes is not None and not minutes > 0:
        raise UserError(f"{minutes} minutes", where="--search-minutes", mend="choose more than 0")
    if not is_search(out):
        refuse_existing(out, overwrite=overwrite)
    elif not overwrite:
        raise UserError(
            "a search began here", where=out, mend=f"go on with `bertkin resume {out}`, or give --overwrite"
        )
    refuse_needed(out, tuning.paths)
    _alone()
    stock = find_folder(tuning.model)
    a, _ = read_config(stock / "config.json")
    train = read_data(tuning).train
    complete(tuning, train.task, len(train.examples), a, stock)  # what is wrong is said before anything is written
    model = str(Path(tuning.model).absolute()) if Path(tuning.model).exists() else tuning.model
    begun = {"tuning": to_mapping(replace(settled(tuning), model=model)), "fixed": sorted(fixed)}
    with disk_errors(out):
        clear(out)
        out.mkdir(parents=True, exist_ok=True)
        _write(out, begun | {"trials": trials, "minutes": minutes, "done": []})
    try:
        return resume_search(out, listener=listener)
    except UserError:
        if not (out / TRIALS).exists():  # nothing has begun, and nothing is left
            clear(out)
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def resume_search(out: Path, *, listener: Listener | None = None) -> Searched:
    """Go on with a search: the trial it was stopped in first, then those that are left.

    Raises:
        UserError: as `finetune`; search.json is damaged; or every trial diverged.
    """
    _alone()
    listener = listener or QuietListener()
    told = _read(out)
    tuning = cast(Tuning, from_mapping(Tuning, told["tuning"], f"{out / SEARCH}: tuning"))
    done = [Trial(**trial) for trial in told["done"]]
    splits = read_data(tuning)
    task = splits.train.task
    stock = find_folder(tuning.model)
    parts = splits.train.examples, splits.dev.examples
    before = told.get("fingerprint")
    if before is None:  # it has just begun
        told["fingerprint"] = fingerprint_of(parts, stock)
    elif before != fingerprint_of(parts, stock, before):
        what = "its data or its model have changed since, so that trials do not compare"
        raise UserError(what, where=out, mend="put them back, or begin again with --overwrite")
    a, _ = read_config(stock / "config.json")
    full = complete(tuning, task, len(splits.train.examples), a, stock)
    varied = space(tuning, full, len(splits.train.examples), answering_depth(a, full, splits.task), told["fixed"])
    while len(done) < told["trials"] and not _spent(done, told["minutes"]):
        number = len(done)
        settings = settings_of(number, tuning.train.seed, varied)
        listener.message(f"trial       {number + 1} of {told['trials']}: {settings or 'the defaults'}")
        done.append(_tried(with_settings(tuning, settings), settings, number, out, task, listener))
        _write(out, told | {"done": [asdict(trial) for trial in done]})
        best = _ranked(done, task.metric)[0]
        for trial in done:  # what is not the best so far is of no use any more
            if trial is not best:
                shutil.rmtree(out / TRIALS / f"{trial.number:03d}", ignore_errors=True)
        score = math.nan if best.score is None else best.score
        listener.message(f"best        {task.metric} {score:.4f}, of trial {best.number + 1}")
    best = _ranked(done, task.metric)[0]
    if best.score is None:
        what = f"all {len(done)} trials ran off to numbers that are none"
        raise UserError(what, where=out, mend="begin again with a lower --train.lr, or --train.precision float32")
    found = Searched(out, task.metric, best, tuple(done))
    _finish(found)
    return found


def _alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a search runs in one process", where="--search", mend="start it without torchrun")


def is_search(out: Path) -> bool:
    """Whether a folder is a search that is not finished; one that is, is the run of its best trial."""
    return (out / SEARCH).is_file() and not (out / RECIPE).is_file()


def _tried(tuning: Tuning, settings: dict[str, Any], number: int, out: Path, task: Task, listener: Listener) -> Trial:
    """One trial, begun or gone on with."""
    run = _folder(out, number)
    try:
        if is_tuning(run):
            result = resume(run, listener=_Bar(listener))
        else:
            shutil.rmtree(run, ignore_errors=True)  # killed before it had begun
            result = finetune(tuning, run, listener=_Bar(listener))
    except NonFiniteLoss as error:
        listener.message(str(error))
        last = ([record for record in read_log(run) if "minutes" in record] or [{"step": 0, "minutes": 0.0}])[-1]
        return Trial(number, settings, None, int(last["step"]), float(last["minutes"]))
    except Stopped:
        raise Stopped(out) from None
    kept = kept_evaluation(read_log(run)) or {}
    score = kept.get(task.metric)
    if task.output == "sequence":  # whose log tells of the first answers alone
        score = json.loads((run / REVIEW).read_text(encoding="utf-8"))["dev"]["scores"][task.metric]["value"]
    return Trial(number, settings, None if score is None else float(score), int(kept["step"]), round(result.minutes, 3))


class _Bar(QuietListener):
    """Hears of one trial among many only how far it is."""

    def __init__(self, listener: Listener) -> None:
        self.step, self.close = listener.step, listener.close  # type: ignore[method-assign]


def _folder(out: Path, number: int) -> Path:
    """A trial's run folder, called as the search's is, since a model's card names it."""
    return out / TRIALS / f"{number:03d}" / out.resolve().name


def _spent(done: list[Trial], minutes: float | None) -> bool:
    return bool(done) and minutes is not None and sum(trial.minutes for trial in done) >= minutes


def _ranked(done: list[Trial] | tuple[Trial, ...], headline: str) -> list[Trial]:
    """The best first; of equals the one that was first."""
    sign = -1 if METRICS[headline].higher else 1
    return sorted(done, key=lambda trial: math.inf if trial.score is None else sign * trial.score)


def _finish(found: Searched) -> None:
    """Put the best trial's files where the search's are. The recipe goes last: it says that all is there."""
    out = found.run
    best = _folder(out, found.best.number)
    with disk_errors(out):
        write_text(out / SEARCHED, f"{found}\n")
        entries = sorted(best.iterdir(), key=lambda path: path.name == RECIPE) if best.is_dir() else []
        for entry in entries:
            entry.rename(out / entry.name)
        card = out / "model" / "README.md"
        if card.is_file():
            write_text(card, card.read_text(encoding="utf-8").replace(shown(best), shown(out)))
        shutil.rmtree(out / TRIALS, ignore_errors=True)
        write_report(out)


def _write(out: Path, told: Mapping[str, Any]) -> None:
    write_text(out / SEARCH, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _read(out: Path) -> dict[str, Any]:
    try:
        told = json.loads((out / SEARCH).read_text(encoding="utf-8"))
        [Trial(**trial) for trial in told["done"]]
        kept = {name: told[name] for name in ("fingerprint",) if name in told}  # not of older searches
        return kept | {name: told[name] for name in ("tuning", "fixed", "trials", "minutes", "done")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"not a search ({type(error).__name__})"
        raise UserError(what, where=out / SEARCH, mend="begin it again with --overwrite") from None
