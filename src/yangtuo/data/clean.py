"""Cleaning fit for Chinese and all else: mends what scanning, copying and layout did, and keeps what scripts need.

Unicode is composed (NFC), never folded: NFKC would turn `，` into `,` and `①` into `1`. This module knows no files.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from yangtuo.data.decontaminate import Exam
from yangtuo.data.records import compose

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE = _HAN + "\u3001-\u3011\u3014-\u301f\uff01-\uff0f\uff1a-\uff20\u201c\u201d\u2018\u2019\u2026\u2014"
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufffe\uffff]")
# Thai, Lao, Burmese, Khmer and their neighbours part words by U+200B; elsewhere it is an accident of copying.
_BESIDE_BREAKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf\u200b"
_WORD_BREAKS = re.compile(f"(?<![{_BESIDE_BREAKS}])\u200b+(?![{_BESIDE_BREAKS}])")
_MARKS = re.compile("[\u200e\u200f]")  # of direction: they say something where some text runs from right to left
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_BREAKS = re.compile("\r\n?|\x85|\u2028|\u2029")
_INNER_BLANKS = re.compile(f"(?<=[{_WIDE}])[ \u00a0]{{1,2}}(?=[{_WIDE}])")
_PROSE = re.compile("[，。！？；]")
_SPACED_OUT = re.compile(f"(?<![{_WIDE}])(?:[{_HAN}][ \u00a0\u3000]){{3,}}[{_HAN}](?![{_WIDE}])")
_TRAILING_BLANKS = re.compile(r"[ \t\u00a0\u3000]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{4,}")
_BOILERPLATE = re.compile(
    r"^[ \t\u3000]*(?:"
    r"第[ ]?[0-9一二三四五六七八九十百零〇]+[ ]?页(?:[ ]?[/,，共][ ]?共?[ ]?[0-9一二三四五六七八九十百]+[ ]?页)?"
    r"|[-—–·][ ]?[0-9]{1,4}[ ]?[-—–·]"
    r"|(?:上一[页章]|下一[页章]|返回(?:目录|首页|顶部)|回到顶部|点击(?:进入|下载|阅读|查看)\S{0,12})"
    r"|.{0,30}(?:本书由|本电子书由|本文由).{1,30}(?:整理|制作|提供|发布|扫描).{0,30}"
    r"|.{0,20}(?:更多(?:精彩|好书|电子书|小说)|欢迎(?:访问|光临)|请(?:访问|登录)).{0,20}(?:https?://|www\.)\S+.{0,10}"
    r"|\*{3} ?(?:START|END) OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*"
    r"|(?:版权所有|Copyright (?:©|\(c\))|All rights reserved).{0,60}"
    r")[ \t\u3000]*\n?",
    re.MULTILINE,
)


class Filtered:
    """What filters removed: how often, and the first examples."""

    MOST = 3
    """How many examples of each are kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, number: int, example: str) -> None:
        """Counts `number` removals; `example` shows one, shortened."""
        self.counts[reason] += number
        kept = self.examples.setdefault(reason, [])
        if len(kept) < self.MOST:
            kept.append(self.shortened(example))

    @staticmethod
    def shortened(example: str) -> str:
        """The first 120 characters of an example, in one line."""
        example = example.replace("\n", "↵")
        return example if len(example) <= 120 else example[:120] + "…"

    def merge(self, other: Filtered) -> None:
        """Adds what `other` holds."""
        for reason, number in other.counts.items():
            self.counts[reason] += number
            self.examples[reason] = (self.examples.get(reason, []) + other.examples.get(reason, []))[: self.MOST]


def clean(text: str, filtered: Filtered) -> str:
    """The text with one kind of line break, composed characters, no control characters, no blanks inside Chinese
    words, and without lines of page numbers, navigation and advertisement; what went is counted in `filtered`."""
    text = _BREAKS.sub("\n", text)
    text = compose(text)
    text = _remove(_CONTROLS, text, "control characters", filtered, "")
    text = _remove(_WORD_BREAKS, text, "control characters", filtered, "")
    if _MARKS.search(text):
        lines = text.split("\n")
        text = "\n".join(
            line if _RIGHT_TO_LEFT.search(line) else _remove(_MARKS, line, "control characters", filtered, "")
            for line in lines
        )
    text = _remove(_BOILERPLATE, text, "boilerplate lines", filtered, "")
    if " " in text or "\u3000" in text or "\u00a0" in text:
        text = _TRAILING_BLANKS.sub("", text)
        text = _SPACED_OUT.sub(lambda run: "".join(run[0].split()), text)
        if _INNER_BLANKS.search(text):
            lines = text.split("\n")
            text = "\n".join(_close_blanks(line, filtered) for line in lines)
    return _EMPTY_LINES.sub("\n\n\n", text)


def _close_blanks(line: str, filtered: Filtered) -> str:
    """Scanning leaves blanks inside sentences; in a heading or a list they are the author's."""
    if " " not in line or not _PROSE.search(line):
        return line
    return _remove(_INNER_BLANKS, line, "blanks inside Chinese", filtered, "")


def _remove(pattern: re.Pattern[str], text: str, reason: str, filtered: Filtered, by: str) -> str:
    first = pattern.search(text)
    if first is None:
        return text
    shown = text[max(0, first.start() - 8) : first.end() + 8].strip() if first[0].isspace() else first[0].strip()
    text, number = pattern.subn(by, text)
    filtered.add(reason, number, shown.encode("unicode_escape").decode() if reason.startswith("control") else shown)
    return text


@dataclass(frozen=True)
class Filters:
    """Which filters run."""

    clean: bool
    exam: Exam | None

    def apply(self, text: str, removed: Filtered) -> str:
        """What is left of `text`; what went is counted in `removed`."""
        if self.clean:
            text = clean(text, removed)
        if self.exam is not None:
            text, lines = self.exam.clean(text)
            for line in lines:
                removed.add("lines of evaluation sets", 1, line.strip())
        return text
