"""What a member of the family costs in code stays small, and the page says it as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parents[2]
TWO_SCREENS = 160


def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lines", HERE / "experiments" / "lines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_member_fits_on_two_screens() -> None:
    found = experiment().lines()
    assert {"bert", "albert", "electra", "gpt2", "llama", "bart", "t5", "hybrid", "unilm"} <= found.keys()
    assert all(0 < sum(parts.values()) <= TWO_SCREENS for parts in found.values()), found


def test_the_page_has_the_count() -> None:
    assert experiment().markdown() in (HERE / "docs" / "members.md").read_text(encoding="utf-8")
