"""What is seen of long work, on a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from yangtuo import console


def test_without_a_terminal_long_work_says_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log file of a night's run must tell how far it is, and must not be a thousand lines long."""
    clock = [0.0]
    stream = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=stream, soft_wrap=True))
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.progress("training", 1000, "steps") as bar:
        for _ in range(300):
            clock[0] += 1.0
            bar.advance(1, "training: loss 2.310")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "training: loss 2.310  60 of 1,000 steps, 6%, about 16 min left"


def test_bytes_and_work_of_unknown_length_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    stream = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=stream, soft_wrap=True))
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    for total, unit in ((8_000_000, "bytes"), (None, "")):
        with console.progress("reading", total, unit) as bar:
            clock[0] += 90.0
            bar.advance(2_000_000)
    assert stream.getvalue().splitlines() == ["reading  2.0 MB of 8.0 MB, 25%, about 4 min left", "reading  2,000,000"]


def test_a_table_shows_what_fits_a_screen() -> None:
    stream = io.StringIO()
    rows = [(f"row {number}", "1") for number in range(60)]
    Console(file=stream).print(console.table("many", ["name", "value"], rows))
    shown = stream.getvalue()
    assert "row 22" in shown and "row 23" not in shown and "… 37 more rows" in shown
