"""The end of a fine-tuning: its answers are looked over, the worst mistakes shown, the model's card and the report written.

By now the weights are safe: whatever the disk refuses here is a line, and the run is whole without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bertkin.models.wraps import Mixed
from bertkin.tasks.answering import Prediction
from bertkin.tasks.card import card
from bertkin.tasks.encoding import Rows
from bertkin.tasks.gathering import Gathered
from bertkin.tasks.review import Mistake, mistakes, review
from bertkin.tasks.task import tidy
from bertkin.train.folder import MISTAKES, REVIEW, TESTED
from bertkin.train.progress import Listener
from bertkin.train.report import write_report
from bertkin.train.state import write_text

SHOWN = 5
"""Mistakes at the terminal."""
LISTED = 50
"""Mistakes in the report."""
WIDTH = 60
"""Characters of a text at the terminal."""

Ask = Callable[[Rows], tuple[list[Prediction], dict[str, float]]]


def conclude(out: Path, found: Gathered, model: nn.Module, ask: Ask, listener: Listener) -> None:
    """Write review.json, mistakes.jsonl, test.json (where there are test data), model/README.md and the report; say the
    scores, the worst mistakes, and whether the model says one thing everywhere.

    Mistakes are those on the development data. Test data are measured and otherwise left unseen.

    Args:
        model: as it is saved.
        ask: answers to rows, and their loss and metrics.

    Raises:
        UserError: the disk refuses.
    """
    told, wrong, tested = _looked_over(found, model, ask)
    if tested:
        write_text(out / TESTED, json.dumps(tested, indent=1) + "\n")
    _keep(out, told, [one.to_mapping() for one in wrong])
    write_text(out / "model" / "README.md", card(found, model, out, told))
    write_report(out)
    for line in _said(out, found.task.metric, told, wrong):
        listener.message(line)


def conclude_all(
    out: Path, tasks: Mapping[str, tuple[Gathered, nn.Module, Ask]], listener: Listener
) -> dict[str, dict[str, float]]:
    """The same for tasks that were trained together: review.json has them by name, each line of mistakes.jsonl its task's
    name, and each task its card in model/NAME.

    Returns:
        What the test data of those that have some came to, which is not written.

    Raises:
        UserError: the disk refuses.
    """
    reviews: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    tests = {}
    for name, (found, model, ask) in tasks.items():
        told, wrong, tested = _looked_over(found, model, ask)
        reviews[name], tests[name] = told, tested
        lines += [{"task": name} | one.to_mapping() for one in wrong]
        write_text(out / "model" / name / "README.md", card(found, model, out, told, name))
        for line in _said(out, found.task.metric, told, wrong):
            listener.message(f"{name}: {line}" if not line.startswith(" ") else line)
    _keep(out, {"tasks": reviews}, lines)
    write_report(out)
    return {name: tested for name, tested in tests.items() if tested}


def _looked_over(found: Gathered, model: nn.Module, ask: Ask) -> tuple[dict[str, Any], list[Mistake], dict[str, float]]:
    """What a review holds, every wrong answer to the development data, and the scores on the test data."""
    task = found.task
    predictions, _ = ask(found.dev)
    wrong = mistakes(task, found.dev.examples, predictions)
    told: dict[str, Any] = {"task": task.to_mapping(), "dev": review(task, found.dev.examples, predictions)}
    told["mistakes"], told["worst"] = len(wrong), [one.to_mapping() for one in wrong[:LISTED]]
    tested: dict[str, float] = {}
    if found.test.rows:
        answers, scores = ask(found.test)
        told["test"] = review(task, found.test.examples, answers)
        tested = {name: tidy(value) for name, value in scores.items()}
    mixed = next((part for part in model.modules() if isinstance(part, Mixed)), None)
    if mixed is not None:
        told["layers"] = [round(share, 5) for share in mixed.shares.tolist()]
    return told, wrong, tested


def _keep(out: Path, told: Mapping[str, Any], wrong: Sequence[Mapping[str, Any]]) -> None:
    write_text(out / MISTAKES, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in wrong))
    write_text(out / REVIEW, json.dumps(told, ensure_ascii=False) + "\n")


def _said(out: Path, metric: str, told: Mapping[str, Any], wrong: Sequence[Mistake]) -> list[str]:
    """What people are told at the end."""
    lines = []
    for part in ("dev", "test"):
        if part in told:
            score, count = told[part]["scores"][metric], told[part]["examples"]
            between = f"95% between {score['low']:.4f} and {score['high']:.4f}"
            where = f", in {out / TESTED}" if part == "test" else ""
            lines.append(f"{part:<11} {metric} {score['value']:.4f}, {between} ({count:,} examples){where}")
    if same := told["dev"]["degenerate"]:
        lines.append(f"degenerate  it says {same} everywhere; train longer, at another rate, or with another seed")
    if wrong:
        lines.append(f"mistakes    {len(wrong):,} of {told['dev']['examples']:,}; the worst of {out / MISTAKES}:")
        lines += [f"  {line(one)}" for one in wrong[:SHOWN]]
    return lines


def line(mistake: Mistake) -> str:
    """A mistake on one line: how sure it was, what it said and should have, and the beginning of the text."""
    sure = "" if mistake.probability is None else f"{mistake.probability:4.0%}  "
    text = " | ".join(" ".join(one.split()) for one in mistake.texts)
    short = text if len(text) <= WIDTH else text[: WIDTH - 2] + " …"
    where = f"  ({mistake.where})" if mistake.where else ""
    return f"{sure}{named(mistake.answered)}, not {named(mistake.wanted)}: {short}{where}"


def named(answer: Any) -> str:
    """An answer in words."""
    if isinstance(answer, list):
        words = [f"{one[0]}/{one[1]}" if isinstance(one, list | tuple) else str(one) for one in answer]
        return (", ".join(words[:6]) + (" …" if len(words) > 6 else "")) or "nothing"
    text = " ".join(str(answer).split())
    return (text if len(text) <= WIDTH else text[: WIDTH - 2] + " …") or "no answer"
