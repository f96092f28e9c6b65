"""What experiments that grow many models share: each is trained once, goes on where it stopped, and is asked once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sharing import goes_on, machine

import bertkin
from bertkin.api import make_recipe
from bertkin.models.pretrained import load_model
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.progress import RichListener
from bertkin.train.setup import complete


def vocabulary(corpus: tuple[str, ...], words: int, folder: Path, *, sentinels: bool) -> str:
    """The folder of the one tokenizer that all models of an experiment read with (WordPiece, 8,192, lowercased); made once.

    Without it a preset's own choice counts: T5's keep capitals.

    Args:
        sentinels: one more such tokenizer whose last 100 tokens are T5's sentinels.
    """
    out, mark = folder / ("tokenizer-sentinels" if sentinels else "tokenizer"), {"corpus": list(corpus), "words": words}
    done = out / "made.json"
    if not done.exists() or json.loads(done.read_text()) != mark:
        settings: dict[str, Any] = {"kind": "wordpiece", "vocab_size": 8_192, "lowercase": True, "max_words": words}
        bertkin.train_tokenizer(corpus, out=out, sentinels=100 if sentinels else 0, **settings)
        done.write_text(json.dumps(mark))
    return str(out.resolve())


def grown(preset: str, options: dict[str, Any], corpus: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train a preset with these options, or go on, or read what it came to: its figures and the curve of its loss."""
    run, done = folder / "run", folder / "done.json"
    settings = {"preset": preset, "options": options, "corpus": list(corpus)}
    if done.exists() and json.loads(done.read_text())["settings"] == settings:
        return dict(json.loads(done.read_text())["figures"])
    recipe = complete(
        make_recipe(corpus, preset=preset, options=options)
    )  # what is wrong is said before anything is lost
    done.unlink(missing_ok=True)
    if goes_on(folder, settings, run) and (run / "recipe.yaml").exists():
        result = resume(run, listener=RichListener())
    else:
        result = pretrain(recipe, run, listener=RichListener(), overwrite=run.exists())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = ("step", "tokens", "minutes", "loss", "accuracy")
    curve = [{key: line[key] for key in kept} for line in lines if line["kind"] == "evaluation"]
    figures = {
        **_parameters(run),
        "steps": result.step,
        "tokens": result.tokens,
        "minutes": round(result.minutes, 3),
        "tokens_per_second": round(result.tokens / 60 / result.minutes),
        "loss": curve[-1]["loss"],
        "accuracy": curve[-1]["accuracy"],
        "curve": curve,
        "machine": machine(),
    }
    done.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1) + "\n")
    return figures


def _parameters(run: Path) -> dict[str, int]:
    """All parameters that were trained and, where a generator was trained beside the model (ELECTRA), which are its own."""
    model, beside = sum(p.numel() for p in load_model(run).parameters()), run / "model" / "generator"
    if not beside.is_dir():
        return {"parameters": model}
    named = load_model(beside).named_parameters()  # it reads with the model's embeddings
    own = sum(p.numel() for name, p in named if not name.startswith("stack.embeddings."))
    return {"parameters": model + own, "generator": own}


def wrote(run: Path, count: int = 2) -> list[dict[str, Any]]:
    """What a model filled in or wrote at its last evaluation for the first held-out sentences; [] where it does neither."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return next((list(line["fills"][:count]) for line in reversed(lines) if line["kind"] == "samples"), [])


def asked(folder: Path, pairs: Path, limit: int) -> dict[str, Any]:
    """The score on minimal pairs of what was grown in a folder."""
    file, model = folder / "pairs.json", folder / "run" / "model"
    told = json.loads((folder / "done.json").read_text())["figures"]["loss"]
    key = {"limit": limit, "loss": told}
    if file.exists() and json.loads(file.read_text())["of"] == key:
        return dict(json.loads(file.read_text())["scores"])
    print(f"asking {model} minimal pairs", flush=True)
    scores = bertkin.pairs(model, pairs, limit=limit)
    file.write_text(json.dumps({"of": key, "scores": scores.to_mapping()}, indent=1) + "\n")
    return scores.to_mapping()


def draw(parts: dict[str, Any], path: Path) -> None:
    """Held-out loss and accuracy over minutes, a curve a part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours = pyplot.get_cmap("tab20")
    for number, one in enumerate(parts.values()):
        minutes = [point["minutes"] for point in one["curve"]]
        style = {"marker": ".", "markersize": 4, "linewidth": 1.2, "color": colours(number % 20), "label": one["title"]}
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
