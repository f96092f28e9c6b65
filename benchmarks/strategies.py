"""What a step of each fine-tuning strategy costs, and how much it trains: BERT, 6 layers of 384, a class from [CLS].

    python benchmarks/strategies.py                 32 sequences of 64 tokens, bfloat16, two threads
    python benchmarks/strategies.py --threads 1

All strategies take turns, so that what else the machine does falls on all alike; of each part, the fastest turn counts.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch

from bertkin.config import Model, Train
from bertkin.models.adapt import apply, trainable
from bertkin.models.initial import initialise
from bertkin.models.presets import build, resolve_model
from bertkin.models.strategy import MATRICES, Strategy
from bertkin.models.task_heads import Answer, TaskModel
from bertkin.text.layout import Layout
from bertkin.train.optim import Optimizer

STRATEGIES = {
    "full": Strategy(),
    "frozen": Strategy("frozen"),
    "last (1)": Strategy("last"),
    "layers": Strategy("layers"),
    "adapter, both": Strategy("adapter"),
    "adapter, feed-forward": Strategy("adapter", where="feed-forward"),
    "lora": Strategy("lora"),
    "lora, all matrices": Strategy("lora", matrices=MATRICES),
    "bias": Strategy("bias"),
    "prefix": Strategy("prefix"),
}
VOCABULARY = 30_522


def begun(strategy: Strategy) -> tuple[TaskModel, Optimizer]:
    shape = Model(family="bert", layers=6, hidden=384, heads=12, intermediate=1536, max_length=512)
    a = build(resolve_model(shape, VOCABULARY)).architecture
    model = TaskModel(a, Answer("class", 2))
    initialise(model, a, torch.Generator().manual_seed(0))
    apply(model, strategy)
    model = model.to(torch.bfloat16).train()
    return model, Optimizer(model, Train(optimizer="adamw", lr=1e-4, beta2=0.999, weight_decay=0.01))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--sequences", type=int, default=32)
    options.add_argument("--length", type=int, default=64)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    ids = torch.randint(5, VOCABULARY, (args.sequences * args.length,))
    layout = Layout.from_lengths([args.length] * args.sequences).to("cpu")
    runs = {name: begun(strategy) for name, strategy in STRATEGIES.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(args.turns):
        for name, (model, optimizer) in runs.items():
            marks = [time.perf_counter()]
            loss = model(ids, layout).float().square().mean()
            marks.append(time.perf_counter())
            loss.backward()
            marks.append(time.perf_counter())
            optimizer.step(1.0, optimizer.gradient_norm())
            marks.append(time.perf_counter())
            times[name].append([1e3 * (after - before) for before, after in pairwise(marks)])
    print(f"{len(ids):,} tokens a step, {args.threads} threads; milliseconds")
    print(f"{'strategy':22} {'forward':>8} {'backward':>8} {'optimiser':>9} {'together':>8}   trained of all")
    for name, (model, _) in runs.items():
        parts = [min(turn[i] for turn in times[name]) for i in range(3)]
        trained, total = trainable(model)
        print(f"{name:22} {parts[0]:8.1f} {parts[1]:8.1f} {parts[2]:9.1f} {sum(parts):8.1f}   {trained:,} of {total:,}")


if __name__ == "__main__":
    main()
