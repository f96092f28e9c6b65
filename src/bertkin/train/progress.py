"""Who is told how a training goes, and the two who listen: a live bar for people, and nobody.

A training writes the same records to log.jsonl, one JSON object a line:

    {"kind": "step", "step", "tokens", "minutes", "loss", "accuracy", "lr", "rate", "gradient_norm",
     "tokens_per_second", "progress"}       means since the record before; progress is the share of the budget, 0 to 1
    {"kind": "evaluation", "step", "tokens", "minutes", "loss", "accuracy"}             on held-out documents, with
                                            kept_loss and kept_accuracy on other text (data.keep_text); who listens
                                            is told, too, which of its scores counts (headline)
    {"kind": "samples", "step", "fills": [{"text", "answers": [[token, p], …] or "written", "truth"}]}
    {"kind": "start", "step", "from", "weights", "words", "fertility"}      of a run that goes on with a model
    {"kind": "resumed", "step"}
    {"kind": "finished", "step", "kept"}    of a run that ends with the weights of its best evaluation: the step of those
    {"kind": "baselines", "step", "frequent", "bigram"}         accuracies, written by `bertkin demo`
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from bertkin.train.price import Price

LINE_SECONDS = 10.0
"""How often a line is printed where there is no terminal to draw a bar on."""
DRAW_SECONDS = 0.2
"""How often the bar is drawn again."""


class Listener(Protocol):
    """Told by a training how it goes. Records are those of log.jsonl."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def price(self, price: Price) -> None:
        """What the training will cost, before it starts."""

    def preparing(self, done: int, total: int, what: str) -> None:
        """How far the corpus is prepared, in bytes; a total of 0 says that nobody knows."""

    def step(self, record: dict[str, Any]) -> None:
        """A few steps were made."""

    def evaluation(self, record: dict[str, Any]) -> None:
        """The held-out documents were asked."""

    def close(self) -> None:
        """Nothing more will come; called once or more."""


class QuietListener:
    """Listens to nothing."""

    def message(self, text: str) -> None:
        pass

    def price(self, price: Price) -> None:
        pass

    def preparing(self, done: int, total: int, what: str) -> None:
        pass

    def step(self, record: dict[str, Any]) -> None:
        pass

    def evaluation(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class RichListener:
    """A live bar on a terminal; elsewhere a line now and then. Everything goes to standard error.

    Args:
        console: where to; by default a new one on standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._what = ""
        self._drawn = 0.0
        self._begun: tuple[float, float] | None = None
        """When the first record came, and how much of the budget was spent then."""

    def message(self, text: str) -> None:
        self._print(text)

    def price(self, price: Price) -> None:
        self._end()
        for line in price.lines():
            self._print(f"  {line}")

    def preparing(self, done: int, total: int, what: str) -> None:
        figures = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB" if total else ""
        self._show(what, done / total if total else None, figures, finished=bool(total) and done >= total)

    def step(self, record: dict[str, Any]) -> None:
        now, done = time.monotonic(), float(record["progress"])
        if self._begun is None:
            self._begun = (now, done)
        since, before = self._begun
        left = (now - since) * max(1 - done, 0.0) / (done - before) if done > before else None
        parts = [
            f"step {record['step']:,}",
            f"loss {_number(record['loss'], '.3f')}",
            f"accuracy {_number(record['accuracy'], '.1%')}",
            f"{_number(record['tokens_per_second'], ',.0f')} tokens/s",
            f"{clock(left)} left" if left is not None else "",
        ]
        self._show("training", min(done, 1.0), " · ".join(filter(None, parts)), finished=done >= 1)

    def evaluation(self, record: dict[str, Any]) -> None:
        loss, headline = _number(record["loss"], ".3f"), str(record.get("headline", "accuracy"))
        score = _number(record.get(headline, record["accuracy"]), ".1%" if headline == "accuracy" else ".4g")
        moment = f"step {record['step']:>6,} · {record['minutes']:.2f} min"
        kept = f" · old text {_number(record['kept_loss'], '.3f')}" if "kept_loss" in record else ""
        second = f" · second question {record['pair_accuracy']:.1%}" if "pair_accuracy" in record else ""
        self._print(f"  {moment} · held-out loss {loss} · {headline} {score}{second}{kept}")

    def close(self) -> None:
        self._end()
        self._begun = None

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _show(self, what: str, share: float | None, figures: str, *, finished: bool) -> None:
        """Draw the bar, or print the line that stands for it, if it is time to."""
        new = what != self._what
        if new:
            self._end()
            self._what = what
        now = time.monotonic()
        live = self.console.is_terminal
        if not (new or finished) and now - self._drawn < (DRAW_SECONDS if live else LINE_SECONDS):
            return
        self._drawn = now
        if not live:
            percent = f"{share:4.0%} · " if share is not None else ""
            if figures or new:
                self._print(f"  {what}: {percent}{figures}" if figures else f"  {what} …")
            return
        if self._bar is None:
            self._bar = _bar(self.console)
            self._bar.add_task(what, total=None if share is None else 1.0, figures=figures)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=share or 0.0, figures=figures)
        self._bar.refresh()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._what = None, ""


class Window:
    """Sums since the last record."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.sums: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def add(self, step: dict[str, float]) -> None:
        self.last = step
        for name, value in step.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def age(self) -> float:
        return time.perf_counter() - self.begun

    def record(self) -> dict[str, float]:
        s = self.sums
        record = {
            "loss": round(s["loss"] / max(s["asked"], 1), 5),
            "accuracy": round(s["correct"] / max(s["asked"], 1), 5),
            "gradient_norm": round(self.last["norm"], 5),
            "factor": self.last["factor"],
            "tokens_per_second": round(s["tokens"] / max(self.age(), 1e-9), 1),
        }
        if s["pairs"]:
            record["pair_loss"] = round(s["pair_loss"] / s["pairs"], 5)
            record["pair_accuracy"] = round(s["pair_correct"] / s["pairs"], 5)
        return record


def _bar(console: Console) -> Any:
    """A bar that is drawn when told to: a thread of its own would outlive a fork and take time from the training."""
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        auto_refresh=False,
        transient=True,
    )


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def clock(seconds: float) -> str:
    """A duration as 42 s, 3:07 or 2:03:07."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
