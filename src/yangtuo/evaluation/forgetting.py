"""What an adapted model lost or won against its base: the same measures on both, compared item by item.

Differences are paired (the same document, the same question), so their intervals are far narrower than those of the
figures themselves. This module compares figures and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yangtuo.errors import EvaluationError
from yangtuo.evaluation.intervals import ratio_of_sums
from yangtuo.evaluation.results import Results


def compare(base: Mapping[str, Any], adapted: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one data set on both models: of each, the difference (adapted - base) and its interval of 95 %.

    `change` is the difference as a share of the base's figure. Bits per byte are better where lower, accuracy where
    higher; `lost` is the share lost in either case, negative where something was won.
    """
    if "bits_per_byte" in base:
        figure, sign = "bits_per_byte", 1
        rows = zip(base["documents"], adapted["documents"], strict=True)
        differences = [new["bits"] - old["bits"] for old, new in rows]
        weights = [row["num_bytes"] for row in base["documents"]]
    else:
        figure, sign = "accuracy_over_questions" if "accuracy_over_questions" in base else "accuracy", -1
        rows = zip(base["replies"], adapted["replies"], strict=True)
        differences = [float(new["right"]) - float(old["right"]) for old, new in rows]
        weights = [1] * len(differences)
    difference = sum(differences) / sum(weights)
    interval = ratio_of_sums(differences, weights)
    change = difference / base[figure] if base[figure] else 0.0
    return {
        "figure": figure,
        "base": base[figure],
        "adapted": adapted[figure],
        "difference": round(difference, 5),
        "difference_interval": interval and tuple(round(end, 5) for end in interval),
        "change": round(change, 5),
        "lost": round(sign * change, 5),
        "num_items": len(differences),
    }


def compare_all(results: Results) -> Results:
    """Every model after the first against the first: model -> data -> what `compare` says."""
    (_, base), *others = results.items()
    return {name: {data: compare(base[data], row[data]) for data in base} for name, row in others}


def sentence(values: Mapping[str, Any]) -> str:
    """One comparison in words."""
    figure = values["figure"].replace("_", " ")
    interval = values["difference_interval"]
    within = f" (95 %: {interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
    return f"{figure} {values['base']:.4f} -> {values['adapted']:.4f}, {values['difference']:+.4f}{within}"


def refusal(comparisons: Results, max_english_loss: float | None) -> EvaluationError | None:
    """The error for models whose English got worse by more than this share, or None."""
    if max_english_loss is None:
        return None
    worse = {name: row["en"] for name, row in comparisons.items() if row["en"]["lost"] > max_english_loss}
    if not worse:
        return None
    found = "; ".join(f"{name}: {sentence(values)}, {values['lost']:+.1%}" for name, values in worse.items())
    return EvaluationError(
        "English was lost",
        found=found,
        expected=f"at most {max_english_loss:.1%} more bits per byte on en (--max-english-loss)",
        run="train again with more English (prepare --source en=…:WEIGHT), fewer steps or a lower learning rate",
    )
