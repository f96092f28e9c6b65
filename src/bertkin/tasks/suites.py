"""Many tasks, one table: a model fine-tuned on each task of a suite, over several seeds, with honest spreads.

    results = run_suite(model, read_suite("glue", folder), out, seeds=5)
    print(results)

A suite is data: `SUITES` has those that are known, others are a YAML file of such rows. Every run is a run folder of its own;
a suite that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bertkin.config import fill_auto, from_mapping, load_yaml, merge
from bertkin.errors import UserError, nearest
from bertkin.models.folders import find_folder
from bertkin.tasks.finetune import finetune, is_tuning, resume
from bertkin.tasks.gathering import read_data
from bertkin.tasks.metrics import METRICS, constant, measure
from bertkin.tasks.predict import Reader, open_reader
from bertkin.tasks.reading import Splits
from bertkin.tasks.results import RESULTS, Results, Scores, compare, keep_answers, other_model
from bertkin.tasks.significance import interval
from bertkin.tasks.submitting import FILES, submit
from bertkin.tasks.task import Example
from bertkin.tasks.tuning import Tuning, load_tuning, settled
from bertkin.train.folder import RECIPE, TASK
from bertkin.train.progress import Listener
from bertkin.train.state import kept_evaluation, read_log, write_text


@dataclass(frozen=True)
class Entry:
    """A task of a suite.

    Attributes:
        name: as the table has it.
        data: folder or file, inside the suite's folder.
        metric: what is reported; "" for the task's own.
        options: further fields of `bertkin.tasks.tuning.Tuning`, such as text, text2, label, length.
        human: what people score, on the metric's own scale from 0 to 1, where that was measured.
        parts: further development data, by the names of their files: what the table calls them, and what people score.
        also: another name that its folder goes by.
    """

    name: str
    data: str
    metric: str = ""
    options: Mapping[str, Any] | None = None
    human: float | None = None
    parts: Mapping[str, tuple[str, float | None]] | None = None
    also: str = ""


GLUE = (
    Entry("CoLA", "CoLA", "matthews", human=0.664),
    Entry("SST-2", "SST-2", "accuracy", human=0.978),
    Entry("MRPC", "MRPC", "f1", human=0.863),
    Entry("STS-B", "STS-B", "pearson_spearman", human=0.927),
    Entry("QQP", "QQP", "f1", {"skip_bad": True}, human=0.595),  # a few of its rows are cut off
    Entry("MNLI", "MNLI", "accuracy", human=0.920, parts={"dev_mismatched": ("MNLI-mm", 0.928)}),
    Entry("QNLI", "QNLI", "accuracy", human=0.912),
    Entry("RTE", "RTE", "accuracy", human=0.936),
    Entry("WNLI", "WNLI", "accuracy", human=0.959),
)
"""The tasks of Wang et al. (2018), each with its official metric; what people score is from Nangia & Bowman (2019)."""
SQUAD = (
    Entry("SQuAD-1.1", "train-v1.1.json", "answer_f1", {"dev": "dev-v1.1.json"}, human=0.912),
    Entry("SQuAD-2.0", "train-v2.0.json", "answer_f1", {"dev": "dev-v2.0.json"}, human=0.895),
)
"""Questions on Wikipedia (Rajpurkar et al. 2016; 2018); what people score is from their page of results."""
CMRC = (
    Entry("CMRC-2018", "cmrc2018_train.json", "cmrc_f1", {"dev": "cmrc2018_dev.json"}, human=0.973),
    Entry("CMRC-2018-trial", "cmrc2018_dev.json", "cmrc_f1", {"dev": "cmrc2018_trial.json"}),
)
"""Chinese questions (Cui et al. 2019). The second is for those who have no training data: it is trained on the development
data and measured on the trial ones, so its score is not to be compared with published ones."""
UD = (
    Entry("UD-English-EWT", "UD_English-EWT", "accuracy", also="English-EWT"),
    Entry("UD-Chinese-GSD", "UD_Chinese-GSD", "accuracy", also="Chinese-GSD"),
)
"""Parts of speech (Nivre et al. 2020)."""
NER = (Entry("WNUT-17", "wnut17", "span_f1"), Entry("Resume-zh", "resume-zh", "span_f1"))
"""Entities (Derczynski et al. 2017; Zhang & Yang 2018)."""
DNA = (Entry("splice", "splice.csv", "accuracy"), Entry("promoters", "promoters.data", "accuracy"))
"""What is not language: splice junctions and promoters of the UCI repository; a tenth is held out, by a hash."""
SUITES = {"glue": GLUE, "squad": SQUAD, "cmrc": CMRC, "ud": UD, "ner": NER, "dna": DNA}
"""By name. The tasks of all of them together are `core`, whose data lie in a folder a suite."""
FOLDERS = {"cmrc": "cmrc2018"}
"""What a suite's folder is called inside that of `core`, where it is not as the suite."""


def read_suite(suite: str | Path, folder: str | Path | None = None, only: Sequence[str] = ()) -> dict[str, Tuning]:
    """The tasks of a suite that are there, each as a recipe without a model.

    Args:
        suite: one of `SUITES`, core, or a YAML file: a list of entries with name, data, and perhaps metric and options.
        folder: where the tasks' data lie; by default beside the YAML file. A task's own folder may also end in "-part".
        only: names of tasks.

    Raises:
        UserError: no such suite, an entry that makes no sense, a name that is none, or no data of any task.
    """
    if folder is None and is_known(suite):
        raise UserError("where its data lie is not said", where=f"suite {suite}", mend="give --data FOLDER")
    entries, root = entries_of(suite), Path(folder or Path(suite).parent)
    for name in only:
        if name not in [entry.name for entry in entries]:
            raise UserError(f"no task {name!r}", where="--only", mend=nearest(name, [entry.name for entry in entries]))
    found: dict[str, Tuning] = {}
    for entry in entries:
        place = _place(root, entry.data) or (_place(root, entry.also) if entry.also else None)
        if place is None or (only and entry.name not in only):
            continue
        fields = {**(entry.options or {}), "data": [str(place)]} | ({"metric": entry.metric} if entry.metric else {})
        for part in ("dev", "test"):
            if isinstance(fields.get(part), str):
                fields[part] = str(_place(root, fields[part]) or root / fields[part])
        found[entry.name] = from_mapping(Tuning, fields, f"{suite}: {entry.name}")
    if not found:
        wanted = ", ".join(only or [entry.data for entry in entries][:4])
        raise UserError("none of its tasks is there", where=root, mend=f"put folders such as {wanted} there")
    return found


def _place(root: Path, name: str) -> Path | None:
    """Where data lie, whole or a part of them: CoLA or CoLA-part, train.json or train-part.json."""
    whole = root / name
    if not whole.name:
        return None
    places = (whole, whole.with_name(f"{whole.name}-part"), whole.with_name(f"{whole.stem}-part{whole.suffix}"))
    return next((place for place in places if place.exists()), None)


def entries_of(suite: str | Path) -> Sequence[Entry]:
    """The tasks of a suite, there or not: a known one's, or those of a YAML file.

    Raises:
        UserError: no such suite, or an entry that makes no sense.
    """
    if is_known(suite):
        return SUITES.get(str(suite).lower()) or tuple(_core())
    path = Path(suite)
    known = nearest(str(path), [*SUITES, "core"])
    rows = load_yaml(path, f"no suite {str(path)!r}", f"{known} A YAML file will do too")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list of tasks, each with name and data", where=path)
    entries: list[Entry] = []
    for row in rows:
        if not isinstance(row.get("name"), str) or not isinstance(row.get("data"), str):
            raise UserError(f"a task without name or data: {row!r}", where=path)
        if row["name"] in [entry.name for entry in entries]:
            raise UserError(f"two tasks are called {row['name']!r}", where=path, mend="give each a name of its own")
        options = {name: value for name, value in row.items() if name not in ("name", "data", "metric", "human")}
        entries.append(Entry(row["name"], row["data"], str(row.get("metric", "")), options, row.get("human")))
    return entries


def is_known(suite: str | Path) -> bool:
    """Whether a suite is one of those that are known by name."""
    return str(suite).lower() in (*SUITES, "core")


def _core() -> Iterator[Entry]:
    """The tasks of all suites, their data in a folder a suite."""
    for name, entries in SUITES.items():
        folder = FOLDERS.get(name, name)
        for entry in entries:
            paths = {
                part: f"{folder}/{path}" for part, path in (entry.options or {}).items() if part in ("dev", "test")
            }
            also = f"{folder}/{entry.also}" if entry.also else ""
            yield replace(entry, data=f"{folder}/{entry.data}", also=also, options={**(entry.options or {}), **paths})


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
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """Fine-tune a model on every task and seed that is not done yet, and gather what they came to.

    Args:
        tasks: from `read_suite`.
        out: a folder; each run is out/TASK/seed-N, and results.json and results.md beside them are written anew after each
            task.
        change: fields of `Tuning` for all tasks, where they differ from the defaults; the rest is as a task says.
        suite: its name, for what people score and for further development data.
        against: the `out` of another model, to compare with on the same examples.
        submission: a folder for GLUE's submission files, answered by the middle seed.
        say: told what was submitted.

    Raises:
        UserError: as `bertkin.tasks.finetune.finetune`; a task that GLUE does not have, where files are to be submitted.
    """
    entries = {entry.name: entry for entry in (entries_of(suite) if suite else ())}
    other, called = (None, "") if against is None else other_model(against)
    if submission is not None and (odd := [name for name in tasks if name not in FILES]):
        raise UserError(f"{odd[0]} is no task of GLUE", where="--submit", mend="choose GLUE's own with --only")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a suite runs in one process", where="evaluate", mend="start it without torchrun")
    results = Results(model, "full", {}, called)
    for name, task in tasks.items():
        tuning = merge(task, Tuning(model=model, **dict(change or {})))
        tuning = replace(tuning, train=fill_auto(tuning.train, final="last"))  # the best is chosen by what is measured
        runs = [out / name / f"seed-{seed}" for seed in range(seeds)]
        for seed, run in enumerate(runs):
            wanted = replace(tuning, train=replace(tuning.train, seed=tuning.train.seed + seed))
            if is_tuning(run):
                _see_same(run, wanted)
                resume(run, listener=listener)
            else:
                finetune(wanted, run, listener=listener)
        entry, splits = entries.get(name, Entry(name, "")), read_data(tuning)
        found, reader = _measured(entry, splits, runs)
        differences = dict(results.differences)
        for part, dev in _parts(entry, splits).items():
            if other is not None and (both := compare(other, out, part, splits.task, dev)) is not None:
                differences[part] = both
        results = Results(model, tuning.strategy.kind, results.tasks | found, called, differences)
        if submission is not None:
            for line in submit(name, reader, splits, Path(tuning.data[0]).parent, submission):
                say(line)
        write_text(out / RESULTS, json.dumps(results.to_mapping(), indent=1) + "\n")
        write_text(out / "results.md", f"{results}\n")
    return results


def _see_same(run: Path, wanted: Tuning) -> None:
    """Refuse to take a run for one of another model, other data or other options."""
    before = load_tuning(run / RECIPE)
    asked = replace(settled(wanted), model=str(find_folder(wanted.model).resolve()))
    whole = merge(before, asked)  # options at their defaults are not asked for
    odd = [one.name for one in fields(Tuning) if getattr(whole, one.name) != getattr(before, one.name)]
    # Of those with a default of their own, which nothing fills in, the default is asked for too.
    plain = [one.name for one in fields(Tuning) if isinstance(one.default, bool | int | float)]
    odd += [name for name in plain if getattr(asked, name) != getattr(before, name)]
    odd += ["strategy"] if asked.strategy.kind != before.strategy.kind else []
    if odd:
        what = f"begun with another {odd[0]}"
        raise UserError(what, where=run, mend="choose another --out, or remove the folder")


def _parts(entry: Entry, splits: Splits) -> dict[str, Sequence[Example]]:
    """The development data of a task by their name in the table: its own, and further ones."""
    further = {name: splits.others[part].examples for part, (name, _) in _further(entry) if part in splits.others}
    return {entry.name: splits.dev.examples, **further}


def _further(entry: Entry) -> Iterable[tuple[str, tuple[str, float | None]]]:
    return (entry.parts or {}).items()


def _measured(entry: Entry, splits: Splits, runs: Sequence[Path]) -> tuple[dict[str, Scores], Reader]:
    """What the runs of a task say in their logs, and what their models answer; and the model of the middle seed."""
    told = json.loads((runs[0] / TASK).read_text(encoding="utf-8"))["task"]
    metric, last, best, minutes = str(told["metric"]), [], [], []
    for run in runs:
        records = read_log(run)
        found = [record for record in records if record.get("kind") == "evaluation"]
        last.append(float((kept_evaluation(records) or found[-1])[metric]))
        best.append(METRICS[metric].best(float(record[metric]) for record in found))
        minutes.append(round(float(found[-1]["minutes"]), 3))
    middle = sorted(range(len(runs)), key=lambda i: last[i])[(len(runs) - 1) // 2]
    parts, humans = _parts(entry, splits), dict(pair for _, pair in _further(entry))
    answers: dict[str, list[list[Any]]] = {name: [] for name in parts}
    for seed, run in enumerate(runs):  # a model at a time
        reader = open_reader(run)
        for name, dev in parts.items():
            answers[name].append([p.answer for p in reader.examples(dev)])
        if seed == middle:
            chosen = reader
    task, table = splits.train.task, {}
    for name, dev in parts.items():
        same = tuple(seed for seed, given in enumerate(answers[name]) if constant(task, given))
        low, high = interval(metric, task, dev, answers[name][middle])
        keep_answers(runs[0].parents[1] / name, task, dev, metric, answers[name][middle])
        if name == entry.name:
            table[name] = Scores(metric, tuple(last), tuple(best), low, high, same, tuple(minutes), entry.human)
        else:
            here = tuple(round(measure(task, dev, given, [metric])[metric], 5) for given in answers[name])
            table[name] = Scores(metric, here, here, low, high, same, (), humans[name], of=entry.name)
    return table, chosen
