"""Fine-tuning: the loop's work whose batches are labelled examples.

    finetune(tuning, out)    a pretrained model and a task's examples to a run folder
    resume(out)              go on where it stopped, to the same bits

One model, one loop, one run folder with pretraining (`bertkin.train.loop`). Rows lie end to end, so there is no padding to
save on: a batch costs what its tokens cost.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from bertkin.config import AUTO, Train, fill_auto, from_mapping, load_yaml
from bertkin.errors import UserError
from bertkin.models.adapt import apply, merge, trainable
from bertkin.models.architecture import Architecture
from bertkin.models.configs import read_config
from bertkin.models.continuing import set_dropout
from bertkin.models.light import save_light
from bertkin.models.pretrained import find_folder
from bertkin.models.pretrained_tasks import begin_task_model, save_task_model
from bertkin.models.strategy import Strategy, check
from bertkin.models.task_heads import TaskModel, usual_pooling
from bertkin.tasks.answering import answer_for, answers, loss_of, scores
from bertkin.tasks.data.columns import Columns
from bertkin.tasks.encoding import Row, Rows, encode, packed
from bertkin.tasks.metrics import measure, metric
from bertkin.tasks.reading import Splits, read_splits
from bertkin.tasks.task import Task
from bertkin.text.layout import Layout
from bertkin.text.shuffle import mix, permute
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.folder import RECIPE, TASK, TESTED, begun, refuse_existing
from bertkin.train.loop import Result, Training
from bertkin.train.machine import pick_device, pick_precision, product_rate
from bertkin.train.parallel import World, join
from bertkin.train.price import EFFICIENCY, Price
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.state import Position, write_text


@dataclass(frozen=True)
class Tuning:
    """The recipe of a fine-tuning."""

    model: str = ""
    """The pretrained model: a run folder, a model folder, or a hub id."""
    data: tuple[str, ...] = ()
    """Labelled files for training, or one folder that holds train, dev and test."""
    dev: str = AUTO
    """Labelled file to measure on; by default the folder's, or a tenth of the training data, by a hash."""
    test: str = AUTO
    """Labelled file to measure on once, at the end."""
    task: Literal["class", "classes", "score", "choice", "tokens", "span"] = AUTO
    """What is answered; by default it is told by the data."""
    text: str = ""
    """Column of the text, by name or number."""
    text2: str = ""
    """Column of a second text."""
    label: str = ""
    """Column of the answer."""
    metric: str = ""
    """The score that counts; by default that of the task."""
    skip_bad: bool = False
    """Leave unusable rows out instead of stopping at the first."""
    batch: int = 32
    """Examples a step."""
    length: int = AUTO
    """Most tokens a row; by default 256, 384 where spans are looked for, or what the model reads."""
    stride: int = AUTO
    """Tokens that neighbouring windows of a long text share; by default a quarter of the room."""
    pooling: Literal["first", "last", "mean", "max", "attention"] = AUTO
    """How a sequence becomes one state; by default the family's own way."""
    dropout: float = 0.1
    """Dropout after embeddings, attention and feed-forward."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    merge: bool = False
    """Save an ordinary folder although the strategy is light (not adapter, prefix or layers)."""
    strategy: Strategy = field(default_factory=Strategy)
    """How much of the model is trained."""
    train: Train = field(default_factory=Train)
    """Budget, optimiser and schedule, as for pretraining."""


FASTER = {
    "full": 1.0,
    "last": 2.0,
    "bias": 20.0,
    "lora": 10.0,
    "adapter": 10.0,
    "layers": 20.0,
    "frozen": 40.0,
    "prefix": 40.0,
}
"""How many times the rate of training everything a strategy takes: the less is trained, the more."""
WRAPPED = ("adapter", "prefix", "layers")
"""Strategies whose models are not ordinary ones."""


def complete(tuning: Tuning, task: Task, examples: int, a: Architecture) -> Tuning:
    """The recipe with every field filled in: rates by width, epochs by how many examples there are.

    Few examples are gone through more often, with bias-corrected AdamW and a longer warm-up: what steadies small sets
    (Mosbach et al. 2021; Zhang et al. 2021).

    Raises:
        UserError: two budgets, or a row longer than the model reads.
    """
    check(tuning.strategy, "--strategy.")
    if tuning.merge and tuning.strategy.kind in WRAPPED:
        what = f"{tuning.strategy.kind} does not fold into the weights"
        raise UserError(what, where="--merge", mend="leave it out, or choose lora")
    train = tuning.train
    budgets = [name for name in ("steps", "tokens", "epochs", "minutes") if getattr(train, name) is not AUTO]
    if len(budgets) > 1:
        raise UserError(
            f"two budgets at once: {' and '.join(f'--train.{b}' for b in budgets)}", mend="give one of them"
        )
    if not budgets:
        train = replace(train, epochs=3.0 if examples > 10_000 else 5.0 if examples > 2_000 else 10.0)
    train = fill_auto(
        train,
        optimizer="adamw",
        lr=min(2e-4, 4e-5 * 768 / a.hidden) * FASTER[tuning.strategy.kind],
        matrix_lr=1e-3,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        beta2=0.999 if examples > 2_000 else 0.98,
        eval_every=min(0.999, 1 / (train.epochs or 5.0)),  # once an epoch; from 1 on it would count steps
        batch_tokens=tuning.batch * 128,  # a guess, for the price alone
        length=128,
    )
    usual = 384 if task.output == "span" else 256
    length = tuning.length if tuning.length is not AUTO else min(usual, a.max_length)
    if length > a.max_length:
        raise UserError(
            f"rows of {length} tokens, but the model reads at most {a.max_length}",
            where="--length",
            mend=f"choose at most {a.max_length}",
        )
    return replace(tuning, length=length, pooling=tuning.pooling or usual_pooling(a), train=train)


@dataclass(frozen=True)
class TaskBatch:
    """Whole examples, as rows."""

    rows: tuple[Row, ...]
    groups: tuple[int, ...]
    """Where each example's rows begin, and the end: [examples + 1]."""

    @property
    def n_tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

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


class FineTuning:
    """The work of fine-tuning; see `bertkin.train.work.Work`."""

    def __init__(self, found: Gathered, device: str) -> None:
        self.tuning, self.task, self.train = found.tuning, found.task, found.tuning.train
        self.tokenizer, self.stock, self.device = found.tokenizer, found.stock, device
        self.examples, self.dev = found.train, found.dev
        self.kind: str = found.task.output

    def first_model(self) -> TaskModel:
        model = begin_task_model(self.stock, answer_for(self.task, self.tuning.pooling), seed=self.train.seed)
        set_dropout(model, self.tuning.dropout, self.tuning.attention_dropout)
        apply(model, self.tuning.strategy)
        return model

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
        loss, right, _ = loss_of(self.task, model(ids, layout), part.rows, layout)
        (loss / max(counts[0], 1)).backward()  # type: ignore[no-untyped-call]
        sums[0] += float(loss.detach())
        sums[1] += float(right)

    def learnt(self, world: World) -> None:
        """Nothing to share."""

    def evaluate(self, model: TaskModel, world: World) -> dict[str, float]:
        """Loss and metrics on the dev examples, in every process alike."""
        return self.measured(model, self.dev)

    def measured(self, model: TaskModel, rows: Rows) -> dict[str, float]:
        """Loss and metrics on labelled examples; the headline also as accuracy."""
        found = scores(model, rows, device=self.device)
        loss, count = 0.0, 0
        for first in range(0, len(rows.examples), 256):  # whole examples: a choice is among all its rows
            low, high = rows.groups[first], rows.groups[min(first + 256, len(rows.examples))]
            joined = torch.from_numpy(np.concatenate([np.atleast_2d(one) for one in found[low:high]]))
            layout = Layout.from_lengths(rows.lengths[low:high]).to("cpu")
            part, _, n = loss_of(self.task, joined, rows.rows[low:high], layout)
            loss, count = loss + float(part), count + n
        predictions = [p.answer for p in answers(self.task, rows, found)]
        scored = measure(self.task, rows.examples, predictions)
        return {"loss": loss / max(count, 1), "accuracy": scored[self.task.metric], **scored}

    def show(self, finished: TaskModel) -> list[dict[str, Any]]:
        return []

    def told(self, progress: float) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def export(self, finished: TaskModel, folder: Path, facts: dict[str, Any]) -> None:
        facts = facts | {"task": self.task.to_mapping(), "length": self.tuning.length, "stock": self.tuning.model}
        if self.tuning.strategy.light and not self.tuning.merge:
            save_light(finished, folder, self.stock.resolve(), extra=facts)
            return
        if self.tuning.strategy.kind == "lora":
            finished = copy.deepcopy(finished)  # what is being trained stays apart
            merge(finished)
        labels = self.task.labels if self.task.output in ("class", "classes", "tokens") else ("score",)
        save_task_model(
            finished, folder, labels=labels, problem=self.task.output, tokenizer=self.tokenizer, extra=facts
        )

    def opening(self, listener: Listener) -> dict[str, Any] | None:
        return None

    def price(self, model: TaskModel, **machine: Any) -> Price:
        """Counted from the examples themselves."""
        parameters = trainable(model)[1]
        embedded = sum(p.numel() for name, p in model.named_parameters() if "embeddings" in name)
        tokens = int(self.examples.lengths.sum())
        total = int(tokens * (self.train.epochs or 1.0))
        if self.train.steps:
            total = int(tokens / max(len(self.examples.examples), 1) * self.tuning.batch * self.train.steps)
        flops = 6.0 * (parameters - embedded) * total
        rate = product_rate(machine["dtype"], machine["device"]) * EFFICIENCY
        return Price(
            parameters=parameters,
            tokens=total,
            steps=max(1, total * len(self.examples.examples) // max(tokens * self.tuning.batch, 1)),
            flops=flops,
            bytes=parameters * 16 + 300 * 2**20,
            minutes=self.train.minutes or flops / rate / 60,
            corpus_tokens=tokens,
            precision=str(machine["dtype"]).split(".")[1],
            threads=machine["threads"],
        )

    def notes(self, model: TaskModel) -> list[str]:
        said = [f"task        {self.task}"]
        said += [f"examples    {len(self.examples.examples):,}, dev {len(self.dev.examples):,}"]
        trained, parameters = trainable(model)
        if trained < parameters:
            size = "the whole model" if self.tuning.merge else f"{4 * trained / 1e6:.2g} MB"
            said.append(
                f"strategy    {self.tuning.strategy.kind}: {trained:,} of {parameters:,} are trained; saved: {size}"
            )
        if self.examples.cut:
            said.append(f"cut         {self.examples.cut:,} examples are longer than {self.tuning.length} tokens")
        return said


@dataclass(frozen=True)
class Gathered:
    """A recipe with nothing left open, and what it is cooked from."""

    tuning: Tuning
    task: Task
    train: Rows
    dev: Rows
    test: Rows
    tokenizer: Tokenizer
    stock: Path
    said: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of all examples and of the weights that are begun with."""
        digest = hashlib.blake2b(digest_size=16)
        for example in (*self.train.examples, *self.dev.examples, *self.test.examples):
            digest.update(repr((example.texts, example.label, example.choices)).encode("utf-8", "surrogatepass"))
        for path in sorted(self.stock.glob("*.safetensors")):
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def read_data(tuning: Tuning) -> Splits:
    """The labelled data of a recipe, its task with the metric that was asked for.

    Raises:
        UserError: anything about the data, or a metric that is none of the task's.
    """
    splits = read_splits(
        list(tuning.data) if len(tuning.data) != 1 else tuning.data[0],
        dev=tuning.dev,
        test=tuning.test,
        output=tuning.task or "",
        columns=Columns(tuning.text, tuning.text2, tuning.label),
        skip_bad=tuning.skip_bad,
    )
    task = replace(splits.train.task, metric=tuning.metric or splits.train.task.metric)
    metric(task.metric, task)
    return replace(splits, train=replace(splits.train, task=task))


def gather(tuning: Tuning, device: str) -> Gathered:
    """Read the data and the model's shape, and fill in the recipe.

    Raises:
        UserError: as `read_data`; a task that the model cannot do, or a folder whose parts disagree.
    """
    stock = find_folder(tuning.model)
    a, _ = read_config(stock / "config.json")
    splits = read_data(tuning)
    task = splits.train.task
    if task.output == "sequence":
        raise UserError("writing a sequence cannot be fine-tuned yet", where="--task", mend="choose another answer")
    tuning = complete(tuning, task, len(splits.train.examples), a)
    precision: Any = str(pick_precision(tuning.train.precision, device)).split(".")[1]
    tuning = replace(tuning, train=replace(tuning.train, precision=precision))
    tokenizer = Tokenizer.load(stock)
    if tokenizer.vocab_size > a.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model's table {a.vocab_size:,} rows"
        raise UserError(what, where=stock, mend="put back the tokenizer that the model was trained with")
    test = splits.test.examples if splits.test is not None else ()
    known = [example for example in test if example.label is not None]
    train, dev, last = (
        encode(examples, task, tokenizer, max_length=tuning.length, stride=tuning.stride)
        for examples in (splits.train.examples, splits.dev.examples, known)
    )
    return Gathered(tuning, task, train, dev, last, tokenizer, stock, splits.said)


def finetune(tuning: Tuning, out: Path, *, listener: Listener | None = None, overwrite: bool = False) -> Result:
    """Fine-tune a pretrained model into a run folder, whose `model/` transformers opens with its head.

    Raises:
        UserError: as `gather`; or the disk refuses.
    """
    return _run(out, listener, lambda device: gather(tuning, device), overwrite=overwrite)


def resume(out: Path, *, listener: Listener | None = None) -> Result:
    """Go on with a fine-tuning from its newest whole checkpoint, to the same bits.

    Raises:
        UserError: its data or its model have changed since.
    """
    return _run(out, listener, lambda device: gather(load_tuning(out / RECIPE), device), resumed=True)


def _run(
    out: Path,
    listener: Listener | None,
    gathering: Callable[[str], Gathered],
    *,
    overwrite: bool = False,
    resumed: bool = False,
) -> Result:
    listener = listener or QuietListener()
    wanted = load_tuning(out / RECIPE).train.device if resumed else "auto"
    device = pick_device(wanted)
    world = join(device)
    listener = listener if world.first else QuietListener()
    try:
        if not resumed:
            refuse_existing(out, overwrite=overwrite)
        found = gathering(device)
        for line in found.said:
            listener.message(line)
        if resumed:
            told = json.loads((out / TASK).read_text(encoding="utf-8"))
            if told["fingerprint"] != found.fingerprint:
                raise UserError("its data or its model have changed since", where=out, mend="start a new run")
        else:
            world.lead(lambda: _begin(out, found))
        work = FineTuning(found, device)
        training = Training(work, out, listener, world, device, resumed=resumed)
        result = training.run()
        if found.test.rows and world.first:
            scored = work.measured(cast(TaskModel, training.finished), found.test)
            write_text(
                out / TESTED, json.dumps({name: round(value, 5) for name, value in scored.items()}, indent=1) + "\n"
            )
            listener.message(f"test        {found.task.metric} {scored[found.task.metric]:.4f}, in {out / TESTED}")
        return result
    finally:
        listener.close()


def is_tuning(run: Path) -> bool:
    """Whether a folder is a fine-tuning's run."""
    return (run / TASK).is_file() and (run / RECIPE).is_file()


def _begin(out: Path, found: Gathered) -> bool:
    """Clear away the run that is there, if any, and write what says what this one is."""
    settled = replace(
        found.tuning,
        model=str(found.stock.resolve()),
        data=tuple(str(Path(path).absolute()) for path in found.tuning.data),
        dev=found.tuning.dev and str(Path(found.tuning.dev).absolute()),
        test=found.tuning.test and str(Path(found.tuning.test).absolute()),
    )
    about = {"task": found.task.to_mapping(), "stock": str(found.stock.resolve()), "fingerprint": found.fingerprint}
    with begun(out, settled, {"store": found.fingerprint, "folder": ""}):
        write_text(out / TASK, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return True


def load_tuning(path: Path) -> Tuning:
    """The recipe of a fine-tuning's run folder.

    Raises:
        UserError: as `bertkin.config.load_recipe`.
    """
    loaded: Tuning = from_mapping(Tuning, load_yaml(path), str(path))
    return loaded
