"""GLUE for a model grown here: all of it trained, adapters, frozen; beside its word vectors averaged, and a random start.

    BERTKIN_DATA=shared/data python experiments/glue_rows.py runs/mine --price
    BERTKIN_DATA=shared/data python experiments/glue_rows.py runs/mine --tasks CoLA RTE --seeds 1

Rates, epochs and the rest are `bertkin finetune`'s own. "vectors" is what words alone tell: the mean of the model's own token
embeddings, as it has them in its table, under a logistic regression (a ridge regression for scores); of a pair, both
means, their difference and their product. It draws nothing, so it is run once. The p of the last line is of the middle
seeds' answers to the same examples, by approximate randomisation. (To have a model: bertkin pretrain on ten
million words for 60 minutes, recipes/english-mini.yaml.)

Results go into glue_rows.json and glue_rows.png beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App
from sharing import markdown, once, picture, run
from starts import beyond_usual, called, headless, random_start, weights
from tuned import (
    ALL,
    LAST,
    Job,
    Options,
    Results,
    carried_out,
    chance,
    finish,
    in_order,
    shown,
    summary,
    task,
    titled,
)

from bertkin.models.pretrained import find_folder
from bertkin.models.strategy import Strategy
from bertkin.tasks.gathering import read_data
from bertkin.tasks.metrics import measure
from bertkin.tasks.task import Example
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer

TASKS = ALL[:9]
WAYS = {
    "full": (False, Strategy()),
    "adapter": (False, Strategy("adapter")),
    "frozen": (False, Strategy("frozen")),
    "random": (True, Strategy()),
}
"""Whether the start is drawn anew, and what is trained."""
TITLES = {
    "full": "all trained",
    "adapter": "adapters",
    "frozen": "frozen",
    "vectors": "word vectors averaged",
    "random": "random start, all trained",
}
app = App(help_format="plaintext")


@app.default
def main(model: str, /, options: Options = Options()) -> None:  # noqa: B008
    """Every task, way and seed that is not there yet; then all of them, written down.

    Parameters
    ----------
    model
        The run or model folder.
    """
    folder, names = options.folder("glue_rows"), options.chosen(TASKS)
    jobs = []
    for name in names:
        for way, (drawn, strategy) in WAYS.items():
            for seed in range(options.seeds):
                begun = random_start(model, folder / "random" / called(model) / str(seed), seed) if drawn else model
                train = replace(LAST, seed=seed, epochs=options.epochs)
                tuning = replace(task(name, options, folder), model=begun, strategy=strategy, train=train)
                jobs.append(Job((name, way, str(seed)), tuning))

    about = {"model": called(model), "weights": weights(model)}

    def tell(results: Results) -> None:
        rows: dict[str, Any] = {way: {} for way in TITLES}
        for name in dict.fromkeys(key[0] for key in results):
            for way in WAYS:
                rows[way][name] = summary(found for key, found in results.items() if key[:2] == (name, way))
            sides = [
                {folder.joinpath(*key): one for key, one in results.items() if key[:2] == (name, way)}
                for way in ("full", "random")
            ]
            tuning = replace(task(name, options, folder), model=model)
            rows["full"][name]["p"] = chance(folder / name / "compared", sides, tuning)
            rows["vectors"][name] = summary([averaged(folder / name / "vectors", tuning)])
        finish("glue_rows", options, {"rows": rows}, lambda whole: table(whole["rows"]), draw, about)

    carried_out(jobs, options, folder, tell)


def averaged(folder: Path, tuning: Tuning) -> dict[str, Any]:
    """The score of a linear model on averaged token embeddings; made once."""
    return once(folder, {"vectors": beyond_usual(tuning)}, lambda: _averaged(tuning))


def _averaged(tuning: Tuning) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = read_data(tuning)
    said, train, dev = splits.train.task, splits.train.examples, splits.dev.examples
    weights = headless(tuning.model).state_dict()
    vectors = next(value for name, value in weights.items() if name.endswith("embeddings.tokens")).float().numpy()
    tokenizer = Tokenizer.load(find_folder(tuning.model))
    linear = Ridge() if said.output == "score" else LogisticRegression(max_iter=1000)
    fitted = make_pipeline(StandardScaler(), linear).fit(
        _features(train, tokenizer, vectors), [example.label for example in train]
    )
    found = fitted.predict(_features(dev, tokenizer, vectors))
    predictions = [float(one) if said.output == "score" else int(one) for one in found]
    return {"metric": said.metric, "score": round(measure(said, dev, predictions)[said.metric], 5), "minutes": 0.0}


def _features(examples: Sequence[Example], tokenizer: Tokenizer, vectors: Any) -> Any:
    """[examples, width], or four times as wide for pairs."""
    means = []
    for number in range(len(examples[0].texts)):
        texts = [example.texts[number] for example in examples]
        found = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
        width = vectors.shape[1]
        means.append(np.stack([vectors[one.ids].mean(0) if one.ids else np.zeros(width) for one in found]))
    if len(means) == 1:
        return means[0]
    first, second = means
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def table(rows: dict[str, Any]) -> str:
    """A line a way, a column a task, as GLUE's own."""
    lines = []
    rows = {way: in_order(scores) for way, scores in rows.items()}
    for way, scores in rows.items():
        mean = statistics.mean(one["median"] for one in scores.values())
        lines.append([TITLES[way], *(shown(one) for one in scores.values()), f"{100 * mean:.1f}"])
    against = [f"{one['p']:.2g}" if "p" in one else "–" for one in rows["full"].values()]
    lines.append(["p that all trained and random start differ by chance", *against, ""])
    head = [titled(name, one) for name, one in next(iter(rows.values())).items()]
    return markdown(["", *head, "mean"], lines)


def draw(content: dict[str, Any], path: Path) -> None:
    """Medians by task, a bar a way."""
    with picture(path) as axes:
        axis = axes[0, 0]
        for colour, (way, found) in enumerate(content["rows"].items()):
            scores = in_order(found)
            places = np.arange(len(scores)) + 0.13 * (colour - 2)
            medians = [100 * one["median"] for one in scores.values()]
            axis.bar(places, medians, width=0.13, label=TITLES[way], color=f"C{colour}")
        axis.set_xticks(range(len(scores)), list(scores), rotation=40, ha="right")
        axis.set(ylabel="score")
        axis.legend(fontsize="small")


if __name__ == "__main__":
    run(app)
