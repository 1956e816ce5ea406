"""Pictures for pages, as SVG: bars, curves, figures with their intervals, and what was made from what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _BASELINE = 640, 190, 160
_COLOURS = ("#b5532a", "#2a6fb5", "#4b8b3b", "#8a5aa8", "#777777")
Point = tuple[float, float]


def draw_bars(counts: Mapping[str, int]) -> str:
    """A bar for each count; the labels of narrow bars are thinned out."""
    greatest = max(counts.values(), default=0) or 1
    step = _WIDTH / max(len(counts), 1)
    every = max(math.ceil(7 * max(map(len, counts), default=1) / step), 1)
    parts = []
    for rank, (label, count) in enumerate(counts.items()):
        height = (_BASELINE - 24) * count / greatest
        left, middle = rank * step + step * 0.12, (rank + 0.5) * step
        bar = f'x="{left:.1f}" y="{_BASELINE - height:.1f}" width="{step * 0.76:.1f}" height="{height:.1f}"'
        parts.append(f'<g><title>{escape(label)}: {count:,}</title><rect class="bar" rx="2" {bar}/>')
        if rank % every == 0:
            parts.append(_text(middle, _BASELINE + 18, label))
            if count:
                parts.append(_text(middle, _BASELINE - height - 6, f"{count:,}", "count"))
        parts.append("</g>")
    return _svg(_WIDTH, _HEIGHT, [*parts, _line(0, _BASELINE, _WIDTH, _BASELINE)])


def draw_shares(counts: Mapping[str, int]) -> str:
    """A row with a bar for each count, the greatest filling the width."""
    greatest = max(counts.values(), default=0) or 1
    parts = []
    for rank, (label, count) in enumerate(counts.items()):
        y = 22 * rank + 16
        width = (_WIDTH - 260) * count / greatest
        parts += [
            _text(0, y, label, "left"),
            f'<rect class="bar" x="140" y="{y - 11}" width="{width:.1f}" height="12"/>',
        ]
        parts.append(_text(148 + width, y, f"{count:,}", "left"))
    return _svg(_WIDTH, 22 * len(counts) + 6, parts)


def draw_curves(curves: Mapping[str, Sequence[Point]], x_label: str, from_zero: bool = False) -> str:
    """A curve for each name over common axes, with a legend where there are several."""
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return _svg(_WIDTH, 20, [])
    left, right, top, bottom, height = 46, _WIDTH - 8, 26, 216, 250
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = 0.0 if from_zero else min(y for _, y in points), max(y for _, y in points)
    y_ticks = _ticks(y_low, y_high)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def place(x: float, y: float) -> Point:
        return (
            left + (right - left) * (x - x_low) / ((x_high - x_low) or 1),
            bottom - (bottom - top) * (y - y_low) / ((y_high - y_low) or 1),
        )

    parts = []
    for tick in y_ticks:
        y = place(x_low, tick)[1]
        parts += [_line(left, y, right, y), _text(left - 6, y + 4, f"{tick:g}", "right")]
    for tick in _ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            parts.append(_text(place(tick, y_low)[0], bottom + 16, f"{tick:g}"))
    parts.append(_text(right, bottom + 31, x_label, "right"))
    for rank, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[rank % len(_COLOURS)]
        placed = [place(x, y) for x, y in curve if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{path}"/>')
        if len(placed) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed]
        if len(curves) > 1:
            x = left + 8 + rank * (right - left) / len(curves)
            parts += [
                f'<rect x="{x:.0f}" y="6" width="14" height="4" fill="{colour}"/>',
                _text(x + 20, 12, name, "left"),
            ]
    return _svg(_WIDTH, height, parts)


def draw_intervals(rows: Sequence[tuple[str, float, tuple[float, float] | None]]) -> str:
    """A dot for each figure, with a line over its interval, all on one scale."""
    ends = [end for _, value, interval in rows for end in (interval or (value, value))]
    ticks = _ticks(min(ends), max(ends))
    low, high = min(*ends, ticks[0]), max(*ends, ticks[-1])
    left, right, bottom = 220, _WIDTH - 60, 26 * len(rows) + 8

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        parts += [_line(place(tick), 4, place(tick), bottom), _text(place(tick), bottom + 16, f"{tick:g}")]
    for rank, (label, value, interval) in enumerate(rows):
        y = 26 * rank + 18
        parts += [_text(0, y + 4, label, "left"), _text(right + 10, y + 4, f"{value:.3f}", "left")]
        if interval:
            parts.append(_line(place(interval[0]), y, place(interval[1]), y, "interval"))
        parts.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="4.5" fill="{_COLOURS[0]}"/>')
    return _svg(_WIDTH, bottom + 22, parts)


def draw_lineage(nodes: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """A box for each node, below all that it was made from: name -> (what it is, names of its parents)."""
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(parent) for parent in nodes[name][1] if parent in nodes), default=-1)
        return depths[name]

    rows: dict[int, list[str]] = {}
    for name in nodes:
        rows.setdefault(depth(name), []).append(name)
    width, height, gap_x, gap_y = 150, 40, 16, 26
    total = max(map(len, rows.values())) * (width + gap_x)
    places = {
        name: (total / len(names) * (rank + 0.5) - width / 2, row * (height + gap_y) + 2)
        for row, names in rows.items()
        for rank, name in enumerate(names)
    }
    parts = []
    for name, (_, parents) in nodes.items():
        x, y = places[name][0] + width / 2, places[name][1]
        for parent in dict.fromkeys(parents):
            if parent in places:
                left, top = places[parent][0] + width / 2, places[parent][1] + height
                bend = top + gap_y / 2
                curve = f"C{left:.0f} {bend:.0f} {x:.0f} {bend:.0f} {x:.0f} {y:.0f}"
                if depths[name] - depths[parent] > 1:  # past the boxes between, not through them
                    side = x - width / 2 - gap_x if left <= x else x + width / 2 + gap_x
                    curve = f"C{side:.0f} {bend:.0f} {side:.0f} {y - gap_y / 2:.0f} {x:.0f} {y:.0f}"
                parts.append(f'<path class="edge" d="M{left:.0f} {top:.0f} {curve}"/>')
    for name, (what, _) in nodes.items():
        x, y = places[name]
        size = f'x="{x:.0f}" y="{y:.0f}" width="{width}" height="{height}"'
        parts.append(f'<g><title>{escape(name)}: {escape(what)}</title><rect class="node" rx="6" {size}/>')
        parts.append(_text(x + width / 2, y + 17, _shortened(name), "name"))
        parts += [_text(x + width / 2, y + 32, _shortened(what)), "</g>"]
    return _svg(max(total, _WIDTH), len(rows) * (height + gap_y) - gap_y + 4, parts, "natural")


def _shortened(text: str, limit: int = 22) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * count >= span)
    first = math.floor(low / step + 1e-9)
    return [round(index * step, 10) for index in range(first, math.ceil(high / step - 1e-9) + 1)]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _svg(width: float, height: float, parts: Sequence[str], kind: str = "") -> str:
    size = f' style="max-width: {width:.0f}px"' if kind else ""
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img"{size}>{"".join(parts)}</svg>'
