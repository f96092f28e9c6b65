"""The log once more, for TensorBoard (extra "tensorboard")."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bertkin.errors import MissingExtra

LEFT_OUT = ("kind", "step", "fills")


def check_board() -> None:
    """See that TensorBoard's writer is there, before anything slow.

    Raises:
        MissingExtra: it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "tensorboard", "--train.tensorboard")


class Board:
    """Writes the numbers of each record into RUN/tensorboard as kind/name; on resuming, later ones are dropped.

    Args:
        run: the run folder.
        step: where the run goes on from.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(run / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, record: dict[str, Any]) -> None:
        """Take over one record of log.jsonl."""
        for name, value in record.items():
            if name not in LEFT_OUT and isinstance(value, int | float):
                self.writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()  # type: ignore[no-untyped-call]
