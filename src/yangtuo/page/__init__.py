"""Pages for people: one HTML file, no script, nothing from a network. What a page says is given as blocks.

Every page of Yangtuo (the audit, a dataset's statistics, evaluations, recipe runs, the quickstart) is rendered here and
looks alike. This package knows blocks and numbers, nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

Marked = Sequence[tuple[str, bool]]
"""Pieces of a text, each with whether to mark it."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is `soft`, `advice` or `path`."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = "soft"


@dataclass(frozen=True)
class Card:
    """A figure that stands out; `tone` is `zero` (good) or `some` (bad) where it judges."""

    value: str
    label: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Cards:
    """Figures side by side."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Table:
    """Rows of cells; columns whose cells are all numbers, signs and units are aligned right."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def is_number(self, column: int) -> bool:
        """Whether the column holds figures."""
        cells = [str(row[column]) for row in self.rows if column < len(row) and str(row[column])]
        return bool(cells) and all(cell.lstrip("+-−")[:1].isdigit() for cell in cells)


@dataclass(frozen=True)
class Figures:
    """Pictures side by side: (caption, SVG)."""

    kind: ClassVar[str] = "figures"
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Samples:
    """What was asked, and who answered what."""

    kind: ClassVar[str] = "samples"
    samples: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Cuts:
    """Lines cut into pieces in several ways: for each line (name of the cut, pieces)."""

    kind: ClassVar[str] = "cuts"
    lines: Sequence[Sequence[tuple[str, Marked]]]


@dataclass(frozen=True)
class Listing:
    """Lines as they are."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]


Block = Text | Cards | Table | Figures | Samples | Cuts | Listing


@dataclass(frozen=True)
class Section:
    """A heading and its blocks; `folded` shows the heading only until it is opened."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


def render(title: str, chinese: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML; whatever text it holds is escaped, only the pictures of `charts` are taken as they are."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    values: Mapping[str, Any] = {"title": title, "chinese": chinese, "subtitle": subtitle, "sections": sections}
    return environment.get_template("page.html.jinja").render(values)


def write(file: Path, html: str) -> None:
    """Writes a page; half a character, as some texts hold, becomes a question mark."""
    file.write_text(html, encoding="utf-8", errors="replace")
