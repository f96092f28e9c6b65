"""What answers: the vocabulary at the asked positions, a sentence classifier at [CLS], the sides of a span, and whether
a token was replaced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bertkin.models.architecture import Architecture
from bertkin.models.ops import add_norm, gelu, linear, vocabulary_loss
from bertkin.models.transformer import Stack
from bertkin.text.layout import Layout

MOSTLY = 0.75
"""From this share of asked tokens on, the last layer works for all of them: picking them out costs more than it saves."""
PLACES = 32
"""Places within a hidden span that the boundary head tells apart; the last stands for all beyond."""


class VocabularyHead(nn.Module):
    """Hidden states [n, hidden] to logits [n, vocab]: dense, bend and norm (BERT) or nothing (GPT), then a table."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.scale, self.tanh = a.logit_scale, a.feed_forward == "gelu-tanh"
        transform, width = a.head == "transform", a.row_width
        self.dense = nn.Linear(a.hidden, width, bias=a.head_bias) if transform else None
        self.norm = nn.LayerNorm(width, eps=a.norm_eps, bias=a.norm_bias) if transform else None
        self.bias = nn.Parameter(torch.empty(a.vocab_size)) if a.decoder_bias else None
        self.table = None if a.tied else nn.Parameter(torch.empty(a.vocab_size, width))

    def transform(self, hidden: Tensor) -> Tensor:
        """What is compared with the token table: [n, hidden] to [n, width of a row]."""
        if self.dense is None or self.norm is None:
            return hidden if self.scale == 1.0 else hidden * self.scale
        x = linear(hidden, self.dense.weight, self.dense.bias)
        x = nn.functional.gelu(x, approximate="tanh") if self.tanh else gelu(x)
        return add_norm(x, None, self.norm.weight, self.norm.bias, self.norm.eps)[1]


class SentenceHead(nn.Module):
    """BERT's pooler and classifier: the [CLS] state [n, hidden] to two scores [n, 2] (follows or not; in order or not)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.dense = nn.Linear(a.hidden, a.hidden)
        self.classifier = nn.Linear(a.hidden, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        pooled = torch.tanh(linear(hidden, self.dense.weight, self.dense.bias))
        return linear(pooled, self.classifier.weight, self.classifier.bias)


class BoundaryHead(nn.Module):
    """A hidden token from the states beside its span and its place in it alone (SpanBERT, Joshi et al. 2020):
    twice [n, hidden] and int64 [n] to what is compared with the token table [n, width of a row]."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(PLACES, a.hidden))
        self.first = nn.Linear(3 * a.hidden, a.hidden)
        self.first_norm = nn.LayerNorm(a.hidden, eps=a.norm_eps)
        self.second = nn.Linear(a.hidden, a.row_width)
        self.second_norm = nn.LayerNorm(a.row_width, eps=a.norm_eps)

    def forward(self, left: Tensor, right: Tensor, place: Tensor) -> Tensor:
        x = torch.cat([left, right, self.places[place.clamp(max=PLACES - 1)]], dim=-1)
        for layer, norm in ((self.first, self.first_norm), (self.second, self.second_norm)):
            x = gelu(linear(x, layer.weight, layer.bias))
            x = add_norm(x, None, norm.weight, norm.bias, norm.eps)[1]
        return x


class DetectHead(nn.Module):
    """Whether each token was replaced (ELECTRA, Clark et al. 2020): [n, hidden] to logits [n], above 0 where so."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.dense = nn.Linear(a.hidden, a.hidden)
        self.classifier = nn.Linear(a.hidden, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        bent = gelu(linear(hidden, self.dense.weight, self.dense.bias))
        return nn.functional.linear(bent, self.classifier.weight, self.classifier.bias).squeeze(-1)


@dataclass
class Losses:
    """Sums over a batch, not means, so that parts of a batch simply add up. Losses are in nats and carry gradients.

    `pair_…` is a second question asked beside the words: sentence pairs, span boundaries or replaced tokens.
    """

    loss_sum: Tensor
    n: int
    n_correct: Tensor
    pair_loss_sum: Tensor | None = None
    n_pairs: int = 0
    pair_correct: Tensor | None = None
    correct: Tensor | None = None
    """Which of the n are right, bool [n]."""


Source = tuple[Tensor, Layout]
"""What an encoder reads for a decoder: ids [tokens of the source] and their layout."""


class LanguageModel(nn.Module):
    """A stack and the heads that pretraining asks; with an encoder before it, where it looks at one.

    Args:
        a: what to build. Weights are left undrawn; see `bertkin.models.presets.build`.
        sentence: with a classifier of sentence pairs.
        boundary: with a head that answers from a span's sides.
    """

    missing: tuple[str, ...] = ()
    """Weights, under our names, that the folder we were loaded from did not have; they hold random numbers."""

    def __init__(self, a: Architecture, *, sentence: bool = False, boundary: bool = False) -> None:
        super().__init__()
        self.architecture = a
        self.stack = Stack(a)
        self.source = Stack(a, encoder=True) if a.both else None
        self.head = VocabularyHead(a) if a.head != "detect" else None
        self.detect = DetectHead(a) if a.head == "detect" else None
        self.sentence = SentenceHead(a) if sentence else None
        self.boundary = BoundaryHead(a) if boundary else None
        self.tie()

    def tie(self) -> None:
        """Let both halves read one token table, in families that do; again whenever parameters were made anew."""
        if self.source is not None and self.architecture.one_table:
            self.source.embeddings.tokens = self.stack.embeddings.tokens

    def encode(self, ids: Tensor, layout: Layout, source: Source | None = None) -> Tensor:
        """Hidden states of all tokens: [tokens, hidden]."""
        return self.hidden(ids, layout, None, source)

    def hidden(self, ids: Tensor, layout: Layout, asked: Tensor | None, source: Source | None = None) -> Tensor:
        """Hidden states at the asked flat positions (int64 [n], sorted), or at all: [n, hidden]."""
        memory = None
        if self.source is not None:
            if source is None:
                raise ValueError("an encoder–decoder needs a source")
            memory = (self.source(*source), source[1])
        if asked is not None and len(asked) >= MOSTLY * len(ids):
            whole: Tensor = self.stack(ids, layout, None, memory)
            return whole if len(asked) == len(ids) else whole[asked]
        picked: Tensor = self.stack(ids, layout, asked, memory)
        return picked

    def logits(self, ids: Tensor, layout: Layout, asked: Tensor | None = None, source: Source | None = None) -> Tensor:
        """Scores over the vocabulary [n, vocab] at the asked flat positions (int64 [n], sorted), or at all tokens."""
        return self.answer(self.hidden(ids, layout, asked, source))

    def answer(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary [n, vocab] of hidden states [n, hidden]."""
        head = self._head()
        return linear(head.transform(hidden), self.table, head.bias)

    @property
    def table(self) -> Tensor:
        """The rows that answers are compared with, [vocab, width of a row]."""
        own = self._head().table
        return self.stack.embeddings.tokens if own is None else own

    def _head(self) -> VocabularyHead:
        if self.head is None:
            raise ValueError("a model that detects replaced tokens has no words to answer with")
        return self.head

    def replaced(self, ids: Tensor, layout: Layout) -> Tensor:
        """How sure the model is that each token was replaced: logits [tokens], above 0 where it thinks so."""
        if self.detect is None:
            raise ValueError("only a model with a detecting head tells replaced tokens")
        found: Tensor = self.detect(self.stack(ids, layout))
        return found

    def forward(
        self,
        ids: Tensor,
        layout: Layout,
        asked: Tensor,
        targets: Tensor,
        pairs: Tensor | None = None,
        pair_labels: Tensor | None = None,
        z_loss: float = 0.0,
        scale: float = 1.0,
        source: Source | None = None,
        edges: Tensor | None = None,
    ) -> Losses:
        """The pretraining losses of a batch; `loss` is the same by its name.

        Args:
            ids: int64 [tokens], corrupted.
            asked: int64 [n], sorted flat positions that are asked.
            targets: int64 [n], what was there, or comes next there.
            pairs: int64 [p], sorted flat positions of the [CLS] of each sentence pair; needs the sentence head.
            pair_labels: int64 [p], 0 or 1.
            z_loss, scale: see `ops.vocabulary_loss`; the loss over words alone is scaled.
            source: what an encoder reads.
            edges: int64 [n, 2], the flat positions beside each asked token's span; needs the boundary head.
        """
        head = self._head()
        pairs = pairs if pairs is not None and len(pairs) else None
        extra = [places for places in (pairs, None if edges is None else edges.flatten()) if places is not None]
        wanted = torch.cat([asked, *extra]).unique() if extra else asked
        hidden = self.hidden(ids, layout, wanted, source)
        words = hidden if not extra else hidden[torch.searchsorted(wanted, asked)]
        loss, correct = vocabulary_loss(
            head.transform(words), self.table, head.bias, targets, z_loss=z_loss, scale=scale
        )
        losses = Losses(loss, len(targets), correct.sum(), correct=correct)
        if pairs is not None:
            if self.sentence is None or pair_labels is None:
                raise ValueError("sentence pairs need a model with a sentence head, and their labels")
            scores = self.sentence(hidden[torch.searchsorted(wanted, pairs)]).float()
            losses.pair_loss_sum = cross_entropy(scores, pair_labels, reduction="sum")
            losses.n_pairs, losses.pair_correct = len(pairs), (scores.argmax(-1) == pair_labels).sum()
        if edges is not None:
            if self.boundary is None:
                raise ValueError("span boundaries need a model with a boundary head")
            left, right = hidden[torch.searchsorted(wanted, edges.flatten())].view(len(edges), 2, -1).unbind(1)
            guess = self.boundary(left.contiguous(), right.contiguous(), asked - edges[:, 0] - 1)
            losses.pair_loss_sum, right = vocabulary_loss(guess, self.table, head.bias, targets)
            losses.n_pairs, losses.pair_correct = len(targets), right.sum()
        return losses

    loss = forward


class Replaced(nn.Module):
    """ELECTRA's two models (Clark et al. 2020): a small generator fills the blanks, the model finds what it replaced.

    Both read with the same embeddings. The generator's words are drawn by its own chances, and no gradient passes
    through the draw. `loss_sum` is the generator's, `pair_…` the detection of replaced tokens, over every token.
    """

    missing: tuple[str, ...] = ()

    def __init__(self, a: Architecture, generator: Architecture) -> None:
        super().__init__()
        self.architecture = a
        self.model = LanguageModel(a)
        self.generator = LanguageModel(generator)
        self.source = None
        self.tie()

    def tie(self) -> None:
        """Let the generator read with the model's embeddings; again whenever parameters were made anew."""
        self.generator.stack.embeddings = self.model.stack.embeddings

    def forward(
        self, ids: Tensor, layout: Layout, asked: Tensor, targets: Tensor, z_loss: float = 0.0, scale: float = 1.0
    ) -> Losses:
        """As for `LanguageModel`. What the generator draws is random: seed torch for the same draw."""
        g = self.generator
        head = g._head()
        hidden = head.transform(g.hidden(ids, layout, asked))
        loss, correct = vocabulary_loss(hidden, g.table, head.bias, targets, z_loss=z_loss, scale=scale)
        losses = Losses(loss, len(targets), correct.sum(), correct=correct)
        with torch.no_grad():
            drawn = draw(linear(hidden, g.table, head.bias))
            seen = ids.clone()
            seen[asked] = drawn
            wrong = torch.zeros(len(ids), device=ids.device)
            wrong[asked] = (drawn != targets).float()
        found = self.model.replaced(seen, layout).float()
        losses.pair_loss_sum = binary_cross_entropy_with_logits(found, wrong, reduction="sum")
        losses.n_pairs, losses.pair_correct = len(ids), ((found > 0) == (wrong > 0)).sum()
        return losses

    loss = forward


def draw(logits: Tensor) -> Tensor:
    """One token a row of logits [n, vocab], by their chances: int64 [n].

    One random number a row, looked up in the running sum of its chances: a number for each word would cost more than all
    else that a step of ELECTRA does. On a processor a few rows at a time, so that the sums stay in its cache.
    """
    drawn = []
    for rows in logits.split(64 if logits.is_cpu else max(len(logits), 1)):
        sums = torch.softmax(rows, -1, dtype=torch.float32).cumsum_(-1)
        at = torch.rand(len(rows), 1, device=rows.device) * sums[:, -1:]
        drawn.append(torch.searchsorted(sums, at, right=True))
    return torch.cat(drawn).squeeze(1).clamp_(max=logits.shape[1] - 1)


AnyModel = LanguageModel | Replaced
