"""Hiding more of what is predicted badly, which training itself tells as it goes on.

Yang, Zhang and Zhao (2023) weigh parts of speech by their loss; here each token of the vocabulary has a weight of its
own, from how often the model's first guess at it was wrong of late. Right and wrong are counted in whole numbers, so
the weights do not depend on how a batch was shared out, and they are part of a run's state: a resumed run hides what
the other would have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertkin.text.batches import Bools, Ints

MEMORY = 64
"""About how many askings of a token its share of errors looks back on."""


class Difficulty:
    """How often each token of the vocabulary is predicted wrongly: a running mean.

    Attributes:
        errors: float32 [vocab], from 0 (always right) to 1 (always wrong, or never asked).
    """

    def __init__(self, vocab_size: int) -> None:
        self.errors = np.ones(vocab_size, np.float32)

    def weights(self, strength: float) -> NDArray[np.float64]:
        """How readily each token is hidden, [vocab]: 1 for what is always predicted rightly, 1 + strength for what
        never is."""
        return 1 + strength * self.errors.astype(np.float64)

    def learn(self, ids: Ints, asked: Ints, right: ArrayLike) -> None:
        """Take in a batch: which ids were asked, each once, how often, and how often they were predicted rightly."""
        kept = (1 - 1 / MEMORY) ** asked
        self.errors[ids] = kept * self.errors[ids] + (1 - kept) * (1 - np.asarray(right) / asked)


class Tally:
    """What was right in a batch, put together from shares of it.

    Args:
        targets: [n], the ids that the whole batch asks.

    Attributes:
        ids: those ids, sorted, each once.
        asked: how often each is asked.
        right: how often each was predicted rightly in the shares added so far.
    """

    def __init__(self, targets: Ints) -> None:
        self.ids, self.asked = np.unique(targets, return_counts=True)
        self.right: Ints = np.zeros(len(self.ids), np.int64)

    def add(self, targets: Ints, correct: Bools) -> None:
        """Add a share: the ids it asks, [n], and whether the model's first guess was right."""
        self.right += np.bincount(np.searchsorted(self.ids, targets[correct]), minlength=len(self.ids))
