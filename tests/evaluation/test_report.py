"""The report: what was measured, side by side, with the conditions under which it was."""

from __future__ import annotations

from typing import Any

from yangtuo.evaluation.forgetting import compare_all
from yangtuo.evaluation.report import evaluation_page


def text_figures(bits: float) -> dict[str, Any]:
    documents = [{"bits": bits * size, "num_bytes": size} for size in (100, 50)]
    return {"bits_per_byte": bits, "bits_per_byte_interval": (bits - 0.1, bits + 0.1), "documents": documents}


def exam_figures(right: list[bool], asked: str) -> dict[str, Any]:
    replies = [
        {"subject": "law", "id": str(number), "predicted": "A", "reference": "B", "right": flag}
        for number, flag in enumerate(right)
    ]
    return {
        "prompt": "lm-eval",
        "asked": asked,
        "num_shots": 5,
        "accuracy": sum(right) / len(right),
        "accuracy_interval": (0.0, 1.0),
        "replies": replies,
    }


def test_models_stand_side_by_side_with_the_form_in_which_they_were_asked() -> None:
    results = {
        "base": {"en": text_figures(1.5), "ceval": exam_figures([True, True], "plainly")},
        "later": {"en": text_figures(1.75), "ceval": exam_figures([True, False], "in its chat template")},
    }
    html = evaluation_page("forgetting", results, compare_all(results))
    assert "1.5000 (1.400–1.600)" in html and "1.7500 (1.650–1.850)" in html
    assert "base was asked plainly" in html and "later was asked in its chat template" in html
    assert "with 5 examples" in html
    assert "+0.2500" in html and "-0.5000" in html
