"""What an hour on 10 million words of English teaches, ours and transformers' recipe side by side.

    BERTKIN_DATA=shared/data python experiments/english_mini.py
    python experiments/english_mini.py wiki.jsonl.gz --blimp blimp/ --only ours --minutes 10

Both sides get the same words, tokenizer, held-out questions (`heldout.py`), shape (4 layers of 256, 4 heads) and
minutes, and answer the same minimal pairs. Ours is recipes/english-mini.yaml; its minutes are the wall clock's,
disturbances and evaluations included. The peer (`peer.py`) trains for as many steps as fit into the minutes when nobody
disturbs it, and its evaluations do not count.

Parts can be run apart, in any order: each ends as a file in --out, is used again when asked for with the same settings,
and whatever parts of the same corpus and minutes there are go into english_mini.json and english_mini.png beside this
file. Ours, when stopped, goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from cyclopts import App
from heldout import Rows, ask, evaluation_rows
from sharing import data as data_of
from sharing import once, run

from bertkin.config import AUTO, Recipe, load_recipe, to_mapping
from bertkin.errors import UserError
from bertkin.models.pretrained import load_model
from bertkin.tasks.pairs import evaluate_pairs
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import settle_threads
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.progress import RichListener
from bertkin.train.setup import Materials, complete, gather, read_corpus

Part = Literal["ours", "peer", "tuned"]
PARTS: tuple[Part, ...] = get_args(Part)
TITLES: dict[Part, str] = {
    "ours": "bertkin, english-mini",
    "peer": "transformers' Trainer",
    "tuned": "Trainer, bf16 and compiled",
}
HERE = Path(__file__).parent
EVALUATIONS = 20
"""Points of a curve."""

app = App(help_format="plaintext")


@app.default
def main(
    *corpus: str,
    blimp: Path | None = None,
    recipe: Path = HERE.parent / "recipes" / "english-mini.yaml",
    minutes: float | None = None,
    only: Part | None = None,
    limit: int | None = None,
    peer_steps: int | None = None,
    words: int | None = None,
    tokenizer: Path | None = None,
    out: Path = HERE.parent / "runs" / "english-mini",
    record: Path = HERE / "english_mini.json",
) -> None:
    """Run the parts that are not there yet, and write down what there is.

    Args:
        corpus: text; by default the English Wikipedia of $BERTKIN_DATA.
        blimp: folder of minimal pairs; by default that of $BERTKIN_DATA.
        recipe: ours.
        minutes: of training for each side; by default the recipe's.
        only: one part; by default ours and peer. "tuned" is the peer with bf16 and torch.compile.
        limit: minimal pairs of each paradigm; by default all.
        peer_steps: of the peer; by default as many as fit into the minutes, measured beforehand.
        words: of the corpus; by default the recipe's.
        tokenizer: of both sides; by default one is trained on the corpus and kept.
        out: folder for the runs.
        record: JSON to write; the picture goes beside it.
    """
    prepared = _prepare(recipe, corpus or (data_of("text/enwiki.jsonl.gz"),), minutes, words, tokenizer, out)
    pairs = blimp or Path(data_of("blimp"))
    settle_threads(prepared.recipe.train.threads)
    rows = evaluation_rows(prepared.store.heldout, prepared.tokenizer)
    for part in [only] if only else PARTS[:2]:
        if part == "ours":
            trained = _ours(prepared, rows, out / part)
        else:
            trained = _peer(prepared, rows, out / part, peer_steps, part == "tuned")
        _scored(trained, pairs, limit, out / part / "blimp")
    _write_down(out, record, prepared, rows)


def _prepare(
    path: Path, corpus: tuple[str, ...], minutes: float | None, words: int | None, tokenizer: Path | None, out: Path
) -> Materials:
    """The recipe with its corpus and budget; the tokenizer is trained once and kept, for all parts to share."""
    recipe = complete(load_recipe(path))
    train = replace(recipe.train, minutes=minutes or recipe.train.minutes, eval_every=1 / EVALUATIONS)
    if train.minutes is None:
        raise UserError("its budget is not in minutes", where=path, mend="give --minutes")
    train = replace(train, steps=AUTO, tokens=AUTO, epochs=AUTO)
    data = replace(recipe.data, corpus=corpus, max_words=words or recipe.data.max_words)
    if tokenizer is None:
        tokenizer = out / "tokenizer" / hashlib.sha256(repr(data).encode()).hexdigest()[:12]
        if not (tokenizer / "tokenizer.json").exists():
            read_corpus(data, _tell_preparing)[0].save(tokenizer)
    return gather(replace(recipe, data=replace(data, tokenizer=str(tokenizer)), train=train), _tell_preparing)


def _tell_preparing(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {100 * done // total if total else 0}%  ", end="\n" if done == total else "", file=sys.stderr)


# Ours.


class Snapshots(RichListener):
    """Shows the live bar, and copies each exported model aside, so that asking it later costs the training nothing."""

    def __init__(self, model: Path, aside: Path) -> None:
        super().__init__()
        self.model, self.aside = model, aside

    def evaluation(self, record: dict[str, Any]) -> None:
        super().evaluation(record)
        self.take()  # the model as last exported: that of an evaluation or checkpoint before

    def take(self) -> None:
        if (self.model / "bertkin.json").exists():
            step = json.loads((self.model / "bertkin.json").read_text())["step"]
            shutil.copytree(self.model, self.aside / f"{step:08d}", dirs_exist_ok=True)


def _ours(prepared: Materials, rows: Rows, folder: Path) -> dict[str, Any]:
    recipe = {name: value for name, value in to_mapping(prepared.recipe).items() if name != "data"}
    settings = {"corpus": prepared.store.fingerprint, "minutes": prepared.recipe.train.minutes, "recipe": recipe}
    return once(folder, settings, lambda: _train_ours(prepared.recipe, rows, folder, settings))


def _train_ours(recipe: Recipe, rows: Rows, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, going on where the same recipe stopped before, then ask the final model and the ones on the way."""
    run, aside, started = folder / "run", folder / "snapshots", folder / "started.json"
    listener = Snapshots(run / "model", aside)
    if started.exists() and json.loads(started.read_text()) == settings and (run / "recipe.yaml").exists():
        result = resume(run, listener=listener)
    else:
        shutil.rmtree(aside, ignore_errors=True)
        started.write_text(json.dumps(settings))
        result = pretrain(recipe, run, listener=listener, overwrite=True)
    listener.take()
    curve = []
    for snapshot in sorted(aside.iterdir()):
        loss, accuracy = ask(load_model(snapshot), rows)
        told = json.loads((snapshot / "bertkin.json").read_text())
        point = {"step": told["step"], "minutes": told["minutes"]}
        curve.append(point | {"loss": round(loss, 5), "accuracy": round(accuracy, 5)})
    shutil.rmtree(aside)
    started.unlink()
    totals = {"steps": result.step, "tokens": result.tokens, "minutes": round(result.minutes, 3)}
    return totals | _weights(run / "model") | {"curve": curve}


def _weights(folder: Path) -> dict[str, Any]:
    """The folder of a model, how many numbers it has, and the hash of its weights."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return {
        "folder": str(folder),
        "parameters": sum(p.numel() for p in load_model(folder).parameters()),
        "weights": weights,
    }


# The peer.


def _peer(prepared: Materials, rows: Rows, folder: Path, steps: int | None, tuned: bool) -> dict[str, Any]:
    minutes = prepared.recipe.train.minutes
    settings = {"corpus": prepared.store.fingerprint, "minutes": minutes, "tuned": tuned}
    settings |= {"steps": steps} if steps else {}
    return once(folder, settings, lambda: _train_peer(prepared, rows, folder, settings))


def _train_peer(prepared: Materials, rows: Rows, folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    import peer

    shape, settings = peer.Shape(prepared.tokenizer.vocab_size), peer.Settings(tuned=told["tuned"])
    tokens = peer.stream(prepared.store.train, prepared.tokenizer)

    def begin() -> dict[str, Any]:
        """How many steps there are to be; what an earlier training with other settings left is thrown away."""
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if "steps" in told:
            return {"steps": told["steps"]}
        before = peer.quiet(peer.throughput(tokens, prepared.tokenizer, shape, settings, steps=20))
        fit = max(1, round(60 * told["minutes"] / before))
        print(
            f"{folder.name}: a step takes {before:.3f} s, so {fit:,} steps in {told['minutes']:g} minutes", flush=True
        )
        return {"steps": fit}

    steps = once(folder / "begun", told, begin)["steps"]
    every = max(1, steps // EVALUATIONS)
    run = peer.train(
        tokens, prepared.tokenizer, shape, rows, folder, settings, steps=steps, every=every, told=_tell_peer
    )
    pace = peer.quiet(run.seconds) / 60
    curve = [{"step": point["step"], "minutes": round(point["step"] * pace, 4)} | point for point in run.curve]
    totals = {
        "steps": steps,
        "tokens": steps * settings.batch * settings.length,
        "minutes": round(steps * pace, 3),
        "minutes_by_the_clock": round(sum(run.seconds) / 60, 3),
        "seconds_per_step": round(60 * pace, 4),
    }
    return totals | _weights(run.folder) | {"curve": curve}


def _tell_peer(point: dict[str, float]) -> None:
    minutes = point["step"] * point["quiet"] / 60
    numbers = f"loss {point['loss']:.3f}  accuracy {100 * point['accuracy']:.1f}%"
    print(f"step {point['step']:>6,.0f}  {minutes:6.2f} min  {numbers}", flush=True)


# Both.


def _scored(trained: dict[str, Any], pairs: Path, limit: int | None, folder: Path) -> None:
    """Ask a trained model the minimal pairs."""
    model = Path(trained["folder"])

    def score() -> dict[str, Any]:
        print(f"asking {model} minimal pairs", flush=True)
        scores = evaluate_pairs(load_model(model), Tokenizer.load(model), pairs, limit)
        print(scores)
        return scores.to_mapping()

    once(folder, {"model": trained["weights"], "limit": limit}, score)


def _write_down(out: Path, record: Path, prepared: Materials, rows: Rows) -> None:
    """All parts that are there and were asked these questions, as JSON, a picture and a table."""
    parts: dict[str, Any] = {}
    for name, title in TITLES.items():
        files = (out / name / "done.json", out / name / "blimp" / "done.json")
        if not all(file.exists() for file in files):
            continue
        trained, scores = (json.loads(file.read_text()) for file in files)
        same = {"corpus": prepared.store.fingerprint, "minutes": prepared.recipe.train.minutes}
        if (
            trained["settings"] | same != trained["settings"]
            or trained["result"]["weights"] != scores["settings"]["model"]
        ):
            print(f"left out, as it is of another corpus or budget, or not asked minimal pairs yet: {out / name}")
            continue
        result = dict(trained["result"])
        curve, _ = result.pop("curve"), result.pop("folder")
        last = {"loss": curve[-1]["loss"], "accuracy": curve[-1]["accuracy"]}
        parts[name] = {"what": title, **result, **last, "blimp": scores["result"], "curve": curve}
    counts = prepared.store.manifest["counts"]
    content = {
        "command": "python experiments/english_mini.py",
        "corpus": {"train": counts["train"], "heldout": counts["heldout"], "vocabulary": prepared.store.vocab_size},
        "questions": {"rows": len(rows.inputs), "tokens": int((rows.labels >= 0).sum()), "sha256": rows.sha256},
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "parts": parts,
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draw(content, record.with_suffix(".png"))
    print(table(content))
    print(f"written: {record} and {record.with_suffix('.png').name}")


def table(content: dict[str, Any]) -> str:
    """A line a part: minutes, steps, held-out loss and accuracy, share of the minimal pairs."""
    lines = [f"{'':28}{'minutes':>8}{'steps':>9}{'loss':>8}{'accuracy':>10}{'BLiMP':>8}"]
    for part in content["parts"].values():
        numbers = f"{part['minutes']:8.1f}{part['steps']:9,}{part['loss']:8.3f}{100 * part['accuracy']:9.1f}%"
        lines.append(f"{part['what']:28}{numbers}{100 * part['blimp']['mean']:7.1f}%")
    return "\n".join(lines)


def draw(content: dict[str, Any], path: Path) -> None:
    """Held-out loss and accuracy over minutes, a curve a part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for part in content["parts"].values():
        minutes = [point["minutes"] for point in part["curve"]]
        label = f"{part['what']} (BLiMP {100 * part['blimp']['mean']:.1f}%)"
        axes[0].plot(minutes, [point["loss"] for point in part["curve"]], marker=".", label=label)
        axes[1].plot(minutes, [100 * point["accuracy"] for point in part["curve"]], marker=".", label=label)
    for axis, what in zip(axes, ("held-out loss (nats)", "held-out masked accuracy (%)"), strict=True):
        axis.set(xlabel="minutes of training", ylabel=what)
        axis.grid(alpha=0.3)
    if content["parts"]:
        axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    run(app)
