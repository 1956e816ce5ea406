"""The audit as a page: figures, histograms as pictures, lines side by side. Knows no tokenizer, only findings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from yangtuo.vocab.audit import Audit
from yangtuo.vocab.bars import draw_bars


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
        checks=_checks(values),
        lengths=draw_bars(lengths),
        frequencies=draw_bars(frequencies),
        samples=findings.worst,
        examples={name: lines for name, lines in values["examples"].items() if lines},
    )


def _times(power: int) -> str:
    low, high = 1 << power, (2 << power) - 1
    return "1" if power == 0 else f"{_short(low)}–{_short(high)}"


def _short(number: int) -> str:
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number)


def _checks(values: Mapping[str, Any]) -> list[tuple[str, str, int, str]]:
    """Name, Chinese name, count and meaning of each finding that should be zero."""
    return [
        (
            "Changed lines",
            "改变的行",
            values["changed_lines"],
            "English, digits or code cut otherwise than by the base",
        ),
        ("Dead pieces", "不可达词元", values["dead_pieces"], "new pieces that no text can produce"),
        ("Lost base pieces", "丢失词元", values["lost_pieces"], "pieces of the base that can no longer be produced"),
        ("Engine mismatches", "引擎分歧", values["engine_mismatch_lines"], "lines on which two engines give other ids"),
        (
            "Round-trip failures",
            "无法还原",
            values["round_trip_failures"],
            "lines that do not come back from their ids",
        ),
        ("Leading blanks", "前导空格", values["leading_blank_pieces"], "new pieces that start with a blank"),
    ]
