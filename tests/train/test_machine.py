"""What is measured about a machine, however busy it is."""

from __future__ import annotations

import time

import pytest
import torch

from bertkin.errors import UserError
from bertkin.train import machine


def test_a_machine_that_stalls_while_it_is_measured_still_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(moments)))
    assert machine.product_rate.__wrapped__(torch.float32, size=8) > 0


def test_a_machine_without_products_of_a_type_is_not_asked_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16 took a quarter of a minute to find that out, at the start of every command."""
    sizes = []

    def slow(dtype: torch.dtype, device: str, size: int, in_all: float = 0.0) -> float:
        sizes.append(size)
        return 4 * size**3 / 1.3e9

    monkeypatch.setattr(machine, "_product_seconds", slow)
    assert machine.product_rate.__wrapped__(torch.bfloat16) == pytest.approx(1.3e9)
    assert set(sizes) == {256}


def test_a_precision_that_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "product_rate", None)
    assert machine.pick_precision("float32") == torch.float32
    assert machine.pick_precision("bfloat16") == torch.bfloat16


@pytest.mark.parametrize(("gain", "dtype"), [(1.1, torch.float32), (3.0, torch.bfloat16)])
def test_bfloat16_is_picked_where_it_gains(monkeypatch: pytest.MonkeyPatch, gain: float, dtype: torch.dtype) -> None:
    monkeypatch.setattr(machine, "product_rate", lambda t, _device: gain if t == torch.bfloat16 else 1.0)
    assert machine.pick_precision("auto") == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_and_a_device_nobody_knows_are_lines() -> None:
    assert machine.pick_device("auto") == "cpu"
    with pytest.raises(UserError, match="no CUDA device"):
        machine.pick_device("cuda")
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        machine.pick_device("tpu")


def test_cores_are_shared_out_among_the_processes_of_a_machine() -> None:
    before = torch.get_num_threads()
    try:
        assert machine.settle_threads(3, 8) == 3
        alone = machine.settle_threads(None)
        assert machine.settle_threads(None, 2 * alone) == 1
    finally:
        torch.set_num_threads(before)
