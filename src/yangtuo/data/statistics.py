"""Figures of a corpus: which scripts it is written in, how long its documents are. Knows no page and no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]

from yangtuo.vocab.bars import draw_bars

SCRIPTS = ("Han", "Latin", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Greek", "Thai", "Devanagari")
_CLASSES = {
    **{name: rf"\p{{Script={name}}}" for name in SCRIPTS},
    "digits": r"\p{Nd}",
    "blanks": r"\s",
    "other letters": r"\p{L}",
}
_REST = "signs"


def code_units(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """How often each UTF-16 code unit occurs in `texts`, shape (65536,)."""
    encoded = "".join(texts).encode("utf-16-le")
    return np.bincount(np.frombuffer(encoded, dtype="<u2"), minlength=1 << 16)


def count_scripts(units: npt.NDArray[np.int64]) -> dict[str, int]:
    """Characters of each script (Unicode's Scripts.txt), and digits, blanks and signs; those that occur.

    A character beyond the first plane counts as what stands first in its block of 1,024.
    """
    names, table = _table()
    counts = np.bincount(table, weights=units, minlength=len(names)).astype(np.int64)
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count and name}


@lru_cache(maxsize=1)
def _table() -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of classes, and the class of every code unit; the second half of a pair has a class without a name."""
    names = [*_CLASSES, _REST, ""]
    table = np.full(1 << 16, names.index(_REST), dtype=np.int64)
    alphabet = "".join(chr(code) if not 0xD800 <= code < 0xE000 else "\0" for code in range(1 << 16))
    pairs = "".join(chr(0x10000 + 0x400 * index) for index in range(0x400))
    for number, pattern in reversed(list(enumerate(_CLASSES.values()))):  # the first class that fits counts
        compiled = regex.compile(pattern)
        table[[match.start() for match in compiled.finditer(alphabet)]] = number
        table[[0xD800 + match.start() for match in compiled.finditer(pairs)]] = number
    table[0xDC00:0xE000] = names.index("")
    return names, table


def length_histogram(num_tokens: npt.NDArray[np.int64]) -> dict[int, int]:
    """Documents by length in tokens: power of two -> how many have at least that and less than twice that."""
    powers = np.log2(np.maximum(num_tokens, 1).astype(np.float64)).astype(np.int64)
    counts = np.bincount(powers)
    return {1 << power: int(count) for power, count in enumerate(counts) if count}


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
