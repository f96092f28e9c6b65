"""A pretrained model and a random start of the same shape, fine-tuned alike: training loss and dev score against steps.

    BERTKIN_DATA=shared/data python experiments/pretrained.py --models runs/mine --price
    BERTKIN_DATA=shared/data python experiments/pretrained.py --tasks CoLA --seeds 1

Both begin with the same tokenizer, rows and recipe (`bertkin finetune`'s own); the random start's weights are all drawn, as
published. The real encoder is among the models unless --no-real is said.

Results go into pretrained.json and pretrained.png beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from sharing import markdown, picture, run
from starts import beginnings, called, random_start
from tuned import LAST, Job, Options, Results, carried_out, finish, shown, summary, task, titled

TASKS = ("CoLA", "STS-B", "UD-English")
STARTS = ("pretrained", "random")
POINTS = 20
"""Evaluations of a training."""
app = App(help_format="plaintext")


@app.default
def main(
    options: Options = Options(),  # noqa: B008
    *,
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    real: bool = True,
) -> None:
    """Every model, task, start and seed that is not there yet; then all of them, written down.

    Parameters
    ----------
    models
        Run or model folders besides the real encoder.
    real
        Whether the real encoder is among the models.
    """
    folder = options.folder("pretrained")
    jobs = []
    for model, stock in {called(model): model for model in beginnings(models, real)}.items():
        for name in options.chosen(TASKS):
            for start in STARTS:
                for seed in range(options.seeds):
                    drawn = folder / "random" / model / str(seed)
                    begun = stock if start == "pretrained" else random_start(stock, drawn, seed)
                    train = replace(LAST, seed=seed, eval_every=1 / POINTS, epochs=options.epochs)
                    tuning = replace(task(name, options, folder), model=begun, train=train)
                    jobs.append(Job((model, name, start, str(seed)), tuning))

    def tell(results: Results) -> None:
        content: dict[str, Any] = {}
        for model, name, start, _ in results:
            same = [found for key, found in results.items() if key[:3] == (model, name, start)]
            row = summary(same) | {what: over_seeds([one[what] for one in same]) for what in ("curve", "losses")}
            content.setdefault(model, {}).setdefault(name, {})[start] = row
        finish("pretrained", options, {"models": content}, lambda whole: table(whole["models"]), draw)

    carried_out(jobs, options, folder, tell)


def over_seeds(curves: list[list[list[float]]]) -> list[list[float]]:
    """[step, mean over seeds] at the steps of the first, of curves [step, value] that may be told at other steps."""
    steps = [step for step, _ in curves[0]]
    told = [np.array(curve) for curve in curves]
    values = [np.interp(steps, curve[:, 0], curve[:, 1]) for curve in told]
    return [[step, round(float(value), 5)] for step, value in zip(steps, np.mean(values, axis=0), strict=True)]


def smooth(curve: list[list[float]], share: float) -> list[list[float]]:
    """[step, mean of what was told up to there over so much of the curve]."""
    count = max(1, round(share * len(curve)))
    values = [value for _, value in curve]
    return [[step, statistics.mean(values[max(0, at + 1 - count) : at + 1])] for at, (step, _) in enumerate(curve)]


def table(content: dict[str, Any]) -> str:
    """A line a model and task: both scores, both losses over the last tenth, and when the pretrained one passes the other's
    best."""
    rows = []
    for model, found in content.items():
        for name, one in found.items():
            before, random = one["pretrained"], one["random"]
            best = max(value for _, value in random["curve"])
            passed = next((step for step, value in before["curve"] if value > best), None)
            ends = [f"{smooth(side['losses'], 0.1)[-1][1]:.3f}" for side in (before, random)]
            when = "never" if passed is None else f"{passed:,} of {before['curve'][-1][0]:,}"
            rows.append([titled(f"{model}, {name}", before), shown(before), shown(random), *ends, when])
    head = ["model, task", "pretrained", "random start", "training loss, pretrained", "random start"]
    return markdown([*head, "passes the random start's best at step"], rows)


def draw(content: dict[str, Any], path: Path) -> None:
    """A row a model and task; training loss on the left, dev score on the right."""
    rows = [(model, name, one) for model, found in content["models"].items() for name, one in found.items()]
    with picture(path, len(rows), 2, (10, 3.2 * len(rows))) as axes:
        for line, (model, name, one) in zip(axes, rows, strict=True):
            for colour, start in enumerate(STARTS):
                for axis, what in zip(line, ("losses", "curve"), strict=True):
                    told = one[start][what]
                    if what == "losses":
                        axis.plot(*zip(*told, strict=True), color=f"C{colour}", alpha=0.2, linewidth=0.8)
                        told = smooth(told, 0.05)
                    axis.plot(*zip(*told, strict=True), color=f"C{colour}", label=start, linewidth=1.2)
            line[0].set(xlabel="steps", ylabel="training loss", title=f"{model}, {name}")
            line[1].set(xlabel="steps", ylabel=f"dev {one['pretrained']['metric']}")
            line[0].legend(fontsize="small")


if __name__ == "__main__":
    run(app)
