"""The verbs that fine-tune: `bertkin finetune` and `evaluate`. See `bertkin.cli`; those that ask are in `bertkin.using`."""

from __future__ import annotations

import json as plain
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from bertkin.config import Train
from bertkin.errors import UserError
from bertkin.models.strategy import Strategy, see_used
from bertkin.options import given, typed
from bertkin.tasks.tuning import PRETRAINING, Tuning
from bertkin.terminal import Flag, Quiet, leads, listener, scores_line

TuningOptions = given(Tuning, leave_out=["model", "data", "strategy", "train"], bare=True)
OWN = ["dev", "test", "task", "text", "text2", "label", "metric", "positive", "header", "scheme"]
"""Fields that are each task's own, and no option of many tasks."""
SuiteOptions = given(Tuning, leave_out=["model", "data", "strategy", "train", *OWN], bare=True)
StrategyOptions = given(Strategy, leave_out=["matrices", "seed"])
TuneOptions = given(
    Train,
    leave_out=list(PRETRAINING),
    short=["patience", "final", "layer_decay", "unfreeze"],
)


def finetune(
    model: str,
    /,
    *data: str,
    out: Path | None = None,
    overwrite: Annotated[bool, Flag] = False,
    quiet: Quiet = False,
    together: str | None = None,
    sampling: Literal["annealed", "proportional", "sqrt", "uniform"] | None = None,
    search: int | None = None,
    search_minutes: float | None = None,
    seeds: int = 1,
    tuning: Annotated[TuningOptions, Parameter(name="*", group=Group("Task", sort_key=2))] = TuningOptions(),  # type: ignore[valid-type]  # noqa: B008
    strategy: Annotated[StrategyOptions, Parameter(group=Group("Strategy", sort_key=3))] = StrategyOptions(),  # type: ignore[valid-type]  # noqa: B008
    train: Annotated[TuneOptions, Parameter(group=Group("Train", sort_key=4))] = TuneOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Fine-tune a model on labelled data: bertkin finetune runs/mine reviews.csv

    It looks at the files, says what task it sees, trains, measures, and saves a folder that transformers opens; of a light
    strategy, what changed.

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    data
        Labelled files (.csv .tsv .jsonl .parquet, CoNLL, CoNLL-U, SQuAD's JSON), a folder with train, dev and test, or a
        set of the hub as OWNER/NAME:CONFIGURATION.
    out
        Run folder to make. [default: runs/NAME-OF-DATA]
    overwrite
        Empty the run folder first if it exists.
    together
        Several tasks at once over one stock: glue, or a YAML file, a list of tasks with name, data, and perhaps metric,
        text, text2, label. DATA is then the folder of their data; by default it is beside the YAML file, and of glue on
        the hub.
    sampling
        How the task of a step is drawn by its examples: annealed from proportional to nearly alike; proportional; by the
        square root; or all alike. [default: annealed]
    search
        Try so many settings, the defaults first, and keep the one that is best on the development data.
    search_minutes
        Begin no further trial after so many minutes.
    seeds
        Runs, each with a seed of its own, in OUT/seeds/seed-0 and on; a table tells how much the scores differ. As in a
        suite the last weights are kept, not the best. Stopped, the same command goes on.
    """
    from dataclasses import replace

    from bertkin.tasks.finetune import finetune as run
    from bertkin.tasks.hub import here

    if not data and together is None:
        raise UserError("no data", mend="name labelled files, or a folder with train, dev and test")
    parts: dict[str, Any] = {
        "strategy": see_used(replace(Strategy(), **typed(strategy)), "--strategy."),
        "train": replace(Train(), **typed(train)),
    }
    recipe = replace(Tuning(), model=model, data=here(data), **typed(tuning), **parts)
    if together is not None:
        if search is not None or search_minutes is not None:
            raise UserError("of one task, not of several together", where="--search", mend="search for each by itself")
        if seeds != 1:
            raise UserError(
                "of one task, not of several together", where="--seeds", mend="give --train.seed, run by run"
            )
        _together(recipe, typed(tuning), together, sampling or "annealed", out, quiet=quiet, overwrite=overwrite)
        return
    if sampling is not None:
        raise UserError("of several tasks together", where="--sampling", mend="leave it out, or name them: --together")
    name = re.sub(r"[*?\[\]]+", "", Path(data[0]).name.split(".")[0]).replace(":", "-").strip("-_")  # of a pattern, too
    where = out or Path("runs") / (name or "tuned")
    if seeds != 1:
        if search is not None or search_minutes is not None:
            raise UserError("of one run, not of several seeds", where="--search", mend="search first, then take seeds")
        _seeds(recipe, where, seeds, quiet=quiet, overwrite=overwrite)
        return
    if search is not None or search_minutes is not None:
        from bertkin.tasks.search import MANY
        from bertkin.tasks.search import search as look

        bound: dict[str, Any] = {"trials": MANY if search is None else search, "minutes": search_minutes}
        rooms = {"strategy": strategy, "train": train}
        bound["fixed"] = [*typed(tuning), *(f"{room}.{name}" for room, said in rooms.items() for name in typed(said))]
        show_search(look(recipe, where, listener=listener(quiet), overwrite=overwrite, **bound))
        return
    show(run(recipe, where, listener=listener(quiet), overwrite=overwrite))


def _seeds(recipe: Any, out: Path, seeds: int, *, quiet: bool, overwrite: bool) -> None:
    """What `finetune` does with --seeds: a suite of one task."""
    from bertkin.tasks.evaluating import run_suite

    if overwrite:
        what = "several runs go on where they were stopped"
        raise UserError(what, where="--overwrite", mend=f"leave it out, or remove {out}")
    print(run_suite(recipe.model, {"seeds": recipe}, out, seeds=seeds, listener=listener(quiet)))
    print(f"runs     {out / 'seeds'} (one a seed; {out / 'results.json'} has all figures)")
    print(f'next     bertkin predict {out / "seeds" / "seed-0"} "A text."')


def _together(
    common: Any, said: Any, suite: str, sampling: Any, out: Path | None, *, quiet: bool, overwrite: bool
) -> None:
    """What `finetune` does with --together."""
    from dataclasses import replace

    from bertkin.tasks.joining import recipe_of
    from bertkin.tasks.suites import read_suite
    from bertkin.tasks.together import together as run

    for name in OWN:
        if getattr(common, name) not in (None, ""):
            raise UserError("of one task, not of several together", where=f"--{name}", mend=f"say it in {suite}")
    if len(common.data) > 1:
        raise UserError(f"{len(common.data)} folders of data", mend=f"give one, that has the folders of {suite}")
    tasks = read_suite(suite, common.data[0] if common.data else None)
    recipe = recipe_of(tasks, replace(common, data=()), sampling, said)
    where = out or Path("runs") / Path(suite).stem
    show_together(run(recipe, where, listener=listener(quiet), overwrite=overwrite))


def show_together(result: Any) -> None:
    """How the fine-tuning of several tasks ended."""
    from bertkin.tasks.together import table

    if not leads():
        return
    print(table(result.run))
    print(f"{result.step:,} steps · {result.minutes:.1f} minutes")
    print(f"run      {result.run} (report.html shows how it went)")
    print(f'next     bertkin predict {result.run} "A text."')


def show_search(found: Any) -> None:
    """How a search ended."""
    print(found)
    print(f"run      {found.run} (search.md has this table, report.html how the best trial went)")
    print(f'next     bertkin predict {found.run} "A text."')


def show(result: Any) -> None:
    """How a fine-tuning ended."""
    from bertkin.train.state import kept_evaluation, read_log

    if not leads():
        return
    last = kept_evaluation(read_log(result.run)) or {}
    headline = plain.loads((result.run / "task.json").read_text(encoding="utf-8"))["task"]["metric"]
    hidden = {"kind", "step", "tokens", "minutes", "loss", "accuracy"} - {headline}
    scores = {name: value for name, value in last.items() if name not in hidden}
    print(f"{scores_line(scores) or f'loss {result.loss:.4f}'} · {result.step:,} steps · {result.minutes:.1f} minutes")
    print(f"run      {result.run} (report.html shows how it went)")
    print(f'next     bertkin predict {result.run} "A text."')


def evaluate(
    model: str,
    suite: str,
    /,
    *,
    data: Path | None = None,
    only: Annotated[list[str] | None, Parameter(negative="")] = None,
    seeds: int = 1,
    out: Path | None = None,
    against: Path | None = None,
    submit: Path | None = None,
    table: Literal["markdown", "latex", "csv"] = "markdown",
    json: Annotated[bool, Flag] = False,
    quiet: Quiet = False,
    tuning: Annotated[SuiteOptions, Parameter(name="*", group=Group("Tasks", sort_key=2))] = SuiteOptions(),  # type: ignore[valid-type]  # noqa: B008
    strategy: Annotated[StrategyOptions, Parameter(group=Group("Strategy", sort_key=3))] = StrategyOptions(),  # type: ignore[valid-type]  # noqa: B008
    train: Annotated[TuneOptions, Parameter(group=Group("Train", sort_key=4))] = TuneOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Fine-tune a model on every task of a suite: bertkin evaluate MODEL glue --data path/to/glue

    Stopped, the same command goes on where it was.

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    suite
        glue, squad, cmrc, ud, ner, dna; core, which is all of them; blimp, minimal pairs that need no training (`bertkin
        pairs` has its options); or a YAML file: a list of tasks with name, data, and perhaps metric, text, text2, label.
    data
        Folder of the tasks' data; by default beside the YAML file, or of a suite that is known on the hub.
    only
        Names of tasks; may be given several times.
    seeds
        Runs of each task.
    out
        Folder for the runs, results.json and results.md. [default: runs/SUITE]
    against
        The --out of another model on the same data: whether the two differ by more than chance.
    submit
        Folder for the files that GLUE's server takes, answered by the middle seed.
    table
        Form of the table; latex and csv are also written beside results.json.
    json
        Write one JSON object.
    """
    from bertkin.tasks.evaluating import run_suite
    from bertkin.tasks.suites import read_suite
    from bertkin.train.state import write_text

    if suite.lower() == "blimp":
        asked = {
            "--only": only,
            "--seeds": seeds != 1,
            "--against": against,
            "--submit": submit,
            "--table": table != "markdown",
        }
        asked |= dict.fromkeys([f"--{name}" for name in typed(tuning)], True)
        asked |= {
            f"--{room}.{name}": True for room, of in (("strategy", strategy), ("train", train)) for name in typed(of)
        }
        if odd := [option.replace("_", "-") for option, given in asked.items() if given]:
            raise UserError("minimal pairs are asked without any training", where=odd[0], mend="leave it out")
        _pairs(model, data, out or Path("runs") / "blimp", json=json)
        return
    tasks = read_suite(suite, data, only or ())
    change = {**typed(tuning), "strategy": typed(strategy), "train": typed(train)}
    where = out or Path("runs") / Path(suite).stem
    told = listener(quiet)
    more: dict[str, Any] = {"against": against, "submission": submit}
    results = run_suite(model, tasks, where, seeds=seeds, change=change, listener=told, suite=suite, **more)
    text = {"latex": results.latex, "csv": results.csv}.get(table, results.__str__)()
    if table != "markdown":
        write_text(where / {"latex": "results.tex", "csv": "results.csv"}[table], text + "\n")
    print(plain.dumps(results.to_mapping(), ensure_ascii=False) if json else text)
    for name, both in results.differences.items():
        if table == "markdown" and not json:
            print(f"{name}: {results.against} and this one, {both}")


def _pairs(model: str, data: Path | None, out: Path, *, json: bool) -> None:
    """The one suite that trains nothing."""
    from bertkin.asking import pairs
    from bertkin.tasks.results import RESULTS

    if data is None:
        raise UserError(
            "where its data lie is not said", where="suite blimp", mend="give --data FOLDER of .jsonl files"
        )
    pairs(model, data, json=json, out=out / RESULTS)
