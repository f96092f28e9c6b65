"""How many lines each member of the family has of its own.

    python experiments/lines.py

Counted from the source: the preset's function and training defaults, the pair of functions that read and write its
configuration, its rows in the tables of names, its objective's maker (or noise), and modules that no other member
uses. Blank lines and docstrings count. Writes the table into docs/members.md.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertkin.models import configs_decoders, configs_encoders, heads, names, presets, transformer
from bertkin.objectives import causal, masked, noises, sentence

PAGE = Path(__file__).parent.parent / "docs" / "members.md"
Part = Callable[..., Any] | type

OBJECTIVES: dict[str, list[Part]] = {
    "bert": [masked.masked],
    "albert": [sentence.pair_up],
    "electra": [heads.Replaced, heads.DetectHead, presets.generator],
    "gpt2": [causal.causal],
    "bart": [noises.infilling, noises.permutation],
    "t5": [noises.spans, transformer.buckets],
}
"""What a family brings besides its preset, configuration and names."""
ALONE: dict[str, list[Part]] = {
    "SpanBERT": [heads.BoundaryHead],
    "prefix": [causal.prefix],
    "hybrid": [causal.hybrid],
    "unilm": [causal.unilm],
    "mass": [noises.mass],
}
"""Members that are an objective alone."""


def count(part: Part) -> int:
    return len(inspect.getsource(part).rstrip().splitlines())


def lines() -> dict[str, dict[str, int]]:
    """Each member's lines: its preset, its configuration, its names, and what else it has."""
    table: dict[str, dict[str, int]] = {}
    for family, build in presets.FAMILIES.items():
        configs = configs_decoders if hasattr(configs_decoders, f"read_{family}") else configs_encoders
        table[family] = {
            "preset": count(build) + count(presets.TRAINED[family]),
            "configuration": count(getattr(configs, f"read_{family}")) + count(getattr(configs, f"write_{family}")),
            "names": len(names.STACKS[family]) + len(names.HEADS[family]),
            "objective and modules": sum(map(count, OBJECTIVES.get(family, []))),
        }
    for member, parts in ALONE.items():
        table[member] = {"preset": 0, "configuration": 0, "names": 0, "objective and modules": sum(map(count, parts))}
    return table


def markdown() -> str:
    """The table, with the sum at the end of each line."""
    found = lines()
    columns = list(next(iter(found.values())))
    out = [f"| member | {' | '.join(columns)} | in all |", f"|---|{'---:|' * (len(columns) + 1)}"]
    for member, parts in found.items():
        numbers = [str(parts[column] or "–") for column in columns]
        out.append(f"| {member} | {' | '.join(numbers)} | {sum(parts.values())} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    inside = re.compile(r"(<!-- lines -->\n).*?(<!-- end -->)", re.DOTALL)
    PAGE.write_text(inside.sub(lambda mark: mark[1] + markdown() + mark[2], PAGE.read_text()))
    print(markdown())
