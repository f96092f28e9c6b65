"""Many tasks, one table: a model fine-tuned on each task of a suite, over several seeds, with honest spreads.

    results = run_suite(model, read_suite("glue", folder), out, seeds=5)
    print(results)

Every run is a run folder of its own; a suite that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bertkin.config import fill_auto, merge
from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models.folders import find_folder
from bertkin.models.strategy import Strategy, see_used
from bertkin.tasks.finetune import finetune, is_tuning, resume
from bertkin.tasks.gathering import read_data
from bertkin.tasks.hub import named
from bertkin.tasks.metrics import METRICS, measure
from bertkin.tasks.predict import open_reader
from bertkin.tasks.reading import Splits
from bertkin.tasks.results import RESULTS, Results, Scores, compare, keep_answers, kept_answers, other_model
from bertkin.tasks.review import said_everywhere
from bertkin.tasks.significance import interval
from bertkin.tasks.submitting import FILES, submit
from bertkin.tasks.suites import Entry, entries_of
from bertkin.tasks.task import OUTPUTS, Example, Task, tidy
from bertkin.tasks.tuning import Tuning, load_tuning, settled
from bertkin.tasks.weighing import HAVE
from bertkin.train.folder import RECIPE, TASK
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.state import kept_evaluation, read_log, write_text


def run_suite(
    model: str,
    tasks: Mapping[str, Tuning],
    out: Path,
    *,
    seeds: int = 1,
    change: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    suite: str = "",
    against: Path | None = None,
    submission: Path | None = None,
) -> Results:
    """Fine-tune a model on every task and seed that is not done yet, and gather what they came to.

    Args:
        tasks: from `read_suite`.
        out: a folder; each run is out/TASK/seed-N, and results.json and results.md beside them are written anew after each
            task.
        change: fields of `Tuning` for all tasks that have them, which go before what a task says, though they be the default;
            strategy and train are mappings of those of their fields that are given.
        suite: its name, for what people score and for further development data.
        against: the `out` of another model, to compare with on the same examples.
        submission: a folder for GLUE's submission files, answered by the middle seed.
        listener: told, too, of a seed that diverged, and what was submitted.

    Raises:
        UserError: as `bertkin.tasks.finetune.finetune`, but that a seed which diverges is told and left out; no seed; a task
            that GLUE does not have, where files are to be submitted; another model that shares no task, or was measured on
            other examples. What is wrong with the data of any task is said before the first is trained.
    """
    if seeds < 1:
        raise UserError(f"{seeds} seeds", where="--seeds", mend="choose at least 1")
    entries = {entry.name: entry for entry in (entries_of(suite) if suite else ())}
    other, called = (None, "") if against is None else other_model(against)
    if submission is not None and (odd := [name for name in tasks if name not in FILES]):
        raise UserError(f"{odd[0]} is no task of GLUE", where="--submit", mend="choose GLUE's own with --only")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a suite runs in one process", where="evaluate", mend="start it without torchrun")
    if submission is not None and submission.exists() and not submission.is_dir():
        raise UserError("is no folder", where=submission, mend="name a folder for the files")
    say = (listener or QuietListener()).message
    asked = {name: _asked(task, model, change or {}) for name, task in tasks.items()}
    if len(tasks) > 1 or other is not None:
        _see_data(asked, entries, other)
    results, gone = Results(model, "full", {}, called), dict[str, NonFiniteLoss]()
    for name, tuning in asked.items():
        splits = read_data(tuning)
        tuning = replace(tuning, **_fitting(change or {}, splits.task))
        runs, lost = {seed: out / name / f"seed-{seed}" for seed in range(seeds)}, {}
        for seed, run in runs.items():
            wanted = replace(tuning, train=replace(tuning.train, seed=tuning.train.seed + seed))
            try:
                if is_tuning(run):
                    _see_same(run, wanted)
                    resume(run, listener=listener)
                else:
                    finetune(wanted, run, listener=listener)
            except NonFiniteLoss as error:  # one seed that goes off the rails is a result, too
                lost[seed] = error
                say(f"{name}: seed {seed} counts as diverged ({error.what})")
        if len(lost) == seeds:
            gone[name] = lost[0]
            results = replace(results, gone=tuple(gone))
            if results.tasks:
                _write(out, results)
            continue
        entry = entries.get(name, Entry(name, ""))
        found, middle = _measured(entry, splits, {seed: run for seed, run in runs.items() if seed not in lost})
        found = {row: replace(scores, diverged=tuple(lost)) for row, scores in found.items()}
        differences = dict(results.differences)
        for part, dev in parts_of(entry, splits).items():
            if other is not None and (both := compare(other, out, part, splits.task, dev)) is not None:
                differences[part] = both
        kind = tuning.strategy.kind
        results = Results(model, kind, results.tasks | found, called, differences, results.gone)
        _write(out, results)
        if submission is not None:
            for line in submit(name, open_reader(middle), splits, Path(tuning.data[0]).parent, submission):
                say(line)
    if gone and not results.tasks:
        raise next(iter(gone.values()))
    return results


ROOMS = ("strategy", "train")


def _asked(task: Tuning, model: str, change: Mapping[str, Any]) -> Tuning:
    """A task's recipe with what is said for all tasks over it; kinds of answers that have no such option lose it later. Of
    another strategy than the list's nothing is left that was said for that."""
    plain = {name: value for name, value in change.items() if name not in ROOMS}
    tuning: Tuning = merge(task, Tuning(model=model, **plain))
    said, train = dict(change.get("strategy") or {}), replace(tuning.train, **dict(change.get("train") or {}))
    listed = tuning.strategy if said.get("kind", tuning.strategy.kind) == tuning.strategy.kind else Strategy()
    strategy = see_used(replace(listed, **said), "--strategy.")
    train = fill_auto(train, final="last")  # the best is chosen by what is measured
    return replace(tuning, strategy=strategy, train=train)


def _see_data(asked: Mapping[str, Tuning], entries: Mapping[str, Entry], other: Path | None) -> None:
    """Read every task's data once, and drop them: what is wrong with the last is said before the first is trained."""
    shared = False
    for name, tuning in asked.items():
        splits = read_data(tuning)
        for part, dev in parts_of(entries.get(name, Entry(name, "")), splits).items():
            shared |= other is not None and kept_answers(other, part, splits.task, dev) is not None
    if other is not None and not shared:
        mend = "give the --out of another `bertkin evaluate` of these tasks"
        raise UserError("none of these tasks was answered there", where=other, mend=mend)


def _write(out: Path, results: Results) -> None:
    write_text(out / RESULTS, json.dumps(results.to_mapping(), indent=1) + "\n")
    write_text(out / "results.md", f"{results}\n")


def _fitting(change: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Options for all tasks as one of them takes them: as they were given, though they be the default, and not where its
    answers have none."""
    plain = {name: value for name, value in change.items() if name not in ROOMS}
    return {
        name: value if task.output in HAVE.get(name, OUTPUTS) else getattr(Tuning, name)
        for name, value in plain.items()
    }


INDIFFERENT = ("keep", "tensorboard", "eval_rows")
"""Fields of a training that change no score: with others of them it is still the run that is asked for."""
FILLED = ("precision", "device")
"""Fields of a training whose defaults are words that are filled in."""


def _others(asked: Any, before: Any, own: bool) -> list[str]:
    """The fields in which two recipes differ: any, where the defaults of one have been filled in; or of those with a default of
    their `own`, which nothing fills in, so that it is asked for when nothing is said."""
    names = [one.name for one in fields(asked) if not own or isinstance(one.default, bool | int | float | str)]
    return [name for name in names if getattr(asked, name) != getattr(before, name)]


def _see_same(run: Path, wanted: Tuning) -> None:
    """Refuse to take a run for one of another model, other data or other options."""
    before = load_tuning(run / RECIPE)
    asked = replace(settled(wanted), model=str(find_folder(wanted.model).resolve()))
    if list(map(named, asked.data)) == list(map(named, before.data)):
        asked = replace(asked, data=before.data)  # the hub may have converted a set again since
    same = {name: getattr(before.train, name) for name in INDIFFERENT}
    asked = replace(asked, train=replace(asked.train, **same))
    odd = _others(merge(before, asked), before, False) + _others(asked, before, True)
    odd += [f"train.{name}" for name in _others(asked.train, before.train, True) if name not in FILLED]
    odd += ["strategy"] if asked.strategy != before.strategy else []
    if odd:
        what = f"begun with another {odd[0]}"
        raise UserError(what, where=run, mend="choose another --out, or remove the folder")


def parts_of(entry: Entry, splits: Splits) -> dict[str, Sequence[Example]]:
    """The development data of a task by their name in the table: its own, and further ones."""
    further = {}
    for part, (name, _) in _further(entry):
        found = splits.others.get(part) or splits.others.get(part.replace("dev", "validation"))
        if found is not None:
            further[name] = found.examples
    return {entry.name: splits.dev.examples, **further}


def _further(entry: Entry) -> Iterable[tuple[str, tuple[str, float | None]]]:
    return (entry.parts or {}).items()


def _measured(entry: Entry, splits: Splits, by_seed: Mapping[int, Path]) -> tuple[dict[str, Scores], Path]:
    """What the runs of a task say in their logs, and what their models answer; and the run of the middle seed."""
    runs = list(by_seed.values())
    told = json.loads((runs[0] / TASK).read_text(encoding="utf-8"))["task"]
    metric, last, best, minutes = str(told["metric"]), [], [], []
    for run in runs:
        records = read_log(run)
        found = [record for record in records if record.get("kind") == "evaluation"]
        last.append(float((kept_evaluation(records) or found[-1])[metric]))
        best.append(METRICS[metric].best(float(record[metric]) for record in found))
        minutes.append(round(float(found[-1]["minutes"]), 3))
    parts, humans = parts_of(entry, splits), dict(pair for _, pair in _further(entry))
    answers: dict[str, list[list[Any]]] = {name: [] for name in parts}
    for run in runs:  # a model at a time
        reader = open_reader(run)
        for name, dev in parts.items():
            answers[name].append([p.answer for p in reader.examples(dev)])
    task, table = Task.from_mapping(told), {}
    if task.output == "sequence":  # whose logs tell of the first answers alone
        last = [tidy(measure(task, splits.dev.examples, given, [metric])[metric]) for given in answers[entry.name]]
        best = last
    middle = sorted(range(len(runs)), key=lambda i: last[i])[(len(runs) - 1) // 2]
    told_of = [(name, metric, name, entry.human if name == entry.name else humans[name]) for name in parts]
    told_of += [(f"{entry.name} ({other})", other, entry.name, human) for other, human in (entry.beside or {}).items()]
    for row, counted, name, human in told_of:
        dev, given = parts[name], answers[name]
        known = [at for at, example in enumerate(dev) if example.label is not None]
        said_of = {seed: [said[at] for at in known] for seed, said in zip(by_seed, given, strict=True)}
        same = tuple(seed for seed, said in said_of.items() if said_everywhere(task, [dev[at] for at in known], said))
        low, high = interval(counted, task, dev, given[middle])
        if row == entry.name:
            table[row] = Scores(metric, tuple(last), tuple(best), low, high, same, tuple(minutes), human)
        else:
            here = tuple(tidy(measure(task, dev, said, [counted])[counted]) for said in given)
            table[row] = Scores(counted, here, here, low, high, same, (), human, of=entry.name)
    for name, dev in parts.items():
        keep_answers(runs[0].parents[1] / name, task, dev, metric, answers[name][middle])
    return table, runs[middle]
