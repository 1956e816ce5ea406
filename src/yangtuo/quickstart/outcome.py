"""Before and after: the figures and samples that the quickstart's two evaluations hold.

It reads artifacts and measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yangtuo.artifacts.manifest import Artifact


@dataclass(frozen=True)
class Outcome:
    """Before and after, from the artifacts of a finished road."""

    rows: tuple[tuple[str, str, str, str], ...]
    """Figure in English, in Chinese, of the base, of the adapted model."""
    samples: tuple[tuple[str, str, str], ...]
    """Question, the base's reply, the adapted model's reply."""
    figures: dict[str, dict[str, float]]
    """The same figures as numbers: model -> name -> value."""


def read_outcome(artifacts: Mapping[str, Artifact]) -> Outcome:
    """Reads the figures of the two evaluations and picks three samples, one a source of questions."""
    text = _results(artifacts["evaluate-text"])
    asked = _results(artifacts["evaluate-questions"])
    figures: dict[str, dict[str, float]] = {}
    for model in ("base", "adapted"):
        sets = asked[model].values()
        figures[model] = {
            "tokens_per_chinese_character": text[model]["zh"]["tokens_per_character"],
            "chinese_bits_per_byte": text[model]["zh"]["bits_per_byte"],
            "english_bits_per_byte": text[model]["en"]["bits_per_byte"],
            "held_out_questions": sum(row["num_questions"] for row in sets),
            "held_out_questions_right": sum(row["num_right"] for row in sets),
        }
    base, adapted = figures["base"], figures["adapted"]
    rows = [
        (english, chinese, f"{base[key]:.3f}", f"{adapted[key]:.3f}")
        for key, english, chinese in (
            ("tokens_per_chinese_character", "tokens per Chinese character", "每个汉字的词元数"),
            ("chinese_bits_per_byte", "bits per byte, Chinese", "中文每字节比特数"),
            ("english_bits_per_byte", "bits per byte, English", "英文每字节比特数"),
        )
    ]
    right, total = "held_out_questions_right", "held_out_questions"
    before, after = (f"{values[right]:.0f} of {values[total]:.0f}" for values in (base, adapted))
    rows.append(("held-out questions answered", "答对的留出问题", before, after))
    return Outcome(tuple(rows), tuple(_samples(asked)), figures)


def _results(artifact: Artifact) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((artifact.path / "results.json").read_text(encoding="utf-8"))
    return results


def _samples(asked: Mapping[str, Any], count: int = 3) -> list[tuple[str, str, str]]:
    """The first question of each of the first `count` sets, right or wrong: samples are not chosen by their outcome."""
    samples = []
    for name in list(asked["base"])[:count]:
        base, adapted = (asked[model][name]["replies"][0] for model in ("base", "adapted"))
        samples.append((base["question"], _one_line(base["reply"]), _one_line(adapted["reply"])))
    return samples


def _one_line(text: str, limit: int = 70) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit] + " …"
