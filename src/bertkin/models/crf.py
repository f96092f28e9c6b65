"""A linear chain over the tags of a sequence (Lafferty et al. 2001; over a trained encoder, Lample et al. 2016).

A sequence of tags scores the sum of what the model gives each, of what each pair of neighbours is worth, and of what the
first and the last are worth; its probability is the share of its exponential in those of all sequences:

    Crf      learnt beside a head, and its loss (the forward algorithm), in float32
    Chain    the same in NumPy, in float64, with pairs that are forbidden: the best sequence (Viterbi), and how sure each tag is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Floats = NDArray[np.float64]

FORBIDDEN = -1e4
"""What a forbidden pair is worth: less than any score, yet a number, so that there is a best sequence whatever is forbidden."""


class Crf(nn.Module):
    """What tags are worth beside each other.

    Args:
        tags: how many there are.
    """

    rates: ClassVar[dict[str, float]] = dict.fromkeys(("first", "between", "last"), 0.01)
    """Their own peak learning rate: a stock's would leave a few small numbers where they began."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(tags))
        self.between = nn.Parameter(torch.zeros(tags, tags))
        """[tag, next tag]."""
        self.last = nn.Parameter(torch.zeros(tags))

    def forward(self, scores: Tensor, tags: Tensor, lengths: Sequence[int]) -> Tensor:
        """The summed negative log-likelihood of sequences that lie end to end.

        Args:
            scores: [n, tags].
            tags: int64 [n].
            lengths: of the sequences, with the sum n; one may be empty.
        """
        sizes = [length for length in lengths if length]
        if not sizes:
            return scores.sum() * 0.0
        padded = pad_sequence(list(scores.float().split(sizes)), batch_first=True)
        wanted = pad_sequence(list(tags.split(sizes)), batch_first=True)
        real = torch.tensor(sizes, device=scores.device)
        return (self.log_partition(padded, real) - self.score(padded, wanted, real)).sum()

    def log_partition(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The logarithm of the sum over all sequences of tags: [sequences].

        Args:
            scores: float32 [sequences, longest, tags].
            lengths: int64 [sequences], 1 or more.
        """
        first, between, last = self._float()
        reached = first + scores[:, 0]
        for at in range(1, scores.shape[1]):
            further = torch.logsumexp(reached[:, :, None] + between, dim=1) + scores[:, at]
            reached = torch.where((at < lengths)[:, None], further, reached)
        return torch.logsumexp(reached + last, dim=1)

    def score(self, scores: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """What given sequences of tags score: [sequences]; arguments are as for `log_partition`, tags int64 [sequences,
        longest]."""
        first, between, last = self._float()
        real = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
        each = scores.gather(2, tags[:, :, None]).squeeze(2).masked_fill(~real, 0.0).sum(1)
        pairs = between[tags[:, :-1], tags[:, 1:]].masked_fill(~real[:, 1:], 0.0).sum(1)
        ends = tags.gather(1, lengths[:, None] - 1).squeeze(1)
        return each + pairs + first[tags[:, 0]] + last[ends]

    def _float(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.first.float(), self.between.float(), self.last.float()


@dataclass(frozen=True)
class Chain:
    """What tags are worth beside each other, to choose with.

    Attributes:
        first, last: [tags].
        between: [tag, next tag].
    """

    first: Floats
    between: Floats
    last: Floats

    @staticmethod
    def of(crf: Crf, first: NDArray[np.bool_], between: NDArray[np.bool_], last: NDArray[np.bool_]) -> Chain:
        """What a CRF has learnt, where only these beginnings, pairs and ends may be."""
        pairs = zip((crf.first, crf.between, crf.last), (first, between, last), strict=True)
        worth = [np.where(allowed, part.detach().cpu().double().numpy(), FORBIDDEN) for part, allowed in pairs]
        return Chain(*worth)

    def decode(self, scores: NDArray[np.floating]) -> tuple[NDArray[np.int64], Floats]:
        """The best sequence of tags for scores [n, tags], and the probability of each of its tags: int64 and float64 [n]."""
        given: Floats = np.asarray(scores, np.float64)
        best = self._best(given)
        return best, self._chances(given)[np.arange(len(best)), best]

    def _best(self, scores: Floats) -> NDArray[np.int64]:
        """Viterbi's algorithm."""
        reached, came = self.first + scores[0], np.zeros(scores.shape, np.int64)
        for at in range(1, len(scores)):
            through = reached[:, None] + self.between
            came[at] = through.argmax(0)
            reached = through.max(0) + scores[at]
        tags = np.zeros(len(scores), np.int64)
        tags[-1] = int((reached + self.last).argmax())
        for at in range(len(scores) - 1, 0, -1):
            tags[at - 1] = came[at, tags[at]]
        return tags

    def _chances(self, scores: Floats) -> Floats:
        """The probability of each tag at each place, whatever the others are: [n, tags] (forward and backward)."""
        before, after = np.zeros_like(scores), np.zeros_like(scores)
        before[0], after[-1] = self.first, self.last
        for at in range(1, len(scores)):
            before[at] = np.logaddexp.reduce((before[at - 1] + scores[at - 1])[:, None] + self.between, axis=0)
        for at in range(len(scores) - 2, -1, -1):
            after[at] = np.logaddexp.reduce(self.between + (after[at + 1] + scores[at + 1]), axis=1)
        total = before + scores + after
        shares: Floats = np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))
        return shares
