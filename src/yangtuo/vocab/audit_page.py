"""The audit as a page: figures, histograms as pictures, lines side by side. Knows no tokenizer, only findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import jinja2

from yangtuo.vocab.audit import PLAIN, Audit, Sample
from yangtuo.vocab.bars import draw_bars

_NUM_SHOWN = 10
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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    values = findings.to_dict()
    longest = max(findings.lengths, default=1)
    lengths = {str(length): findings.lengths.get(length, 0) for length in range(1, longest + 1)}
    most = max(findings.frequencies, default=0)
    frequencies = {"0": findings.unused} | {
        _times(power): findings.frequencies.get(power, 0) for power in range(most + 1)
    }
    return environment.get_template("audit.html.jinja").render(
        tokenizer=tokenizer,
        base=base,
        advice=advice,
        values=values,
        checks=[(name, chinese, values[key], meaning) for key, (name, chinese, meaning) in _CHECKS.items()],
        lengths=draw_bars(lengths),
        frequencies=draw_bars(frequencies),
        samples=[
            ("Lines that got least shorter · 缩短最少的行", "base", "new", _marked(findings.worst, lambda _: False)),
            ("Changed lines · 改变的行", "base", "new", _marked(findings.changed, _is_plain)),
            ("Engine mismatches · 引擎分歧", "other engine", "this one", _marked(findings.mismatched, lambda _: True)),
        ],
        names={key: chinese for key, (_, chinese, _) in _CHECKS.items()},
        examples={name: listed for name, listed in values["examples"].items() if listed},
    )


def _marked(samples: Sequence[Sample], judged: Callable[[str], bool]) -> list[list[list[tuple[str, bool]]]]:
    """Both cuts of the first samples as pieces, each with whether to mark it: a `judged` one that only one cut has."""
    marked = []
    for sample in samples[:_NUM_SHOWN]:
        cuts = [_placed(sample.base), _placed(sample.tokens)]
        common = set(cuts[0]) & set(cuts[1])
        marked.append([[(one[1], judged(one[1]) and one not in common) for one in cut] for cut in cuts])
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
