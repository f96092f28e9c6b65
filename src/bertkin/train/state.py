"""The run folder, and checkpoints that a crash cannot halve.

    recipe.yaml     every field as it was used
    log.jsonl       one record a line (see `bertkin.train.progress`)
    model/          what transformers opens, from the last evaluation or checkpoint
    checkpoints/    step-00001200/: weights and optimiser state, with a hash of each file
    report.html     curves, recipe, samples

A checkpoint is written in a folder aside, flushed to disk, and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bertkin.errors import UserError, disk_errors
from bertkin.train.board import Board

FORMAT = 1
TENSORS, STATE = "state.safetensors", "state.json"


@dataclass
class Position:
    """Where a run is. With the recipe and the tensors of a checkpoint this is all of its state."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on, over all processes."""
    seconds: float = 0.0
    """Time spent, without preparing the corpus."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows taken so far, for each row length."""
    loss: float | None = None
    """Held-out loss at this step, if it was evaluated here."""
    accuracy: float | None = None
    """Held-out accuracy, likewise."""
    best: float | None = None
    """The best score of all evaluations so far."""
    best_loss: float | None = None
    """The held-out loss there."""
    best_step: int | None = None
    """Where that was; the first, where several are as good."""
    stale: int = 0
    """Evaluations since."""

    def row(self, length: int) -> int:
        """The next row of this length."""
        return self.rows.get(str(length), 0)

    def judge(self, score: float, loss: float) -> None:
        """Take in the score of an evaluation here, the higher the better; of equal ones that of the lower loss is better.
        What is not a number is never the best."""
        so_far = (-math.inf, 0.0) if self.best is None or self.best_loss is None else (self.best, -self.best_loss)
        if (score, -loss) > so_far:
            self.best, self.best_loss, self.best_step, self.stale = score, loss, self.step, 0
        else:
            self.stale += 1


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(run: Path, position: Position, tensors: dict[str, Tensor], keep: int) -> Path:
    """Write checkpoints/step-N and drop the ones no longer wanted: the newest `keep` stay, and the best.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    folder = run / "checkpoints"
    final = step_folder(run, position.step)
    aside = folder / f".{final.name}.{os.getpid()}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        try:
            aside.mkdir()
            content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            _write(aside / TENSORS, content)
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            body = {"format": FORMAT, "position": asdict(position), "files": {TENSORS: [len(content), digest]}}
            body["check"] = _check(body)
            _write(aside / STATE, json.dumps(body, indent=1).encode())
            if final.exists():
                _drop(final)
            aside.rename(final)
            _flush(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _prune(final, keep, position.best_step)
    return final


def load_checkpoint(run: Path, report: Callable[[str], None]) -> tuple[Position, dict[str, Tensor]] | None:
    """The newest whole checkpoint; damaged ones are reported and passed over.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    found = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for folder in found:
        try:
            return read_checkpoint(folder)
        except UserError as error:
            report(f"{error}; going back to the checkpoint before it")
    if found:
        raise UserError("every checkpoint is damaged", where=run, mend="start the run again with --overwrite")
    return None


def read_checkpoint(folder: Path) -> tuple[Position, dict[str, Tensor]]:
    """One checkpoint, checked against its hashes.

    Raises:
        UserError: a file is missing, cut short or changed.
    """
    try:
        body = json.loads((folder / STATE).read_bytes())
        if body.pop("check") != _check(body) or body["format"] != FORMAT:
            raise UserError("damaged (its state does not match its own hash)", where=folder / STATE)
        size, digest = body["files"][TENSORS]
        content = (folder / TENSORS).read_bytes()
        if len(content) != size:
            raise UserError(f"damaged ({len(content):,} bytes of {size:,})", where=folder / TENSORS)
        if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
            raise UserError("damaged (its bytes do not match their hash)", where=folder / TENSORS)
        del content
        return Position(**body["position"]), load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"damaged ({type(error).__name__})", where=folder) from None


def _prune(written: Path, keep: int, best: int | None) -> None:
    """Keep the newest `keep` checkpoints and the best: that of the step `best`, or the one with the lowest held-out loss.

    Those of later steps than the one just written go too: the run came back from them because they were damaged.
    """
    found = sorted(written.parent.glob("step-*"))
    losses = {}
    for checkpoint in found:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            loss = json.loads((checkpoint / STATE).read_bytes())["position"]["loss"]
            if loss is not None and math.isfinite(loss) and checkpoint <= written:
                losses[checkpoint] = loss
    kept = set([checkpoint for checkpoint in found if checkpoint <= written][-max(keep, 1) :])
    if best is not None:
        kept.add(step_folder(written.parents[1], best))
    elif losses:
        kept.add(min(losses, key=lambda checkpoint: losses[checkpoint]))
    for checkpoint in found:
        if checkpoint not in kept:
            _drop(checkpoint)


def _drop(checkpoint: Path) -> None:
    """Remove a checkpoint. Renamed first: a crash half-way must not leave something that looks like a checkpoint."""
    doomed = checkpoint.with_name(f".old-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(run: Path) -> None:
    """Remove what a killed run left half-written: files set aside in its folders, as .NAME.PROCESS."""
    _sweep(run / "checkpoints")
    inside = [path for path in (run / "model").glob("*") if path.is_dir() and not path.is_symlink()]
    for folder in (run, run / "model", run / "tokenizer", *inside):
        for leftover in folder.glob(".*"):
            if leftover.suffix[1:].isdigit() and leftover.is_file():
                leftover.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed runs left aside."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check(body: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make a rename in this folder last through a power cut."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small file aside and rename it into place."""
    with disk_errors(path):
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write(aside, text.encode())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


class Log:
    """log.jsonl: records appended as they happen; on resuming, what came after the checkpoint is dropped.

    Args:
        until: the step a resumed run goes on from.
        board: with TensorBoard files beside it.
    """

    def __init__(self, run: Path, *, until: int | None = None, board: bool = False) -> None:
        self.path = run / "log.jsonl"
        self.board = Board(run, max(until or 0, 0)) if board else None
        if until is not None:
            kept = [json.dumps(record) + "\n" for record in read_log(run) if record.get("step", 0) <= until]
            write_text(self.path, "".join(kept))
        with disk_errors(self.path):
            # Without a buffer: what a full disk refuses is not tried again on closing.
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 — open as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a number that is not finite is written as null."""
        clean = {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in record.items()}
        with disk_errors(self.path):
            self.file.write((json.dumps(clean, ensure_ascii=False) + "\n").encode())
        if self.board:
            self.board.write(clean)

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.board:
            self.board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run's log; a last line cut by a crash is passed over."""
    records = []
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def kept_evaluation(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a run's log, the evaluation of the weights that are there at the end: that of the step the run said it kept, or
    the last; None where there is none yet."""
    found = [record for record in records if record.get("kind") == "evaluation"]
    said = [record.get("kept") for record in records if record.get("kind") == "finished"]
    chosen = [record for record in found if said and record.get("step") == said[-1]]
    return (chosen or found)[-1] if found else None


def generator(seed: int, step: int, rank: int) -> None:
    """Seed torch's own randomness (dropout) for one step, so that no random state need be remembered."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) % 2**64)
