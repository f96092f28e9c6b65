"""What every model of the experiments is asked, ours and theirs: 512 rows of held-out text with 15% of it hidden.

A row is [CLS], 126 tokens from inside one document, [SEP]: a plain rectangle that any library reads without knowing
about packing. Which rows and what is hidden in them depends on the token store alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.text.batches import SplitLike
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

Ints = NDArray[np.int64]
LENGTH = 128
N_ROWS = 512
BATCH_ROWS = 32
IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """The questions."""

    inputs: Ints
    """[rows, 128]: 80% of the asked tokens hidden, 10% replaced by others, 10% as they are."""
    labels: Ints
    """[rows, 128]: what stood there, or -100 where nothing is asked."""

    @property
    def sha256(self) -> str:
        """Of inputs and labels: figures with the same hash are about the same questions."""
        return hashlib.sha256(self.inputs.tobytes() + self.labels.tobytes()).hexdigest()


def evaluation_rows(split: SplitLike, tokenizer: Tokenizer) -> Rows:
    """Cut a held-out split into rows, draw 512 of them (or as many as there are), and mask them, with seed 0 always.

    Raises:
        UserError: no document is long enough for a row.
    """
    room = LENGTH - 2
    pieces = [
        split.tokens[begin : begin + room]
        for low, high in zip(split.documents[:-1], split.documents[1:], strict=True)
        for begin in range(low, high - room + 1, room)
    ]
    if not pieces:
        raise UserError(f"no held-out document has {room} tokens", mend="give a larger corpus, or hold out more of it")
    inner = np.stack(pieces).astype(np.int64)
    rows = np.pad(inner, ((0, 0), (1, 1)))
    rows[:, 0], rows[:, -1] = tokenizer.cls_id, tokenizer.sep_id

    rng = np.random.default_rng(0)
    rows = rows[rng.permutation(len(rows))[:N_ROWS]]
    asked = (rng.random(rows.shape) < 0.15) & ~np.isin(rows, tokenizer.special_ids)
    fate = rng.random(rows.shape)
    inputs = np.where(asked & (fate < 0.8), tokenizer.mask_id, rows)
    replaced = asked & (fate >= 0.9)
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    inputs[replaced] = ordinary[rng.integers(0, len(ordinary), replaced.sum())]
    return Rows(inputs, np.where(asked, rows, IGNORED))


@torch.inference_mode()
def ask(model: LanguageModel, rows: Rows) -> tuple[float, float]:
    """Mean loss in nats and accuracy over the asked tokens."""
    loss, correct = 0.0, 0
    was = model.training
    model.eval()
    for first in range(0, len(rows.inputs), BATCH_ROWS):
        inputs, labels = rows.inputs[first : first + BATCH_ROWS], rows.labels[first : first + BATCH_ROWS]
        asked = np.flatnonzero(labels.reshape(-1) != IGNORED)
        layout = Layout.from_lengths([LENGTH] * len(inputs), row_length=LENGTH).to("cpu")
        logits = model.logits(torch.from_numpy(inputs.reshape(-1)), layout, torch.from_numpy(asked))
        more = tally(logits, torch.from_numpy(labels.reshape(-1)[asked]))
        loss, correct = loss + more[0], correct + more[1]
    model.train(was)
    n = int((rows.labels != IGNORED).sum())
    return loss / n, correct / n


def tally(logits: Any, targets: Any) -> tuple[float, int]:
    """Summed loss in nats and number of right answers of [n, vocabulary] logits."""
    logits = logits.float()
    return float(cross_entropy(logits, targets, reduction="sum")), int((logits.argmax(-1) == targets).sum())
