"""What the open fields of a fine-tuning's recipe become: by the task, the examples and the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bertkin.config import AUTO, fill_auto
from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.folders import matrix_size, told
from bertkin.models.strategy import check
from bertkin.models.task_heads import Pooling, usual_pooling
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning
from bertkin.tasks.weighing import HAVE, check_choices
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


USUAL, MOST = 0.065, 10.0
"""What numbers measure in the layers of BERTs (`matrix_size`), and how many times their rate a model grown here takes at
most whose numbers are larger."""


def complete(tuning: Tuning, task: Task, examples: int, a: Architecture, stock: Path) -> Tuning:
    """The recipe with every field filled in: rates by width and by how large the model's numbers are, epochs by how many
    examples there are.

    AdamW moves every number by about the rate, whatever its size. Muon leaves numbers that are three times as large as
    Adam's, of which such steps change next to nothing: their rate grows by the square (docs/log.md).

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
    if tuning.pooling not in (AUTO, pooling_for(a)) and task.output not in HAVE["pooling"]:
        what = f"a task of {task.output} is not answered by one state of the whole text"
        raise UserError(what, where="--pooling", mend="leave it out")
    train = with_budget(tuning.train, epochs=3.0 if examples > 10_000 else 5.0 if examples > 2_000 else 10.0)
    train = fill_auto(
        train,
        optimizer="adamw",
        lr=usual_lr(tuning, a, stock) if tuning.train.lr is AUTO else AUTO,
        matrix_lr=1e-3,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        beta2=0.999 if examples > 2_000 else 0.98,
        eval_every=min(1 - 1e-6, 1 / (train.epochs or 5.0)),  # once an epoch; from 1 on it would count steps
        final="best",
        batch_tokens=tuning.batch * 128,  # nothing reads these two here, but a recipe is checked with numbers in them
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
    return replace(tuning, length=length, pooling=tuning.pooling or pooling_for(a), train=train)


def usual_lr(tuning: Tuning, a: Architecture, stock: Path) -> float:
    """The rate of a strategy for a model, where none is given.

    Args:
        stock: the pretrained model's folder, of whose weights the size is taken where they are what is trained.
    """
    kind, base = tuning.strategy.kind, min(2e-4, 4e-5 * 768 / a.hidden)
    if kind in ("full", "last") and told(stock).get("objective"):  # strangers' (GPT-2, T5) were not measured
        base *= min(max(1.0, (matrix_size(stock) / USUAL) ** 2), MOST)
    return base * (FASTER[kind] if tuning.strategy.light else 1.0)


def pooling_for(a: Architecture) -> Pooling:
    """What stands for a whole sequence in a new head. Where transformers' models can do so (ModernBERT's), it is the mean:
    pretraining that asks for hidden words alone leaves nothing in the first token (docs/log.md)."""
    return "mean" if a.family == "modern" else usual_pooling(a)
