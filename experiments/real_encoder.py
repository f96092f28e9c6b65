"""The real encoder on twelve tasks: ours beside transformers' Trainer with the same hyperparameters, and ours by default.

    BERTKIN_DATA=shared/data python experiments/real_encoder.py --price
    BERTKIN_DATA=shared/data python experiments/real_encoder.py --tasks CoLA RTE --seeds 3

    trainer    transformers' Trainer: rate 5e-5 falling linearly, no warm-up, no weight decay, three epochs, batches of 32
    same       ours with all of that, and the model's own dropout (0.1 everywhere)
    default    ours as it is when nothing is said, but that its last weights are scored, as the Trainer's: those of its best
               evaluation, which it would keep, are chosen on the data that score them

Rows, windows, labels and metrics are the same for all three (`trainer.py`). A side whose first seed took longer than
--most-minutes is run once. Whatever is finished is kept in runs/real_encoder and not repeated.

What is not the same in "same": the Trainer's models drop out once more, before the classifier; it trains in float32, ours in
what this machine computes fastest (bfloat16 where the processor has it); a batch of the Trainer's is 32 windows, one of ours
32 questions with all of their windows; of scores (STS-B) it learns the numbers as they are, ours in units of their deviation
from their mean. Minutes are those of training with the checkpoints that fall in it, without the
evaluation at the end; one reading each.

Results go into real_encoder.json and real_encoder.png beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclopts import App
from sharing import markdown, picture, run
from starts import encoder
from trainer import trained
from tuned import ALL, LAST, Job, Options, chance, finish, in_order, price, shown, summary, task, titled, tuned

from bertkin.errors import UserError
from bertkin.tasks.tuning import Tuning
from bertkin.train.machine import settle_threads
from bertkin.train.price import spoken

PLAIN: dict[str, Any] = {
    "lr": 5e-5,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "beta2": 0.999,
    "schedule": "linear",
    "optimizer": "adamw",
}
LENGTHS = {"SQuAD": 384}
TITLES = {"trainer": "Trainer", "same": "ours, same settings", "default": "ours, default"}
SIDES = tuple(TITLES)
SLOWER = {"SQuAD": 20.0}
"""How many times our minutes the Trainer takes, about, for the price (benchmarks/finetuning.json); 3 where nothing is said."""

app = App(help_format="plaintext")


@app.default
def main(options: Options = Options(), *, most_minutes: float = 10.0) -> None:  # noqa: B008
    """Every task, side and seed that is not there yet; then all that is there, written down.

    Parameters
    ----------
    most_minutes
        A side whose first seed took longer than this is not run with others.
    """
    folder, names = options.folder("real_encoder"), options.chosen(ALL)
    settle_threads(None)
    said = 0.0
    for name in names:
        minutes = {side: price([Job((), _tuning(name, side, 0, options, folder))]) for side in SIDES[1:]}
        minutes["trainer"] = SLOWER.get(name, 3.0) * minutes["same"]
        said += sum(m * (options.seeds if m <= most_minutes else 1) for m in minutes.values())
    print(f"all of it, from the beginning: about {spoken(said)}", flush=True)
    if options.price:
        return
    failed: list[UserError] = []
    for name in names:
        sides: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for seed in range(options.seeds):
            for side, found in sides.items():
                if found and found[0]["minutes"] > most_minutes:
                    continue
                place, tuning = folder / name / side / str(seed), _tuning(name, side, seed, options, folder)
                try:
                    made = trained(place, tuning) if side == "trainer" else tuned(place, tuning)
                    found.append(made | {"seed": seed})
                    told = f"{found[-1]['metric']} {found[-1]['score']:.4f}, {found[-1]['minutes']:.1f} min"
                except UserError as error:
                    failed.append(error)
                    told = f"failed: {error}"
                print(f"{name:12} {side:8} seed {seed}: {told}", flush=True)
        if not all(sides.values()):
            continue
        row: dict[str, Any] = {side: summary(found) for side, found in sides.items()}
        for side in SIDES[1:]:
            row[side] |= _compared(folder / name, side, sides, _tuning(name, side, 0, options, folder))
        finish("real_encoder", options, {"tasks": {name: row}}, lambda whole: table(whole["tasks"]), draw)
    if failed:
        raise failed[0]


def _tuning(name: str, side: str, seed: int, options: Options, folder: Path) -> Tuning:
    tuning = replace(task(name, options, folder), model=encoder())
    epochs: dict[str, Any] = {"epochs": options.epochs} if options.epochs else {}
    if side == "default":
        return replace(tuning, train=replace(LAST, seed=seed, **epochs))
    train = replace(LAST, **({**PLAIN, "epochs": 3.0, "seed": seed} | epochs))
    return replace(tuning, train=train, length=LENGTHS.get(name, 256), attention_dropout=0.1)


def _compared(folder: Path, side: str, sides: dict[str, list[dict[str, Any]]], tuning: Tuning) -> dict[str, Any]:
    """How the middle seeds of a side and of the Trainer differ on the same examples, and what is said of it."""
    theirs, ours = ({folder / name / str(one["seed"]): one for one in sides[name]} for name in ("trainer", side))
    p = chance(folder / side / "compared", (theirs, ours), tuning)
    scores = [[one["score"] for one in found.values()] for found in (ours, theirs)]
    return {"p": p, "said": verdict(scores[0], scores[1], p)}


def verdict(ours: list[float], theirs: list[float], p: float) -> str:
    """below or above where medians differ by more than chance on the examples and more than seeds move them; else level."""
    gap = statistics.median(ours) - statistics.median(theirs)
    noise = 2 * math.sqrt(sum(statistics.variance(one) / len(one) for one in (ours, theirs) if len(one) > 1))
    if p >= 0.05 or abs(gap) <= noise:
        return "level"
    return "above" if gap > 0 else "below"


def table(rows: dict[str, Any]) -> str:
    """A line a task: scores of the three, what is said of ours, and minutes."""
    head = ["task (metric)", "Trainer", "ours, same settings", "is", "ours, default", "is", "Trainer, min"]
    lines = []
    for name, row in in_order(rows).items():
        cells = [titled(name, row["same"]), shown(row["trainer"])]
        for side in SIDES[1:]:
            longer = f" ({row[side]['epochs']:g} epochs)" if side == "default" and row[side].get("epochs") else ""
            cells += [shown(row[side]) + longer, f"{row[side]['said']} (p = {row[side]['p']:.2g})"]
        lines.append([*cells, *(f"{row[side]['minutes']:.1f}" for side in SIDES)])
    return markdown([*head, "same, min", "default, min"], lines)


def draw(content: dict[str, Any], path: Path) -> None:
    """Every seed of every side, by task, as differences to the Trainer's median."""
    names = list(in_order(content["tasks"]))
    with picture(path) as axes:
        axis = axes[0, 0]
        for number, side in enumerate(SIDES):
            places, gaps = [], []
            for at, name in enumerate(names):
                row = content["tasks"][name]
                for score in row[side]["scores"]:
                    places.append(at + 0.2 * (number - 1))
                    gaps.append(100 * (score - row["trainer"]["median"]))
            axis.scatter(places, gaps, s=18, label=TITLES[side], color=f"C{number}")
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(ylabel="hundredths above the Trainer's median")
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.legend(fontsize="small")


if __name__ == "__main__":
    run(app)
