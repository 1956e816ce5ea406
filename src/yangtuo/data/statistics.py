"""Figures of a corpus: which scripts it is written in, how long its documents are; and their page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]

from yangtuo import page
from yangtuo.page import Block, Card, Cards, Figures, Section, Table, Text
from yangtuo.page.charts import draw_bars, draw_shares

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
    cards = [
        Card(f"{totals['tokens']:,}", "tokens to train on", "训练词元"),
        Card(f"{totals['documents']:,}", "documents, as often as their weight says", "文档（按权重计）"),
        Card(f"{totals['blocks']:,}", "blocks", "训练块"),
    ]
    sections = [Section("", [Cards(cards)]), Section("Sources · 来源", [_overview(sources)])]
    sections += [Section(name, _source(values)) for name, values in sources.items()]
    subtitle = "What the text is made of, and what was taken out of it · 语料构成与清洗记录"
    page.write(directory / "index.html", page.render("dataset", "数据集", subtitle, sections))


def _overview(sources: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = [
        "source",
        "documents · 文档",
        "characters · 字符",
        "tokens · 词元",
        "characters per token",
        "held out · 留出",
    ]
    rows = []
    for name, row in sources.items():
        rate = f"{row['characters'] / row['text_tokens']:.2f}" if row["text_tokens"] else ""
        counts = [f"{row[key]:,}" for key in ("documents", "characters", "text_tokens")]
        rows.append([name, *counts, rate, f"{row['held_out']:,}", f"{row['weight']:g}", f"{row['tokens']:,}"])
    return Table([*columns, "weight · 权重", "tokens to train on"], rows)


def _source(values: Mapping[str, Any]) -> list[Block]:
    pictures = [
        ("documents by length in tokens · 按长度（词元）的文档数", draw_bars(_by_length(values["lengths"]))),
        ("characters by script, repeated documents included · 按文字的字符数", draw_shares(values["scripts"])),
    ]
    blocks: list[Block] = [Figures(pictures)]
    if list(values["encodings"]) != ["utf-8"]:
        counts = ", ".join(f"{name.upper()} {count:,}" for name, count in values["encodings"].items())
        blocks.append(Text(f"encodings · 编码：{counts}"))
    if not values["removed"]:
        return [*blocks, Text("Filters removed nothing. · 未清除任何内容。")]
    columns = ["what filters removed or mended · 清洗", "times", "examples · 举例"]
    examples = values["examples"]
    rows = [[reason, f"{count:,}", " ⏎ ".join(examples.get(reason, []))] for reason, count in values["removed"].items()]
    return [*blocks, Table(columns, rows)]


def _by_length(lengths: Mapping[int, int]) -> dict[str, int]:
    """All powers of two from the shortest to the longest, as people write them."""
    if not lengths:
        return {}
    low, high = min(lengths).bit_length() - 1, max(lengths).bit_length()
    return {_short(1 << power): lengths.get(1 << power, 0) for power in range(low, high)}


def _short(number: int) -> str:
    return f"{number >> 20}Mi+" if number >= 1 << 20 else f"{number >> 10}Ki+" if number >= 1 << 10 else f"{number}+"
