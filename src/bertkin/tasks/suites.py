"""Many tasks, one table: a model fine-tuned on each task of a suite, over several seeds, with honest spreads.

    results = run_suite(model, read_suite("glue", folder), out, seeds=5)
    print(results)

A suite is data: GLUE's nine tasks are rows here, others are a YAML file of such rows. Every run is a run folder of its own;
a suite that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertkin.config import from_mapping, load_yaml, merge
from bertkin.errors import UserError, disk_errors, nearest
from bertkin.tasks.finetune import finetune, is_tuning, resume
from bertkin.tasks.gathering import read_data
from bertkin.tasks.metrics import constant
from bertkin.tasks.predict import open_reader
from bertkin.tasks.significance import interval
from bertkin.tasks.tuning import Tuning
from bertkin.train.folder import TASK
from bertkin.train.progress import Listener
from bertkin.train.state import read_log, write_text


@dataclass(frozen=True)
class Entry:
    """A task of a suite.

    Attributes:
        name: as the table has it.
        data: folder or file, inside the suite's folder.
        metric: what is reported; "" for the task's own.
        options: further fields of `bertkin.tasks.tuning.Tuning`, such as text, text2, label, length.
        human: what people score, on the metric's own scale from 0 to 1, where that was measured.
    """

    name: str
    data: str
    metric: str = ""
    options: Mapping[str, Any] | None = None
    human: float | None = None


GLUE = (
    Entry("CoLA", "CoLA", "matthews", human=0.664),
    Entry("SST-2", "SST-2", "accuracy", human=0.978),
    Entry("MRPC", "MRPC", "f1", human=0.863),
    Entry("STS-B", "STS-B", "pearson_spearman", human=0.927),
    Entry("QQP", "QQP", "f1", human=0.595),
    Entry("MNLI", "MNLI", "accuracy", human=0.920),
    Entry("QNLI", "QNLI", "accuracy", human=0.912),
    Entry("RTE", "RTE", "accuracy", human=0.936),
    Entry("WNLI", "WNLI", "accuracy", human=0.959),
)
"""The tasks of Wang et al. (2018), each with its official metric; what people score is from Nangia & Bowman (2019)."""
SUITES = {"glue": GLUE}


def read_suite(suite: str | Path, folder: str | Path | None = None, only: Sequence[str] = ()) -> dict[str, Tuning]:
    """The tasks of a suite that are there, each as a recipe without a model.

    Args:
        suite: glue, or a YAML file: a list of entries with name, data, and perhaps metric and options.
        folder: where the tasks' data lie; by default beside the YAML file. A task's own folder may also end in "-part".
        only: names of tasks.

    Raises:
        UserError: no such suite, an entry that makes no sense, a name that is none, or no data of any task.
    """
    if folder is None and str(suite).lower() in SUITES:
        raise UserError("where its data lie is not said", where=f"suite {suite}", mend="give --data FOLDER")
    entries, root = entries_of(suite), Path(folder or Path(suite).parent)
    for name in only:
        if name not in [entry.name for entry in entries]:
            raise UserError(f"no task {name!r}", where="--only", mend=nearest(name, [entry.name for entry in entries]))
    found: dict[str, Tuning] = {}
    for entry in entries:
        place = next((p for p in (root / entry.data, root / f"{entry.data}-part") if p.exists()), None)
        if place is None or (only and entry.name not in only):
            continue
        fields = {**(entry.options or {}), "data": [str(place)]} | ({"metric": entry.metric} if entry.metric else {})
        found[entry.name] = from_mapping(Tuning, fields, f"{suite}: {entry.name}")
    if not found:
        wanted = ", ".join(only or [entry.data for entry in entries][:4])
        raise UserError("none of its tasks is there", where=root, mend=f"put folders such as {wanted} there")
    return found


def entries_of(suite: str | Path) -> Sequence[Entry]:
    """The tasks of a suite, there or not: a known one's, or those of a YAML file.

    Raises:
        UserError: no such suite, or an entry that makes no sense.
    """
    if str(suite).lower() in SUITES:
        return SUITES[str(suite).lower()]
    path = Path(suite)
    rows = load_yaml(path, f"no suite {str(path)!r}", f"{nearest(str(path), SUITES)} A YAML file will do too")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list of tasks, each with name and data", where=path)
    entries = []
    for row in rows:
        if not isinstance(row.get("name"), str) or not isinstance(row.get("data"), str):
            raise UserError(f"a task without name or data: {row!r}", where=path)
        options = {name: value for name, value in row.items() if name not in ("name", "data", "metric", "human")}
        entries.append(Entry(row["name"], row["data"], str(row.get("metric", "")), options, row.get("human")))
    return entries


@dataclass(frozen=True)
class Scores:
    """A task's results over seeds; scores on the dev data.

    Attributes:
        metric: which one.
        last, best: of each seed, at its end and at its best evaluation.
        low, high: where the middle seed's score lies for 95% of dev sets drawn from this one (bootstrap).
        degenerate: seeds whose model says the same everywhere.
        minutes: of each seed.
    """

    metric: str
    last: tuple[float, ...]
    best: tuple[float, ...]
    low: float
    high: float
    degenerate: tuple[int, ...]
    minutes: tuple[float, ...]
    human: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.last)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.last) if len(self.last) > 1 else 0.0


@dataclass(frozen=True)
class Results:
    """What a suite came to."""

    model: str
    strategy: str
    tasks: dict[str, Scores]

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = {}
        for name, s in self.tasks.items():
            mean = round(statistics.mean(s.last), 5)
            rows[name] = {"metric": s.metric, "median": round(s.median, 5), "mean": mean}
            rows[name] |= {"deviation": round(s.deviation, 5), "last": list(s.last), "best": list(s.best)}
            rows[name] |= {"interval": [round(s.low, 5), round(s.high, 5)], "degenerate": list(s.degenerate)}
            rows[name] |= {"minutes": list(s.minutes), "human": s.human}
        mean = round(statistics.mean(s.median for s in self.tasks.values()), 5)
        return {"model": self.model, "strategy": self.strategy, "mean": mean, "tasks": rows}

    def __str__(self) -> str:
        """A table in Markdown, in hundredths as the field has them."""
        lines = ["| task | metric | median | mean ± deviation | best | 95% interval | people | minutes |"]
        lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
        for name, s in self.tasks.items():
            people = "" if s.human is None else f"{100 * s.human:.1f}"
            flag = f" ({len(s.degenerate)} of {len(s.last)} say one thing)" if s.degenerate else ""
            spread = f"{100 * statistics.mean(s.last):.1f} ± {100 * s.deviation:.1f}"
            between = f"{100 * s.low:.1f} – {100 * s.high:.1f}"
            figures = f"{100 * s.median:.1f} | {spread} | {100 * max(s.best):.1f} | {between}"
            lines.append(f"| {name}{flag} | {s.metric} | {figures} | {people} | {statistics.median(s.minutes):.1f} |")
        mean = statistics.mean(s.median for s in self.tasks.values())
        return "\n".join([*lines, f"| mean | | {100 * mean:.1f} | | | | | |"])


def run_suite(
    model: str,
    tasks: Mapping[str, Tuning],
    out: Path,
    *,
    seeds: int = 1,
    change: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    suite: str = "",
) -> Results:
    """Fine-tune a model on every task and seed that is not done yet, and gather what they came to.

    Args:
        tasks: from `read_suite`.
        out: a folder; each run is out/TASK/seed-N, and results.json beside them is written anew after each task.
        change: fields of `Tuning` for all tasks, where they differ from the defaults; the rest is as a task says.
        suite: its name, for what people score.

    Raises:
        UserError: as `bertkin.tasks.finetune.finetune`.
    """
    humans = {entry.name: entry.human for entry in (entries_of(suite) if suite else ())}
    done: dict[str, Scores] = {}
    strategy = "full"
    for name, task in tasks.items():
        tuning = merge(task, Tuning(model=model, **dict(change or {})))
        strategy = tuning.strategy.kind
        runs = []
        for seed in range(seeds):
            run = out / name / f"seed-{seed}"
            if is_tuning(run):
                resume(run, listener=listener)
            else:
                finetune(replace(tuning, train=replace(tuning.train, seed=seed)), run, listener=listener)
            runs.append(run)
        done[name] = replace(_scores(tuning, runs), human=humans.get(name))
        results = Results(model, strategy, dict(done))
        with disk_errors(out):
            write_text(out / "results.json", json.dumps(results.to_mapping(), indent=1) + "\n")
    return Results(model, strategy, done)


def _scores(tuning: Tuning, runs: Sequence[Path]) -> Scores:
    """What the runs of a task say in their logs, and, for the middle one, what its model answers."""
    told = json.loads((runs[0] / TASK).read_text(encoding="utf-8"))["task"]
    metric, last, best, minutes = str(told["metric"]), [], [], []
    for run in runs:
        found = [record for record in read_log(run) if record.get("kind") == "evaluation"]
        last.append(float(found[-1][metric]))
        best.append(max(float(record[metric]) for record in found))
        minutes.append(round(float(found[-1]["minutes"]), 3))
    middle = sorted(range(len(runs)), key=lambda i: last[i])[(len(runs) - 1) // 2]
    splits, low, high = read_data(tuning), 0.0, 0.0
    task, dev = splits.train.task, splits.dev.examples
    degenerate = []
    for seed, run in enumerate(runs):
        reader = open_reader(run)
        predictions = [p.answer for p in reader.examples(dev)]
        if constant(task, predictions):
            degenerate.append(seed)
        if seed == middle:
            low, high = interval(metric, task, dev, predictions)
    return Scores(metric, tuple(last), tuple(best), low, high, tuple(degenerate), tuple(minutes))
