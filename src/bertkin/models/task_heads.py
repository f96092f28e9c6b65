"""What answers after fine-tuning: a class, a class per token, a span of the input, or the best of several texts.

Each family has its own way from hidden states to scores (BERT's pooler, RoBERTa's classification head, GPT's last token);
`BENDS` says it in a line each, so that a folder saved here opens as transformers' own class with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.crf import Crf
from bertkin.models.ops import add_norm, linear
from bertkin.models.transformer import Stack
from bertkin.text.layout import Layout

Head = Literal["class", "choice", "tokens", "span"]
"""class: scores of a sequence; choice: one score, to be compared among sequences; tokens: scores of each token; span:
scores of each token to be the first and the last."""
Pooling = Literal["first", "last", "mean", "max", "attention"]


class Bend(NamedTuple):
    """What is between the states and the last projection."""

    act: Literal["none", "tanh", "gelu"]
    norm: bool = False
    bias: bool = True
    """Of the last projection."""


PLAIN, TANH, GELU = Bend("none"), Bend("tanh"), Bend("gelu")
BENDS: dict[str, dict[Head, Bend]] = {
    "bert": {"class": TANH, "choice": TANH, "tokens": PLAIN, "span": PLAIN},
    "roberta": {"class": TANH, "choice": TANH, "tokens": PLAIN, "span": PLAIN},
    "albert": {"class": TANH, "choice": TANH, "tokens": PLAIN, "span": PLAIN},
    "electra": {"class": GELU, "choice": GELU, "tokens": PLAIN, "span": PLAIN},
    "modern": dict.fromkeys(("class", "choice", "tokens", "span"), Bend("gelu", norm=True)),
    "gpt2": {"class": Bend("none", bias=False), "tokens": PLAIN, "span": PLAIN},
    "llama": {"class": Bend("none", bias=False), "tokens": PLAIN, "span": PLAIN},
    "bart": {"class": TANH, "span": PLAIN},
    "t5": {"class": TANH, "tokens": PLAIN, "span": PLAIN},
}
"""How transformers answers, for each family and head it has."""


@dataclass(frozen=True)
class Answer:
    """What a task model answers."""

    head: Head
    outputs: int
    """Scores of a sequence or token; 1 for choice, 2 for span."""
    pooling: Pooling = "first"
    """How a sequence becomes one state (class, choice)."""
    crf: bool = False
    """tokens: whether the tags of a sequence are scored together (`bertkin.models.crf`)."""


def usual_pooling(a: Architecture) -> Pooling:
    """What stands for a whole sequence in transformers: its first token, or the mean where ModernBERT says so; of those that
    read from the left, its last."""
    return "last" if a.causal or a.both else a.pooling


def end_of(layout: Layout, pooling: Pooling) -> Tensor:
    """The flat positions of each sequence's first or last token: int64 [sequences]."""
    places: Tensor = layout.starts[:-1] if pooling == "first" else layout.starts[1:] - 1
    return places.long()


class Pooler(nn.Module):
    """States [tokens, hidden] to one a sequence [sequences, hidden]: the mean, the largest of each number, or a mean
    weighted by scores that are learnt."""

    def __init__(self, a: Architecture, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Linear(a.hidden, 1) if pooling == "attention" else None

    def forward(self, states: Tensor, layout: Layout) -> Tensor:
        owner, lengths = layout.sequence_ids(), layout.lengths[:, None]
        shape = (layout.n_sequences, states.shape[1])
        if self.pooling == "max":
            lowest = states.new_full(shape, -torch.inf)
            return lowest.index_reduce(0, owner, states, "amax", include_self=False)
        if self.score is not None:
            scores = linear(states, self.score.weight, self.score.bias).float().squeeze(1)
            top = scores.new_full((layout.n_sequences,), -torch.inf).index_reduce(0, owner, scores.detach(), "amax")
            shares = (scores - top[owner]).exp()
            total = torch.zeros_like(top).index_add(0, owner, shares)
            states = states * (shares / total[owner])[:, None].to(states.dtype)
        sums = states.float().new_zeros(shape).index_add(0, owner, states.float())
        return (sums if self.score is not None else sums / lengths).to(states.dtype)


class Classifier(nn.Linear):
    """The last layer. Its few numbers stay float32 whatever the rest is made: half precision has no price between 300,000
    and 302,048."""

    def _apply(self, fn: Any, recurse: bool = True) -> Classifier:
        def keeping(value: Tensor) -> Tensor:
            made: Tensor = fn(value)
            return made if made.dtype == value.dtype else value.to(made.device)

        return super()._apply(keeping, recurse)


class TaskModel(nn.Module):
    """A pretrained stack, or an encoder and a decoder, and what answers a task.

    Args:
        a: of the pretrained model.
        answer: what is asked.

    Raises:
        UserError: the family has no such head.
    """

    missing: tuple[str, ...] = ()

    def __init__(self, a: Architecture, answer: Answer) -> None:
        super().__init__()
        if a.both and not a.one_table:
            what = f"an encoder of {a.family} with a decoder made for a task has no head for {answer.head}"
            raise UserError(what, mend="give the encoder it was begun from")
        if answer.head not in BENDS[a.family]:
            able = ", ".join(family for family, heads in BENDS.items() if answer.head in heads)
            raise UserError(f"{a.family} has no head for {answer.head}", mend=f"choose a model of {able}")
        self.architecture, self.answer = replace(a, generator=0.0), answer
        bend = BENDS[a.family][answer.head]
        self.act = bend.act
        # T5 tags with its encoder alone.
        self.reads = a.both and answer.head == "tokens"
        self.stack = None if self.reads else Stack(a)
        self.source = Stack(a, encoder=True) if a.both else None
        pooled = answer.head in ("class", "choice") and answer.pooling not in ("first", "last")
        self.pooler = Pooler(a, answer.pooling) if pooled else None
        self.dense = nn.Linear(a.hidden, a.hidden, bias=a.head_bias) if bend.act != "none" else None
        self.norm = nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias) if bend.norm else None
        self.classifier = Classifier(a.hidden, answer.outputs, bias=bend.bias)
        self.crf = Crf(answer.outputs) if answer.crf else None
        """Over the scores, in the loss and where tags are chosen; `forward` gives them without it."""
        self.tie()

    def tie(self) -> None:
        """Let both halves read one token table; again whenever parameters were made anew."""
        if self.source is not None and self.stack is not None:
            self.source.embeddings.tokens = self.stack.embeddings.tokens

    def states(self, ids: Tensor, layout: Layout, asked: Tensor | None = None) -> Tensor:
        """Last hidden states of the asked flat positions (int64 [n], sorted), or of all tokens: [n, hidden]."""
        if self.source is None:
            assert self.stack is not None
            found: Tensor = self.stack(ids, layout, asked)
            return found
        memory: Tensor = self.source(ids, layout, asked if self.reads else None)
        if self.stack is None:
            return memory
        # The decoder reads the same text, one place later, and so has read all of a token when it answers at it.
        written = ids.roll(1)
        written[layout.starts[:-1].long()] = self.architecture.start_id
        states: Tensor = self.stack(written, layout, asked, (memory, layout))
        return states

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """Scores: [sequences, outputs] for class and choice, [tokens, outputs] for tokens and span.

        Args:
            ids: int64 [tokens]; layout says which sequence each belongs to.
        """
        if self.answer.head in ("tokens", "span"):
            return self.scores(self.states(ids, layout))
        if self.pooler is not None:
            return self.scores(self.pooler(self.states(ids, layout), layout))
        return self.scores(self.states(ids, layout, end_of(layout, self.answer.pooling)))

    def scores(self, states: Tensor) -> Tensor:
        """States [n, hidden] to scores [n, outputs]."""
        if self.dense is not None:
            states = linear(states, self.dense.weight, self.dense.bias)
            states = torch.tanh(states) if self.act == "tanh" else nn.functional.gelu(states)
        if self.norm is not None:
            states = add_norm(states, None, self.norm.weight, self.norm.bias, self.norm.eps)[1]
        scores: Tensor = self.classifier(states.to(self.classifier.weight.dtype))  # too thin for the kernels' tiles
        return scores
