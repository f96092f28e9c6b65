"""Curves drawn with nothing but text: as SVG for a page, as braille dots for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 34
MOST_POINTS = 240

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    points: list[Point]
    """x and y, x rising."""
    accent: bool = False
    """Drawn strongly, with a dot at each point."""
    joined: bool = True
    """With a line through its points."""


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: the means of neighbours."""
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    if len(finite) <= most:
        return finite
    size = len(finite) / most
    bins = [finite[int(i * size) : int((i + 1) * size)] for i in range(most)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about this many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(
    curves: Sequence[Curve],
    *,
    label: str,
    x_form: Callable[[float], str],
    y_form: Callable[[float], str],
    levels: Sequence[tuple[str, float]] = (),
    style: str = "",
) -> str:
    """A line chart. Colours come from the classes line, accent, level, grid, axis and mark.

    Args:
        curves: what to draw; points that are not finite are left out.
        label: what the chart shows, for those who cannot see it.
        x_form, y_form: how numbers are written.
        levels: horizontal lines to compare with, by name.
        style: CSS, for a chart that stands alone.
    """
    drawn = [replace(c, points=thin(c.points)) for c in curves]
    points = [p for c in drawn for p in c.points]
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
    parts = [head, f"<style>{style}</style>" if style else ""]
    if not points:
        parts.append(
            f'<text class="axis" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing yet</text></svg>'
        )
        return "".join(parts)
    xs, ys = [x for x, _ in points], [y for _, y in points] + [y for _, y in levels]
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(ys), max(ys)
    room = (y1 - y0) * 0.05 or abs(y1) * 0.05 or 1.0
    y0, y1 = (0.0 if 0 <= y0 <= 0.35 * y1 else y0 - room), y1 + room

    def across(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5), 1)

    def down(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - y0) / (y1 - y0)), 1)

    for y in ticks(y0, y1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y)}" y2="{down(y)}"/>')
        parts.append(
            f'<text class="axis" x="{LEFT - 6}" y="{down(y) + 4}" text-anchor="end">{escape(y_form(y))}</text>'
        )
    for x in ticks(x0, x1):
        parts.append(
            f'<text class="axis" x="{across(x)}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_form(x))}</text>'
        )
    for name, y in levels:
        at = down(y)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="axis" x="{WIDTH - RIGHT - 4}" y="{at - 5}" text-anchor="end">{escape(name)}</text>')
    for c in drawn:
        if c.joined:
            path = " ".join(f"{across(x)},{down(y)}" for x, y in c.points)
            parts.append(f'<polyline class="{"accent" if c.accent else "line"}" points="{path}"/>')
        radius = 3 if c.accent else 0
        for x, y in c.points:  # a wide invisible ring around each point catches the pointer
            tip = escape(f"{c.name} {y_form(y)} at {x_form(x)}")
            dot = f'<circle class="mark" cx="{across(x)}" cy="{down(y)}" r="{radius}"/>' if radius else ""
            ring = f'<circle class="ring" cx="{across(x)}" cy="{down(y)}" r="7"/>'
            parts.append(f"<g>{dot}{ring}<title>{tip}</title></g>")
    return "".join(parts) + "</svg>"


STYLE = """
svg{font:13px system-ui,sans-serif}
.grid{stroke:#8884;stroke-width:1}.axis{fill:#888}
.line{fill:none;stroke:#7aa7d9;stroke-width:1.3;stroke-linejoin:round}
.accent{fill:none;stroke:#d9622b;stroke-width:2.2;stroke-linejoin:round}
.level{stroke:#888;stroke-width:1;stroke-dasharray:4 4}
.mark{fill:#d9622b}.ring{fill:transparent}g:hover .ring{fill:#8886}
"""
"""Colours that can be read on light and on dark."""


def braille(points: Sequence[Point], *, width: int = 60, height: int = 8, y_form: str = ".2f") -> list[str]:
    """A curve of dots for a terminal, highest line first, with its range of y at the left.

    Args:
        width, height: in characters; each holds two by four dots.
    """
    kept = thin(points, 2 * width)
    if not kept:
        return []
    x0, x1 = kept[0][0], kept[-1][0]
    y0, y1 = min(y for _, y in kept), max(y for _, y in kept)
    cells = [[0] * width for _ in range(height)]
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

    def place(x: float, y: float) -> tuple[int, int]:
        column = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        row = (y1 - y) / (y1 - y0) if y1 > y0 else 0.5
        return round(column * (2 * width - 1)), round(row * (4 * height - 1))

    before = place(*kept[0])
    for x, y in kept:
        now = place(x, y)
        length = max(abs(now[0] - before[0]), abs(now[1] - before[1]), 1)
        for i in range(length + 1):
            column = round(before[0] + (now[0] - before[0]) * i / length)
            row = round(before[1] + (now[1] - before[1]) * i / length)
            cells[row // 4][column // 2] |= bits[row % 4][column % 2]
        before = now
    labels = [""] * height
    labels[0], labels[-1] = format(y1, y_form), format(y0, y_form)
    margin = max(map(len, labels))
    rows = ("".join(chr(0x2800 + cell) for cell in line) for line in cells)
    return [f"{label:>{margin}} ┤{row}" for label, row in zip(labels, rows, strict=True)]
