"""Pages: one file that needs nothing else, in which no text of a model or a corpus becomes markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from yangtuo import page
from yangtuo.page import Card, Cards, Cuts, Figures, Listing, Samples, Section, Table, Text
from yangtuo.page.charts import draw_bars, draw_curves, draw_intervals, draw_lineage, draw_shares

EVIL = '<script>alert("x")</script>&amp;\ud83d'


class Reader(HTMLParser):
    """Collects tags, and complains about those that are not closed."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def every_block(text: str) -> list[Section]:
    pictures = [
        (text, draw_bars({text: 3, "b": 0})),
        (text, draw_shares({text: 3, "b": 1})),
        (text, draw_curves({text: [(0, 1.0), (1, 2.0)], "other": [(0, math.nan), (1, 1.5)]}, text)),
        (text, draw_intervals([(text, 0.5, (0.4, 0.6)), ("b", 0.1, None)])),
        (text, draw_lineage({text: (text, []), "b": (text, [text])})),
    ]
    blocks = [
        Text(text),
        Cards([Card(text, text, text)]),
        Table([text], [[text], ["1,000"]]),
        Figures(pictures),
        Samples([(text, [(text, text)])]),
        Cuts([[(text, [(text, True), (text, False)])]]),
        Listing([text]),
    ]
    return [Section(text, blocks), Section(text, blocks, folded=True)]


def test_a_page_is_whole_and_what_it_quotes_stays_text(tmp_path: Path) -> None:
    html = page.render(EVIL, EVIL, EVIL, every_block(EVIL))
    page.write(tmp_path / "page.html", html)
    reader = Reader()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert reader.open == []
    assert "script" not in reader.tags
    assert reader.addresses == [] and "url(" not in html and "@import" not in html
    assert html.count("&lt;script&gt;") > 20


def test_columns_of_figures_stand_right() -> None:
    table = Table(["name", "count", "mixed"], [["a", "1,000", "1"], ["b", "", "x"], ["c", "-0.5 (0.1–0.2)", "2"]])
    assert [table.is_number(column) for column in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    "picture",
    [
        draw_bars({}),
        draw_curves({}, "step"),
        draw_curves({"a": [(3, 2.0)]}, "step"),
        draw_curves({"a": [(0, 5.0), (1, 5.0)]}, "step", from_zero=True),
        draw_intervals([("a", 0.0, None)]),
        draw_intervals([("a", 1.0, (1.0, 1.0)), ("b", 1.0, None)]),
        draw_shares({"a": 0}),
        draw_lineage({"a": ("x", ["not here"])}),
    ],
)
def test_pictures_of_little_are_pictures_too(picture: str) -> None:
    root = ElementTree.fromstring(picture)
    assert root.tag == "svg"
    assert "nan" not in picture and "inf" not in picture.replace("info", "")


def test_curves_lie_within_their_axes_and_higher_values_higher() -> None:
    picture = ElementTree.fromstring(draw_curves({"a": [(0, 0.31), (50, 7.7), (100, 3.0)]}, "step"))
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    points = [tuple(map(float, point.split(","))) for point in picture.find("polyline").attrib["points"].split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert points[1][1] < points[2][1] < points[0][1] and points[0][0] < points[1][0] < points[2][0]


def test_what_is_made_stands_below_what_it_is_made_from() -> None:
    nodes = {"base": ("model", []), "pieces": ("tokenizer", ["base"]), "grown": ("model", ["base", "pieces"])}
    picture = draw_lineage(nodes)
    boxes = re.findall(r'<title>(\w+): .*?<rect class="node" rx="6" x="\d+" y="(\d+)"', picture)
    places = {name: int(y) for name, y in boxes}
    assert places["base"] < places["pieces"] < places["grown"]
    assert picture.count('class="edge"') == 3
