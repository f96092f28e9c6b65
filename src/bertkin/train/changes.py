"""What going on with a model has changed: how well the new text, and the old, were predicted before and are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertkin.train.state import kept_evaluation, read_log

NAMED = (("new text", "loss", "accuracy"), ("old text", "kept_loss", "kept_accuracy"))
"""Texts, and the fields of an evaluation that are about their held-out part."""


@dataclass(frozen=True)
class Change:
    """How the held-out part of a text is predicted before and after."""

    text: str
    before: float
    """Loss in nats."""
    after: float
    accuracy_before: float
    accuracy_after: float


def changes(run: Path | Sequence[dict[str, Any]]) -> list[Change]:
    """The new text's and, if it was measured, the old one's, of a run folder or the records of its log.

    Empty where the run began with weights drawn anew, or has not been measured again yet.
    """
    records = read_log(run) if isinstance(run, Path) else run
    measured = [record for record in records if record.get("kind") == "evaluation"]
    if len(measured) < 2 or measured[0].get("step") != 0:
        return []
    first, last = measured[0], kept_evaluation(list(records)) or measured[-1]  # of the weights that are there
    return [
        Change(text, float(first[loss]), float(last[loss]), float(first[accuracy]), float(last[accuracy]))
        for text, loss, accuracy in NAMED
        if all(isinstance(record.get(name), int | float) for record in (first, last) for name in (loss, accuracy))
    ]


def table(run: Path) -> str:
    """`changes` for a terminal; empty where there are none."""
    rows = [
        f"{c.text:<9} {c.before:>8.3f} {c.after:>8.3f} {c.accuracy_before:>10.1%} {c.accuracy_after:>8.1%}"
        for c in changes(run)
    ]
    head = f"{'held-out':<9} {'loss':>8} {'after':>8} {'accuracy':>10} {'after':>8}"
    return "\n".join([head, *rows]) if rows else ""
