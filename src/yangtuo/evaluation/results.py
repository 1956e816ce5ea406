"""The results of an evaluation: model -> data -> figures; what of them is shown, what lies in files of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Results = dict[str, dict[str, Figures]]

RESULTS_FILE = "results.json"
_LONG = ("replies", "documents", "submission")  # items one by one: for results.json or a file of their own
_INTERVAL = "_interval"
_OF_A_PART = ("f1", "rougeL", "accuracy", "accuracy_over_questions")


def summarise(results: Results) -> Results:
    """The figures without those of single items."""
    return {
        name: {data: {key: value for key, value in row.items() if key not in _LONG} for data, row in rows.items()}
        for name, rows in results.items()
    }


def headline(figures: Mapping[str, Any]) -> dict[str, str]:
    """What a table shows: the figures that are a measure and no count, with their intervals, and those of each part."""
    shown = {
        key.replace("_", " "): _with_interval(value, figures.get(key + _INTERVAL))
        for key, value in figures.items()
        if isinstance(value, float)
    }
    for part in ("tasks", "by_type", "groups", "subjects"):
        rows = figures.get(part)
        if not isinstance(rows, Mapping) or (part == "subjects" and len(rows) == 1):
            continue
        for name, row in rows.items():
            values = row if isinstance(row, Mapping) else {}
            key = next((key for key in _OF_A_PART if isinstance(values.get(key), int | float)), None)
            if key is not None:
                shown[f"{name} {key}".replace("_", " ")] = _with_interval(values[key], values.get(key + _INTERVAL))
    return shown


def _with_interval(value: float, interval: Any) -> str:
    try:
        low, high = map(float, interval or ())
    except (TypeError, ValueError):  # none, or none that we wrote
        return f"{value:.4f}"
    return f"{value:.4f} ({low:.3f}–{high:.3f})"


def write(directory: Path, results: Results, comparisons: Results) -> None:
    """Writes results.json, and each submission as the benchmark's organisers take it."""
    for name, row in results.items():
        for data, figures in row.items():
            if "submission" in figures:
                _write_json(directory / f"submission-{name}-{data}.json", figures["submission"])
    kept = {
        name: {
            data: {key: value for key, value in figures.items() if key != "submission"} for data, figures in row.items()
        }
        for name, row in results.items()
    }
    _write_json(directory / RESULTS_FILE, kept)
    if comparisons:
        _write_json(directory / "forgetting.json", comparisons)


def _write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
