"""report.html: one self-contained page that shows a run, made of its recipe.yaml, its log.jsonl and, of a fine-tuning, its
task.json and review.json, and of nothing else."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from bertkin.errors import disk_errors
from bertkin.objectives.make import ASKED, WRITERS
from bertkin.train.answered import sections
from bertkin.train.changes import changes
from bertkin.train.charts import STYLE, Curve, svg
from bertkin.train.state import kept_evaluation, read_log, write_text

SHOWN_EVALUATIONS = 5
"""Moments of the training at which samples are shown."""

Record = dict[str, Any]


def write_report(run: str | Path) -> Path:
    """Write (or write again) the report of a run.

    A log whose last line was cut off, or that has nothing in it yet, will do.

    Raises:
        UserError: the disk refuses.
    """
    run = Path(run)
    path = run / "report.html"
    records = read_log(run)
    with disk_errors(path):
        recipe = (run / "recipe.yaml").read_text(encoding="utf-8") if (run / "recipe.yaml").exists() else ""
        write_text(path, page(run.resolve().name, recipe, records, _review(run)))
    return path


def _review(run: Path) -> Record:
    """Of a fine-tuning: what it is of and, at its end, what was found of its answers; {} of others."""
    found: Record = {}
    for name in ("task.json", "review.json"):
        try:
            told = json.loads((run / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found |= told if isinstance(told, dict) else {}
    return found


def page(name: str, recipe: str, records: list[Record], review: Record | None = None) -> str:
    """The page as HTML.

    Args:
        review: of a fine-tuning, its task, and what `bertkin.tasks.review` found of its answers; of several tasks trained
            together the same by their names, as tasks.
    """
    named = dict(line.strip().split(": ", 1) for line in recipe.splitlines() if ": " in line)
    preset, kind = named.get("preset", ""), named.get("kind", "masked")
    verb = "generate" if kind in WRITERS else "fill"
    about, asked, headline = f"{preset} · grown with bertkin", ASKED.get(kind, ""), "accuracy"
    if "pooling" in named:  # a fine-tuning; its kind is that of its strategy
        stock = Path(named.get("model", ""))
        stock = stock.parent if stock.name == "model" else stock
        verb, about = "predict", f"{stock.name} · fine-tuned with bertkin · {kind}"
        task = (review or {}).get("task")
        asked, headline = "", str(task.get("metric", headline)) if isinstance(task, dict) else headline
        headline = "mean" if "sampling" in named else headline  # of several tasks together
    body = [
        f"<h1>{escape(name)}</h1><p class=quiet>{escape(about)}</p>",
        _tiles(records, headline),
        f'<div class="charts">{"".join(_figures(records, asked, headline))}</div>',
        sections(review or {}),
        *(sections(found, f"What it answers to {task}") for task, found in ((review or {}).get("tasks") or {}).items()),
        _changes(records),
        _samples(records),
        f"<details><summary>recipe</summary><pre>{escape(recipe)}</pre></details>" if recipe else "",
        f"<p class=quiet>In the folder that holds it: {_command('resume', name)}, {_command(verb, name, ' …')}.</p>",
    ]
    title = escape(f"{name} · bertkin")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1"><meta name=color-scheme content="light dark">'
        f"<title>{title}</title><style>{PAGE_STYLE}{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _command(verb: str, name: str, rest: str = "") -> str:
    return f"<code>bertkin {verb} {escape(name)}{rest}</code>"


def curve_svg(run: str | Path) -> str:
    """The loss curve alone, as an SVG file's content."""
    return _loss(read_log(Path(run)), style=STYLE)


def series(records: list[Record], kind: str, field: str) -> list[tuple[float, float]]:
    """(step, value) of every record of this kind that has a number there."""
    return [
        (float(r["step"]), float(r[field]))
        for r in records
        if r.get("kind") == kind and _is_number(r.get(field)) and _is_number(r.get("step"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(x: float) -> str:
    return f"{x:,.0f}" if x < 10_000 else f"{x / 1000:,.4g}k"


def _loss(records: list[Record], style: str = "") -> str:
    curves = [
        Curve("training loss", series(records, "step", "loss")),
        Curve("held-out loss", series(records, "evaluation", "loss"), accent=True),
    ]
    if kept := series(records, "evaluation", "kept_loss"):
        curves.append(Curve("held-out loss, old text", kept))
    return svg(curves, label="loss by step", x_form=_steps, y_form=lambda y: f"{y:.4g}", style=style)


def _figures(records: list[Record], asked: str, headline: str) -> list[str]:
    accuracy = [
        Curve("training accuracy", series(records, "step", "accuracy")),
        Curve("held-out accuracy", series(records, "evaluation", "accuracy"), accent=True),
    ]
    baselines = next((r for r in reversed(records) if r.get("kind") == "baselines"), {})
    named = (("bigram", "bigram"), ("most frequent token", "frequent"))
    levels = [(words, float(baselines[key])) for words, key in named if _is_number(baselines.get(key))]

    def one(title: str, note: str, chart: str) -> str:
        return f"<figure><figcaption>{title} <span class=quiet>{note}</span></figcaption>{chart}</figure>"

    def alone(field: str, name: str, form: str) -> str:
        curve = Curve(name, series(records, "step", field))
        return svg([curve], label=f"{name} by step", x_form=_steps, y_form=lambda y: format(y, form))

    both = "<span class=faint>training</span>; <b class=strong>held-out</b>" + (f", {asked}" if asked else "")
    score = one(
        "Accuracy",
        both,
        svg(accuracy, label="accuracy by step", x_form=_steps, y_form=lambda y: f"{y:.0%}", levels=levels),
    )
    if headline != "accuracy":
        curve = Curve(f"held-out {headline}", series(records, "evaluation", headline), accent=True)
        chart = svg([curve], label=f"{headline} by step", x_form=_steps, y_form=lambda y: f"{y:.3g}")
        score = one(escape(headline), "<b class=strong>held-out</b>", chart)
    return [
        one("Loss", both, _loss(records)),
        score,
        one("Learning rate", "", alone("lr", "learning rate", ".2g")),
        one("Throughput", "tokens a second", alone("tokens_per_second", "tokens a second", ",.0f")),
    ]


def _tiles(records: list[Record], headline: str) -> str:
    """The figures people ask for first."""
    kept = kept_evaluation(records) or {}
    last = next((r for r in reversed(records) if r.get("kind") in ("step", "evaluation")), {})
    speeds = sorted(y for _, y in series(records, "step", "tokens_per_second"))
    tiles: list[tuple[str, str]] = []
    if _is_number(kept.get("loss")):
        tiles += [("held-out loss", f"{kept['loss']:.3f}")]
    if _is_number(kept.get(headline)):
        tiles += [(escape(headline), format(kept[headline], ".1%" if headline == "accuracy" else ".3f"))]
    for name, field, form in (("steps", "step", ",.0f"), ("tokens", "tokens", ",.0f"), ("minutes", "minutes", ".1f")):
        if _is_number(last.get(field)):
            tiles.append((name, format(last[field], form)))
    if speeds:
        tiles.append(("tokens a second", f"{speeds[len(speeds) // 2]:,.0f}"))
    return f'<dl class="tiles">{"".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in tiles)}</dl>'


def _changes(records: list[Record]) -> str:
    """Of a run that went on with a model: how well it knew the texts before, and does now."""
    found = changes(records)
    if not found:
        return ""
    rows = "".join(
        f"<tr><th>{c.text}</th><td>{c.before:.3f}</td><td><b>{c.after:.3f}</b></td>"
        f"<td>{c.accuracy_before:.1%}</td><td><b>{c.accuracy_after:.1%}</b></td></tr>"
        for c in found
    )
    start = next((r for r in records if r.get("kind") == "start"), {})
    begun = f"<p class=quiet>Begun with {escape(str(start.get('from', 'a model')))}.</p>"
    if words := start.get("words"):
        old, new = start.get("fertility", (0.0, 0.0))
        few = ", ".join(escape(str(word)) for word in words[:12])
        begun += f"<p class=quiet>{len(words):,} new words ({few} …): {old:.3f} tokens a word, now {new:.3f}.</p>"
    head = "<tr><th>held-out</th><td>loss</td><td>after</td><td>accuracy</td><td>after</td></tr>"
    return f"<h2>What changed</h2><section>{begun}<table>{head}{rows}</table></section>"


def _samples(records: list[Record]) -> str:
    """Held-out sentences, and what the model answered as it grew."""
    moments = [r for r in records if r.get("kind") == "samples" and isinstance(r.get("fills"), list) and r["fills"]]
    if not moments:
        return ""
    count = min(SHOWN_EVALUATIONS, len(moments))
    picked = sorted({round(i * (len(moments) - 1) / max(count - 1, 1)) for i in range(count)})
    chosen = [moments[i] for i in picked]
    blocks = []
    for number, sample in enumerate(chosen[-1]["fills"]):
        rows = []
        for moment in chosen:
            if number < len(moment["fills"]):
                rows.append(f"<tr><th>step {moment.get('step', 0):,}</th>{_answers(moment['fills'][number])}</tr>")
        truth = escape(str(sample.get("truth", "")))
        text = escape(str(sample.get("text", "")))
        was = f"<span class=quiet>was: <b>{truth}</b></span>"
        blocks.append(f"<section><p>{text} {was}</p><table>{''.join(rows)}</table></section>")
    what = "Blanks it filled, in" if "answers" in chosen[-1]["fills"][0] else "What it wrote for"
    return f'<h2>{what} sentences it never saw</h2><div class="samples">{"".join(blocks)}</div>'


def _answers(fill: Record) -> str:
    """The likeliest words with their chances; or, of a model that writes, its text."""
    cells = [f"<td>{escape(str(fill['written']))}</td>"] if "written" in fill else []
    for answer in fill.get("answers", []):
        token, chance = str(answer[0]), float(answer[1])
        right = " class=right" if token == fill.get("truth") else ""
        cells.append(f"<td{right}>{escape(token)} <span class=quiet>{chance:.0%}</span></td>")
    return "".join(cells)


PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0;font:16px/1.5 system-ui,sans-serif;background:Canvas;color:CanvasText}
main{max-width:1080px;margin:auto;padding:20px 16px 48px}
h1{margin:.2em 0 0}h2{margin-top:1.6em;font-size:1.15em}.quiet{color:#888}.strong{color:#d9622b}.faint{color:#7aa7d9}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:18px 0}
.tiles div{border:1px solid #8884;border-radius:8px;padding:8px 12px}
.tiles dt{color:#888;font-size:.85em}.tiles dd{margin:0;font-size:1.35em;font-variant-numeric:tabular-nums}
.charts,.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px}
figure{margin:0}figcaption{font-weight:600}figcaption .quiet{font-weight:400;font-size:.85em}
svg{width:100%;height:auto;display:block}
section{border:1px solid #8884;border-radius:8px;padding:4px 12px 10px;overflow-x:auto}
table{border-collapse:collapse;font-size:.9em}th{text-align:left;font-weight:400;color:#888;white-space:nowrap}
th,td{padding:2px 10px 2px 0}.grid td{padding:2px 8px;text-align:right}.right{font-weight:700;color:#2a9d55}
pre{overflow-x:auto;font-size:.85em}summary{cursor:pointer;margin-top:1.6em;font-weight:600}
"""
