"""The page of a recipe run: what was made from what, how it learnt, what it is worth and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yangtuo.artifacts.manifest import Artifact, Kind, Manifest, Parent
from yangtuo.run_page import run_page


def artifact(folder: Path, kind: Kind, stage: str, parents: dict[str, Any], details: dict[str, Any]) -> Artifact:
    folder.mkdir()
    known = {name: Parent(str(path), "f") for name, path in parents.items()}
    manifest = Manifest(kind, stage, "step", {}, known, {"a": "0" * 64}, details=details)
    return Artifact(folder, manifest)


def test_a_run_shows_lineage_curves_evaluations_and_cost(tmp_path: Path) -> None:
    artifacts = {
        "convert": artifact(tmp_path / "convert", Kind.MODEL, "convert", {"source": "/given/llama"}, {}),
        "sft": artifact(tmp_path / "sft", Kind.ADAPTER, "sft", {"model": tmp_path / "convert"}, {"tokens": 12_345}),
        "audit": artifact(
            tmp_path / "audit", Kind.EVALUATION, "tokenizer audit", {}, {"changed_lines": 1_234, "page": "x.html"}
        ),
        "scores": artifact(
            tmp_path / "scores", Kind.EVALUATION, "evaluate", {"m": tmp_path / "sft"}, {"suite": "bits-per-byte"}
        ),
    }
    rows = [{"step": 0, "bits_per_byte": {"zh": 3.0}}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scores" / "results.json").write_text(
        json.dumps({"later": {"zh": {"bits_per_byte": 2.5, "documents": []}}})
    )
    recipe = {"output": str(tmp_path), "steps": {"convert": {"source": "<llama>"}}}
    costs = {"sft": {"seconds": 61.5, "peak_gigabytes": 1.25}}
    html = run_page(("run", "运行"), artifacts, recipe, costs)
    for expected in (
        "changed lines",
        "1,234",
        "llama",
        "12,345",
        "61.5",
        "1.25",
        "2.5000",
        "&lt;llama&gt;",
        "sft: loss",
        "polyline",
    ):
        assert expected in html
    assert html.count('class="edge"') == 3
