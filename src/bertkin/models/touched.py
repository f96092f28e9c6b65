"""The gradient of a table of embeddings, of which a batch names few rows.

A table is the largest tensor of a small model, and most of its gradient is zero: to write these zeros anew in every step,
and to read them for the norm and again for the update, is time for nothing. So the gradient is kept from step to step, with
a mark for each row that is not zero. The optimiser reads the marked rows alone, and clears them when it is done.

To everybody else it is an ordinary gradient: `table.grad`, dense and right. Who writes to it is noticed by torch's own
counter of versions, and from then on it is read as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bertkin.models import kernels


@dataclass
class Touched:
    """A gradient [rows, cols], and which of its rows are not zero: `marks`, uint8 [rows]."""

    gradient: Tensor
    marks: Tensor
    version: int = -1
    """Of the gradient, for which the marks are true; below zero when all is cleared and nobody has it."""


def begin(table: Tensor) -> Touched:
    """A gradient of zeros for a table that has none yet, given to it: the one of the step before, if that was cleared."""
    kept: Touched | None = getattr(table, "touched", None)
    if kept is None or kept.version >= 0 or kept.gradient.shape != table.shape or kept.gradient.dtype != table.dtype:
        kept = Touched(torch.zeros_like(table), torch.zeros(len(table), dtype=torch.uint8))
        table.touched = kept  # type: ignore[attr-defined]
    kept.version = kept.gradient._version
    table.grad = kept.gradient
    return kept


def of(table: Tensor) -> Touched | None:
    """What is known of a table's gradient, or None where it is an ordinary one."""
    kept: Touched | None = getattr(table, "touched", None)
    if kept is None or table.grad is not kept.gradient or kept.version != kept.gradient._version:
        return None
    return kept


def clear(table: Tensor) -> None:
    """Take the gradient from a table, and make it ready for the next step."""
    kept, library = of(table), kernels.get()
    table.grad = None
    if kept is None or library is None:
        table.__dict__.pop("touched", None)  # what is not believed any more need not stay in memory
        return
    gradient = kept.gradient
    library.bk_clear(gradient.data_ptr(), kept.marks.data_ptr(), *gradient.shape, gradient.element_size())
    kept.version = -1
