"""The one loop: a batch, its loss, its gradient, a step; now and then an evaluation and a checkpoint.

    pretrain(recipe, out)      grow a model from a recipe into a run folder
    resume(out)                go on where a run stopped; it ends with the same bits as one that never did

A budget in steps, tokens or epochs makes a run repeatable to the bit; a budget in minutes follows the clock.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bertkin.config import Recipe, fill_auto, load_recipe
from bertkin.errors import NonFiniteLoss, UserError
from bertkin.models.heads import AnyModel, LanguageModel
from bertkin.models.kernels import status
from bertkin.models.pretrained import save_model
from bertkin.objectives.adaptive import Difficulty, Tally
from bertkin.objectives.make import FILLERS, evaluation_batches, make_batch, side_count, side_weight
from bertkin.objectives.masking import rate_at
from bertkin.text.batches import Batch, Specials, SplitLike, rows_per_epoch
from bertkin.text.words import described
from bertkin.train.folder import begin, refuse_existing, reopen, settled, shared
from bertkin.train.machine import keep_memory, pick_device, pick_precision, settle_threads
from bertkin.train.optim import Optimizer
from bertkin.train.parallel import World, join
from bertkin.train.price import estimate
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.report import write_report
from bertkin.train.samples import Sample, answer, pick
from bertkin.train.schedule import length_at, parse_lengths, rate_factor, rows_at
from bertkin.train.setup import Materials, complete, gather
from bertkin.train.start import facts_of, first_model, open_start
from bertkin.train.state import Log, Position, generator, load_checkpoint, save_checkpoint, sweep

CHECKPOINT_SECONDS = 120
LOG_SECONDS = 0.5


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Path
    step: int
    tokens: int
    minutes: float
    loss: float
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


def pretrain(recipe: Recipe, out: Path, *, listener: Listener | None = None, overwrite: bool = False) -> Result:
    """Grow a model from raw text into a run folder.

    Args:
        recipe: what to do; whatever it leaves open is filled in by its preset, corpus and budget.
        out: the run folder, which must not hold anything yet.
        listener: who is told how it goes.
        overwrite: empty the run folder first.

    Raises:
        UserError: the recipe, the corpus or the disk will not do; nothing is half-written.
        NonFiniteLoss: training went off the rails; the last checkpoint is kept.
        Stopped: interrupted from the keyboard, and saved.
    """
    out, listener = Path(out), listener or QuietListener()
    recipe = complete(recipe)
    device = pick_device(recipe.train.device)
    world = join(device)
    listener = listener if world.first else QuietListener()

    def prepare() -> Materials:
        refuse_existing(out, overwrite=overwrite)
        start = open_start(recipe, listener.preparing) if recipe.train.init else None
        materials = gather(recipe, listener.preparing, tokenizer=start.tokenizer if start else None)
        used = settled(materials.recipe, precision=str(pick_precision(recipe.train.precision, device)).split(".")[1])
        if start:
            used = replace(used, model=replace(used.model, vocab_size=start.model.architecture.vocab_size))
        begin(out, used, materials.tokenizer, materials.store, start)
        return replace(materials, recipe=used)

    try:
        materials = world.lead(prepare) or shared(out)
        return Training(materials, out, listener, world, device).run()
    finally:
        listener.close()


def resume(out: Path, *, listener: Listener | None = None) -> Result:
    """Go on with a run from its newest whole checkpoint, or from the start if it has none.

    Raises:
        UserError: not a run folder, or its corpus has changed since.
    """
    out, listener = Path(out), listener or QuietListener()
    if not (out / "recipe.yaml").exists():
        raise UserError("not a run folder (no recipe.yaml)", where=out, mend="give the --out of a `bertkin pretrain`")
    device = pick_device(load_recipe(out / "recipe.yaml").train.device)
    world = join(device)
    listener = listener if world.first else QuietListener()
    try:
        materials = world.lead(lambda: reopen(out, listener.preparing)) or shared(out)
        return Training(materials, out, listener, world, device, resumed=True).run()
    finally:
        listener.close()


class Training:
    """Everything one training holds between steps."""

    def __init__(
        self, materials: Materials, out: Path, listener: Listener, world: World, device: str, *, resumed: bool = False
    ) -> None:
        self.recipe, self.store, self.tokenizer = materials.recipe, materials.store, materials.tokenizer
        self.kept = materials.kept
        self.out, self.listener, self.world, self.device = out, listener, world, device
        self.train = self.recipe.train
        self.objective = fill_auto(self.recipe.objective, kind="masked")  # runs from before there were others
        self.ids = Specials.of(self.tokenizer)
        self.stages = parse_lengths(self.train)
        self.threads = settle_threads(self.train.threads, world.local_size)
        keep_memory()
        self.dtype = pick_precision(self.train.precision, device)
        self.model = first_model(self.recipe, out).to(device=device, dtype=self.dtype).train()
        self.optimizer = Optimizer(self.model, self.train)
        # A second model whose weights are the float32 ones: what is evaluated and saved.
        self.finished = first_model(self.recipe, out).to(device).eval()
        if self.train.init:  # not as they are rounded to the type that the model computes in
            self.optimizer.adopt({name: parameter.data for name, parameter in self.finished.named_parameters()})
        for name, parameter in self.finished.named_parameters():
            parameter.data = self.optimizer.weights()[name]
        self.position = Position()
        self.difficulty = Difficulty(self.ids.vocab_size) if self.objective.adaptive else None
        self.loss, self.accuracy = math.nan, math.nan
        self.stop = False
        fills = world.first and self.objective.kind in FILLERS
        self.samples: list[Sample] = pick(self.store.heldout, self.tokenizer) if fills else []
        if resumed:
            if world.first:
                sweep(out)
            self._take_up()
        until = (self.position.step or -1) if resumed else None  # who begins again has said nothing yet
        self.log = Log(out, until=until, board=self.train.tensorboard) if world.first else None
        if resumed and self.log:
            self.log.write({"kind": "resumed", "step": self.position.step})

    def run(self) -> Result:
        """Train until the budget is spent, then write the model and the report."""
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
        return Result(self.out, p.step, p.tokens, p.seconds / 60, self.loss, self.accuracy, self.objective.kind)

    def _train(self) -> None:
        if self.train.init and not self.position.step:
            self._look_before()
        begun, before, first_step = time.perf_counter(), self.position.seconds, self.position.step
        saved, window = begun, _Window()
        while (progress := self.progress()) < 1.0:
            window.add(self.step(progress))
            now = time.perf_counter()
            self.position.seconds, age, stop = self._agree(before + now - begun, now - saved)
            due = self._evaluation_due(progress)
            if due or window.age() > LOG_SECONDS:
                self._tell(window, progress)
                window = _Window()
            if due:
                self.evaluate()
            if due or stop or self._checkpoint_due(age):
                self.checkpoint()
                saved = time.perf_counter()
            if due:
                window = _Window()  # evaluating is no training
            if stop and self.progress() < 1.0:
                raise Stopped(self.out)
        if self.position.loss is None:
            self.evaluate()
            self.checkpoint()
        elif self.position.step == first_step:  # killed between the last checkpoint and its model
            self.world.lead(self._export)

    def _look_before(self) -> None:
        """Say what the run begins with, and how good that is already."""
        if self.log:
            facts = facts_of(self.out)
            self.log.write({"kind": "start", "step": 0, **facts})
            if "fertility" in facts:
                old, new = facts["fertility"]
                grown = f"{len(facts['words']):,} words of the corpus's own, such as {', '.join(facts['words'][:5])}"
                self.listener.message(f"the vocabulary grew by {grown}: {old:.3f} tokens a word, now {new:.3f}")
        self.evaluate()

    def progress(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        t, p = self.train, self.position
        if t.steps:
            return p.step / t.steps
        if t.tokens:
            return p.tokens / t.tokens
        if t.epochs:
            done = sum(p.row(length) / rows_per_epoch(self.store.train, length) for length, _ in self.stages)
            return done / t.epochs
        return p.seconds / (60 * t.minutes)

    def step(self, progress: float) -> dict[str, float]:
        """One batch and one update; returns sums over all processes."""
        length = length_at(self.stages, progress)
        n_rows = rows_at(self.train, length, progress)
        ids, difficulty = self.ids, self.difficulty
        if difficulty is not None:
            ids = replace(ids, weights=difficulty.weights(self.objective.adaptive))
        batch = make_batch(
            self.store.train,
            ids,
            seed=self.train.seed,
            first_row=self.position.row(length),
            n_rows=n_rows,
            length=length,
            objective=self.objective,
            rate=rate_at(progress, self.objective.rate, self.objective.rate_end),
        )
        generator(self.train.seed, self.position.step, self.world.rank)
        asked, side = len(batch.asked), side_count(batch, self.objective)
        sums, right = [0.0, 0.0, 0.0, 0.0], Tally(batch.targets)
        for part in batch.slice(self.world.rank, self.world.size).split(self.train.accumulate):
            if len(part.asked) or len(part.pairs):
                self._learn(part, asked, side, sums, right)
        self.world.sum_gradients(self.model)
        loss, n_correct, pair_loss, pair_correct = self.world.sum(sums)
        if difficulty is not None:
            difficulty.learn(right.ids, right.asked, self.world.sum(right.right.tolist()))
        norm = self.optimizer.gradient_norm()
        p = self.position
        if not math.isfinite(loss + pair_loss):
            self._refuse(f"the loss is {loss + pair_loss}", p.step + 1)
        if not math.isfinite(norm):
            self._refuse(f"the gradient's norm is {norm}", p.step + 1)
        factor = rate_factor(self.train, progress)
        self.optimizer.step(factor, norm)
        p.step += 1
        p.tokens += batch.n_tokens
        p.rows[str(length)] = p.row(length) + n_rows
        p.loss = p.accuracy = None
        return {
            "loss": loss,
            "correct": n_correct,
            "asked": asked,
            "pair_loss": pair_loss,
            "pair_correct": pair_correct,
            "pairs": side,
            "tokens": batch.n_tokens,
            "norm": norm,
            "factor": factor,
        }

    def _learn(self, part: Batch, asked: int, side: int, sums: list[float], right: Tally) -> None:
        """Add a share of a batch to the gradient and to the sums: every token asked, in any share, weighs the same.

        Args:
            asked, side: how much the whole batch is asked, in the first loss and in the second.
        """
        given = tensors(part, self.device)
        losses = self.model(**given, z_loss=self.train.z_loss, scale=1 / max(asked, 1))
        total = losses.loss_sum
        if losses.pair_loss_sum is not None:
            total = total + side_weight(self.objective) / side * losses.pair_loss_sum
        total.backward()
        sums[0] += float(losses.loss_sum.detach()) * asked
        sums[1] += float(losses.n_correct)
        if losses.pair_loss_sum is not None and losses.pair_correct is not None:
            sums[2] += float(losses.pair_loss_sum.detach())
            sums[3] += float(losses.pair_correct)
        if self.difficulty is not None:
            right.add(part.targets, losses.correct.cpu().numpy())

    def _refuse(self, what: str, step: int) -> None:
        kept = sorted((self.out / "checkpoints").glob("step-*"))
        last = f"the checkpoint of step {int(kept[-1].name[5:]):,} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteLoss(
            f"{what} at step {step:,}; {last}",
            where=self.out,
            mend="start again with a lower --train.lr or --train.clip, or --train.precision float32",
        )

    def evaluate(self) -> None:
        """Held-out loss and accuracy on the same rows and masks every time, in the weights that are saved."""
        was = self.model.training
        model = self.model.eval()
        if self.optimizer.average:  # the average is in float32; evaluate what will be saved
            model = self.finished
        self.loss, self.accuracy = evaluate(model, self.store.heldout, self.ids, self.recipe, self.world, self.device)
        self.model.train(was)
        p = self.position
        if not math.isfinite(self.loss):
            self._refuse(f"the held-out loss is {self.loss}", p.step)
        p.loss, p.accuracy = self.loss, self.accuracy
        record = {"kind": "evaluation", "step": p.step, "tokens": p.tokens, "minutes": round(p.seconds / 60, 5)}
        record |= {"loss": round(self.loss, 5), "accuracy": round(self.accuracy, 5)}
        if self.kept is not None:
            loss, accuracy = evaluate(model, self.kept.heldout, self.ids, self.recipe, self.world, self.device)
            record |= {"kept_loss": round(loss, 5), "kept_accuracy": round(accuracy, 5)}
        if self.log:
            self.log.write(record)
            if self.samples and isinstance(self.finished, LanguageModel):
                fills = answer(self.finished, self.samples, self.tokenizer, shifted=self.objective.kind == "hybrid")
                self.log.write({"kind": "samples", "step": p.step, "fills": fills})
            self.listener.evaluation(record)

    def checkpoint(self) -> None:
        """Write down everything, and the model as it is now."""

        def write() -> None:
            save_checkpoint(self.out, self.position, self.optimizer.state() | self._learned(), self.train.keep)
            self._export()

        self.world.lead(write)

    def _close(self) -> None:
        """The last words of a run, however it ended."""
        if self.log:
            self.log.close()
            write_report(self.out)

    def _export(self) -> None:
        p = self.position
        extra: dict[str, Any] = {"step": p.step, "tokens": p.tokens, "minutes": round(p.seconds / 60, 3)}
        if p.loss is not None:
            extra |= {"heldout_loss": p.loss, "heldout_accuracy": p.accuracy}
        extra |= {"corpus": self.store.fingerprint, "preset": self.recipe.preset, "torch": torch.__version__}
        extra["objective"] = self.objective.kind
        save_model(self.finished, self.out / "model", tokenizer=self.tokenizer, extra=extra)

    def _learned(self) -> dict[str, torch.Tensor]:
        """What is learnt beside the weights, by name; shares its memory."""
        return {} if self.difficulty is None else {"difficulty": torch.from_numpy(self.difficulty.errors)}

    def _take_up(self) -> None:
        """Go back to where the newest whole checkpoint was written."""
        found = load_checkpoint(self.out, self.listener.message)
        if found is None:
            self.listener.message("no checkpoint yet: starting from the beginning")
            return
        self.position, table = found
        try:
            self.optimizer.load(table, self.position.step)
            for name, tensor in self._learned().items():
                tensor.copy_(table[name])
        except (KeyError, RuntimeError):
            raise UserError("the checkpoint is of another model", where=self.out, mend="start a new run") from None
        if self.position.loss is not None and self.position.accuracy is not None:
            self.loss, self.accuracy = self.position.loss, self.position.accuracy
        self.listener.message(f"going on from step {self.position.step:,}")

    def _announce(self) -> None:
        if not self.world.first:
            return
        parameters = sum(p.numel() for p in self.model.parameters())
        price = estimate(
            self.recipe,
            self.model.architecture,
            parameters,
            self.store.train,
            self.ids,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
        )
        if self.device == "cpu":
            self.listener.message(status())
        self.listener.price(price)
        if units := described(self.store):
            self.listener.message(units)

    def _tell(self, window: _Window, progress: float) -> None:
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
        record["rate"] = round(rate_at(progress, self.objective.rate, self.objective.rate_end), 4)
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

    def _agree(self, *numbers: float) -> tuple[float, float, bool]:
        """The first process's numbers, and whether any process was asked to stop; in one message."""
        mine = numbers if self.world.first else (0.0,) * len(numbers)
        seconds, age, stops = self.world.sum([*mine, float(self.stop)])
        return seconds, age, stops > 0

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


class _Window:
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


def tensors(batch: Batch, device: str) -> dict[str, Any]:
    """A batch as the model's `forward` takes it, by name."""

    def put(array: Any) -> Any:
        return torch.from_numpy(array).to(device, non_blocking=True)

    given = {"ids": put(batch.ids), "layout": batch.layout.to(device)}
    given |= {"asked": put(batch.asked), "targets": put(batch.targets)}
    if len(batch.pairs):
        given |= {"pairs": put(batch.pairs), "pair_labels": put(batch.pair_labels)}
    if batch.edges is not None:
        given["edges"] = put(batch.edges)
    if batch.source is not None:
        given["source"] = put(batch.source.ids), batch.source.layout.to(device)
    return given


@torch.no_grad()
def evaluate(
    model: AnyModel, split: SplitLike, ids: Specials, recipe: Recipe, world: World, device: str
) -> tuple[float, float]:
    """Mean loss in nats and accuracy over all that is asked of the held-out rows, each token weighing the same."""
    sums = [0.0, 0.0, 0.0]
    t = recipe.train
    rows = max(1, min(32, 8192 // t.length))
    named = {"length": t.length, "n_rows": t.eval_rows, "batch_rows": rows}
    for batch in evaluation_batches(split, ids, **named, objective=recipe.objective):
        part = batch.slice(world.rank, world.size)
        if not len(part.asked):
            continue
        losses = model(**tensors(part, device))
        for i, value in enumerate((float(losses.loss_sum), float(losses.n_correct), float(len(part.asked)))):
            sums[i] += value
    loss, correct, n = world.sum(sums)
    return loss / max(n, 1), correct / max(n, 1)
