"""What a suite came to: scores over seeds, a table for a page, a paper or a spreadsheet, and two models compared.

print(results)                              Markdown; also results.latex() and results.csv()
keep_answers(folder, task, dev, …)          what the middle seed answered, for whoever compares with it
compare(theirs, ours, name)                 whether two models differ by more than chance on a task
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertkin.errors import UserError, disk_errors
from bertkin.tasks.metrics import METRICS
from bertkin.tasks.significance import Difference, difference
from bertkin.tasks.task import Example, Task, tidy
from bertkin.train.state import write_text

ANSWERS, RESULTS = "answers.json", "results.json"


@dataclass(frozen=True)
class Scores:
    """A task's results over seeds; scores on the dev data.

    Attributes:
        metric: which one.
        last, best: of each seed, at its end and at its best evaluation.
        low, high: where the middle seed's score lies for 95% of dev sets drawn from this one (bootstrap).
        degenerate: seeds whose model says the same everywhere.
        minutes: of each seed; of another part of a task none.
        diverged: seeds whose loss ceased to be a number; no score is of them.
        of: the task that these are another part of, such as MNLI for its mismatched half; the two count once in a mean.
    """

    metric: str
    last: tuple[float, ...]
    best: tuple[float, ...]
    low: float
    high: float
    degenerate: tuple[int, ...]
    minutes: tuple[float, ...]
    human: float | None = None
    of: str = ""
    diverged: tuple[int, ...] = ()

    @property
    def top(self) -> float:
        """The best evaluation of any seed."""
        return METRICS[self.metric].best(self.best)

    @property
    def median(self) -> float:
        return statistics.median(self.last)

    @property
    def mean(self) -> float:
        return statistics.mean(self.last)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.last) if len(self.last) > 1 else 0.0

    @property
    def by_error(self) -> bool:
        """Whether the metric is an error: in the data's own unit, of any size, and the less the better."""
        return not METRICS[self.metric].higher

    def short(self, value: float) -> float:
        """A value of this metric with as many digits as say something."""
        return tidy(value) if self.by_error else round(value, 5)


@dataclass(frozen=True)
class Results:
    """What a suite came to.

    Attributes:
        against: the other model, and of each task that it did too how the two compare; its score is `one`.
        gone: tasks of which every seed diverged; the mean is without them, and says so.
    """

    model: str
    strategy: str
    tasks: dict[str, Scores]
    against: str = ""
    differences: dict[str, Difference] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean of the tasks' medians, without those that are errors (`by_error`); parts of one task count together as one. NaN
        where all are errors."""
        counted = {name: s for name, s in self.tasks.items() if not s.by_error}
        whole = [name for name, s in counted.items() if not s.of]
        parts = {name: [s.median for other, s in counted.items() if name in (other, s.of)] for name in whole}
        return statistics.mean(statistics.mean(medians) for medians in parts.values()) if parts else math.nan

    @property
    def by_error(self) -> tuple[str, ...]:
        """Tasks whose metric is an error, in the data's own unit: no mean of it and of shares would say anything."""
        return tuple(name for name, s in self.tasks.items() if s.by_error)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = {}
        for name, s in self.tasks.items():
            short = s.short
            rows[name] = {"metric": s.metric, "median": short(s.median), "mean": short(s.mean)}
            rows[name] |= {"deviation": short(s.deviation), "last": list(s.last), "best": list(s.best)}
            rows[name] |= {"interval": [short(s.low), short(s.high)], "degenerate": list(s.degenerate)}
            rows[name] |= {"minutes": list(s.minutes), "human": s.human} | ({"of": s.of} if s.of else {})
            rows[name] |= {"diverged": list(s.diverged)} if s.diverged else {}
            if name in self.differences:
                other = self.differences[name]
                rows[name]["against"] = {
                    "theirs": short(other.one),
                    "ours": short(other.two),
                    "p": round(other.p, 5),
                }
        mean = None if math.isnan(self.mean) else round(self.mean, 5)
        told: dict[str, Any] = {"model": self.model, "strategy": self.strategy, "mean": mean, "tasks": rows}
        told |= {"gone": list(self.gone)} if self.gone else {}
        return told | ({"against": self.against} if self.against else {})

    def rows(self) -> list[list[str]]:
        """The table, its head first, in hundredths as the field has them; errors as they are."""
        other = [self.against, "p"] if self.against else []
        found = [["task", "metric", "median", "mean ± deviation", "best", "95% interval", *other, "people", "minutes"]]
        for name, s in self.tasks.items():
            flag = f" ({len(s.degenerate)} of {len(s.last)} say one thing)" if s.degenerate else ""
            flag += f" ({len(s.diverged)} of {len(s.last) + len(s.diverged)} diverged)" if s.diverged else ""
            shown = _plain if s.by_error else _hundredths
            row = [name + flag, s.metric, shown(s.median), f"{shown(s.mean)} ± {shown(s.deviation)}"]
            row += [shown(s.top), f"{shown(s.low)} – {shown(s.high)}"]
            if self.against:
                both = self.differences.get(name)
                row += [shown(both.one), f"{both.p:.4f}"] if both else ["", ""]
            row += ["" if s.human is None else shown(s.human)]
            found.append([*row, f"{statistics.median(s.minutes):.1f}" if s.minutes else ""])
        found += [[f"{name} (every seed diverged)", *[""] * (len(found[0]) - 1)] for name in self.gone]
        without = [*self.gone, *self.by_error]
        mean = f"mean without {', '.join(without)}" if without else "mean"
        told = "" if math.isnan(self.mean) else _hundredths(self.mean)
        return [*found, [mean, "", told, *[""] * (len(found[0]) - 3)]]

    def __str__(self) -> str:
        """A table in Markdown."""
        head, *rows = self.rows()
        lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in lines)

    def latex(self) -> str:
        """A tabular for LaTeX, with the rules of booktabs."""
        head, *rows = [[_escaped(cell) for cell in row] for row in self.rows()]
        lines = [" & ".join(row) + r" \\" for row in (head, *rows)]
        columns = "ll" + "r" * (len(head) - 2)
        middle = [lines[0], r"\midrule", *lines[1:-1], r"\midrule", lines[-1]]
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *middle, r"\bottomrule", r"\end{tabular}"])

    def csv(self) -> str:
        """Every number of the table as it is, parted by commas."""
        stream = io.StringIO()
        out = csv.writer(stream, lineterminator="\n")
        names = ["task", "metric", "median", "mean", "deviation", "best", "low", "high"]
        out.writerow([*names, "seeds", "degenerate", "people", "minutes", "theirs", "p", "diverged"])
        for name, s in self.tasks.items():
            numbers = [s.short(value) for value in (s.median, s.mean, s.deviation, s.top, s.low, s.high)]
            minutes = round(statistics.median(s.minutes), 3) if s.minutes else ""
            both = self.differences.get(name)
            last = [s.short(both.one), round(both.p, 5)] if both else ["", ""]
            human = "" if s.human is None else s.human
            counts = [len(s.last), len(s.degenerate)]
            out.writerow([name, s.metric, *numbers, *counts, human, minutes, *last, len(s.diverged)])
        for name in self.gone:
            out.writerow([name, *[""] * 13, "all"])
        return stream.getvalue().rstrip("\n")


def _hundredths(value: float) -> str:
    return f"{100 * value:.1f}"


def _plain(value: float) -> str:
    return str(tidy(value)).removesuffix(".0")


def _escaped(cell: str) -> str:
    for character in "&%$#_{}":
        cell = cell.replace(character, "\\" + character)
    return cell.replace("±", r"$\pm$").replace("–", "--")


# Two models.


def keep_answers(folder: Path, task: Task, dev: Sequence[Example], metric: str, answers: Sequence[Any]) -> None:
    """Write down what a model answered to the dev examples.

    Raises:
        UserError: the disk refuses.
    """
    told = {"examples": _hash(task, dev), "metric": metric, "answers": list(answers)}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ANSWERS, json.dumps(told, ensure_ascii=False) + "\n")


def _hash(task: Task, examples: Sequence[Example]) -> str:
    digest = hashlib.blake2b(repr((task.output, task.labels)).encode("utf-8", "surrogatepass"), digest_size=16)
    for one in examples:
        digest.update(repr((one.texts, one.label, one.choices)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def compare(theirs: Path, ours: Path, name: str, task: Task, dev: Sequence[Example]) -> Difference | None:
    """How the middle seeds of two models compare on the examples of a task; None where the other did not do it.

    Args:
        theirs, ours: folders of `bertkin evaluate`.
        name: of the task.

    Raises:
        UserError: the other was measured on other examples, or cannot be read.
    """
    found = [kept_answers(folder, name, task, dev) for folder in (theirs, ours)]
    one, two = found
    return None if one is None or two is None else difference(two[0], task, dev, one[1], two[1])


def kept_answers(folder: Path, name: str, task: Task, dev: Sequence[Example]) -> tuple[str, list[Any]] | None:
    """The metric of a task and what a model's middle seed answered to each of its examples; None where it did not do it.

    Args:
        folder: of `bertkin evaluate`.

    Raises:
        UserError: it was measured on other examples, or cannot be read.
    """
    path = folder / name / ANSWERS
    if not path.exists():
        return None
    try:
        told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same, answers, metric = told["examples"] == _hash(task, dev), list(told["answers"]), str(told["metric"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot be read ({error})", where=path, mend="evaluate that model again") from None
    if not same or len(answers) != len(dev):
        raise UserError("measured on other examples", where=path, mend="evaluate both models on the same data")
    return metric, answers


def other_model(path: Path) -> tuple[Path, str]:
    """The folder of another model's results, and its name.

    Args:
        path: the folder of a `bertkin evaluate`, or its results.json.

    Raises:
        UserError: no results there.
    """
    folder = path.parent if path.name == RESULTS else path
    try:
        told = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        model = Path(str(told["model"]))
    except (OSError, ValueError, KeyError, TypeError):
        mend = "give the --out of another `bertkin evaluate`"
        raise UserError("no results to compare with", where=folder / RESULTS, mend=mend) from None
    return folder, (model.parent if model.name == "model" else model).name or folder.name
