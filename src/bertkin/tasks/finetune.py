"""Fine-tuning: the loop's work whose batches are labelled examples.

    finetune(tuning, out)    a pretrained model and a task's examples to a run folder
    resume(out)              go on where it stopped, to the same bits

One model, one loop, one run folder with pretraining (`bertkin.train.loop`). Rows lie end to end, so there is no padding to
save on: a batch costs what its tokens cost.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bertkin.config import AUTO
from bertkin.errors import UserError
from bertkin.models.adapt import apply, flops_per_token, merge, trainable
from bertkin.models.continuing import set_dropout
from bertkin.models.folders import told
from bertkin.models.initial import initialise
from bertkin.models.levels import redraw
from bertkin.models.light import save_light
from bertkin.models.many import save_apart
from bertkin.models.pretrained_tasks import begin_task_model, save_task_model
from bertkin.models.strategy import TOGETHER
from bertkin.models.task_heads import Answer, TaskModel
from bertkin.tasks.answering import (
    LONGEST_ANSWER,
    Prediction,
    answer_for,
    answers,
    longest_answer,
    loss_of,
    scores,
)
from bertkin.tasks.carrying import as_measured, carry_out
from bertkin.tasks.chaining import chain_of
from bertkin.tasks.concluding import conclude
from bertkin.tasks.encoding import Row, Rows, packed
from bertkin.tasks.gathering import Gathered, gather
from bertkin.tasks.metrics import measure, metric
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning, load_tuning, settled
from bertkin.tasks.weighing import weights_of
from bertkin.text.layout import Layout
from bertkin.text.shuffle import mix, permute
from bertkin.train.folder import RECIPE, TASK, begun
from bertkin.train.loop import Result, Training
from bertkin.train.machine import product_rate
from bertkin.train.parallel import World
from bertkin.train.price import Price, bytes_of, efficiency
from bertkin.train.progress import Listener
from bertkin.train.state import Position, write_text


@dataclass(frozen=True)
class TaskBatch:
    """Whole examples, as rows."""

    rows: tuple[Row, ...]
    groups: tuple[int, ...]
    """Where each example's rows begin, and the end: [examples + 1]."""

    @property
    def n_tokens(self) -> int:
        return sum(row.n_tokens for row in self.rows)

    @property
    def idle(self) -> bool:
        return not self.rows

    def slice(self, rank: int, world: int) -> TaskBatch:
        """The rank-th of `world` nearly equal shares, in whole examples."""
        count = len(self.groups) - 1
        first, last = count * rank // world, count * (rank + 1) // world
        begin, end = self.groups[first], self.groups[last]
        return TaskBatch(self.rows[begin:end], tuple(g - begin for g in self.groups[first : last + 1]))

    def split(self, n: int) -> list[TaskBatch]:
        """The batch in n shares of whole examples."""
        return [self.slice(i, n) for i in range(n)]


HEAD = ("classifier.weight", "classifier.bias")
"""What scores are given by, last."""


class FineTuning:
    """The work of fine-tuning; see `bertkin.train.work.Work`."""

    def __init__(self, found: Gathered, device: str) -> None:
        self.tuning, self.task, self.train = found.tuning, found.task, found.tuning.train
        self.tokenizer, self.stock, self.device, self.roles = found.tokenizer, found.stock, device, found.roles
        self.examples, self.dev = found.train, found.dev
        self.kind: str = found.task.output
        weights = weights_of(self.tuning.class_weights, self.task, self.examples.examples)
        self.weights = None if weights is None else torch.tensor(weights, device=device)
        self.longest = longest_answer(self.task, self.examples.rows)
        values = [float(example.label) for example in self.examples.examples] if self.kind == "score" else [0.0]
        self.mean, self.deviation = float(np.mean(values)), float(np.std(values))

    @property
    def answer(self) -> Answer:
        """What a model is asked."""
        return answer_for(self.task, self.tuning.pooling, crf=self.tuning.crf)

    def first_model(self) -> TaskModel:
        model = begin_task_model(self.stock, self.answer, seed=self.train.seed)
        if self.tuning.reinit:
            redraw(model, model.architecture, self.tuning.reinit, self.train.seed)
        self.dress(model)
        self.to_units(model)
        return model

    def to_units(self, model: TaskModel) -> None:
        """A head for scores that came with the stock gives them as they are in a file: it learns in units, as a new one. One
        that gave scores of another kind (stars, where these are prices) is drawn anew."""
        if self.kind != "score" or self.tuning.reinit or "classifier.weight" in model.missing:
            return
        (centre, size), head = self.unit(model), model.classifier
        known = told(self.stock)
        before = Task.from_mapping(known["task"], self.stock) if "task" in known else self.task
        middles = [(task.low + task.high) / 2 for task in (before, self.task)]
        narrow, wide = sorted(task.high - task.low for task in (before, self.task))
        if abs(middles[0] - middles[1]) > 2 * wide or wide > 20 * narrow > 0:
            initialise(model, model.architecture, torch.Generator().manual_seed(self.train.seed), HEAD)
            return
        with torch.no_grad():
            head.weight.div_(size)
            if head.bias is not None:
                head.bias.sub_(centre).div_(size)

    def unit(self, model: TaskModel) -> tuple[float, float]:
        """What a head for scores takes as 0 and as 1 while it learns, be they stars or prices: the mean of the examples
        and their deviation. A head without a bias (GPT-2, Llama) has its 0 at 0."""
        if model.classifier.bias is None:
            return 0.0, math.hypot(self.mean, self.deviation) or 1.0
        return self.mean, self.deviation or 1.0

    @contextmanager
    def in_units(self, model: TaskModel) -> Iterator[None]:
        """The head as it is saved: it gives the scores as they are in the file. What is being trained is put back."""
        if self.kind != "score":
            yield
            return
        (centre, size), head = self.unit(model), model.classifier
        before = [parameter.detach().clone() for parameter in head.parameters()]
        with torch.no_grad():
            head.weight.mul_(size)
            if head.bias is not None:
                head.bias.mul_(size).add_(centre)
            try:
                yield
            finally:
                for parameter, value in zip(head.parameters(), before, strict=True):
                    parameter.copy_(value)

    def dress(self, model: Any) -> None:
        """Give a model that is to be trained its dropout and its strategy, whose numbers each seed draws for itself."""
        set_dropout(model, self.tuning.dropout, self.tuning.attention_dropout)
        apply(model, replace(self.tuning.strategy, seed=self.tuning.strategy.seed + self.train.seed))

    def epochs(self, position: Position) -> float:
        return position.row(0) / len(self.examples.examples)

    def batch(self, position: Position, progress: float) -> TaskBatch:
        """Examples in an order drawn anew each epoch; the last batch of an epoch may be smaller."""
        total, first = len(self.examples.examples), position.row(0)
        epoch, at = divmod(first, total)
        index = np.arange(at, min(at + self.tuning.batch, total))
        chosen = permute(index, total, mix(11, self.train.seed, epoch))
        rows: list[Row] = []
        groups = [0]
        for example in chosen:
            rows += self.examples.rows[self.examples.groups[example] : self.examples.groups[example + 1]]
            groups.append(len(rows))
        return TaskBatch(tuple(rows), tuple(groups))

    def advance(self, position: Position, progress: float) -> None:
        total, first = len(self.examples.examples), position.row(0)
        position.rows["0"] = first + min(self.tuning.batch, total - first % total)

    def counts(self, batch: TaskBatch) -> tuple[int, int]:
        if self.task.output == "tokens":
            return sum(len(row.places) for row in batch.rows), 0
        if self.task.output == "span":
            return len(batch.rows), 0
        return len(batch.groups) - 1, 0

    def learn(self, model: TaskModel, part: TaskBatch, counts: tuple[int, int], sums: list[float]) -> None:
        ids, layout = packed(part.rows, self.device)
        how: Any = {"weights": self.weights, "crf": model.crf}
        found, share = model(ids, layout), float(max(counts[0], 1))
        if self.kind == "score":
            centre, size = self.unit(model)
            found, share = found.float() * size + centre, share * size**2
        loss, right, _ = loss_of(self.task, found, part.rows, layout, **how)
        (loss / share).backward()  # type: ignore[no-untyped-call]
        sums[0] += float(loss.detach())
        sums[1] += float(right)

    def learnt(self, world: World) -> None:
        """Nothing to share."""

    def evaluate(self, model: TaskModel, world: World) -> dict[str, float]:
        """Loss and metrics on the dev examples, in every process alike; the headline tells the best."""
        found = self.measured(model, self.dev)
        sign = 1 if metric(self.task.metric, self.task).higher else -1
        return found | {"score": sign * found[self.task.metric]}

    def measured(self, model: TaskModel, rows: Rows) -> dict[str, float]:
        """Loss and metrics on labelled examples; where accuracy is none of them, the headline goes by that name, too."""
        return self.asked(model, rows)[1]

    @torch.no_grad()
    def asked(self, model: TaskModel, rows: Rows) -> tuple[list[Prediction], dict[str, float]]:
        """An answer to each labelled example, and what `measured` gives: the loss without weights of classes."""
        found = scores(model, rows, device=self.device)
        if self.kind == "score":
            centre, size = self.unit(model)
            found = [one * size + centre for one in found]
        loss, count, crf = 0.0, 0, None if model.crf is None else copy.deepcopy(model.crf).cpu()
        for first in range(0, len(rows.examples), 256):  # whole examples: a choice is among all its rows
            low, high = rows.groups[first], rows.groups[min(first + 256, len(rows.examples))]
            joined = torch.from_numpy(np.concatenate([np.atleast_2d(one) for one in found[low:high]]))
            layout = Layout.from_lengths(rows.lengths[low:high]).to("cpu")
            part, _, n = loss_of(self.task, joined, rows.rows[low:high], layout, crf=crf)
            loss, count = loss + float(part), count + n
        predictions = answers(self.task, rows, found, chain=chain_of(model, self.task), longest=self.longest)
        scored = measure(self.task, rows.examples, [p.answer for p in predictions])
        return predictions, {"loss": loss / max(count, 1), "accuracy": scored[self.task.metric], **scored}

    def show(self, finished: TaskModel) -> list[dict[str, Any]]:
        return []

    def told(self, progress: float) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def export(self, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        with self.in_units(finished):
            self._export(finished, folder, facts)

    @property
    def headline(self) -> str:
        return self.task.metric

    def facts(self) -> dict[str, Any]:
        """What answers later examples as these were answered."""
        known = {"task": self.task.to_mapping(), "length": self.tuning.length, "columns": asdict(self.roles)}
        known |= {} if self.longest == LONGEST_ANSWER else {"longest": self.longest}
        known |= {} if self.tuning.stride is AUTO else {"stride": self.tuning.stride}
        return known if self.tuning.windows == 1 else known | {"windows": self.tuning.windows}

    def _export(self, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        facts = facts | self.facts() | {"stock": self.tuning.model}
        if self.changes_alone:
            save_light(finished, folder, self.stock.resolve(), extra=facts)
            return
        if self.tuning.strategy.kind in TOGETHER:
            save_apart(finished, folder, tokenizer=self.tokenizer, extra=facts)
            return
        if self.tuning.strategy.kind == "lora":
            finished = copy.deepcopy(finished)  # what is being trained stays apart
            merge(finished)
        self._save(finished, folder, facts)

    @property
    def changes_alone(self) -> bool:
        """Whether no more is saved than what was changed."""
        return self.tuning.strategy.light and not self.tuning.merge

    def _save(self, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        """Write a whole model."""
        how: dict[str, Any] = {"labels": self.task.outputs, "problem": self.task.output, "tokenizer": self.tokenizer}
        save_task_model(finished, folder, extra=facts, **how)

    def opening(self, listener: Listener) -> dict[str, Any] | None:
        return None

    def price(self, model: TaskModel, **machine: Any) -> Price:
        """Counted from the examples themselves."""
        trained, parameters = trainable(model)
        tokens = int(self.examples.lengths.sum())
        steps = math.ceil(len(self.examples.examples) / self.tuning.batch)  # of an epoch, whose last may be small
        flops = float(flops_per_token(model))
        rate = product_rate(machine["dtype"], machine["device"]) * efficiency(machine["device"])
        t = self.train
        if t.steps:
            epochs = t.steps / max(steps, 1)
        elif t.minutes:
            epochs = t.minutes * 60 * rate / max(flops * tokens, 1.0)
        else:
            epochs = t.tokens / max(tokens, 1) if t.tokens else t.epochs or 1.0
        flops *= tokens * epochs
        return Price(
            parameters=parameters,
            tokens=round(tokens * epochs),
            steps=max(1, math.ceil(steps * epochs - 1e-9)),
            flops=flops,
            bytes=bytes_of(parameters, trained),
            minutes=self.train.minutes or flops / rate / 60,
            corpus_tokens=tokens,
            precision=str(machine["dtype"]).split(".")[1],
            threads=machine["threads"],
        )

    def notes(self, model: TaskModel) -> list[str]:
        said = [f"task        {self.task}"]
        said += [f"examples    {len(self.examples.examples):,}, dev {len(self.dev.examples):,}"]
        trained, parameters = trainable(model)
        whole = self.tuning.merge or trained == parameters
        size = f"the whole model, {4 * parameters / 1e6:,.1f} MB" if whole else f"{4 * trained / 1e6:,.2g} MB"
        kind = self.tuning.strategy.kind
        said.append(f"strategy    {kind}: {trained:,} of {parameters:,} are trained; saved: {size}")
        return said + self.cut()

    def cut(self, name: str = "") -> list[str]:
        """How many examples (of a task of this name) are read in windows, and how many lost text."""
        said, reads = [], f"{self.tuning.length} tokens"
        if self.tuning.windows > 1:
            reads = f"{self.tuning.windows} windows of {reads}"
        for part, rows in (("", self.examples), ("dev ", self.dev)):
            if self.tuning.windows > 1 and len(rows.rows) > len(rows.examples):
                said.append(f"windows     {name}{len(rows.rows):,} of {len(rows.examples):,} {part}examples")
            if rows.cut:
                said.append(f"cut         {name}{rows.cut:,} {part}examples are longer than {reads}")
        return said


def finetune(tuning: Tuning, out: Path, *, listener: Listener | None = None, overwrite: bool = False) -> Result:
    """Fine-tune a pretrained model into a run folder, whose `model/` transformers opens with its head.

    Raises:
        UserError: as `gather`; or the disk refuses.
    """
    return _run(tuning, out, listener, overwrite=overwrite)


def resume(out: Path, *, listener: Listener | None = None) -> Result:
    """Go on with a fine-tuning from its newest whole checkpoint, to the same bits.

    Raises:
        UserError: its data or its model have changed since.
    """
    tuning = load_tuning(out / RECIPE)
    return _run(replace(tuning, positive=tuning.positive or _positive(out)), out, listener, resumed=True)


def _positive(out: Path) -> str:
    """The class that a run's scores are of, which those that were begun before there was a choice do not say."""
    try:
        return Task.from_mapping(json.loads((out / TASK).read_text(encoding="utf-8"))["task"]).positive
    except (OSError, ValueError, KeyError, TypeError, UserError):  # which is said in its place
        return ""


def _run(tuning: Tuning, out: Path, listener: Listener | None, **how: bool) -> Result:
    def end(found: Gathered, training: Training, listener: Listener) -> None:
        model = as_measured(training)
        conclude(out, found, model, partial(cast(FineTuning, training.work).asked, model), listener)

    return carry_out(
        out,
        listener,
        device=tuning.train.device,
        about=TASK,
        gather=lambda device: gather(tuning, device),
        begin=partial(_begin, out),
        work=_work,
        end=end,
        needed=tuning.paths,
        **how,
    )


def _work(found: Gathered, device: str) -> FineTuning:
    if found.task.output == "sequence":
        from bertkin.tasks.writing import Writing  # which builds on what is here

        return Writing(found, device)
    return FineTuning(found, device)


def is_tuning(run: Path) -> bool:
    """Whether a folder is a fine-tuning's run."""
    return (run / TASK).is_file() and (run / RECIPE).is_file()


def _begin(out: Path, found: Gathered) -> bool:
    """Clear away the run that is there, if any, and write what says what this one is."""
    recipe = replace(settled(found.tuning), model=str(found.stock.resolve()))
    about = {"task": found.task.to_mapping(), "stock": str(found.stock.resolve()), "fingerprint": found.fingerprint}
    with begun(out, recipe, {"store": found.fingerprint, "folder": ""}):
        write_text(out / TASK, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return True
