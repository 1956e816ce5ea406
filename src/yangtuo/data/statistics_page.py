"""The statistics of a dataset as a file for programs and as a page for people. Knows figures, no text and no tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from yangtuo.vocab.bars import draw_bars


def write_page(directory: Path, totals: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes statistics.json and index.html; the page is self-contained, without script and network."""
    content = json.dumps({**totals, "sources": sources}, indent=2, ensure_ascii=False) + "\n"
    (directory / "statistics.json").write_text(content, encoding="utf-8", errors="replace")
    templates = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("yangtuo.data", "."), jinja2.PackageLoader("yangtuo.vocab", ".")]
    )
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [
        {"name": name, "values": source, "lengths": draw_bars(_by_length(source["lengths"]))}
        for name, source in sources.items()
    ]
    page = environment.get_template("statistics.html.jinja").render(totals=totals, sources=shown)
    (directory / "index.html").write_text(page, encoding="utf-8", errors="replace")


def _by_length(lengths: Mapping[int, int]) -> dict[str, int]:
    """All powers of two from the shortest to the longest, as people write them."""
    if not lengths:
        return {}
    low, high = min(lengths).bit_length() - 1, max(lengths).bit_length()
    return {_short(1 << power): lengths.get(1 << power, 0) for power in range(low, high)}


def _short(number: int) -> str:
    return f"{number >> 20}Mi+" if number >= 1 << 20 else f"{number >> 10}Ki+" if number >= 1 << 10 else f"{number}+"
