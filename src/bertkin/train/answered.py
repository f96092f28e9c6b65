"""The sections of a report about a task's answers, drawn from a run's review.json (`bertkin.tasks.review` says what is in it).

Nothing here is computed but places on the page, and whatever a review does not have is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bertkin.train.charts import Curve, svg

LONGEST = 300
"""Characters of a text in the list of mistakes."""


def sections(review: Mapping[str, Any], title: str = "What it answers") -> str:
    """What a model answers, as HTML; "" of an empty review."""
    dev = review.get("dev")
    if not isinstance(dev, Mapping):
        return ""
    figures = [_calibration(dev), _points(dev), _layers(review)]
    tables = [_confusion(dev), _confused(dev), _classes(dev, "classes"), _classes(dev, "entities")]
    return "".join(
        [
            f"<h2>{escape(title)}</h2>",
            _scores(review),
            f'<div class="charts">{"".join(figures)}</div>' if any(figures) else "",
            "".join(tables),
            _worst(review),
        ]
    )


def _scores(review: Mapping[str, Any]) -> str:
    parts = [part for part in ("dev", "test") if part in review]
    dev = review["dev"]
    head = "".join(f"<td>{part}, {review[part]['examples']:,} examples</td><td>95% interval</td>" for part in parts)
    rows = []
    for name in dev["scores"]:
        cells = ""
        for part in parts:
            score = review[part]["scores"][name]
            between = "" if score["low"] is None else f"{score['low']:.4f} – {score['high']:.4f}"
            cells += f"<td><b>{score['value']:.4f}</b></td><td>{between}</td>"
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    warning = ""
    if dev["degenerate"]:
        warning = f"<p class=strong>It answers {escape(dev['degenerate'])} everywhere: it has not learnt the task.</p>"
    return f"<section>{warning}<table><tr><th></th>{head}</tr>{''.join(rows)}</table></section>"


def _figure(title: str, note: str, chart: str) -> str:
    return f"<figure><figcaption>{title} <span class=quiet>{note}</span></figcaption>{chart}</figure>"


def _calibration(dev: Mapping[str, Any]) -> str:
    """Share of right answers by the probability they were given with."""
    if "calibration" not in dev:
        return ""
    found = dev["calibration"]
    curves = [
        Curve("as sure as it is right", [(0.0, 0.0), (1.0, 1.0)]),
        Curve("share right", [(sure, right) for sure, right, _ in found["bins"]], accent=True),
    ]

    def percent(value: float) -> str:
        return f"{value:.0%}"

    chart = svg(curves, label="share of right answers by probability", x_form=percent, y_form=percent)
    note = f"right answers by probability; expected calibration error {found['error']:.3f}"
    return _figure("Calibration", note, chart)


def _points(dev: Mapping[str, Any]) -> str:
    """Predicted scores against true ones."""
    points = [(float(x), float(y)) for x, y in dev.get("points", [])]
    if not points:
        return ""
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    curves = [
        Curve("equal", [(low, low), (high, high)]),
        Curve("predicted", sorted(points), accent=True, joined=False),
    ]

    def number(value: float) -> str:
        return f"{value:.3g}"

    return _figure(
        "Scores", "predicted by true", svg(curves, label="predicted by true score", x_form=number, y_form=number)
    )


def _layers(review: Mapping[str, Any]) -> str:
    """The share of each layer in what the head reads."""
    shares = review.get("layers") or []
    if not shares:
        return ""
    curve = Curve("share", [(float(at), float(share)) for at, share in enumerate(shares)], accent=True)
    chart = svg([curve], label="share of each layer", x_form=lambda x: f"{x:g}", y_form=lambda y: f"{y:.1%}")
    return _figure("Layers", "share of each in what the head reads; 0 are the embeddings", chart)


def _confusion(dev: Mapping[str, Any]) -> str:
    """Classes wanted (rows) by classes answered (columns), shaded by their share of the row."""
    if "confusion" not in dev:
        return ""
    labels, counts = dev["confusion"]["labels"], dev["confusion"]["counts"]
    head = "".join(f"<td>{escape(str(label))}</td>" for label in labels)
    rows = []
    for at, (label, row) in enumerate(zip(labels, counts, strict=True)):
        cells = "".join(_cell(count, sum(row), right=at == column) for column, count in enumerate(row))
        rows.append(f"<tr><th>{escape(str(label))}</th>{cells}</tr>")
    note = "<span class=quiet>rows: wanted, columns: answered</span>"
    return (
        f"<h2>Confusion {note}</h2><section><table class=grid><tr><th></th>{head}</tr>{''.join(rows)}</table></section>"
    )


def _cell(count: int, total: int, *, right: bool) -> str:
    colour = "42,157,85" if right else "217,98,43"
    share = count / total if total else 0.0
    return f'<td style="background:rgba({colour},{0.6 * share:.2f})">{count:,}</td>'


def _confused(dev: Mapping[str, Any]) -> str:
    """The commonest confusions, where there are too many classes for a table of all."""
    rows = "".join(
        f"<tr><td>{escape(str(wanted))}</td><td>{escape(str(said))}</td><td>{count:,}</td></tr>"
        for wanted, said, count in dev.get("confused", [])
    )
    head = "<tr><th>wanted</th><th>answered</th><th>times</th></tr>"
    return f"<h2>Commonest confusions</h2><section><table>{head}{rows}</table></section>" if rows else ""


def _classes(dev: Mapping[str, Any], key: str) -> str:
    """Precision, recall and F1 of each class or type of entity."""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{p:.1%}</td><td>{r:.1%}</td><td><b>{f1:.1%}</b></td><td>{n:,}</td></tr>"
        for name, (p, r, f1, n) in dev.get(key, {}).items()
    )
    head = "<tr><th></th><td>precision</td><td>recall</td><td>F1</td><td>there are</td></tr>"
    return (
        f"<h2>By {'class' if key == 'classes' else 'type'}</h2><section><table>{head}{rows}</table></section>"
        if rows
        else ""
    )


def _worst(review: Mapping[str, Any]) -> str:
    """The surest of all wrong answers, or those farthest off."""
    worst = review.get("worst") or []
    if not worst:
        return ""
    rows = []
    for one in worst:
        sure = "" if one["probability"] is None else f"{one['probability']:.0%}"
        text = " | ".join(str(part) for part in one["texts"])
        short = text if len(text) <= LONGEST else text[:LONGEST] + " …"
        where = f"<span class=quiet>{escape(str(one['where']))}</span>"
        cells = f"<td>{_named(one['answered'])}</td><td>{_named(one['wanted'])}</td><td>{escape(short)} {where}</td>"
        rows.append(f"<tr><th>{sure}</th>{cells}</tr>")
    head = "<tr><th></th><th>answered</th><th>wanted</th><th>text</th></tr>"
    note = f"<span class=quiet>{len(worst):,} of {review['mistakes']:,}; all are in mistakes.jsonl</span>"
    return f"<h2>Worst mistakes {note}</h2><section><table>{head}{''.join(rows)}</table></section>"


def _named(answer: Any) -> str:
    """An answer in words."""
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        pairs = [f"{one[0]}/{one[1]}" if isinstance(one, list | tuple) else str(one) for one in answer]
        return escape(", ".join(pairs) or "nothing")
    return escape(str(answer) or "no answer")
