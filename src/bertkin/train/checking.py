"""How a training is to go, checked before anything slow: one budget, every number in its range."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bertkin.config import AUTO, BUDGETS, Train
from bertkin.errors import UserError
from bertkin.train.board import check_board

ZERO = -1e-9
"""A bound itself is out of range, and zero is not."""


def with_budget(train: Train, **usual: float) -> Train:
    """The same with one budget: the usual one where none is given.

    Raises:
        UserError: two budgets, or nothing of one.
    """
    given = [name for name in BUDGETS if getattr(train, name) is not AUTO]
    if not given:
        return replace(train, **usual)  # type: ignore[arg-type]
    if len(given) > 1:
        raise UserError(
            f"two budgets at once: {' and '.join(f'--train.{name}' for name in given)}", mend="give one of them"
        )
    if not getattr(train, given[0]) > 0:
        raise UserError(
            f"a budget of {getattr(train, given[0])}", where=f"--train.{given[0]}", mend="choose more than 0"
        )
    return train


def check_train(train: Train) -> None:
    """See that every number of a filled-in `Train` is in its range, and TensorBoard there if it is to write.

    Raises:
        UserError: the first that is not.
    """
    if train.tensorboard:
        check_board()
    rows: list[tuple[str, float, float, float]] = [
        ("train.ema", train.ema, ZERO, 1.0),
        ("train.warmup", train.warmup, ZERO, 1.0),
        ("train.decay", train.decay, ZERO, 1.0 + 1e-9),
        ("train.layer-decay", train.layer_decay, 0.0, 1.0 + 1e-9),
        ("train.unfreeze", train.unfreeze, ZERO, 1.0 + 1e-9),
        ("train.patience", train.patience, -1, 1 << 30),
        ("train.batch-ramp", train.batch_ramp, ZERO, 1.0),
        ("train.lr", train.lr, 0.0, 1e9),
        ("train.matrix-lr", train.matrix_lr or 0.0, ZERO, 1e9),
        ("train.table-lr", train.lr if train.table_lr is AUTO else train.table_lr, ZERO, 1e9),
        ("train.weight-decay", train.weight_decay, ZERO, 1e3),
        ("train.beta2", train.beta2, ZERO, 1.0),
        ("train.clip", train.clip, ZERO, 1e9),
        ("train.z-loss", train.z_loss, ZERO, 1e3),
        ("train.accumulate", train.accumulate, 0, 1 << 20),
        ("train.batch-tokens", train.batch_tokens, 0, 1 << 40),
        ("train.eval-every", train.eval_every, 0.0, 1 << 60),
        ("train.eval-rows", train.eval_rows, 0, 1 << 30),
        ("train.checkpoint-every", train.checkpoint_every or 1, 0, 1 << 60),
        ("train.keep", train.keep, 0, 1 << 30),
        ("train.threads", train.threads or 1, 0, 1 << 16),
        ("train.seed", train.seed, -(1 << 63), 1 << 63),
    ]
    check_ranges(rows)


def check_ranges(rows: Iterable[tuple[str, float, float, float]]) -> None:
    """See that numbers are between two others.

    Args:
        rows: for each its option, the number, and what it must be above and below.

    Raises:
        UserError: the first that is not.
    """
    for name, value, low, high in rows:
        if not low < value < high:
            raise UserError(f"{value} is out of range", where=f"--{name}", mend=_between(low, high))


def _between(low: float, high: float) -> str:
    below = "and below" if high <= 1 else "up to"
    return f"choose something {'above' if low >= 0 else 'from'} {max(low, 0):g} {below} {high:g}"
