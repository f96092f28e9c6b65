"""Layout: which token belongs to which sequence.

Tokens are always flat and tight, `[tokens]`, sequence after sequence, with no padding between; the layout beside them
says where each sequence starts. A sequence is what attention stays inside. Whoever needs a rectangle makes one with
`padded` and goes back with `flat`; when all sequences are equally long both are views and cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Layout:
    """Which token belongs to which sequence. Built from numpy; `to` makes the same thing of torch tensors."""

    starts: Any
    """int32 [sequences + 1]: sequence s owns tokens starts[s]:starts[s + 1]."""
    positions: Any
    """int32 [tokens]: 0-based position inside the sequence."""
    segments: Any = None
    """int32 [tokens], 0 or 1 (BERT's token types), or None when all are 0."""
    max_length: int = 0
    """Tokens of the longest sequence."""
    reach: Any = None
    """int32 [tokens]: how many of its sequence's first tokens each token may see, never falling along a sequence; None
    where the model's own rule says it. All of them, itself and those before (position + 1), or a prefix: whoever mixes
    these in one batch writes them here."""
    row_length: int = 0
    """When not 0: every row_length tokens are a row and no sequence crosses from one into the next, so that
    `[tokens]` may be viewed as `[rows, row_length]` and attention be kept inside a row."""

    @staticmethod
    def from_lengths(lengths: ArrayLike, *, segments: Any = None, reach: Any = None, row_length: int = 0) -> Layout:
        """The layout of sequences with these lengths, one after the other."""
        sizes = np.asarray(lengths, np.int64)
        starts = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return Layout(
            starts=starts.astype(np.int32),
            positions=positions.astype(np.int32),
            segments=segments,
            reach=reach,
            max_length=int(sizes.max(initial=0)),
            row_length=row_length,
        )

    @staticmethod
    def from_mask(mask: Any, *, segments: Any = None) -> tuple[Layout, Any]:
        """The layout of a padded batch, and where its tokens are.

        Args:
            mask: [sequences, length], non-zero where there is a token (transformers' attention_mask); padding may be
                on either side. A numpy array or a tensor.
            segments: [sequences, length], 0 or 1, or None.

        Returns:
            The layout, and index int64 [tokens]: the tokens' places in the flattened [sequences * length], so that
            `ids.reshape(-1)[index]` are the flat ids. Both are tensors on the mask's device if mask is a tensor.
        """
        if isinstance(mask, np.ndarray):
            present = mask != 0
            index: Any = np.flatnonzero(present)
            kept = None if segments is None else segments.reshape(-1)[index].astype(np.int32)
            return Layout.from_lengths(present.sum(1), segments=kept), index
        layout, places = Layout.from_mask(mask.detach().cpu().numpy())
        layout, index = layout.to(mask.device), _tensor(places, mask.device)
        if segments is not None:
            layout = replace(layout, segments=segments.reshape(-1)[index].int())
        return layout, index

    @property
    def n_tokens(self) -> int:
        return int(self.positions.shape[0])

    @property
    def n_sequences(self) -> int:
        return int(self.starts.shape[0]) - 1

    @property
    def uniform(self) -> bool:
        """Whether all sequences are equally long (known from shapes alone)."""
        return self.n_sequences * self.max_length == self.n_tokens

    @property
    def lengths(self) -> Any:
        """int32 [sequences]."""
        return self.starts[1:] - self.starts[:-1]

    def sequence_ids(self) -> Any:
        """[tokens]: the number of the sequence each token belongs to (int32 in numpy, int64 in torch)."""
        if isinstance(self.starts, np.ndarray):
            return np.repeat(np.arange(self.n_sequences, dtype=np.int32), self.lengths)
        import torch

        numbers = torch.arange(self.n_sequences, device=self.starts.device)
        return torch.repeat_interleave(numbers, self.lengths, output_size=self.n_tokens)

    @cached_property
    def index(self) -> Any:
        """[tokens]: each token's place in the flattened rectangle [sequences * max_length]."""
        return self.sequence_ids() * self.max_length + self.positions

    def padded(self, flat: Any, value: float = 0) -> Any:
        """[tokens, ...] as [sequences, max_length, ...], with `value` where there is no token (a view if uniform)."""
        shape = (self.n_sequences, self.max_length, *flat.shape[1:])
        if self.uniform:
            return flat.reshape(shape)
        if isinstance(flat, np.ndarray):
            out: Any = np.full((shape[0] * shape[1], *shape[2:]), value, flat.dtype)
            out[self.index] = flat
            return out.reshape(shape)
        out = flat.new_full((shape[0] * shape[1], *shape[2:]), value)
        return out.index_copy(0, self.index, flat).reshape(shape)

    def flat(self, padded: Any) -> Any:
        """[sequences, max_length, ...] as [tokens, ...]: the inverse of `padded`."""
        joined = padded.reshape((self.n_sequences * self.max_length, *padded.shape[2:]))
        if self.uniform:
            return joined
        return joined[self.index] if isinstance(joined, np.ndarray) else joined.index_select(0, self.index)

    def to(self, device: Any) -> Layout:
        """The same layout with torch tensors on `device`."""
        return replace(
            self,
            starts=_tensor(self.starts, device),
            positions=_tensor(self.positions, device),
            segments=None if self.segments is None else _tensor(self.segments, device),
            reach=None if self.reach is None else _tensor(self.reach, device),
        )

    def take(self, first: int, last: int) -> Layout:
        """The layout of sequences first up to last (a numpy layout; its tokens are starts[first]:starts[last])."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        starts: NDArray[np.int32] = self.starts[first : last + 1] - self.starts[first]
        return Layout(
            starts=starts,
            positions=self.positions[begin:end],
            segments=None if self.segments is None else self.segments[begin:end],
            reach=None if self.reach is None else self.reach[begin:end],
            max_length=int(np.diff(starts).max(initial=0)),
            row_length=self.row_length,
        )


def _tensor(array: Any, device: Any) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
    return tensor.to(device, non_blocking=True)
