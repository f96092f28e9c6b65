"""What answers: the vocabulary at the asked positions, and a sentence classifier at [CLS]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bertkin.models.architecture import Architecture
from bertkin.models.ops import add_norm, gelu, linear, vocabulary_loss
from bertkin.models.transformer import Encoder
from bertkin.text.layout import Layout


class VocabularyHead(nn.Module):
    """Hidden states [n, hidden] to logits [n, vocab]: dense, GELU, norm, then the token table itself (Press & Wolf 2017)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.dense = nn.Linear(a.hidden, a.hidden, bias=a.head_bias)
        self.norm = nn.LayerNorm(a.hidden, eps=a.norm_eps, bias=a.norm_bias)
        self.bias = nn.Parameter(torch.empty(a.vocab_size)) if a.decoder_bias else None

    def transform(self, hidden: Tensor) -> Tensor:
        """What is compared with the token table: [n, hidden] to the same."""
        x = gelu(linear(hidden, self.dense.weight, self.dense.bias))
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


@dataclass
class Losses:
    """Sums over a batch, not means, so that parts of a batch simply add up. Losses are in nats and carry gradients."""

    loss_sum: Tensor
    n: int
    n_correct: Tensor
    pair_loss_sum: Tensor | None = None
    n_pairs: int = 0
    pair_correct: Tensor | None = None


class MaskedLM(nn.Module):
    """An encoder and the heads that pretraining asks.

    Args:
        a: what to build. Weights are left undrawn; see `bertkin.models.presets.build`.
        sentence: with a classifier of sentence pairs.
    """

    missing: tuple[str, ...] = ()
    """Weights, under our names, that the folder we were loaded from did not have; they hold random numbers."""

    def __init__(self, a: Architecture, *, sentence: bool = False) -> None:
        super().__init__()
        self.architecture = a
        self.encoder = Encoder(a)
        self.head = VocabularyHead(a)
        self.sentence = SentenceHead(a) if sentence else None

    def encode(self, ids: Tensor, layout: Layout) -> Tensor:
        """Hidden states of all tokens: [tokens, hidden]."""
        hidden: Tensor = self.encoder(ids, layout)
        return hidden

    def logits(self, ids: Tensor, layout: Layout, asked: Tensor | None = None) -> Tensor:
        """Scores over the vocabulary [n, vocab] at the asked flat positions (int64 [n], sorted), or at all tokens."""
        x = self.head.transform(self.encoder(ids, layout, asked))
        return linear(x, self.encoder.embeddings.tokens, self.head.bias)

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
    ) -> Losses:
        """The pretraining losses of a batch; `loss` is the same by its name.

        Args:
            ids: int64 [tokens], corrupted.
            asked: int64 [n], sorted flat positions that are asked.
            targets: int64 [n], what was there.
            pairs: int64 [p], sorted flat positions of the [CLS] of each sentence pair; needs the sentence head.
            pair_labels: int64 [p], 0 or 1.
            z_loss, scale: see `ops.vocabulary_loss`; the loss over words alone is scaled.
        """
        pairs = pairs if pairs is not None and len(pairs) else None
        wanted = asked if pairs is None else torch.cat([asked, pairs]).sort().values
        hidden = self.encoder(ids, layout, wanted)
        words = hidden if pairs is None else hidden[torch.searchsorted(wanted, asked)]
        table, bias = self.encoder.embeddings.tokens, self.head.bias
        loss, correct = vocabulary_loss(self.head.transform(words), table, bias, targets, z_loss=z_loss, scale=scale)
        losses = Losses(loss, len(targets), correct)
        if pairs is not None:
            if self.sentence is None or pair_labels is None:
                raise ValueError("sentence pairs need a model with a sentence head, and their labels")
            scores = self.sentence(hidden[torch.searchsorted(wanted, pairs)]).float()
            losses.pair_loss_sum = cross_entropy(scores, pair_labels, reduction="sum")
            losses.n_pairs, losses.pair_correct = len(pairs), (scores.argmax(-1) == pair_labels).sum()
        return losses

    loss = forward
