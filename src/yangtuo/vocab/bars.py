"""Bar charts for pages, as SVG. Knows counts and their labels only, and imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping

_WIDTH, _HEIGHT, _BASELINE = 640, 190, 160


def draw_bars(counts: Mapping[str, int]) -> str:
    """A bar chart as SVG; the labels of narrow bars are thinned out."""
    greatest = max(counts.values(), default=0) or 1
    step = _WIDTH / max(len(counts), 1)
    every = max(math.ceil(7 * max(map(len, counts), default=1) / step), 1)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for rank, (label, count) in enumerate(counts.items()):
        height = (_BASELINE - 24) * count / greatest
        left, middle = rank * step + step * 0.12, (rank + 0.5) * step
        title = f"<title>{label}: {count:,}</title>"
        bar = f'x="{left:.1f}" y="{_BASELINE - height:.1f}" width="{step * 0.76:.1f}" height="{height:.1f}"'
        parts.append(f'<g>{title}<rect class="bar" rx="2" {bar}/>')
        if rank % every == 0:
            parts.append(f'<text x="{middle:.1f}" y="{_BASELINE + 18}">{label}</text>')
            if count:
                parts.append(f'<text class="count" x="{middle:.1f}" y="{_BASELINE - height - 6:.1f}">{count:,}</text>')
        parts.append("</g>")
    parts.append(f'<line x1="0" x2="{_WIDTH}" y1="{_BASELINE}" y2="{_BASELINE}"/></svg>')
    return "".join(parts)
