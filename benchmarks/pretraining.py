"""How fast a BERT is pretrained, beside transformers' Trainer on the same machine, data, tokenizer, shape and batch.

    BERTKIN_DATA=shared/data python benchmarks/pretraining.py throughput    # about 15 minutes
    BERTKIN_DATA=shared/data python benchmarks/pretraining.py loss          # about an hour

`throughput` times whole training steps (reading, masking, forward, backward, optimiser) of the BERT architecture. Each
side runs in a process of its own, in turn, several times over; the table gives medians, and ratios of medians.
`loss` asks how long each recipe takes to the same held-out loss: transformers' own recipe sets the mark in its minutes,
ours is run with ever larger budgets until it gets there. A minute of the peer is a minute undisturbed (see
`experiments/peer.py`); ours are the wall clock's, which can only be longer.

Results go into pretraining.json beside this file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "experiments"))

from side_by_side import in_process, our_steps, wikipedia, write  # noqa: E402

from bertkin.config import AUTO, Data, Model, Objective, Recipe, Train  # noqa: E402
from bertkin.errors import UserError  # noqa: E402
from bertkin.models.presets import architecture  # noqa: E402
from bertkin.train.machine import pick_precision, product_rate, settle_threads  # noqa: E402
from bertkin.train.price import flops_per_token  # noqa: E402
from bertkin.train.setup import complete, gather  # noqa: E402

SHAPES = {"4x256": (4, 256, 4), "6x384": (6, 384, 6), "12x768": (12, 768, 12)}
SIDES = ("bertkin", "trainer", "tuned")
TITLES = {
    "bertkin": "bertkin",
    "trainer": "transformers' Trainer (float32)",
    "tuned": "Trainer, bf16 and torch.compile",
}
RECORD = HERE / "pretraining.json"

app = App(help_format="plaintext")


@app.command
def throughput(
    *corpus: str,
    shapes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(SHAPES),
    vocab_size: int = 30_522,
    repeats: int = 3,
    steps: int = 8,
    record: Path = RECORD,
) -> None:
    """Tokens a second of a full training step, 32 rows of 128 tokens, 15% masked.

    Parameters
    ----------
    corpus
        Text to train on; by default the English Wikipedia of BERTKIN_DATA.
    shapes
        Of 4x256, 6x384 and 12x768.
    vocab_size
        Rows of the vocabulary; the tokenizer is trained on the corpus.
    repeats
        Processes of each side, in turn.
    steps
        Timed steps of each process (a third of them for 12x768), after three that do not count.
    record
        Where the figures go.
    """
    settle_threads(None)
    data = wikipedia(corpus, vocab_size, words=3_000_000)
    gather(complete(Recipe(preset="bert-mini", data=data, train=Train(steps=1))), lambda *_: None)  # prepared once
    rates = {name: product_rate(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    table: dict[str, Any] = {}
    for shape in shapes:
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(repeats):
            for side in SIDES:
                count = max(3, steps // 3) if shape == "12x768" else steps
                took = in_process(__file__, "steps", side, shape, str(count), str(vocab_size), *data.corpus)
                seconds[side].append(median(took))
                print(f"{shape} {side} turn {turn + 1}: {4096 / seconds[side][-1]:,.0f} tokens/s", file=sys.stderr)
        table[shape] = _row(shape, vocab_size, seconds, rates)
    write(record, "throughput", {"vocab_size": vocab_size, "matrix_product_flops": rates, "shapes": table})
    print(f"\n{'shape':8} {'bertkin':>12} {'Trainer':>12} {'tuned':>12} {'ratio':>8} {'to tuned':>9} {'of peak':>8}")
    for shape, row in table.items():
        t = row["tokens_per_second"]
        figures = f"{t['bertkin']:12,.0f} {t['trainer']:12,.0f} {t['tuned']:12,.0f}"
        print(
            f"{shape:8} {figures} {row['ratio_trainer']:7.1f}× {row['ratio_tuned']:8.1f}× {row['share_of_peak']:7.0%}"
        )


def _row(shape: str, vocab_size: int, seconds: dict[str, list[float]], rates: dict[str, float]) -> dict[str, Any]:
    speed = {side: 4096 / median(took) for side, took in seconds.items()}
    dtype = pick_precision("auto")
    recipe = complete(_recipe(shape, Data(corpus=("-",)), Train(steps=1)))
    a = architecture(replace(recipe.model, vocab_size=vocab_size))
    done = flops_per_token(a, 128, 0.15) * speed["bertkin"]
    return {
        "tokens_per_second": {side: round(value) for side, value in speed.items()},
        "seconds_a_step": {side: [round(s, 4) for s in took] for side, took in seconds.items()},
        "ratio_trainer": round(speed["bertkin"] / speed["trainer"], 2),
        "ratio_tuned": round(speed["bertkin"] / speed["tuned"], 2),
        "share_of_peak": round(done / rates["bfloat16" if dtype == torch.bfloat16 else "float32"], 3),
    }


def _recipe(shape: str, data: Data, train: Train) -> Recipe:
    """The BERT architecture of a shape with our defaults, but the peer's masking rate and optimiser."""
    layers, hidden, heads = SHAPES[shape]
    model = Model(layers=layers, hidden=hidden, heads=heads, intermediate=4 * hidden)
    batch = replace(train, batch_tokens=32 * 128, length=128, optimizer="adamw")
    return Recipe(preset="bert-mini", data=data, model=model, objective=Objective(rate=0.15), train=batch)


@app.command(show=False)
def steps(side: str, shape: str, count: int, vocab_size: int, *corpus: str) -> None:
    """One side's seconds a step, as JSON; what `throughput` starts."""
    settle_threads(None)
    recipe = complete(_recipe(shape, wikipedia(corpus, vocab_size, words=3_000_000), Train(steps=1000)))
    materials = gather(recipe, lambda *_: None)
    if side == "bertkin":
        took = our_steps(materials, count)
    else:
        import peer

        layers, hidden, heads = SHAPES[shape]
        tokens = peer.stream(materials.store.train, materials.tokenizer)
        size = peer.Shape(materials.tokenizer.vocab_size, layers, hidden, heads, 4 * hidden)
        took = peer.throughput(tokens, materials.tokenizer, size, peer.Settings(tuned=side == "tuned"), steps=count)
    print(json.dumps(took))


@app.command
def loss(
    *corpus: str,
    preset: str = "modern-mini",
    vocab_size: int = 8_192,
    peer_minutes: float = 30.0,
    equal_minutes: float = 10.0,
    tokenizer: str = AUTO,
    work: Path = Path("runs/time-to-loss"),
    record: Path = RECORD,
) -> None:
    """Minutes to the held-out loss that transformers' recipe ends at, and both losses after equal minutes.

    Parameters
    ----------
    corpus
        Text to train on; by default the English Wikipedia of BERTKIN_DATA.
    preset
        Our recipe, at the peer's size.
    vocab_size
        Rows of the vocabulary.
    peer_minutes
        Minutes the peer sets its mark in.
    equal_minutes
        Minutes after which both losses are compared.
    tokenizer
        A tokenizer.json; by default one is trained on the corpus.
    work
        Where the peer's trainings are kept; finished ones are used again.
    record
        Where the figures go.
    """
    import peer
    from heldout import evaluation_rows

    settle_threads(None)
    data = replace(wikipedia(corpus, vocab_size), tokenizer=tokenizer)
    materials = gather(complete(Recipe(preset=preset, data=data, train=Train(minutes=1.0))), lambda *_: None)
    rows = evaluation_rows(materials.store.heldout, materials.tokenizer)
    tokens = peer.stream(materials.store.train, materials.tokenizer)
    shape = peer.Shape(materials.tokenizer.vocab_size)

    def of_peer(minutes: float) -> dict[str, float]:
        folder = work / f"peer-{minutes:g}"
        done = folder / "done.json"
        if not done.exists():
            step = median(peer.throughput(tokens, materials.tokenizer, shape, steps=6))
            count = max(1, round(60 * minutes / step))
            run = peer.train(tokens, materials.tokenizer, shape, rows, folder, steps=count, told=_say)
            last = {"steps": count, "seconds_a_step": round(step, 4), **run.curve[-1]}
            done.write_text(json.dumps(last))
        found: dict[str, float] = json.loads(done.read_text())
        return found

    mark = of_peer(peer_minutes)
    ours: list[dict[str, float]] = []
    budget = peer_minutes / 100
    while not ours or ours[-1]["loss"] > mark["loss"]:
        ours.append(_our_loss(preset, data, budget, work))
        _say({"bertkin minutes": budget, **ours[-1]})
        if budget >= peer_minutes:
            break
        budget *= 1.25
    ratio = peer_minutes / ours[-1]["minutes"] if ours[-1]["loss"] <= mark["loss"] else None
    equal: dict[str, Any] = {"minutes": equal_minutes, "peer": of_peer(equal_minutes)}
    equal["ours"] = _our_loss(preset, data, equal_minutes, work)
    result = {
        "corpus": materials.store.fingerprint,
        "vocab_size": materials.tokenizer.vocab_size,
        "preset": preset,
        "rows": rows.sha256,
        "peer": {"minutes": peer_minutes, **mark},
        "ours": ours,
        "ratio": round(ratio, 1) if ratio else None,
        "equal": equal,
    }
    write(record, "time_to_loss", result)
    print(f"\ntransformers' recipe: loss {mark['loss']:.3f} after {peer_minutes:g} minutes")
    ended = f"loss {ours[-1]['loss']:.3f} after {ours[-1]['minutes']:.2f} minutes"
    print(f"bertkin ({preset}):    {ended}; ratio {ratio or 0:.1f}×")
    print(f"after {equal_minutes:g} minutes each: {equal['peer']['loss']:.3f} and {equal['ours']['loss']:.3f}")


def _say(point: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:.4g}" for name, value in point.items()), file=sys.stderr, flush=True)


def _our_loss(preset: str, data: Data, minutes: float, work: Path) -> dict[str, float]:
    """Our recipe with this budget, asked on the same rows as the peer."""
    plain = {name: value for name, value in asdict(data).items() if value is not None}
    return dict(in_process(__file__, "train", preset, str(minutes), json.dumps(plain), str(work)))


@app.command(show=False)
def train(preset: str, minutes: float, data: str, work: Path) -> None:
    """One training of ours, as JSON; what `loss` starts."""
    from heldout import ask, evaluation_rows

    from bertkin.models.pretrained import load_model
    from bertkin.text.store import Store
    from bertkin.train import pretraining

    plain = json.loads(data) | {"corpus": tuple(json.loads(data)["corpus"])}
    recipe = Recipe(preset=preset, data=Data(**plain), train=Train(minutes=minutes, eval_every=0.999))
    out = work / f"ours-{preset}-{minutes:.3f}"
    result = pretraining.pretrain(recipe, out, overwrite=(out / "recipe.yaml").exists())
    materials: tuple[Store, Any] = _materials(out)
    loss, accuracy = ask(load_model(out), evaluation_rows(materials[0].heldout, materials[1]))
    figures = {"minutes": round(result.minutes, 4), "steps": result.step, "tokens": result.tokens}
    print(json.dumps(figures | {"loss": round(loss, 5), "accuracy": round(accuracy, 5)}))


def _materials(run: Path) -> tuple[Any, Any]:
    from bertkin.config import load_recipe
    from bertkin.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(run / "tokenizer")
    return gather(load_recipe(run / "recipe.yaml"), lambda *_: None, tokenizer=tokenizer).store, tokenizer


def main() -> None:
    """The command line, with mistakes said in one line."""
    try:
        app()
    except UserError as error:
        sys.exit(f"pretraining: {error}")


if __name__ == "__main__":
    main()
