"""The report: what was measured, side by side, with its conditions, and a run from its lineage to its cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yangtuo.artifacts.manifest import Artifact, Kind, Manifest, Parent
from yangtuo.evaluation.forgetting import compare_all
from yangtuo.evaluation.report import evaluation_page, run_page


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


def artifact(folder: Path, kind: Kind, stage: str, parents: dict[str, Any], details: dict[str, Any]) -> Artifact:
    folder.mkdir()
    known = {name: Parent(str(path), "f") for name, path in parents.items()}
    manifest = Manifest(kind, stage, "step", {}, known, {"a": "0" * 64}, details=details)
    return Artifact(folder, manifest)


def test_a_run_shows_lineage_curves_evaluations_and_cost(tmp_path: Path) -> None:
    artifacts = {
        "convert": artifact(tmp_path / "convert", Kind.MODEL, "convert", {"source": "/given/llama"}, {}),
        "sft": artifact(tmp_path / "sft", Kind.ADAPTER, "sft", {"model": tmp_path / "convert"}, {"tokens": 12_345}),
        "scores": artifact(
            tmp_path / "scores", Kind.EVALUATION, "evaluate", {"m": tmp_path / "sft"}, {"suite": "bits-per-byte"}
        ),
    }
    rows = [{"step": 0, "bits_per_byte": {"zh": 3.0}}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scores" / "results.json").write_text(json.dumps({"later": {"zh": text_figures(2.5)}}))
    recipe = {"output": str(tmp_path), "steps": {"convert": {"source": "<llama>"}}}
    costs = {"sft": {"seconds": 61.5, "peak_gigabytes": 1.25}}
    html = run_page(("run", "运行"), artifacts, recipe, costs)
    for expected in ("llama", "12,345", "61.5", "1.25", "2.5000", "&lt;llama&gt;", "sft: loss", "polyline"):
        assert expected in html
    assert html.count('class="edge"') == 3
