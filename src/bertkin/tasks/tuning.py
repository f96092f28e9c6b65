"""The recipe of a fine-tuning, and what its open fields become.

Tuning             every choice, with its default
complete(…)        the choices left open, by the task, the examples and the model
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bertkin.config import AUTO, Train, fill_auto, from_mapping, load_yaml
from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.strategy import Strategy, check
from bertkin.models.task_heads import usual_pooling
from bertkin.tasks.task import Task
from bertkin.tasks.weighing import check_choices


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
    task: Literal["class", "classes", "score", "choice", "tokens", "span", "sequence"] = AUTO
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
    """Most tokens a row; by default 256, 384 where spans are looked for, 512 where an answer is written, or what the
    model reads."""
    stride: int = AUTO
    """Tokens that neighbouring windows of a long text share; by default a quarter of the room."""
    pooling: Literal["first", "last", "mean", "max", "attention"] = AUTO
    """How a sequence becomes one state; by default the family's own way."""
    dropout: float = 0.1
    """Dropout after embeddings, attention and feed-forward."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    class_weights: str = "none"
    """What classes or tags count for in the loss: none, balanced (rare ones more), or weights as good=1,bad=4."""
    crf: bool = False
    """Score the tags of a sentence together, and choose none that cannot follow (tokens)."""
    reinit: int = 0
    """Draw so many layers from the top anew before training."""
    writer: Literal["decoder", "prefix"] = AUTO
    """Who writes a new text (sequence): a decoder that looks at the encoder, made where there is none; or the stack itself,
    which goes on where the text ends. By default a decoder, unless the model was pretrained to go on."""
    writes: int = AUTO
    """Most tokens of an answer (sequence); by default half as many again as the longest in training."""
    decoder_layers: int = AUTO
    """Layers of a new decoder (sequence); by default as many as the encoder has."""
    merge: bool = False
    """Save an ordinary folder although the strategy is light (not adapter, prefix, layers or pals)."""
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
    usual = {"span": 384, "sequence": 512}.get(task.output, 256)
    length = tuning.length if tuning.length is not AUTO else min(usual, a.max_length)
    if length > a.max_length:
        raise UserError(
            f"rows of {length} tokens, but the model reads at most {a.max_length}",
            where="--length",
            mend=f"choose at most {a.max_length}",
        )
    return replace(tuning, length=length, pooling=tuning.pooling or usual_pooling(a), train=train)


def load_tuning(path: Path) -> Tuning:
    """The recipe of a fine-tuning's run folder.

    Raises:
        UserError: as `bertkin.config.load_recipe`.
    """
    loaded: Tuning = from_mapping(Tuning, load_yaml(path), str(path))
    return loaded
