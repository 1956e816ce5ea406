"""Precision, recall and F1 over sets of extracted items, and over labels: the arithmetic that the suites share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Matches:
    """Counts over samples; every ratio without a denominator is 0."""

    num_right: int = 0
    num_spurious: int = 0
    num_missed: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.num_right + other.num_right,
            self.num_spurious + other.num_spurious,
            self.num_missed + other.num_missed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Micro precision, recall and F1, and the counts."""
        precision = _ratio(self.num_right, self.num_right + self.num_spurious)
        recall = _ratio(self.num_right, self.num_right + self.num_missed)
        counts = {"tp": self.num_right, "fp": self.num_spurious, "fn": self.num_missed}
        return {"precision": precision, "recall": recall, "f1": f_score(precision, recall), **counts}


def match(predicted: Counter[Any], expected: Counter[Any]) -> Matches:
    """Compares two multisets; give each item once to compare sets."""
    num_right = (predicted & expected).total()
    return Matches(num_right, predicted.total() - num_right, expected.total() - num_right)


def match_all(pairs: Iterable[tuple[Iterable[Hashable], Iterable[Hashable]]]) -> Matches:
    """Compares (predicted, expected) of each sample as sets and adds up."""
    compared = (match(Counter(set(predicted)), Counter(set(expected))) for predicted, expected in pairs)
    return sum(compared, Matches())


def label_scores(predicted: Sequence[str], expected: Sequence[str], average: str) -> dict[str, Any]:
    """Precision, recall and F1 of one label a sample, averaged over every label that is expected or predicted.

    `average` is `macro`, each label alike, or `weighted`, each by how often it is expected.
    """
    labels = sorted({*predicted, *expected})
    rows = []
    for label in labels:
        num_right = sum(p == e == label for p, e in zip(predicted, expected, strict=True))
        precision = _ratio(num_right, predicted.count(label))
        recall = _ratio(num_right, expected.count(label))
        rows.append((precision, recall, f_score(precision, recall)))
    weights = [1 if average == "macro" else expected.count(label) for label in labels]
    means = (
        sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights) for column in zip(*rows, strict=True)
    )
    return {**dict(zip(("precision", "recall", "f1"), means, strict=True)), "average": average}


def f_score(precision: float, recall: float) -> float:
    """Harmonic mean of both."""
    return _ratio(2 * precision * recall, precision + recall)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
