"""How fast sentences become vectors and answers, beside sentence-transformers on the same machine and sentences.

    BERTKIN_DATA=shared/data python benchmarks/embedding.py                                # about 11 minutes
    BERTKIN_DATA=shared/data python benchmarks/embedding.py --onnx-python other/bin/python

Sentences of Wikipedia of about 32 tokens through all-MiniLM-L6-v2, whole calls: text in, vectors out. Ours is
`bertkin.tasks.embed.Embedder` and, for answers, `bertkin.tasks.predict.Reader` with a head of two classes on the same
encoder, as a user gets them and with --precision int8. sentence-transformers is taken as a user gets it, in bfloat16, and
by its ONNX backend, plain and quantised to int8; what is not installed is said. The ONNX backend needs packages that want
other versions of transformers than ours: --onnx-python names the Python of an environment with
`pip install "sentence-transformers[onnx]"`.

Each side runs in a process of its own, in turn; the table gives medians of each process's best pass, and the cosine of its
vectors to those of sentence-transformers in float32. Results go into embedding.json beside this file, and as a table into
docs/results-finetuning.md.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "experiments"))

from sharing import data, markdown, once, put  # noqa: E402
from side_by_side import in_process, source, write  # noqa: E402
from starts import encoder  # noqa: E402
from tuned import PAGE  # noqa: E402

from bertkin.errors import UserError  # noqa: E402
from bertkin.models import kernels  # noqa: E402
from bertkin.text.tokenizer import Tokenizer  # noqa: E402
from bertkin.train.machine import settle_threads  # noqa: E402
from bertkin.train.price import spoken  # noqa: E402

SIDES = {
    "embed": "bertkin embed",
    "embed-int8": "bertkin embed, int8",
    "predict": "bertkin predict",
    "predict-int8": "bertkin predict, int8",
    "float32": "sentence-transformers",
    "bfloat16": "sentence-transformers, bf16",
    "onnx": "sentence-transformers, ONNX",
    "int8": "sentence-transformers, ONNX int8",
}
OURS = ("embed", "embed-int8", "predict", "predict-int8")
BAR, BEST_BAR, LEAST_COSINE = 4.5, 1.5, 0.999
SHORTEST, LONGEST = 20, 46
"""Tokens of a sentence."""
PASSES = 3
PACE = {
    "embed": 500,
    "embed-int8": 600,
    "predict": 500,
    "predict-int8": 600,
    "float32": 150,
    "bfloat16": 450,
    "onnx": 250,
    "int8": 500,
}
"""Sentences a second, about, for the price."""

app = App(help_format="plaintext")


@app.default
def main(
    *,
    sides: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = tuple(SIDES),
    sentences: int = 2_000,
    repeats: int = 3,
    onnx_python: Path = Path(sys.executable),
    out: Path = HERE.parent / "runs" / "benchmarks" / "embedding",
    record: Path = HERE / "embedding.json",
    page: Path = PAGE,
    trial: Annotated[bool, Parameter(negative="")] = False,
    price: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Sentences a second of each side, and how near its vectors are.

    Parameters
    ----------
    sides
        Of embed, embed-int8, predict, predict-int8, float32, bfloat16, onnx and int8; float32 is always there, and ours in
        int8 where the processor has bfloat16 products. Where some are left out, the record and the page are left alone.
    sentences
        How many.
    repeats
        Processes of each side, in turn.
    onnx_python
        Of an environment with sentence-transformers[onnx].
    out
        Folder for what is finished.
    record
        Where the figures go.
    page
        Where the table goes.
    trial
        Leave the record and the page alone.
    price
        Say what it would cost, and stop.
    """
    able = [side for side in SIDES if not side.endswith("-int8") or kernels.has_dots()]
    chosen = [side for side in able if side in (*sides, "float32")]
    seconds = sum(15 + (PASSES * sentences + 64) / PACE[side] for side in chosen)
    print(f"{repeats} turns: about {spoken(repeats * seconds / 60)}", flush=True)
    if price:
        return
    settle_threads(None)
    code = source()
    file, tokens = _sentences(sentences, out)
    turns = []
    for turn in range(repeats):
        settings = {"sides": chosen, "sentences": sentences, "python": str(onnx_python), "source": code}
        turns.append(once(out / str(turn), settings, partial(_turn, chosen, file, out / str(turn), onnx_python)))
        if any("missing" in found for found in turns[-1].values()):  # it may be there the next time
            (out / str(turn) / "done.json").unlink()
        said = "  ".join(
            f"{side} {sentences / min(t['seconds']):,.0f}" for side, t in turns[-1].items() if "seconds" in t
        )
        print(f"turn {turn + 1}: {said} sentences/s", file=sys.stderr, flush=True)
    figures = _figures(chosen, turns, sentences, tokens)
    print(table(figures))
    if not trial and chosen == able:
        write(record, "embedding", figures)
        put(page, table(figures), "embedding")


def _sentences(count: int, out: Path) -> tuple[Path, float]:
    """A file of so many sentences from all over Wikipedia, and their mean length in tokens."""
    tokenizer, found, lengths = Tokenizer.load(encoder()), [], []
    with gzip.open(data("text/enwiki.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", json.loads(line)["text"])
            parts = [" ".join(part.split()) for part in parts if 60 < len(part) < 300][:5]
            sizes = [len(tokenizer.backend.encode(part).ids) for part in parts]
            for part, size in zip(parts, sizes, strict=True):
                if SHORTEST <= size <= LONGEST:
                    found.append(part)
                    lengths.append(size)
            if len(found) >= count:
                break
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"sentences-{count}.txt"
    file.write_text("\n".join(found[:count]) + "\n", encoding="utf-8")
    return file, float(np.mean(lengths[:count]))


def _turn(chosen: list[str], file: Path, folder: Path, onnx_python: Path) -> dict[str, Any]:
    """Each side once: its seconds and cosines, or what it lacks."""
    told: dict[str, Any] = {}
    for side in chosen:
        vectors = str(folder / f"{side}.npy")
        if side in OURS:
            told[side] = in_process(__file__, "side", side, str(file), vectors)
        else:
            python = str(onnx_python) if side in ("onnx", "int8") else sys.executable
            told[side] = _theirs([python, str(HERE / "sentence_peer.py"), side, encoder(), str(file), vectors])
    truth = np.load(folder / "float32.npy")
    for side in chosen:
        if "seconds" in told[side] and not side.startswith("predict"):
            cosines = _cosines(np.load(folder / f"{side}.npy"), truth)
            told[side] |= {"cosine": float(cosines.mean()), "least": float(cosines.min())}
    return told


def _theirs(command: list[str]) -> dict[str, Any]:
    """What a peer's process printed: its seconds, or what is not installed.

    Raises:
        UserError: it failed, which is no reason to compare with the others alone.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise UserError(said[-1] if said else f"exit code {done.returncode}", where=f"sentence_peer.py {command[2]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _cosines(one: Any, two: Any) -> Any:
    return (one * two).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1))


def _figures(chosen: list[str], turns: list[dict[str, Any]], sentences: int, tokens: float) -> dict[str, Any]:
    sides: dict[str, Any] = {}
    for side in chosen:
        lacking = next((turn[side]["missing"] for turn in turns if "missing" in turn[side]), None)
        if lacking is not None:
            sides[side] = {"missing": lacking}
            continue
        speeds = [sentences / min(turn[side]["seconds"]) for turn in turns]
        sides[side] = {"sentences_per_second": round(median(speeds), 1), "turns": [round(s, 1) for s in speeds]}
        if "cosine" in turns[0][side]:
            sides[side] |= {name: round(turns[0][side][name], 6) for name in ("cosine", "least")}
    peers = [side for side in sides if side not in OURS and "missing" not in sides[side]]
    best = max(peers, key=lambda side: sides[side]["sentences_per_second"])
    for side in OURS:
        if side in sides:
            speed = sides[side]["sentences_per_second"]
            sides[side]["ratio"] = round(speed / sides["float32"]["sentences_per_second"], 2)
            sides[side]["ratio_best"] = round(speed / sides[best]["sentences_per_second"], 2)
    bars = {"ratio": BAR, "ratio_best": BEST_BAR, "cosine": LEAST_COSINE}
    return {"sentences": sentences, "tokens": round(tokens, 1), "best": best, "bars": bars, "sides": sides}


def table(figures: dict[str, Any]) -> str:
    """A line a side: sentences a second, cosine to float32, and how many times the peers' ours is."""
    rows = []
    for side, one in figures["sides"].items():
        if "missing" in one:
            rows.append([SIDES[side], "not measured", one["missing"].replace("|", "/"), "", ""])
            continue
        near = f"{one['cosine']:.5f} (least {one['least']:.5f})" if "cosine" in one else ""
        ratios = [f"{one[name]:.1f}×" if name in one else "" for name in ("ratio", "ratio_best")]
        rows.append([SIDES[side], f"{one['sentences_per_second']:,.0f}", near, *ratios])
    head = ["side", f"sentences of {figures['tokens']:.0f} tokens/s", f"cosine to float32 (bar {LEAST_COSINE})"]
    best = SIDES[figures["best"]].partition(", ")[2] or "float32"
    return markdown(
        [*head, f"to as a user gets it (bar {BAR}×)", f"to its best backend, {best} (bar {BEST_BAR}×)"], rows
    )


@app.command(show=False)
def side(way: str, file: Path, out: Path) -> None:
    """Ours: seconds of each pass, as JSON; what the benchmark starts."""
    settle_threads(None)
    texts = file.read_text(encoding="utf-8").splitlines()
    kind, _, precision = way.partition("-")
    if kind == "embed":
        from bertkin.tasks.embed import Embedder

        embedder = Embedder(encoder(), precision=precision or "auto")
        np.save(out, embedder.encode(texts))  # the first call is no measurement
        call: Any = lambda: embedder.encode(texts)  # noqa: E731
    else:
        reader = _reader(precision or "auto")
        call = lambda: reader.predict([(text,) for text in texts])  # noqa: E731
        reader.predict([(text,) for text in texts[:64]])
    took = []
    for _ in range(PASSES):
        begun = perf_counter()
        call()
        took.append(perf_counter() - begun)
    print(json.dumps({"seconds": took}))


def _reader(precision: str) -> Any:
    """The encoder with a head of two classes that nobody trained: what it answers does not matter here."""
    from bertkin.models.pretrained_tasks import begin_task_model, save_task_model
    from bertkin.models.task_heads import Answer
    from bertkin.tasks.predict import open_reader
    from bertkin.tasks.task import Task

    task = Task("class", labels=("no", "yes"))
    with tempfile.TemporaryDirectory() as folder:
        model = begin_task_model(encoder(), Answer("class", 2))
        told = {"task": task.to_mapping()}
        tokenizer = Tokenizer.load(encoder())
        save_task_model(model, folder, labels=task.labels, problem="class", tokenizer=tokenizer, extra=told)
        return open_reader(folder, precision=precision)


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        sys.exit(f"embedding: {error}")
