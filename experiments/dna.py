"""Does English help with DNA? Every base is written as an English word, and a model of English learns to classify genes.

    BERTKIN_DATA=shared/data python experiments/dna.py --price
    BERTKIN_DATA=shared/data python experiments/dna.py --models runs/mine --tasks promoters

The real encoder is among the models unless --no-real is said.

UCI's splice junctions (3,190 sequences of 60 bases; donor, acceptor or neither) and promoters of E. coli (106 of 57; promoter
or not). Rows are shuffled once and laid in five folds; each seed holds out another fold, so that all five seeds together
are asked every row once. Scores are accuracies on the fold held out.

    pretrained      the model of English, all of it trained
    frozen          the same, its head alone trained
    random          its shape with weights drawn anew, all of it trained, by the same recipe
    random, fast    the same at rate 5e-4: what is drawn anew may want larger steps
    random, frozen  drawn anew, its head alone trained

Results go into dna.json and dna.png beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from sharing import data, markdown, picture, run
from starts import beginnings, called, random_start
from tuned import LAST, Job, Options, Results, carried_out, finish, shown, summary

from bertkin.errors import UserError
from bertkin.models.pretrained import find_folder
from bertkin.models.strategy import Kind, Strategy
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer

FOLDS = 5
TASKS = {
    "splice": ("dna/splice.csv", Tuning(batch=32, train=replace(LAST, epochs=10.0))),
    "promoters": ("dna/promoters.data", Tuning(batch=8, train=replace(LAST, epochs=30.0))),
}
SIDES: dict[str, tuple[bool, Kind, dict[str, Any]]] = {
    "pretrained": (False, "full", {}),
    "frozen": (False, "frozen", {}),
    "random": (True, "full", {}),
    "random, fast": (True, "full", {"lr": 5e-4}),
    "random, frozen": (True, "frozen", {}),
}
"""Whether the start is drawn anew, the strategy, and what else differs."""
ANY = "any"
"""The word of a base that was not told apart (N, R, S, D)."""
app = App(help_format="plaintext")


@Parameter(name="*")
@dataclass(frozen=True)
class Folded(Options):
    """A seed for each fold."""

    seeds: int = FOLDS
    """Folds that are held out, one after the other."""


@app.default
def main(
    options: Folded = Folded(),
    *,
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    real: bool = True,
    words: tuple[str, str, str, str] = ("air", "city", "gold", "time"),
) -> None:
    """Every model, task, side and fold that is not there yet; then all of them, written down.

    Parameters
    ----------
    models
        Run or model folders besides the real encoder.
    real
        Whether the real encoder is among the models.
    words
        Of A, C, G and T.
    """
    folder, bases = options.folder("dna"), dict(zip("ACGT", words, strict=True))
    for one in options.tasks:
        if one not in TASKS:
            raise UserError(f"no task {one!r}", where="--tasks", mend=f"choose of {', '.join(TASKS)}")
    stocks = {called(model): model for model in beginnings(models, real)}
    told = {name: _sizes(stock, words) for name, stock in stocks.items()}
    cuts = {"limit": options.limit, "rows": options.rows}
    marks = [f"-{name}{most}" for name, most in cuts.items() if most is not None]
    jobs, made = [], "".join(["-".join(words), *marks])  # what is cut has its own data
    for model, stock in stocks.items():
        for name in options.tasks or TASKS:
            path, tuning = TASKS[name]
            rows = sequences(Path(data(path)), bases)
            for seed in range(options.seeds):
                train, dev = fold(rows, seed, options, folder / "data" / made / name / str(seed))
                tuning = replace(tuning, data=(str(train),), dev=str(dev), text="text", label="label", task="class")
                for side, (drawn, strategy, more) in SIDES.items():
                    begun = random_start(stock, folder / "random" / model / str(seed), seed) if drawn else stock
                    how = replace(tuning.train, seed=seed, epochs=options.epochs or tuning.train.epochs, **more)
                    job = replace(tuning, model=begun, strategy=Strategy(strategy), train=how)
                    jobs.append(Job((model, name, side, str(seed)), job))

    def tell(results: Results) -> None:
        content: dict[str, Any] = {}
        for model, name, side, _ in results:
            row = summary(found for key, found in results.items() if key[:3] == (model, name, side))
            content.setdefault(model, {}).setdefault(name, {})[side] = row
        said = {"tokens_a_word": told, "models": content}
        finish("dna", options, said, lambda whole: table(whole["models"]), draw, {"words": bases})

    carried_out(jobs, options, folder, tell)


def sequences(path: Path, bases: dict[str, str]) -> list[tuple[str, str]]:
    """(label, sequence in words) of a file whose first column is the label and last one the bases, shuffled."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) > 1 and cells[0].lower() != "class":
            sequence = cells[-1].split()[-1].upper()  # tabs stand before it in one of the files
            rows.append((cells[0], " ".join(bases.get(base, ANY) for base in sequence)))
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def fold(rows: list[tuple[str, str]], seed: int, options: Options, folder: Path) -> tuple[Path, Path]:
    """Files of the rows that are trained on and of the fold held out."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for number, row in enumerate(rows[: options.limit]):
        parts["dev" if number % FOLDS == seed % FOLDS else "train"].append(row)
    parts["train"] = parts["train"][: options.rows]
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("label", "text"), *lines])
    return folder / "train.csv", folder / "dev.csv"


def _sizes(stock: str, words: tuple[str, ...]) -> list[int]:
    """How many tokens a model reads each of the words as."""
    tokenizer = Tokenizer.load(find_folder(stock))
    return [len(tokenizer.backend.encode(word, add_special_tokens=False).ids) for word in words]


def table(content: dict[str, Any]) -> str:
    """A line a model and task: the mean accuracy of each side over the folds."""
    rows = []
    for model, found in content.items():
        for name, sides in found.items():
            means = [shown(one | {"median": one["mean"]}) for one in sides.values()]
            examples = sides["pretrained"].get("examples")
            rows.append([f"{model}, {name}" + (f" ({examples:,} rows)" if examples else ""), *means])
    return markdown(["mean accuracy over the folds", *SIDES], rows)


def draw(content: dict[str, Any], path: Path) -> None:
    """A panel a model and task: every fold of every side, and their mean."""
    panels = [(model, name, sides) for model, found in content["models"].items() for name, sides in found.items()]
    with picture(path, 1, len(panels), (4.5 * len(panels), 4)) as axes:
        for axis, (model, name, sides) in zip(axes[0], panels, strict=True):
            for place, one in enumerate(sides.values()):
                axis.scatter([place] * len(one["scores"]), [100 * score for score in one["scores"]], s=14, alpha=0.6)
                axis.hlines(100 * one["mean"], place - 0.3, place + 0.3, color="black")
            axis.set(ylabel="accuracy", title=f"{model}, {name}")
            axis.set_xticks(range(len(sides)), list(sides), rotation=40, ha="right")


if __name__ == "__main__":
    run(app)
