"""The audit as a page: figures, histograms as pictures, lines side by side. Knows no tokenizer, only findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from yangtuo.page import Card, Cards, Cuts, Figures, Listing, Section, Table, Text, render
from yangtuo.page.charts import draw_bars
from yangtuo.vocab.audit import PLAIN, Audit, Sample

_NUM_SHOWN, _NUM_FILES = 10, 12
_LEGEND = (
    "Below, colours part the pieces of a line; a dark piece is one that only one of the two cuts has, \\xe5 a byte "
    "that is no character by itself. · 颜色区分词元，深色为两种切分不同之处，\\xe5 表示不成字的单个字节。"
)
_BYTE = re.compile(r"\\x[0-9a-f]{2}")  # how a byte that is no character is written
# Each finding that should be zero: name, Chinese name, meaning.
_CHECKS = {
    "changed_lines": ("Changed lines", "改变的行", "English, digits or code cut otherwise than by the base"),
    "dead_pieces": ("Dead pieces", "不可达词元", "new pieces that no text can produce"),
    "lost_pieces": ("Lost base pieces", "丢失词元", "pieces of the base that can no longer be produced"),
    "engine_mismatch_lines": ("Engine mismatches", "引擎分歧", "lines on which two engines give other ids"),
    "round_trip_failures": ("Round-trip failures", "无法还原", "lines that do not come back from their ids"),
    "leading_blank_pieces": ("Leading blanks", "前导空格", "new pieces that start with a blank"),
}


def render_page(findings: Audit, tokenizer: str, base: str, advice: str) -> str:
    """The HTML text of the page; self-contained, no script, no network."""
    values = findings.to_dict()
    rates = f"{values['base_chars_per_token']:.2f} → {values['chars_per_token']:.2f}"
    unused = f"of which unused here · 未用到: {values['unused_pieces']:,}"
    cards = [
        Card(rates, "characters per token, base → new", "每个词元的字符数"),
        Card(f"{values['num_lines']:,}", "lines read", "检查的行数"),
        Card(f"{values['new_pieces']:,}", "new pieces · 新词元", unused),
    ]
    checks = [
        Card(f"{values[key]:,}", f"{name} · {chinese}", meaning, "some" if values[key] else "zero")
        for key, (name, chinese, meaning) in _CHECKS.items()
    ]
    by_file = values["by_file"]
    sections = [
        Section("", [Cards(cards), Text(advice, "advice")]),
        Section("What should be zero · 应当为零的", [Cards(checks)]),
        Section("Characters per token · 压缩率", [_rates("script of the line · 文字", values["by_script"])]),
        Section(
            f"by file · 按文件 ({len(by_file)})", [_rates("file · 文件", by_file)], folded=len(by_file) > _NUM_FILES
        ),
        Section("The new pieces · 新词元", [_pictures(findings), Text(_LEGEND)]),
        *_cuts(findings),
        *_examples(values),
    ]
    return render("tokenizer audit", "分词器体检", f"{tokenizer}, against its base · 对照原分词器 {base}", sections)


def _rates(title: str, amounts: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [
        [
            name,
            f"{row['characters']:,}",
            f"{base:.3f}",
            f"{row['chars_per_token']:.3f}",
            _quotient(row["chars_per_token"], base),
        ]
        for name, row in amounts.items()
        if row["characters"]
        for base in [row["base_chars_per_token"]]
    ]
    return Table([title, "characters · 字符", "base · 原", "new · 新", "×"], rows)


def _quotient(new: float, base: float) -> str:
    return f"{new / base:.2f}" if base else ""


def _pictures(findings: Audit) -> Figures:
    longest = max(findings.lengths, default=1)
    lengths = {str(length): findings.lengths.get(length, 0) for length in range(1, longest + 1)}
    most = max(findings.frequencies, default=0)
    frequencies = {"0": findings.unused} | {
        _times(power): findings.frequencies.get(power, 0) for power in range(most + 1)
    }
    return Figures(
        [
            ("by length in characters · 按长度", draw_bars(lengths)),
            ("by times used in these texts · 按使用次数", draw_bars(frequencies)),
        ]
    )


def _cuts(findings: Audit) -> list[Section]:
    shown = [
        ("Lines that got least shorter · 缩短最少的行", "base", "new", _marked(findings.worst, lambda _: False)),
        ("Changed lines · 改变的行", "base", "new", _marked(findings.changed, _is_plain)),
        ("Engine mismatches · 引擎分歧", "other engine", "this one", _marked(findings.mismatched, lambda _: True)),
    ]
    return [
        Section(title, [Cuts([list(zip((first, second), pair, strict=True)) for pair in pairs])])
        for title, first, second, pairs in shown
        if pairs
    ]


def _examples(values: Mapping[str, Any]) -> list[Section]:
    sections = []
    for key, listed in values["examples"].items():
        if listed:
            title = f"{key.replace('_', ' ')} · {_CHECKS[key][1]}: {len(listed)} of {values[key]:,}"
            pieces = [[("", [(piece, False) for piece in listed])]]
            block = Cuts(pieces) if key.endswith("pieces") else Listing(listed)
            sections.append(Section(title, [block], folded=True))
    return sections


def _marked(samples: Sequence[Sample], judged: Callable[[str], bool]) -> list[list[list[tuple[str, bool]]]]:
    """Both cuts of the first samples as pieces, each with whether to mark it: a `judged` one that only one cut has."""
    marked = []
    for sample in samples[:_NUM_SHOWN]:
        cuts = [_placed(sample.base), _placed(sample.tokens)]
        common = set(cuts[0]) & set(cuts[1])
        marked.append([[(place[1], judged(place[1]) and place not in common) for place in cut] for cut in cuts])
    return marked


def _placed(pieces: Sequence[str]) -> list[tuple[int, str]]:
    """The pieces with the number of bytes before each."""
    lengths = (len(_BYTE.sub("#", piece).encode("utf-8", errors="replace")) for piece in pieces)
    return list(zip(accumulate(lengths, initial=0), pieces, strict=False))


def _is_plain(piece: str) -> bool:
    return PLAIN.search(_BYTE.sub("", piece)) is not None


def _times(power: int) -> str:
    low, high = 1 << power, (2 << power) - 1
    return "1" if power == 0 else f"{low}–{high}" if power < 8 else f"{_short(low)}+"


def _short(number: int) -> str:
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number)
