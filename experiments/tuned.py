"""A task's data, a model and options become a finished score that is kept: what experiments with labelled tasks share.

task(name, options)              a task of $BERTKIN_DATA, as a recipe without a model
tuned(folder, tuning)            a fine-tuning's score, curve and size; made once, gone on with where it stopped
carried_out(jobs, options)       all of an experiment's fine-tunings, their price first
Options, summary, finish         what all of them can be told, and how their results are written down
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from sharing import data, goes_on, joined, machine, made, once, written
from starts import beyond_usual

from bertkin.config import AUTO, Train, to_mapping
from bertkin.errors import UserError, nearest
from bertkin.models.adapt import apply, trainable
from bertkin.models.pretrained_tasks import begin_task_model
from bertkin.tasks.answering import answer_for
from bertkin.tasks.data.parts import find_parts
from bertkin.tasks.finetune import FineTuning, finetune, is_tuning, resume
from bertkin.tasks.gathering import gather, read_data
from bertkin.tasks.metrics import measure
from bertkin.tasks.predict import open_reader
from bertkin.tasks.significance import difference
from bertkin.tasks.suites import read_suite
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning, load_tuning
from bertkin.train.folder import RECIPE, TASK
from bertkin.train.machine import pick_precision, settle_threads
from bertkin.train.price import Price, spoken
from bertkin.train.progress import RichListener
from bertkin.train.state import read_log

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results-finetuning.md"
OTHERS = {
    "SQuAD": Tuning(data=("squad/train-v1.1-part.json",), dev="squad/dev-v1.1-part.json"),
    "UD-English": Tuning(data=("ud/English-EWT",)),
    "WNUT-17": Tuning(data=("ner/wnut17",)),
}
"""Tasks of $BERTKIN_DATA besides GLUE's."""
LAST = Train(final="last", eval_every=1e9)
"""The last weights are scored: the best of several evaluations, chosen on the dev data, would score too well there. They are
evaluated at the end alone (from 1 on `eval_every` counts steps, and the end is always evaluated), as the Trainer's are, so
that minutes compare."""
EVALUATING = 1.1
"""What a fine-tuning costs with its one evaluation, counted in its training."""
ALL = ("CoLA", "SST-2", "MRPC", "STS-B", "RTE", "WNLI", "QNLI", "QQP", "MNLI", *OTHERS)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What every one of these experiments can be told."""

    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    """Names of tasks; by default all of the experiment's."""
    seeds: int = 3
    """Trainings of each row, all else the same."""
    limit: int | None = None
    """A trial on about so many rows of each file; its results stay in --out."""
    rows: int | None = None
    """Train on about so many rows at most, from all over the file; the development data stay whole, and tables say how many."""
    epochs: float = AUTO
    """Passes over the data; by default what each side has by default."""
    out: Path | None = None
    """Folder for what is trained. [default: runs/NAME]"""
    price: Annotated[bool, Parameter(negative="")] = False
    """Say what it would cost, and stop."""

    def folder(self, name: str) -> Path:
        return self.out or HERE.parent / "runs" / (name if self.limit is None else f"{name}-trial")

    def most(self, usual: int | None = None) -> int | None:
        """How many rows are trained on at most, where `usual` is it when nothing is said."""
        return min((most for most in (self.limit, self.rows, usual) if most is not None), default=None)

    def chosen(self, usual: Iterable[str]) -> list[str]:
        """The tasks that were asked for, or else the usual ones.

        Raises:
            UserError: a name that is none.
        """
        known = list(dict.fromkeys([*usual, *ALL]))
        for one in self.tasks:
            if one not in known:
                raise UserError(f"no task {one!r}", where="--tasks", mend=nearest(one, known))
        return list(self.tasks or usual)


# Data.


def task(name: str, options: Options, folder: Path) -> Tuning:
    """A task's training and development files, with its metric and columns; of their rows all, or as many as are wanted.

    Args:
        folder: of the experiment, for what is cut.

    Raises:
        UserError: no such task, or no data.
    """
    if name in OTHERS:
        tuning = OTHERS[name]
        paths = [data(path) for path in tuning.data]
        dev = data(tuning.dev) if tuning.dev else None
    else:
        tuning = read_suite("glue", data("glue"), [name])[name]
        paths, dev = list(tuning.data), None
    parts = find_parts(paths[0]) if Path(paths[0]).is_dir() else {"train": paths[0], "dev": dev or ""}
    files = {}
    for part in ("train", "dev"):
        if not isinstance(found := parts[part], str):
            raise UserError(f"{name}: its {part} data are in several files", mend="join them")
        files[part] = Path(found)
    for part, most in (("train", options.most()), ("dev", options.limit)):
        if most is not None:
            files[part] = cut(files[part], most, folder / "data" / f"{name}-{most}" / f"{part}{files[part].suffix}")
    return replace(tuning, data=(str(files["train"]),), dev=str(files["dev"]), train=LAST)


def cut(source: Path, limit: int, to: Path) -> Path:
    """About `limit` rows of a labelled file, from all over it, in its own format: a line, a sentence or a question each.

    Returns:
        `to`; or the source itself, which has no more of them.
    """
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        places = [paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]]
        whole = sum(len(place["qas"]) for place in places) <= limit
        kept = [place | {"qas": place["qas"][:1]} for place in _spread(places, limit)]
        text = json.dumps({"data": [{"title": "", "paragraphs": kept}]}, ensure_ascii=False)
    else:
        between = "\n\n" if source.suffix in (".conll", ".conllu", ".bmes") else "\n"
        rows = [row for row in text.split(between) if row.strip()]
        head = 0 if between == "\n\n" else 1  # the first line may be a header
        whole = len(rows) - head <= limit
        text = between.join([*rows[:head], *_spread(rows[head:], limit)]) + between
    if whole:
        return source
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    return to


def _spread(rows: list[Any], limit: int) -> list[Any]:
    """As many of the rows, evenly: files are often sorted by class."""
    return [rows[i * len(rows) // limit] for i in range(limit)] if len(rows) > limit else rows


# Scores.


@dataclass(frozen=True)
class Job:
    """A fine-tuning of an experiment.

    Attributes:
        key: what it is of, such as (task, side, seed); also its folder.
    """

    key: tuple[str, ...]
    tuning: Tuning


Results = dict[tuple[str, ...], dict[str, Any]]
"""What fine-tunings came to, by their keys."""


class Brief(RichListener):
    """The live bar and the evaluations, without what is said of each run besides."""

    def message(self, text: str) -> None:
        pass

    def price(self, price: Price) -> None:
        pass


def tuned(folder: Path, tuning: Tuning) -> dict[str, Any]:
    """Fine-tune, or go on, or read what it came to. The model is not kept, its answers to the dev data are.

    Returns:
        metric; score, of the saved model; every score of it (scores); minutes; steps; settled, what the recipe of the
        training came to; examples; trained and all parameters; what computed (machine); curve, of evaluations, and
        losses, of training: [step, value] each.
    """
    settings = {"tuning": beyond_usual(tuning)}
    return once(folder, settings, lambda: _made(folder, tuning, settings))


def _made(folder: Path, tuning: Tuning, settings: dict[str, Any]) -> dict[str, Any]:
    run = folder / "run"
    if goes_on(folder, settings, run) and is_tuning(run):
        resume(run, listener=Brief())
    else:
        finetune(tuning, run, listener=Brief(), overwrite=run.exists())
    said, settled = Task.from_mapping(json.loads((run / TASK).read_text())["task"]), load_tuning(run / RECIPE)
    splits = read_data(tuning)
    predictions = [one.answer for one in open_reader(run).examples(splits.dev.examples)]
    (folder / "answers.json").write_text(json.dumps(predictions, ensure_ascii=False))
    scored = measure(said, splits.dev.examples, predictions)
    model = begin_task_model(settled.model, answer_for(said, settled.pooling, crf=settled.crf))
    apply(model, settled.strategy)
    trained, parameters = trainable(model)
    lines = read_log(run)
    evaluations = [line for line in lines if line.get("kind") == "evaluation"]
    for name in ("checkpoints", "model"):
        shutil.rmtree(run / name, ignore_errors=True)
    (folder / "begun.json").unlink()
    return {
        "metric": said.metric,
        "score": round(scored[said.metric], 5),
        "scores": {name: round(value, 5) for name, value in scored.items()},
        "minutes": round(evaluations[-1]["minutes"], 3),
        "steps": evaluations[-1]["step"],
        "settled": to_mapping(settled)["train"],
        "examples": len(splits.train.examples),
        "trained": trained,
        "parameters": parameters,
        "machine": machine(),
        "curve": [[line["step"], line[said.metric]] for line in evaluations],
        "losses": [[line["step"], line["loss"]] for line in lines if line.get("kind") == "step"],
    }


def answers_of(folder: Path) -> list[Any]:
    """What the model of a finished job answered to each of the dev data."""
    return [tuple(one) if isinstance(one, list) else one for one in json.loads((folder / "answers.json").read_text())]


@cache
def _minutes(tuning: Tuning) -> float:
    try:
        work = FineTuning(gather(tuning, "cpu"), "cpu")
    except UserError:  # it will fail when its turn comes, and say why
        return 0.0
    dtype = pick_precision(work.train.precision, "cpu")
    price = work.price(work.first_model(), device="cpu", dtype=dtype, threads=torch.get_num_threads())
    return price.minutes


def price(jobs: Iterable[Job]) -> float:
    """Minutes of some fine-tunings, as our own price has them, with evaluations."""
    return EVALUATING * sum(_minutes(replace(job.tuning, train=replace(job.tuning.train, seed=0))) for job in jobs)


def carried_out(
    jobs: list[Job],
    options: Options,
    folder: Path,
    tell: Callable[[Results], None] | None = None,
) -> Results:
    """The results of all jobs, by their keys. What is not there yet is made, its price said first.

    A job whose input is bad has its error printed, and the others go on.

    Args:
        jobs: their keys end with the row and the seed; those that agree in what stands before are one task.
        tell: called after each task with the results so far; a task of which a row has no result is not among them.

    Raises:
        SystemExit: the price was all that was asked for.
        UserError: of the first job that failed, after all others.
    """
    settle_threads(None)
    missing = [job for job in jobs if made(folder.joinpath(*job.key), {"tuning": beyond_usual(job.tuning)}) is None]
    if missing:
        said = spoken(price(missing))
        print(f"{len(missing)} of {len(jobs)} fine-tunings are to be made: about {said}", flush=True)
    if options.price:
        raise SystemExit(0)
    results: Results = {}
    whole: Results = {}
    failed: list[UserError] = []
    for number, job in enumerate(jobs, 1):
        try:
            found = results[job.key] = tuned(folder.joinpath(*job.key), job.tuning)
            told = f"{found['metric']} {found['score']:.4f}, {found['minutes']:.1f} min"
        except UserError as error:
            failed.append(error)
            told = f"failed: {error}"
        print(f"{number:>4} of {len(jobs)}  {' '.join(job.key):40} {told}", flush=True)
        group = job.key[:-2]
        if any(later.key[:-2] == group for later in jobs[number:]):
            continue
        rows = {one.key[:-1] for one in jobs if one.key[:-2] == group}
        if rows == {key[:-1] for key in results if key[:-2] == group}:
            whole |= {key: one for key, one in results.items() if key[:-2] == group}
            if tell is not None:
                tell(whole)
    if failed:
        raise failed[0]
    return results


def chance(folder: Path, sides: Sequence[dict[Path, dict[str, Any]]], tuning: Tuning) -> float:
    """The p by which the middle seeds of two sides differ on the same examples (approximate randomisation); made once.

    Args:
        folder: where it is kept.
        sides: of each the finished jobs of its seeds, by their folders.
        tuning: of any of them, for the data.
    """
    middle = []
    for side in sides:
        score = statistics.median_low([one["score"] for one in side.values()])
        middle.append(next(place for place, one in side.items() if one["score"] == score))
    settings = {"scores": [[one["score"] for one in side.values()] for side in sides], "key": beyond_usual(tuning)}

    def made_now() -> dict[str, Any]:
        splits, metric = read_data(tuning), next(iter(sides[0].values()))["metric"]
        one, two = (answers_of(place) for place in middle)
        return {"p": round(difference(metric, splits.train.task, splits.dev.examples, one, two).p, 4)}

    return float(once(folder, settings, made_now)["p"])


def summary(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The same row over its seeds: median, mean and deviation of the score, and the middle one's minutes; of the first one,
    how many numbers were trained on how many examples how often, and what computed."""
    found = list(results)
    scores = [one["score"] for one in found]
    return {
        "metric": found[0]["metric"],
        "median": round(statistics.median(scores), 5),
        "mean": round(statistics.mean(scores), 5),
        "deviation": round(statistics.stdev(scores), 5) if len(scores) > 1 else None,
        "scores": scores,
        "minutes": round(statistics.median(one["minutes"] for one in found), 2),
        "trained": found[0].get("trained"),
        "examples": found[0].get("examples"),
        "epochs": found[0].get("settled", {}).get("epochs"),
        "machine": found[0].get("machine"),
    }


def in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows by task as the tasks are usually named, whichever was measured first."""
    return {name: rows[name] for name in sorted(rows, key=ALL.index)}


def titled(name: str, row: dict[str, Any]) -> str:
    """A task with its metric, and on how many rows it was trained, where that was written down."""
    rows = f", {row['examples']:,} rows" if row.get("examples") else ""
    return f"{name} ({row['metric']}{rows})"


def shown(row: dict[str, Any]) -> str:
    """A median in hundredths with the deviation over seeds."""
    spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    return f"{100 * row['median']:.1f}{spread}"


def finish(
    name: str,
    options: Options,
    content: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Join the content into the record beside the experiment, draw the picture and put the table onto the page; of a
    trial, into its folder. What an earlier call wrote stays where this one has nothing new.

    Args:
        table, draw: of the whole content, as it is joined.
        about: what an earlier record must agree in to be joined, such as the model; it is written down, too.
    """
    trial = options.limit is not None
    record = options.folder(name) / f"{name}.json" if trial else HERE / f"{name}.json"
    about = about or {}
    earlier = json.loads(record.read_text()) if record.exists() else {}
    if about.items() <= earlier.items():
        content = joined(earlier, content)
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": machine()}
    if draw is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        draw(content, record.with_suffix(".png"))
    said = {"command": f"python experiments/{name}.py", "machine": versions}
    written(record, content | about | said, table(content), None if trial else PAGE, name)
