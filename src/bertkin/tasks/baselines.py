"""What can be guessed without a model: two baselines, asked exactly what every evaluation asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkin.text.batches import Batch, Specials

CHUNK = 1 << 22
"""Pairs of tokens counted at once."""


@dataclass(frozen=True)
class Counts:
    """What the training text says about single tokens and pairs of neighbours."""

    frequent: int
    """The most frequent token."""
    successor: NDArray[np.int64]
    """[vocab]: the most frequent token after each; `frequent` after those never followed by one."""


@dataclass(frozen=True)
class Baselines:
    """Accuracies, 0 to 1. Asked tokens that are shown, as they are or replaced, both repeat, as a model may."""

    frequent: float
    """For what is hidden, the most frequent token of the training text."""
    bigram: float
    """For what is hidden, the most frequent successor of the token before, or of all if that is hidden too."""


def count(split: Any, ids: Specials) -> Counts:
    """Count tokens and neighbours inside the documents of a split; [CLS] stands to the left of each document."""
    vocab = ids.vocab_size
    singles = np.zeros(vocab, np.int64)
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for first in range(0, split.n_tokens, CHUNK):
        last = min(first + CHUNK, split.n_tokens)
        right = np.asarray(split.tokens[first:last]).astype(np.int64)
        singles += np.bincount(right, minlength=vocab)
        left = np.asarray(split.tokens[max(first - 1, 0) : last - 1]).astype(np.int64)
        left = np.concatenate([[ids.cls], left]) if first == 0 else left
        begins = np.asarray(split.documents)
        begins = begins[(begins >= first) & (begins < last)]
        left[begins - first] = ids.cls
        new, amounts = np.unique(left * vocab + right, return_counts=True)
        keys, where = np.unique(np.concatenate([keys, new]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, amounts])).astype(np.int64)
    frequent = int(singles.argmax())
    successor = np.full(vocab, frequent, np.int64)
    order = np.argsort(counts, kind="stable")  # the last written wins: the most frequent
    successor[keys[order] // vocab] = keys[order] % vocab
    return Counts(frequent, successor)


def ask(counts: Counts, batches: Iterable[Batch], ids: Specials) -> Baselines:
    """Answer the asked tokens of evaluation batches, seeing the input as the model does."""
    total = frequent = bigram = 0
    blind = np.setdiff1d(ids.special_ids, [ids.cls])
    for batch in batches:
        seen, left = batch.ids[batch.asked], batch.ids[batch.asked - 1]
        hidden = seen == ids.mask
        after = np.where(np.isin(left, blind), counts.frequent, counts.successor[left])
        total += len(batch.targets)
        frequent += int((batch.targets == np.where(hidden, counts.frequent, seen)).sum())
        bigram += int((batch.targets == np.where(hidden, after, seen)).sum())
    return Baselines(frequent / max(total, 1), bigram / max(total, 1))
