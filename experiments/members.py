"""Every member of the family grown for the same minutes on the same words: one table, one plot.

    BERTKIN_DATA=shared/data python experiments/members.py
    python experiments/members.py corpus/ --blimp blimp/ --only gpt2 t5 --minutes 1 --limit 50

Size 4x256, 10 million words, one WordPiece vocabulary of 8,192 (T5's with sentinels at its end), rows of 128, every
member by its own preset and objective. The held-out loss is in a member's own terms (what it asks of whom), so losses
compare along a curve, not between members; the minimal pairs ask all the same. Members are trained one after the other,
each alone on the machine; a stopped one goes on, a finished one is used again.

Results go into members.json and members.png beside this file, and as a table into docs/members.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from bertkin.api import make_recipe
from bertkin.errors import UserError
from bertkin.models.pretrained import load_model
from bertkin.tasks.pairs import evaluate_pairs
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.loop import Stopped, pretrain, resume
from bertkin.train.machine import settle_threads
from bertkin.train.progress import RichListener
from bertkin.train.setup import complete

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "members.md"


@dataclass(frozen=True)
class Member:
    """A row of the table."""

    title: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    scored: str = ""
    """The folder inside the model's that scores sentences, where it is not the model itself."""


MEMBERS = {
    "bert": Member("BERT", "bert-mini"),
    "bert-nsp": Member("BERT, next sentence", "bert-mini", {"objective.sentence": "next"}),
    "roberta": Member("RoBERTa", "roberta-mini"),
    "modern": Member("modern (ModernBERT)", "modern-mini"),
    "words": Member("whole words", "modern-mini", {"objective.unit": "word"}),
    "phrases": Member("phrases (ERNIE)", "modern-mini", {"objective.unit": "phrase"}),
    "spans": Member("SpanBERT", "bert-mini", {"objective.unit": "span", "objective.boundary": True}),
    "albert": Member("ALBERT", "albert-mini"),
    "electra": Member("ELECTRA", "electra-mini"),
    "gpt2": Member("GPT-2", "gpt2-mini"),
    "llama": Member("Llama", "llama-mini"),
    "hybrid": Member("hybrid causal + masked", "modern-mini", {"objective.kind": "hybrid"}),
    "unilm": Member("UniLM", "bert-mini", {"objective.kind": "unilm"}),
    "prefix": Member("prefix language model", "llama-mini", {"objective.kind": "prefix"}),
    "mass": Member("MASS", "bart-mini", {"objective.noise": "mass"}),
    "bart": Member("BART", "bart-mini"),
    "t5": Member("T5", "t5-mini"),
}

app = App(help_format="plaintext")


@app.default
def main(
    *corpus: str,
    blimp: Path | None = None,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(MEMBERS),
    minutes: float = 10.0,
    words: int = 10_000_000,
    limit: int = 250,
    out: Path = HERE.parent / "runs" / "members",
    record: Path = HERE / "members.json",
    page: Path | None = PAGE,
) -> None:
    """Grow the members that are not grown yet, ask them minimal pairs, and write down all there are.

    Args:
        corpus: text; by default the English Wikipedia of $BERTKIN_DATA.
        blimp: folder of minimal pairs; by default that of $BERTKIN_DATA.
        only: names of members.
        minutes: of training for each.
        words: of the corpus.
        limit: minimal pairs of each paradigm.
        out: folder for the runs.
        record: JSON to write; the picture goes beside it.
        page: page whose table is replaced.
    """
    strangers = [name for name in only if name not in MEMBERS]
    if strangers:
        raise UserError(f"no member {strangers[0]!r}", where="--only", mend=f"choose of {', '.join(MEMBERS)}")
    corpus, pairs = corpus or (_data("text/enwiki.jsonl.gz"),), blimp or Path(_data("blimp"))
    settle_threads(None)
    for name in only:
        figures = _grown(name, corpus, minutes, words, out / name)
        asked = _asked(name, pairs, limit, out / name)
        content = json.loads(record.read_text()) if record.exists() else {"members": {}}
        content |= {"command": "python experiments/members.py", "minutes": minutes, "words": words, "pairs": 20 * limit}
        content["members"][name] = {"title": MEMBERS[name].title, **figures, "blimp": asked}
        content["members"] = {key: content["members"][key] for key in MEMBERS if key in content["members"]}
        record.write_text(json.dumps(content, indent=1) + "\n")
        draw(content, record.with_suffix(".png"))
        print(table(content))
        if page is not None and page.is_file():
            _put(page, table(content))


def _data(name: str) -> str:
    folder = os.environ.get("BERTKIN_DATA")
    if not folder:
        raise UserError("no corpus or no --blimp", mend="give both, or set BERTKIN_DATA to the folder that holds them")
    return str(Path(folder) / name)


def _grown(name: str, corpus: tuple[str, ...], minutes: float, words: int, folder: Path) -> dict[str, Any]:
    """Train a member, or go on, or read what it came to."""
    member, run, done = MEMBERS[name], folder / "run", folder / "done.json"
    settings = {"minutes": minutes, "words": words, "corpus": list(corpus)}
    if done.exists() and json.loads(done.read_text())["settings"] == settings:
        return dict(json.loads(done.read_text())["figures"])
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun.json"
    if (run / "recipe.yaml").exists() and begun.exists() and json.loads(begun.read_text()) == settings:
        result = resume(run, listener=RichListener())
    else:
        begun.write_text(json.dumps(settings))
        data = {"data.tokenizer_kind": "wordpiece", "data.vocab_size": 8_192, "data.max_words": words}
        data |= {"data.lowercase": True, "train.minutes": minutes, "train.eval_every": 0.05}
        recipe = complete(make_recipe(corpus, preset=member.preset, options=data | member.options))
        result = pretrain(recipe, run, listener=RichListener(), overwrite=run.exists())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [
        {key: line[key] for key in ("step", "tokens", "minutes", "loss", "accuracy")}
        for line in lines
        if line["kind"] == "evaluation"
    ]
    figures = {
        "parameters": sum(p.numel() for p in load_model(run).parameters()),
        "steps": result.step,
        "tokens": result.tokens,
        "minutes": round(result.minutes, 3),
        "tokens_per_second": round(result.tokens / 60 / result.minutes),
        "loss": curve[-1]["loss"],
        "accuracy": curve[-1]["accuracy"],
        "curve": curve,
    }
    done.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1) + "\n")
    return figures


def _asked(name: str, pairs: Path, limit: int, folder: Path) -> dict[str, Any]:
    """Its score on minimal pairs, asked once."""
    file = folder / "pairs.json"
    if file.exists() and json.loads(file.read_text())["limit"] == limit:
        return dict(json.loads(file.read_text())["scores"])
    model = folder / "run" / "model" / MEMBERS[name].scored
    print(f"asking {model} minimal pairs", flush=True)
    scores = evaluate_pairs(load_model(model), Tokenizer.load(folder / "run" / "model"), pairs, limit)
    file.write_text(json.dumps({"limit": limit, "scores": scores.to_mapping()}, indent=1) + "\n")
    return scores.to_mapping()


def table(content: dict[str, Any]) -> str:
    """A line a member, in Markdown."""
    lines = ["| member | parameters | tokens | tokens/s | held-out loss | accuracy | BLiMP | scored by |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---|")
    for one in content["members"].values():
        size = f"{one['parameters'] / 1e6:.1f} M | {one['tokens'] / 1e6:.1f} M | {one['tokens_per_second']:,}"
        learnt = f"{one['loss']:.3f} | {one['accuracy']:.1%} | {one['blimp']['mean']:.1%} | {one['blimp']['method']}"
        lines.append(f"| {one['title']} | {size} | {learnt} |")
    return "\n".join(lines) + "\n"


def _put(page: Path, lines: str) -> None:
    """The lines in place of what stands between the page's two marks."""
    inside = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)
    page.write_text(inside.sub(lambda mark: mark[1] + lines + mark[2], page.read_text()))


def draw(content: dict[str, Any], path: Path) -> None:
    """Held-out loss and accuracy over minutes, a curve a member."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for number, one in enumerate(content["members"].values()):
        minutes = [point["minutes"] for point in one["curve"]]
        style = {"marker": ".", "markersize": 4, "linewidth": 1.2, "color": colours[number % 20], "label": one["title"]}
        axes[0].plot(minutes, [point["loss"] for point in one["curve"]], **style)
        axes[1].plot(minutes, [100 * point["accuracy"] for point in one["curve"]], **style)
    for axis, what in zip(
        axes, ("held-out loss in its own terms (nats)", "accuracy in its own terms (%)"), strict=True
    ):
        axis.set(xlabel="minutes of training", ylabel=what)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped:
        sys.exit("stopped and saved; the same command goes on")
