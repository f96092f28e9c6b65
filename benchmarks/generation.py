"""How fast a GPT writes, beside transformers' `generate` on the same machine, with the same weights.

    python benchmarks/generation.py                                # about 10 minutes
    python benchmarks/generation.py --shapes 4x256 --batches 1 --repeats 1

Prompts of 32 random tokens, 64 new tokens each, greedily, from loading done to the last token: reading the prompts counts.
transformers writes in bfloat16 (and, for the record, in float32, as a user gets it), bertkin in bfloat16 and with int8
weights. Each side runs in a process of its own, in turn, several texts after one that does not count; the table gives
medians, and ratios of medians. Weights are random: what is written does not matter for the time, as nothing ends early.
Results go into generation.json beside this file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from side_by_side import in_process, write

from bertkin.config import Model
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import load_model, save_model
from bertkin.train.machine import settle_threads

HERE = Path(__file__).parent
SHAPES = {"4x256": (4, 256, 4), "12x768": (12, 768, 12)}
VOCABULARY, PROMPT = 50_257, 32
SIDES = ("bertkin", "bertkin int8", "transformers", "transformers float32")

app = App(help_format="plaintext")


@app.default
def main(
    *,
    shapes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(SHAPES),
    batches: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 16),
    sides: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = SIDES,
    tokens: int = 64,
    texts: int = 5,
    repeats: int = 3,
    record: Path = HERE / "generation.json",
) -> None:
    """New tokens a second, all sequences together.

    Parameters
    ----------
    shapes
        Layers and width: 4x256, 12x768 (GPT-2's).
    batches
        Prompts written side by side.
    sides
        Who writes.
    tokens
        New tokens for each prompt.
    texts
        Batches that count in each process.
    repeats
        Processes of each side, in turn.
    record
        Where the figures go.
    """
    threads = settle_threads(None)
    about = {"prompt": PROMPT, "new": tokens, "threads": threads}
    table: dict[str, Any] = _earlier(record, about)
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            layers, hidden, heads = SHAPES[shape]
            m = Model(
                family="gpt2", layers=layers, hidden=hidden, heads=heads, intermediate=4 * hidden, max_length=1024
            )
            save_model(build(resolve_model(m, VOCABULARY)), Path(scratch) / shape)
            for batch in batches:
                seconds: dict[str, list[float]] = {side: [] for side in sides}
                for turn in range(repeats):
                    for side in sides:
                        plan = (str(Path(scratch) / shape), str(batch), str(tokens), str(texts))
                        seconds[side] += in_process(__file__, "texts", side, *plan)
                        speed = batch * tokens / median(seconds[side][-texts:])
                        print(f"{shape} × {batch} {side} turn {turn + 1}: {speed:,.0f} tokens/s", file=sys.stderr)
                table[f"{shape} × {batch}"] = _row(seconds, batch * tokens)
                write(record, "generation", {**about, "rows": table})
    print(f"\n{'':12} " + " ".join(f"{side:>20}" for side in sides) + f" {'ratio':>8} {'int8':>8}")
    for name, row in table.items():
        speeds = " ".join(
            f"{row['tokens_per_second'][side]:20,}" if side in row["tokens_per_second"] else f"{'':20}"
            for side in sides
        )
        ratios = " ".join(f"{row[key]:7.2f}×" if key in row else " " * 8 for key in ("ratio", "ratio_int8"))
        print(f"{name:12} {speeds} {ratios}")


def _earlier(record: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The rows that are there of the same prompts, new tokens and threads."""
    found = json.loads(record.read_text()).get("generation", {}) if record.exists() else {}
    return dict(found["rows"]) if about.items() <= found.items() else {}


def _row(seconds: dict[str, list[float]], written: int) -> dict[str, Any]:
    speed = {side: written / median(took) for side, took in seconds.items()}
    row: dict[str, Any] = {
        "tokens_per_second": {side: round(value) for side, value in speed.items()},
        "seconds": {side: [round(s, 4) for s in took] for side, took in seconds.items()},
    }
    for key, side in (("ratio", "bertkin"), ("ratio_int8", "bertkin int8")):
        if side in speed and "transformers" in speed:
            row[key] = round(speed[side] / speed["transformers"], 2)
    return row


@app.command(show=False)
def texts(side: str, folder: Path, batch: int, tokens: int, count: int) -> None:
    """One side's seconds for each batch of texts, as JSON; what the benchmark starts."""
    settle_threads(None)
    prompts = torch.randint(0, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    once = (
        _ours(folder, prompts, tokens, side) if side.startswith("bertkin") else _theirs(folder, prompts, tokens, side)
    )
    took = []
    for number in range(count + 1):
        start = perf_counter()
        made = once()
        if number:
            took.append(perf_counter() - start)
        assert made == batch * tokens
    print(json.dumps(took))


def _ours(folder: Path, prompts: torch.Tensor, tokens: int, side: str) -> Any:
    from bertkin.models.generate import Decoding, write
    from bertkin.models.steps import Steps

    model = load_model(folder, dtype=torch.bfloat16)
    steps = Steps(model, int8=side.endswith("int8")) if Steps.usable(model) else None
    how, ids = Decoding(max_new_tokens=tokens, temperature=0), prompts.tolist()
    return lambda: sum(len(written) for written in write(model, ids, how, steps=steps))


def _theirs(folder: Path, prompts: torch.Tensor, tokens: int, side: str) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if side.endswith("float32") else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "pad_token_id": 0,
    }

    def once() -> int:
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        return int(out[:, prompts.shape[1] :].numel())

    return once


if __name__ == "__main__":
    app()
