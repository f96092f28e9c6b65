"""TensorBoard sees what log.jsonl says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bertkin.errors import MissingExtra
from bertkin.train.board import check_board
from bertkin.train.state import Log


def test_each_number_becomes_a_scalar_of_its_kind(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, board=True)
    log.write({"kind": "step", "step": 1, "loss": 7.5, "accuracy": 0.25})
    log.write({"kind": "evaluation", "step": 2, "loss": float("nan"), "accuracy": 0.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "step/accuracy", "evaluation/accuracy"}
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [(1, 7.5)]


def test_a_missing_library_is_said_before_anything_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"bertkin\[tensorboard\]"):
        check_board()
