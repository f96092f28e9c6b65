"""The one loop: a batch, its loss, its gradient, a step; now and then an evaluation and a checkpoint.

What is trained, on what, is the loop's work (`bertkin.train.work`): `bertkin.train.pretraining` is one.

A budget in steps, tokens or epochs makes a run repeatable to the bit; a budget in minutes follows the clock.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models.kernels import status
from bertkin.train.machine import keep_memory, pick_precision, settle_threads
from bertkin.train.optim import Optimizer
from bertkin.train.parallel import World
from bertkin.train.progress import Listener, Window
from bertkin.train.report import write_report
from bertkin.train.schedule import rate_factor
from bertkin.train.state import (
    Log,
    Position,
    generator,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    step_folder,
    sweep,
)
from bertkin.train.work import Work

CHECKPOINT_SECONDS = 120
LOG_SECONDS = 0.5
RARELY, SLOW = 10, 0.25
"""Where writing a checkpoint takes more than SLOW seconds, those of evaluations wait for RARELY times as long as it took: a few
hundred examples are gone through faster than their model is written down."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Path
    step: int
    tokens: int
    minutes: float
    loss: float
    """Of the weights that are there at the end."""
    accuracy: float
    kind: str = "masked"
    """What it was asked (`objective.kind`)."""


class Stopped(Exception):
    """The person asked to stop; everything is saved.

    Args:
        run: the run folder, to resume.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        super().__init__(f"stopped and saved; go on with: bertkin resume {run}")


class Training:
    """Everything one training holds between steps."""

    def __init__(
        self, work: Work, out: Path, listener: Listener, world: World, device: str, *, resumed: bool = False
    ) -> None:
        self.work, self.train = work, work.train
        self.out, self.listener, self.world, self.device = out, listener, world, device
        self.threads = settle_threads(self.train.threads, world.local_size)
        keep_memory()
        half = pick_precision(self.train.precision, device) == torch.bfloat16
        self.dtype = torch.bfloat16 if world.agree(float(half)) else torch.float32  # what the first one measured
        self.model = work.first_model().to(device=device, dtype=self.dtype).train()
        self.optimizer = Optimizer(self.model, self.train)
        # A second model whose weights are the float32 ones: what is evaluated and saved.
        self.finished = work.first_model().to(device).eval()
        # What the model holds is rounded to the type it computes in; the masters begin with the weights themselves.
        self.optimizer.adopt({name: parameter.data for name, parameter in self.finished.named_parameters()})
        masters, computing = self.optimizer.weights(), dict(self.model.named_parameters())
        for name, parameter in self.finished.named_parameters():
            if name in masters:
                parameter.data = masters[name]
            elif computing[name].dtype == parameter.dtype:  # what is not trained is there once
                parameter.data = computing[name].data
        self.position = Position()
        self.loss, self.accuracy = math.nan, math.nan
        self.stop = False
        self.cost = 0.0
        """Seconds that the last checkpoint took."""
        self.held: tuple[Position, dict[str, torch.Tensor]] | None = None
        """The best so far, where its checkpoint waits to be written."""
        if resumed:
            if world.first:
                sweep(out)
            self._take_up()
        self.resumed = resumed
        self.log: Log | None = None

    def run(self) -> Result:
        """Train until the budget is spent, then write the model and the report."""
        self._open()
        self._announce()
        try:
            with self._interruptible():
                self._train()
        except (Stopped, NonFiniteLoss):
            self._close()
            if self.world.first:
                raise
            raise SystemExit(NonFiniteLoss.exit_code) from None  # the first process says why
        self._close()
        self.listener.message(f"the run is in {self.out}; the model in {self.out / 'model'}")
        p = self.position
        return Result(self.out, p.step, p.tokens, p.seconds / 60, self.loss, self.accuracy, self.work.kind)

    def _train(self) -> None:
        if not self.position.step and (opening := self.work.opening(self.listener)) is not None:
            if self.log:
                self.log.write({"kind": "start", "step": 0, **opening})
            self.evaluate()  # how good it is already
        begun, before, first_step = time.perf_counter(), self.position.seconds, self.position.step
        saved, window = begun, Window()
        while (progress := self.progress()) < 1.0 and not self._tired():
            window.add(self.step(progress))
            now = time.perf_counter()
            self.position.seconds, age, cost, stop = self._agree(before + now - begun, now - saved, self.cost)
            due = self._evaluation_due(progress)
            if due or window.age() > LOG_SECONDS:
                self._tell(window, progress)
                window = Window()
            if due:
                self.evaluate()
            over = self.progress() >= 1.0 or self._tired()
            waits = cost > SLOW and age < RARELY * cost and not over and not self.train.checkpoint_every
            if stop or self._checkpoint_due(age) or (due and not waits):
                self.checkpoint()
                saved = time.perf_counter()
            elif due:
                self._hold()
            if due:
                window = Window()  # evaluating is no training
            if stop and not over:
                raise Stopped(self.out)
        if self.position.loss is None:
            self.evaluate()
            self.checkpoint()
        elif self.position.step == first_step:  # killed between the last checkpoint and its model
            self.world.lead(self._export_if_best)
        if self.train.final == "best":
            self.world.lead(self._go_back)

    def progress(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        t, p = self.train, self.position
        if t.steps:
            return p.step / t.steps
        if t.tokens:
            return p.tokens / t.tokens
        if t.epochs:
            return self.work.epochs(p) / t.epochs
        return p.seconds / (60 * t.minutes)

    def step(self, progress: float) -> dict[str, float]:
        """One batch and one update; returns sums over all processes."""
        work, p = self.work, self.position
        batch = work.batch(p, progress)
        generator(self.train.seed, p.step, self.world.rank)
        self.optimizer.unfreeze(progress)
        counts, sums = work.counts(batch), [0.0, 0.0, 0.0, 0.0]
        for part in batch.slice(self.world.rank, self.world.size).split(self.train.accumulate):
            if not part.idle:
                work.learn(self.model, part, counts, sums)
        self.world.sum_gradients(self.model)
        loss, n_correct, pair_loss, pair_correct = self.world.sum(sums)
        work.learnt(self.world)
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(loss + pair_loss):
            self._refuse(f"the loss is {loss + pair_loss}", p.step + 1)
        if not math.isfinite(norm):
            self._refuse(f"the gradient's norm is {norm}", p.step + 1)
        factor = rate_factor(self.train, progress)
        self.optimizer.step(factor, norm)
        p.step += 1
        p.tokens += batch.n_tokens
        work.advance(p, progress)
        p.loss = p.accuracy = None
        return {
            "loss": loss,
            "correct": n_correct,
            "asked": counts[0],
            "pair_loss": pair_loss,
            "pair_correct": pair_correct,
            "pairs": counts[1],
            "tokens": batch.n_tokens,
            "norm": norm,
            "factor": factor,
        }

    def _refuse(self, what: str, step: int) -> NoReturn:
        if self.world.first:  # the best so far would be lost with us
            with contextlib.suppress(UserError):  # what the disk says then is not the trouble
                self._release()
        kept = sorted((self.out / "checkpoints").glob("step-*"))
        last = f"the checkpoint of step {int(kept[-1].name[5:]):,} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteLoss(
            f"{what} at step {step:,}; {last}",
            where=self.out,
            mend="start again with a lower --train.lr or --train.clip, or --train.precision float32",
        )

    def evaluate(self) -> None:
        """Measure on what is held out, in the weights that are saved."""
        was = self.model.training
        model = self.model.eval()
        if self.optimizer.average:  # the average is in float32; evaluate what will be saved
            model = self.finished
        try:
            found = self.work.evaluate(model, self.world)
        except NonFiniteLoss as error:
            self._refuse(error.what, self.position.step)
        score = self.world.agree(found.pop("score", -found["loss"]))
        self.loss, self.accuracy = found["loss"], found["accuracy"]
        self.model.train(was)
        p = self.position
        if not math.isfinite(self.loss):
            self._refuse(f"the held-out loss is {self.loss}", p.step)
        p.loss, p.accuracy = self.loss, self.accuracy
        if p.step:  # before the first there is no checkpoint to go back to
            p.judge(score, self.world.agree(self.loss))
        record: dict[str, Any] = {"kind": "evaluation", "step": p.step, "tokens": p.tokens}
        record |= {"minutes": round(p.seconds / 60, 5)}
        record |= {name: float(f"{value:.6g}") for name, value in found.items()}  # errors may be as small as you like
        if self.log:
            self.log.write(record)
            if fills := self.work.show(self.finished):
                self.log.write({"kind": "samples", "step": p.step, "fills": fills})
            self.listener.evaluation(record | {"headline": self.work.headline})

    def checkpoint(self) -> None:
        """Write down everything, and the model as it is now; before it the best, if that still waits."""

        def write() -> None:
            self._release()
            save_checkpoint(self.out, self.position, self.optimizer.state() | self.work.state(), self.train.keep)
            self._export_if_best()

        begun = time.perf_counter()
        self.world.lead(write)
        self.cost = time.perf_counter() - begun

    def _hold(self) -> None:
        """Remember the best until the next checkpoint. Who is killed before goes on from the last one, and comes by here
        again."""
        if self.world.first and self.position.best_step == self.position.step:
            table = self.optimizer.state() | self.work.state()
            copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in table.items()}
            self.held = replace(self.position, rows=dict(self.position.rows)), copied

    def _release(self) -> None:
        """Write down the best that waited: its checkpoint and, where the best is what is kept, its model."""
        if self.held is None:
            return
        (position, table), self.held = self.held, None
        save_checkpoint(self.out, position, table, self.train.keep)
        if self.train.final == "best" and position.step == self.position.best_step:
            with self.optimizer.reverted(table):
                self._export(position)

    def _tired(self) -> bool:
        """Whether there were too many evaluations without a better score."""
        return 0 < self.train.patience <= self.position.stale

    def _go_back(self) -> None:
        """End with the weights of the best evaluation."""
        p = best = self.position
        if p.best_step not in (None, p.step):
            try:
                best, table = read_checkpoint(step_folder(self.out, p.best_step))
                self.optimizer.revert(table)
                self._known(best)
            except UserError as error:
                self.listener.message(f"{error}; the last weights are kept")
            self._export(best)
        if self.log:
            self.log.write({"kind": "finished", "step": p.step, "kept": best.step})
        early = f"; stopped after {p.stale} evaluations without a better score" if self._tired() else ""
        best_was, last_was = (f"step {at.step:,} (epoch {self.work.epochs(at):.2f})" for at in (best, p))
        self.listener.message(f"kept        the best evaluation, of {best_was}; the last was of {last_was}{early}")

    def _known(self, p: Position) -> None:
        """What was measured at a position is what is known of the weights."""
        if p.loss is not None and p.accuracy is not None:
            self.loss, self.accuracy = p.loss, p.accuracy

    def _open(self) -> None:
        """Nothing is written into the run folder before: whoever makes it may do so once the model is known to be one."""
        if not self.world.first:
            return
        until = (self.position.step or -1) if self.resumed else None  # who begins again has said nothing yet
        self.log = Log(self.out, until=until, board=self.train.tensorboard)
        if self.resumed:
            self.log.write({"kind": "resumed", "step": self.position.step})

    def _close(self) -> None:
        """The last words of a run, however it ended."""
        if self.log:
            self.log.close()
            write_report(self.out)

    def _export_if_best(self) -> None:
        """Write the model, unless a better one is to stay there."""
        best = self.position.best_step in (None, self.position.step)
        if best or self.train.final != "best" or not (self.out / "model").exists():
            self._export(self.position)

    def _export(self, p: Position) -> None:
        extra: dict[str, Any] = {"step": p.step, "tokens": p.tokens, "minutes": round(p.seconds / 60, 3)}
        if p.loss is not None:
            extra |= {"heldout_loss": p.loss, "heldout_accuracy": p.accuracy}
        self.work.export(self.finished, self.out / "model", extra)

    def _take_up(self) -> None:
        """Go back to where the newest whole checkpoint was written."""
        found = load_checkpoint(self.out, self.listener.message)
        if found is None:
            self.listener.message("no checkpoint yet: starting from the beginning")
            return
        self.position, table = found
        try:
            self.optimizer.load(table, self.position.step)
            for name, tensor in self.work.state().items():
                tensor.copy_(table[name])
        except (KeyError, RuntimeError):
            raise UserError("the checkpoint is of another model", where=self.out, mend="start a new run") from None
        self._known(self.position)
        self.listener.message(f"going on from step {self.position.step:,}")

    def _announce(self) -> None:
        if not self.world.first:
            return
        price = self.work.price(self.model, device=self.device, dtype=self.dtype, threads=self.threads)
        if self.device == "cpu":
            self.listener.message(status())
        self.listener.price(price)
        for note in self.work.notes(self.model):
            self.listener.message(note)

    def _tell(self, window: Window, progress: float) -> None:
        if not self.log:
            return
        p = self.position
        record: dict[str, Any] = {
            "kind": "step",
            "step": p.step,
            "tokens": p.tokens,
            "minutes": round(p.seconds / 60, 5),
        }
        record |= window.record()
        record["lr"] = record.pop("factor") * self.train.lr
        record |= self.work.told(progress)
        record["progress"] = round(self.progress(), 6)
        self.log.write(record)
        self.listener.step(record)

    def _evaluation_due(self, before: float) -> bool:
        every = self.train.eval_every
        now = self.progress()
        if now >= 1.0:
            return True
        if every >= 1:
            return self.position.step % int(every) == 0
        return math.floor(now / every + 1e-9) > math.floor(before / every + 1e-9)

    def _checkpoint_due(self, age: float) -> bool:
        every = self.train.checkpoint_every
        return self.position.step % every == 0 if every else age > CHECKPOINT_SECONDS

    def _agree(self, *numbers: float) -> tuple[float, float, float, bool]:
        """The first process's numbers, and whether any process was asked to stop; in one message."""
        mine = numbers if self.world.first else (0.0,) * len(numbers)
        seconds, age, cost, stops = self.world.sum([*mine, float(self.stop)])
        return seconds, age, cost, stops > 0

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step they fall in, with everything saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_signal: int, _frame: object) -> None:
            if self.stop:  # a second time: at once
                raise KeyboardInterrupt
            self.stop = True
            if self.world.first:
                print("\nstopping after this step …", file=sys.stderr)

        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)
