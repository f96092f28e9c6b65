"""How fast the real encoder is fine-tuned, beside transformers' Trainer on the same machine, rows and order.

    BERTKIN_DATA=shared/data python benchmarks/finetuning.py                   # about 25 minutes
    BERTKIN_DATA=shared/data python benchmarks/finetuning.py --tasks cola --repeats 1

Whole steps of 32 examples, all of all-MiniLM-L6-v2 trained with AdamW: batch, forward, backward, update. The Trainer is
taken as a user gets it (float32), and with bf16=True where the processor has such products. It pads as transformers' own
guides do: sentences (CoLA) to the longest of the batch, questions with their paragraphs (SQuAD) to 384 tokens; "squad,
longest" pads those to the longest, too. It is handed the examples that ours draws, in that order. Each side runs in a process
of its own, in turn; the table gives medians of seconds an example, and ratios of medians. A turn that is finished is not
repeated until our code changes.

Results go into finetuning.json beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "experiments"))

from sharing import markdown, once, put  # noqa: E402
from side_by_side import WARM, in_process, source, timed_steps, write  # noqa: E402
from starts import encoder  # noqa: E402
from tuned import PAGE  # noqa: E402
from tuned import Options as Choices  # noqa: E402
from tuned import task as task_of  # noqa: E402

from bertkin.config import Train  # noqa: E402
from bertkin.errors import UserError, nearest  # noqa: E402
from bertkin.tasks.encoding import Row  # noqa: E402
from bertkin.tasks.finetune import FineTuning  # noqa: E402
from bertkin.tasks.gathering import gather  # noqa: E402
from bertkin.tasks.tuning import Tuning  # noqa: E402
from bertkin.train.machine import pick_precision, settle_threads  # noqa: E402
from bertkin.train.price import spoken  # noqa: E402
from bertkin.train.state import Position  # noqa: E402


@dataclass(frozen=True)
class Measured:
    """What is measured.

    Attributes:
        task: of `tuned.task`.
        length: most tokens of a row.
        longest: whether the Trainer pads to the longest of a batch, rather than to `length`.
        steps: timed in each process.
        seconds: that all three sides take for a step, about, for the price.
    """

    title: str
    task: str
    length: int
    longest: bool
    steps: int
    seconds: float


TASKS = {
    "cola": Measured("CoLA", "CoLA", 128, True, 60, 0.7),
    "squad": Measured("SQuAD part", "SQuAD", 384, False, 8, 10.0),
    "squad-longest": Measured("SQuAD part, longest", "SQuAD", 384, True, 8, 7.0),
}
SIDES = {"bertkin": "ours", "trainer": "Trainer", "bf16": "Trainer, bf16"}
BARS = {"trainer": 4.5, "bf16": 2.5}
BATCH = 32
STARTING = 12.0
"""Seconds until a process steps."""

app = App(help_format="plaintext")


@cache
def sides() -> tuple[str, ...]:
    """What is measured here: without bfloat16 products a step of the Trainer's in bf16 takes minutes."""
    return tuple(side for side in SIDES if side != "bf16" or pick_precision("auto") == torch.bfloat16)


@app.default
def main(
    *,
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = tuple(TASKS),
    repeats: int = 3,
    steps: int | None = None,
    limit: int | None = None,
    out: Path = HERE.parent / "runs" / "benchmarks" / "finetuning",
    record: Path = HERE / "finetuning.json",
    page: Path = PAGE,
    price: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Seconds an example of each task, ours and the Trainer's.

    Parameters
    ----------
    tasks
        Of cola, squad and squad-longest.
    repeats
        Processes of each side, in turn.
    steps
        Timed in each process, after three that do not count; by default 60 of CoLA, 8 of SQuAD. With this or --limit, the
        record and the page are left alone.
    limit
        A trial on so many rows.
    out
        Folder for the turns that are finished.
    record
        Where the figures go.
    page
        Where the table goes.
    price
        Say what it would cost, and stop.
    """
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"no task {name!r}", where="--tasks", mend=nearest(name, TASKS))
    chosen = {name: TASKS[name] if steps is None else replace(TASKS[name], steps=steps) for name in tasks}
    seconds = sum(len(sides()) * STARTING + (WARM + one.steps) * one.seconds for one in chosen.values())
    print(f"{repeats} turns: about {spoken(repeats * seconds / 60)}", flush=True)
    if price:
        return
    settle_threads(None)
    code, trial = source(), limit is not None or steps is not None
    for name, one in chosen.items():
        place = out / (f"{name}-trial" if trial else name)  # its turns take nobody else's place
        turns = []
        for turn in range(repeats):
            settings = {
                "steps": one.steps,
                "length": one.length,
                "longest": one.longest,
                "limit": limit,
                "source": code,
            }
            turns.append(once(place / str(turn), settings, partial(_turn, name, one, limit)))
            said = "  ".join(f"{side} {1e3 * turns[-1][side]:.2f}" for side in sides())
            print(f"{name}, turn {turn + 1}: {said} ms an example", file=sys.stderr, flush=True)
        figures = _figures(one, turns)
        if not trial:
            write(record, name, figures)
        print(table({name: figures}))
    if not trial:
        put(page, table(json.loads(record.read_text())), "finetuning")


def _turn(name: str, one: Measured, limit: int | None) -> dict[str, Any]:
    """Seconds an example of each side, one after the other."""
    told = {side: in_process(__file__, "side", name, side, str(one.steps), str(limit or 0)) for side in sides()}
    seconds = {side: sum(found["seconds"]) / (BATCH * one.steps) for side, found in told.items()}
    return seconds | {"tokens": told["bertkin"]["tokens"]}


def _figures(one: Measured, turns: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {side: median(turn[side] for turn in turns) for side in sides()}
    return {
        "title": one.title,
        "steps": one.steps,
        "tokens_an_example": turns[0]["tokens"],
        "examples_per_second": {side: round(1 / value, 1) for side, value in middle.items()},
        "seconds_an_example": {side: [round(turn[side], 6) for turn in turns] for side in sides()},
        "ratio": {side: round(middle[side] / middle["bertkin"], 2) for side in BARS if side in middle},
        "bars": BARS,
    }


def table(content: dict[str, Any]) -> str:
    """A line a task: examples a second of each side, and how many times theirs ours is."""
    head = ["task", "tokens an example", "turns × steps", *(f"{title}, examples/s" for title in SIDES.values())]
    head += [f"to {SIDES[side]} (bar {bar}×)" for side, bar in BARS.items()]
    rows = []
    for one in content.values():
        rates = [one["examples_per_second"].get(side) for side in SIDES]
        speed = [f"{rate:,.0f}" if rate and rate >= 10 else f"{rate:.1f}" if rate else "–" for rate in rates]
        ratios = [f"{ratio:.1f}×" if (ratio := one["ratio"].get(side)) else "–" for side in BARS]
        timed = f"{len(one['seconds_an_example']['bertkin'])} × {one['steps']}"
        rows.append([one["title"], f"{one['tokens_an_example']:.0f}", timed, *speed, *ratios])
    return markdown(head, rows)


@app.command(show=False)
def side(name: str, which: str, steps: int, limit: int) -> None:
    """One side's seconds of each step, as JSON; what the benchmark starts."""
    settle_threads(None)
    one = TASKS[name]
    aside = HERE.parent / "runs" / "benchmarks" / "finetuning"
    tuning = task_of(one.task, Choices(limit=limit or None), aside)
    train = Train(steps=1000, lr=5e-5, warmup=0.0, weight_decay=0.0, beta2=0.999, optimizer="adamw")
    tuning = replace(tuning, model=encoder(), length=one.length, batch=BATCH, train=train, attention_dropout=0.1)
    work = FineTuning(gather(tuning, "cpu"), "cpu")
    tokens = float(work.examples.lengths.sum() / len(work.examples.examples))
    took = timed_steps(lambda _: work, steps) if which == "bertkin" else theirs(work, one, steps, which == "bf16")
    print(json.dumps({"seconds": took, "tokens": round(tokens, 1)}))


def theirs(work: FineTuning, one: Measured, count: int, bf16: bool) -> list[float]:
    """Seconds of each of the Trainer's steps on the batches that ours draws."""
    import transformers
    from torch.utils.data import DataLoader
    from trainer import arguments, collator, features, model_for

    tuning: Tuning = work.tuning
    rows: list[Row] = []
    batches: list[list[int]] = []
    position = Position()
    for _ in range(WARM + count):
        drawn = work.batch(position, 0.0).rows
        work.advance(position, 0.0)
        batches.append(list(range(len(rows), len(rows) + len(drawn))))
        rows += drawn
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(perf_counter())

    class Ordered(transformers.Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            given: Any = self.train_dataset
            return DataLoader(given, batch_sampler=batches, collate_fn=self.data_collator)

    with tempfile.TemporaryDirectory() as aside:  # its output, of which nothing is kept
        peer = Ordered(
            model=model_for(work.task, work.stock),
            args=arguments(
                tuning, Path(aside), bf16=bf16, max_steps=len(batches), num_train_epochs=1, save_strategy="no"
            ),
            train_dataset=features(replace(work.examples, rows=rows)),
            data_collator=collator(work.task, work.stock, tuning.length, one.longest),
            callbacks=[Clock()],
        )
        peer.train()
    return [after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        sys.exit(f"finetuning: {error}")
