"""The page of a recipe run: what was made from what, how it learnt, what it is worth and what it cost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from yangtuo.artifacts.manifest import Artifact, Kind, Manifest, Parent
from yangtuo.errors import FileError
from yangtuo.run_page import run_page


def artifact(
    folder: Path, kind: Kind, stage: str, parents: dict[str, Any], details: dict[str, Any], **files: str
) -> Artifact:
    folder.mkdir()
    known = {name: Parent(str(path), "f") for name, path in parents.items()}
    for name, text in files.items():
        (folder / name).write_text(text)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    manifest = Manifest(kind, stage, "step", {}, known, {"a": "0" * 64, **sums}, details=details)
    return Artifact(folder, manifest)


def test_a_run_shows_lineage_curves_evaluations_and_cost(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "bits_per_byte": {"zh": 3.0}},
        {"step": 1, "loss": 2.0, "losses": {"conversations": 1.5, "replay": 2.5}},
        {"step": 2, "loss": 1.0, "losses": {"replay": 1.0}},
    ]
    metrics = {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
    results = {"results.json": json.dumps({"later": {"zh": {"bits_per_byte": 2.5, "documents": []}}})}
    artifacts = {
        "convert": artifact(tmp_path / "convert", Kind.MODEL, "convert", {"source": "/given/llama"}, {}),
        "sft": artifact(
            tmp_path / "sft", Kind.ADAPTER, "sft", {"model": tmp_path / "convert"}, {"tokens": 12_345}, **metrics
        ),
        "audit": artifact(
            tmp_path / "audit", Kind.EVALUATION, "tokenizer audit", {}, {"changed_lines": 1_234, "page": "x.html"}
        ),
        "scores": artifact(
            tmp_path / "scores",
            Kind.EVALUATION,
            "evaluate",
            {"m": tmp_path / "sft"},
            {"suite": "bits-per-byte"},
            **results,
        ),
    }
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
        "conversations",
        "replay",
        "polyline",
    ):
        assert expected in html
    assert html.count('class="edge"') == 3
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": "?"}')
    with pytest.raises(FileError, match="is not what it was"):
        run_page(("run", "运行"), artifacts, recipe, costs)
