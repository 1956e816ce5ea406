"""What a run says about itself in `metrics.jsonl`.

`metrics.jsonl` holds one JSON object a line, each with `step`: the loss and gradient norm of optimizer steps (where
text is replayed, the losses of conversations and of that text too), and held-out bits per byte a source. Nothing in
it depends on the clock, so that equal runs write equal files; speed goes to the screen. This module does not depend
on models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.errors import FileError

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends to `directory/metrics.jsonl`; opened at `step`, it forgets what an interrupted run wrote after it."""

    def __init__(self, directory: Path, step: int = 0, *, writes: bool = True) -> None:
        self._path = directory / METRICS
        self._writes = writes
        self.rows = [row for row in read_metrics(directory) if row["step"] <= step] if step else []
        if writes:
            self._path.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row; processes that do not write only remember it."""
        row = {"step": step, **values}
        self.rows.append(row)
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def series(self, name: str) -> list[tuple[int, Any]]:
        """All values of `name` as (step, value)."""
        return [(row["step"], row[name]) for row in self.rows if name in row]


class _Row(TypedDict):
    step: int


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """All whole rows of `directory/metrics.jsonl` up to the first that is damaged; none where there is no such file."""
    return _read(directory)[0]


def damaged_after(directory: Path) -> int | None:
    """The last step before a damaged row, such as a power cut leaves; None where no row is damaged."""
    rows, is_whole = _read(directory)
    return None if is_whole else max((row["step"] for row in rows), default=0)


def _read(directory: Path) -> tuple[list[dict[str, Any]], bool]:
    path = directory / METRICS
    if not path.is_file():
        return [], True
    rows: list[dict[str, Any]] = []
    for line in files.read_bytes(path, files.LARGE).splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # a killed writer leaves half a line
        try:
            row = files.parse_json(line, str(path))
            files.check(row, str(path), _Row)
        except FileError:
            return rows, False
        rows.append(row)
    return rows, True


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
