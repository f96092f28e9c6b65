"""The recipe of a fine-tuning: every choice, with its default. `bertkin.tasks.completing` fills in what is left open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bertkin.config import AUTO, Train, from_mapping, load_yaml, rooted
from bertkin.models.strategy import Strategy

PRETRAINING = ("batch_tokens", "length", "lengths", "batch_ramp", "init", "z_loss", "eval_rows")
"""Fields of `Train` that a fine-tuning does not have."""


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
    positive: str = ""
    """Of two classes, the one that f1, precision and recall are of; by default the second, or the first where the second
    denies it (equivalent and not_equivalent)."""
    header: bool = AUTO
    """Whether a table's first row names its columns; by default it is told by the row."""
    scheme: Literal["iob1", "iob2", "bioes", "bmes"] = AUTO
    """How the tags of a file write entities (tokens); by default it is told by them."""
    skip_bad: bool = False
    """Leave unusable rows out instead of stopping at the first."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """Stop at bytes that are not UTF-8, or replace them."""
    batch: int = 32
    """Examples a step."""
    length: int = AUTO
    """Most tokens a row; by default 256, 384 where spans are looked for, 512 where an answer is written, or what the
    model reads."""
    stride: int = AUTO
    """Tokens that neighbouring windows of a long text share; by default a quarter of the room."""
    windows: int = 1
    """Most windows that a text longer than a row is read in, where one answer is of all of it (class, classes, score): its
    scores are the mean of theirs. What is behind the last is cut; with 1 there is no more than the beginning."""
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

    @property
    def paths(self) -> tuple[str, ...]:
        """All that is read: the model and the data."""
        return tuple(path for path in (self.model, *self.data, self.dev, self.test) if path)


def settled(tuning: Tuning) -> Tuning:
    """The recipe with its files named from the root, so that it can be gone on with from anywhere."""
    data = tuple(rooted(path) for path in tuning.data)
    return replace(tuning, data=data, dev=rooted(tuning.dev), test=rooted(tuning.test))


def load_tuning(path: Path) -> Tuning:
    """The recipe of a fine-tuning's run folder.

    Raises:
        UserError: as `bertkin.config.load_recipe`.
    """
    loaded: Tuning = from_mapping(Tuning, load_yaml(path), str(path))
    return loaded
