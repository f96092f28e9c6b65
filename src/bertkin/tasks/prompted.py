"""What came out of prompting: runs by model, shots and seed; as a table, as data, as a picture; and how answers are judged."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.errors import MissingExtra, UserError, disk_errors
from bertkin.models.folders import write_aside
from bertkin.tasks.comparing import bleu_of, bleu_rows, exact, overlap


@dataclass(frozen=True)
class Run:
    """One model, asked with so many examples, drawn by one seed."""

    model: str
    parameters: int
    shots: int
    seed: int
    scores: Mapping[str, float]
    """Shares from 0 to 1 by name: accuracy where answers are chosen; exact, f1 (and bleu) where they are written."""
    left_out: int
    """Examples that did not fit into the context, over all rows."""


@dataclass(frozen=True)
class Prompted:
    """All runs, and what they are to be compared with. Printed, a table over shots."""

    task: str
    pattern: str
    scored: str
    """How, in words."""
    rows: int
    """Test rows."""
    choices: tuple[str, ...]
    baselines: Mapping[str, float]
    """What answering without reading gives: the most frequent answer always, and a guess."""
    runs: tuple[Run, ...]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(run.model for run in self.runs))

    @property
    def shots(self) -> list[int]:
        return sorted({run.shots for run in self.runs})

    @property
    def measures(self) -> list[str]:
        """Names of the scores, the first the one that counts."""
        return list(self.runs[0].scores)

    def of(self, model: str, shots: int) -> list[Run]:
        return [run for run in self.runs if (run.model, run.shots) == (model, shots)]

    def mean(self, model: str, shots: int, measure: str | None = None) -> tuple[float, float]:
        """Mean over seeds, and standard deviation (0 for a single one)."""
        values = [run.scores[measure or self.measures[0]] for run in self.of(model, shots)]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        means = []
        for model in self.models:
            for shots in self.shots:
                runs = self.of(model, shots)
                entry: dict[str, Any] = {"model": model, "parameters": runs[0].parameters, "shots": shots}
                for measure in self.measures:
                    mean, deviation = self.mean(model, shots, measure)
                    entry[measure] = round(mean, 5)
                    entry[f"{measure}_deviation"] = round(deviation, 5)
                means.append(entry | {"left_out": sum(run.left_out for run in runs)})
        runs_told = [
            {"model": run.model, "shots": run.shots, "seed": run.seed, "left_out": run.left_out}
            | {name: round(value, 5) for name, value in run.scores.items()}
            for run in self.runs
        ]
        return {
            "task": self.task,
            "pattern": self.pattern,
            "scored": self.scored,
            "rows": self.rows,
            "choices": list(self.choices),
            "baselines": {name: round(value, 5) for name, value in self.baselines.items()},
            "means": means,
            "runs": runs_told,
        }

    def __str__(self) -> str:
        head = [["", "parameters", *(_plural(shots, "shot") for shots in self.shots)]]
        for model in self.models:
            size = _short(self.of(model, self.shots[0])[0].parameters)
            for number, measure in enumerate(self.measures):
                name = model if len(self.measures) == 1 else f"{model}, {measure}"
                cells = [_share(*self.mean(model, shots, measure)) for shots in self.shots]
                head.append([name, "" if number else size, *cells])
        head += [[name, "", *[_share(value, 0.0)] * len(self.shots)] for name, value in self.baselines.items()]
        widths = [max(len(row[column]) for row in head) for column in range(len(head[0]))]
        lines = [f"task     {self.task}"] if self.task else []
        lines += [f"pattern  {self.pattern!r}", f"asked    {self.rows:,} rows, {self.scored}", ""]
        for row in head:
            cells = [f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        notes = []
        for model in self.models:
            for shots in self.shots:
                left_out = sum(run.left_out for run in self.of(model, shots))
                if left_out:
                    wanted = shots * self.rows * len(self.of(model, shots))
                    notes.append(
                        f"{model}: of {wanted:,} examples, {shots} a row, {left_out:,} did not fit and were left out"
                    )
        return "\n".join(lines + ([""] if notes else []) + notes)

    def plot(self, path: str | Path) -> None:
        """Draw the first measure over shots and, of several models, over parameters.

        Raises:
            UserError: matplotlib is missing, knows no such picture, or the disk refuses.
        """
        see_picture(path)
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter

        panels = 2 if len(self.models) > 1 else 1
        with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
            figure = Figure(figsize=(5.2 * panels, 3.6), layout="constrained")
            over_shots, *over_sizes = figure.subplots(1, panels, squeeze=False)[0]
            for model in self.models:
                means, deviations = zip(*(self.mean(model, shots) for shots in self.shots), strict=True)
                over_shots.errorbar(self.shots, means, yerr=deviations, marker="o", capsize=2, label=model)
            over_shots.set(xlabel="shots", ylabel=self.measures[0], xticks=self.shots, title=self.task or self.pattern)
            for axes in over_sizes:
                sizes = [self.of(model, self.shots[0])[0].parameters for model in self.models]
                order = np.argsort(sizes, kind="stable")
                for shots in self.shots:
                    means, deviations = zip(*(self.mean(self.models[i], shots) for i in order), strict=True)
                    x = [sizes[i] for i in order]
                    axes.errorbar(x, means, yerr=deviations, marker="o", capsize=2, label=_plural(shots, "shot"))
                axes.set(xlabel="parameters", xscale="log")
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                axes.xaxis.set_minor_formatter(EngFormatter(sep=""))
            for axes in (over_shots, *over_sizes):
                for name, value in self.baselines.items():
                    style = "--" if name == "majority" else ":"
                    axes.axhline(value, color="grey", linewidth=0.8, linestyle=style, label=name)
                axes.legend(fontsize=7)
            with disk_errors(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                drawn = io.BytesIO()
                figure.savefig(drawn, dpi=150, format=Path(path).suffix[1:].lower())
                write_aside(Path(path), drawn.getvalue())


def see_picture(path: str | Path) -> None:
    """See that a picture can be drawn and is named as one.

    Raises:
        UserError: matplotlib is missing, or knows no such picture.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "drawing") from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise UserError("no picture is named so", where=path, mend=f"let it end in .{', .'.join(sorted(known))}")


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _share(mean: float, deviation: float) -> str:
    return f"{100 * mean:.1f}%" + (f" ± {100 * deviation:.1f}" if deviation else "")


def _short(n: int) -> str:
    for size, mark in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{mark}"
    return str(n)


def judged(written: Sequence[str], wanted: Sequence[str], *, translated: bool = False) -> dict[str, float]:
    """How far written answers are the wanted ones: means of exact and f1, as SQuAD counts them (see
    `bertkin.tasks.comparing`); of translations BLEU too, 0 to 1, where sacrebleu is installed."""
    pairs = list(zip(written, wanted, strict=True))
    scores = {
        "exact": float(np.mean([exact(*pair) for pair in pairs])),
        "f1": float(np.mean([overlap(*pair) for pair in pairs])),
    }
    if translated:
        with contextlib.suppress(MissingExtra):
            scores["bleu"] = float(bleu_of(bleu_rows(written, [[one] for one in wanted]).sum(0)))
    return scores
