"""Adapters, or the last layers: what a score costs in parameters trained (Houlsby et al. 2019, figure 4).

    BERTKIN_DATA=shared/data python experiments/adapters.py --models runs/mine --price
    BERTKIN_DATA=shared/data python experiments/adapters.py --tasks CoLA --sizes 8 64 --last 1 2 --seeds 1

Each model is fine-tuned on each task with bottleneck adapters of several sizes after every block, with its last k layers
alone, and whole; rates, epochs and the rest are `bertkin finetune`'s own. The real encoder is among the models unless
--no-real is said.

Results go into adapters.json and adapters.png beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from sharing import markdown, picture, run
from starts import beginnings, called
from tuned import Job, Options, Results, carried_out, finish, shown, summary, task, titled

from bertkin.models.configs import read_config
from bertkin.models.pretrained import find_folder
from bertkin.models.strategy import Strategy

TASKS = ("CoLA", "STS-B")
Numbers = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")]
app = App(help_format="plaintext")


@app.default
def main(
    options: Options = Options(),  # noqa: B008
    *,
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    real: bool = True,
    sizes: Numbers = (2, 8, 32, 128),
    last: Numbers = (1, 2, 4),
) -> None:
    """Every model, task, way and seed that is not there yet; then all of them, written down.

    Parameters
    ----------
    models
        Run or model folders besides the real encoder.
    real
        Whether the real encoder is among the models.
    sizes
        Of the bottlenecks.
    last
        How many layers are trained; as many as a model has or more are left out.
    """
    folder = options.folder("adapters")
    stocks = {called(model): model for model in beginnings(models, real)}
    jobs = []
    for model, stock in stocks.items():
        layers = read_config(find_folder(stock) / "config.json")[0].layers
        for name in options.chosen(TASKS):
            for way, strategy in ways(sizes, [k for k in last if k < layers]).items():
                for seed in range(options.seeds):
                    tuning = replace(task(name, options, folder), model=stock, strategy=strategy)
                    tuning = replace(tuning, train=replace(tuning.train, seed=seed, epochs=options.epochs))
                    jobs.append(Job((model, name, way, str(seed)), tuning))

    def tell(results: Results) -> None:
        content: dict[str, Any] = {}
        for model, name, way, _ in results:
            same = [found for key, found in results.items() if key[:3] == (model, name, way)]
            row = summary(same) | {"parameters": same[0]["parameters"]}
            content.setdefault(model, {}).setdefault(way, {})[name] = row
        finish("adapters", options, {"models": content}, lambda whole: table(whole["models"]), draw)

    carried_out(jobs, options, folder, tell)


def ways(sizes: tuple[int, ...], last: list[int]) -> dict[str, Strategy]:
    """What is trained, by name."""
    found = {f"adapter, {size}": Strategy("adapter", size=size) for size in sizes}
    return found | {f"last {k}": Strategy("last", last=k) for k in last} | {"full": Strategy()}


def table(content: dict[str, Any]) -> str:
    """A line a model and way: what is trained, and each task's score."""
    named = {
        (model, way): {titled(*pair): pair[1] for pair in scores.items()}
        for model, found in content.items()
        for way, scores in found.items()
    }
    columns = list(dict.fromkeys(title for scores in named.values() for title in scores))
    rows = []
    for (model, way), scores in named.items():
        one = next(iter(scores.values()))
        share = f"{one['trained']:,} ({one['trained'] / one['parameters']:.2%})"
        cells = [shown(scores[title]) if title in scores else "–" for title in columns]
        rows.append([f"{model}, {way}", share, *cells])
    return markdown(["model, trained", "parameters trained", *columns], rows)


def _alike(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    """Whether two rows were trained on as many examples."""
    return one is not None and one["examples"] == other["examples"]


def draw(content: dict[str, Any], path: Path) -> None:
    """Score beside that of training everything, by parameters trained: each task thin, their mean thick."""
    models = content["models"]
    with picture(path, 1, len(models), (6 * len(models), 4.5)) as axes:
        for axis, (model, found) in zip(axes[0], models.items(), strict=True):
            for colour, kind in enumerate(("adapter", "last")):
                line = [scores for way, scores in found.items() if way.startswith(kind)]
                line += [found["full"]] if kind == "last" else []
                line.sort(key=lambda one: next(iter(one.values()))["trained"])
                names = [
                    name for name, whole in found["full"].items() if all(_alike(one.get(name), whole) for one in line)
                ]
                gaps = {
                    name: [100 * (one[name]["median"] - found["full"][name]["median"]) for one in line]
                    for name in names
                }
                if not names:
                    continue
                trained = [next(iter(one.values()))["trained"] for one in line]
                for values in gaps.values():
                    axis.plot(trained, values, color=f"C{colour}", alpha=0.3, linewidth=0.8)
                means = [statistics.mean(values) for values in zip(*gaps.values(), strict=True)]
                title = {"adapter": "adapters", "last": "last layers"}[kind]
                axis.plot(trained, means, marker="o", color=f"C{colour}", label=title)
            axis.axhline(0, color="grey", linewidth=0.8)
            axis.set(
                xscale="log", xlabel="parameters trained", ylabel="hundredths above training everything", title=model
            )
            axis.legend(fontsize="small")


if __name__ == "__main__":
    run(app)
