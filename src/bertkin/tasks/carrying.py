"""What every training on labelled examples does around the loop: who is told, what is refused, what a run begins with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from bertkin.errors import UserError
from bertkin.train.folder import refuse_existing
from bertkin.train.loop import Result, Training
from bertkin.train.machine import pick_device
from bertkin.train.parallel import join
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.work import Work


class Materials(Protocol):
    """What a training is cooked from."""

    @property
    def said(self) -> Sequence[str]:
        """What was found out of it, for people."""

    @property
    def fingerprint(self) -> str:
        """Hash of all examples and of the model that is begun with."""

    def like(self, fingerprint: str) -> str:
        """The same, of the kind of one that was written down (`bertkin.tasks.fingerprints`)."""


M = TypeVar("M", bound=Materials)


def carry_out(
    out: Path,
    listener: Listener | None,
    *,
    device: str,
    about: str,
    gather: Callable[[str], M],
    begin: Callable[[M], bool],
    work: Callable[[M, str], Work],
    end: Callable[[M, Training, Listener], None],
    needed: Iterable[str | Path] = (),
    overwrite: bool = False,
    resumed: bool = False,
) -> Result:
    """Train, or go on with a run that was stopped.

    Args:
        device: cpu, cuda or auto.
        about: the file of the run folder that holds the fingerprint of its materials.
        gather: reads them, for a device.
        begin: clears the run folder and writes what says what the run is.
        work: what the loop does with them.
        end: what the first process does with the finished training.
        needed: models and data that are read: a run that holds them is not overwritten.

    Raises:
        UserError: the run folder exists, or holds what is needed; the model cannot be made; or, of one that is gone on
            with, its data or its model have changed since.
    """
    listener, device = listener or QuietListener(), pick_device(device)
    world = join(device)
    listener = listener if world.first else QuietListener()
    try:
        if not resumed:
            refuse_existing(out, overwrite=overwrite, needed=needed)
        found = gather(device)
        for line in found.said:
            listener.message(line)
        if resumed and (before := _fingerprint(out / about)) != found.like(before):
            raise UserError("its data or its model have changed since", where=out, mend="start a new run")
        training = Training(work(found, device), out, listener, world, device, resumed=resumed)
        if not resumed:  # the model could be made: only now is a run that is there given up
            world.lead(lambda: begin(found))
        result = training.run()
        if world.first:
            end(found, training, listener)
        return result
    finally:
        listener.close()


def _fingerprint(file: Path) -> str:
    """What a run was begun with."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"damaged ({type(error).__name__})", where=file, mend="start a new run") from None


def as_measured(training: Training) -> Any:
    """The finished model in the precision that it was measured in while it was trained."""
    same = training.dtype == torch.float32 or bool(training.optimizer.average)
    return training.finished if same else copy.deepcopy(training.finished).to(training.dtype)
