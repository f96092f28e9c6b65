"""What the open fields of a fine-tuning's recipe become: by the task, the examples and the model."""

from __future__ import annotations

from dataclasses import replace

from bertkin.config import AUTO, fill_auto
from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.strategy import check
from bertkin.models.task_heads import usual_pooling
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning
from bertkin.tasks.weighing import check_choices
from bertkin.train.checking import check_train, with_budget

FASTER = {
    "full": 1.0,
    "last": 2.0,
    "bias": 20.0,
    "lora": 10.0,
    "adapter": 10.0,
    "layers": 20.0,
    "frozen": 40.0,
    "prefix": 40.0,
    "pals": 10.0,
}
"""How many times the rate of training everything a strategy takes that leaves the stock as it is: the less is trained, the
more."""
WRAPPED = ("adapter", "prefix", "layers", "pals")
"""Strategies whose models are not ordinary ones."""


def complete(tuning: Tuning, task: Task, examples: int, a: Architecture) -> Tuning:
    """The recipe with every field filled in: rates by width, epochs by how many examples there are.

    Few examples are gone through more often, with bias-corrected AdamW and a longer warm-up: what steadies small sets
    (Mosbach et al. 2021; Zhang et al. 2021).

    Raises:
        UserError: two budgets, a row longer than the model reads, or choices that do not go together.
    """
    check(tuning.strategy, "--strategy.")
    check_choices(tuning, task, a)
    if tuning.merge and tuning.strategy.kind in WRAPPED:
        what = f"{tuning.strategy.kind} does not fold into the weights"
        raise UserError(what, where="--merge", mend="leave it out, or choose lora")
    train = with_budget(tuning.train, epochs=3.0 if examples > 10_000 else 5.0 if examples > 2_000 else 10.0)
    train = fill_auto(
        train,
        optimizer="adamw",
        lr=min(2e-4, 4e-5 * 768 / a.hidden) * (FASTER[tuning.strategy.kind] if tuning.strategy.light else 1.0),
        matrix_lr=1e-3,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        beta2=0.999 if examples > 2_000 else 0.98,
        eval_every=min(0.999, 1 / (train.epochs or 5.0)),  # once an epoch; from 1 on it would count steps
        final="best",
        batch_tokens=tuning.batch * 128,  # a guess, for the price alone
        length=128,
    )
    check_train(train)
    usual = {"span": 384, "sequence": 512}.get(task.output, 256)
    length = tuning.length if tuning.length is not AUTO else min(usual, a.max_length)
    if length > a.max_length:
        raise UserError(
            f"rows of {length} tokens, but the model reads at most {a.max_length}",
            where="--length",
            mend=f"choose at most {a.max_length}",
        )
    return replace(tuning, length=length, pooling=tuning.pooling or usual_pooling(a), train=train)
