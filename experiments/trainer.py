"""transformers' Trainer on the tasks that `bertkin finetune` trains on: the same rows, labels and scores.

    features(rows)                   our rows as what its collators take
    model_for(task, stock)           its own class for the task
    arguments(tuning, folder, ...)   its settings for our recipe
    trained(tuning, folder)          a whole training's score, as `tuned.tuned` tells it; made once

Tokens are handed over ready, so that what is compared is the training: the model, the loop, the padding, the optimiser.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sharing import goes_on, machine, once
from starts import beyond_usual

from bertkin.tasks.answering import answers, longest_answer
from bertkin.tasks.encoding import Rows
from bertkin.tasks.gathering import gather
from bertkin.tasks.metrics import measure
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning

IGNORED = -100


def features(rows: Rows) -> list[dict[str, Any]]:
    """A mapping for each row: ids, mask, segments, and the labels by the names that transformers' heads ask for."""
    found = []
    for row in rows.rows:
        ids = row.ids.tolist()
        segments = [0] * len(ids) if row.segments is None else row.segments.tolist()
        one: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": segments}
        if rows.task.output == "span":
            one |= {"start_positions": int(row.target[0]), "end_positions": int(row.target[1])}
        elif rows.task.output == "tokens":
            labels = np.full(len(ids), IGNORED)
            labels[row.places] = row.target
            one["labels"] = labels.tolist()
        else:
            one["labels"] = row.target
        found.append(one)
    return found


def model_for(task: Task, stock: str | Path) -> Any:
    """transformers' own class for a task, begun from a pretrained folder."""
    import transformers

    transformers.logging.set_verbosity_error()
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "class": (transformers.AutoModelForSequenceClassification, {"num_labels": len(task.labels)}),
        "score": (transformers.AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
        "tokens": (transformers.AutoModelForTokenClassification, {"num_labels": len(task.labels)}),
        "span": (transformers.AutoModelForQuestionAnswering, {}),
    }
    kind, options = kinds[task.output]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_pretrained(str(stock), **options)


def collator(task: Task, stock: str | Path, length: int, longest: bool) -> Any:
    """Its padding: to the longest of the batch, or all to `length`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(stock))
    padding: Any = {"padding": True} if longest else {"padding": "max_length", "max_length": length}
    if task.output == "tokens":
        return transformers.DataCollatorForTokenClassification(tokenizer, **padding)
    return transformers.DataCollatorWithPadding(tokenizer, **padding)


SPENT = "seconds.txt"


def arguments(tuning: Tuning, folder: Path, **changes: Any) -> Any:
    """Its settings for a recipe with nothing left open."""
    import transformers

    train = tuning.train
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": tuning.batch,
        "per_device_eval_batch_size": 64,
        "num_train_epochs": train.epochs,
        "learning_rate": train.lr,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup,
        "weight_decay": train.weight_decay,
        "adam_beta2": train.beta2,
        "max_grad_norm": train.clip,
        "seed": train.seed,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 1,
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(**(fields | changes))


def trained(folder: Path, tuning: Tuning) -> dict[str, Any]:
    """A training's score on the dev data, counted from its logits as ours is; made once.

    Args:
        tuning: every hyperparameter that differs between the two is given in it.
    """
    settings = {"trainer": beyond_usual(tuning)}
    return once(folder, settings, lambda: _made(folder, tuning, settings))


def _clock(aside: Path, before: Path | None) -> Any:
    """What tells a training's seconds over all of its sittings, its checkpoints among them, into each of which those until
    then are written.

    Args:
        before: the checkpoint that is gone on from, if any.
    """
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds, self.since = float((before / SPENT).read_text()) if before else 0.0, perf_counter()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.since = perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = perf_counter()
            self.seconds, self.since = self.seconds + now - self.since, now

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.on_step_end()
            (aside / f"checkpoint-{state.global_step}" / SPENT).write_text(f"{self.seconds}")

    return Clock()


def begun(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The last whole checkpoint of the same training, if any; what was begun with other settings is cleared away.

    Whole is one that has its seconds, which are written last.
    """
    aside = folder / "trainer"
    goes_on(folder, settings, aside)
    whole = [place.parent for place in aside.glob(f"checkpoint-*/{SPENT}")]
    return max(whole, key=lambda place: int(place.name.partition("-")[2]), default=None)


def _made(folder: Path, tuning: Tuning, settings: dict[str, Any]) -> dict[str, Any]:
    import transformers

    before = begun(folder, settings)
    found = gather(tuning, "cpu")
    transformers.set_seed(found.tuning.train.seed)
    model = model_for(found.task, found.stock)
    aside = folder / "trainer"  # its output, which is kept until it is done
    clock = _clock(aside, before)
    trainer = transformers.Trainer(
        model=model,
        args=arguments(found.tuning, aside),
        train_dataset=features(found.train),
        data_collator=collator(found.task, found.stock, found.tuning.length, longest=True),
        callbacks=[clock],
    )
    done = trainer.train(resume_from_checkpoint=None if before is None else str(before))
    asked: Any = features(found.dev)
    scores = by_row(found.task, trainer.predict(asked).predictions, found.dev.lengths.tolist())
    longest = longest_answer(found.task, found.train.rows)
    predictions = [one.answer for one in answers(found.task, found.dev, scores, longest=longest)]
    (folder / "answers.json").write_text(json.dumps(predictions, ensure_ascii=False))
    scored = measure(found.task, found.dev.examples, predictions)
    shutil.rmtree(aside, ignore_errors=True)
    (folder / "begun.json").unlink()
    return {
        "metric": found.task.metric,
        "score": round(scored[found.task.metric], 5),
        "scores": {name: round(value, 5) for name, value in scored.items()},
        "minutes": round(clock.seconds / 60, 3),
        "steps": done.global_step,
        "examples": len(found.train.examples),
        "trained": sum(parameter.numel() for parameter in model.parameters()),
        "machine": machine(),
    }


def by_row(task: Task, logits: Any, lengths: Sequence[int]) -> list[np.ndarray]:
    """Its padded logits as ours: of each row [outputs], or [tokens, outputs] for tags and spans."""
    if task.output == "span":
        logits = np.stack(logits[:2], axis=-1)
    if task.output in ("tokens", "span"):
        return [row[:length] for row, length in zip(logits, lengths, strict=True)]
    return list(logits)
