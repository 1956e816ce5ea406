"""`report.html`: before and after, the curves, the samples and the lineage on one page without outside files.

It draws what the artifacts hold and measures nothing itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from yangtuo.artifacts.manifest import Artifact
from yangtuo.quickstart.outcome import Outcome


def render(outcome: Outcome, artifacts: Mapping[str, Artifact]) -> str:
    """The page as HTML; pictures are inline SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True)
    )
    trained = {
        name: artifact for name, artifact in artifacts.items() if artifact.path.joinpath("metrics.jsonl").exists()
    }
    return environment.get_template("report.html.jinja").render(
        outcome=outcome,
        pictures=[_curves(name, _metrics(artifact.path)) for name, artifact in trained.items()],
        artifacts=[_described(name, artifact) for name, artifact in artifacts.items()],
        model=artifacts["merge"].path,
    )


def _described(name: str, artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    assert manifest is not None
    parents = ", ".join(sorted({Path(parent.path).name for parent in manifest.parents.values()}))
    return {
        "name": name,
        "kind": manifest.kind.value,
        "stage": manifest.stage,
        "parents": parents,
        "fingerprint": manifest.fingerprint[:12],
    }


def _metrics(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _curves(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and, where it was measured, held-out bits per byte of each source, over optimizer steps."""
    from matplotlib.figure import Figure

    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    measured = [(row["step"], row["bits_per_byte"]) for row in rows if "bits_per_byte" in row]
    figure = Figure(figsize=(9, 2.9) if measured else (4.6, 2.9), layout="constrained")
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    axes[0].plot(*zip(*losses, strict=True), color="#b5532a", linewidth=1.4)
    axes[0].set(title=f"{title}: loss", xlabel="step", ylabel="nats per token")
    if measured:
        for name, color in zip(measured[0][1], ("#b5532a", "#2a6fb5", "#4b8b3b", "#777777"), strict=False):
            points = [(step, values[name]) for step, values in measured]
            axes[1].plot(*zip(*points, strict=True), label=name, color=color, linewidth=1.8, marker="o", markersize=3)
        axes[1].set(title=f"{title}: held-out text", xlabel="step", ylabel="bits per byte", ylim=(0, None))
        axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
