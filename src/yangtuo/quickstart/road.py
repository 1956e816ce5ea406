"""The quickstart: runs its recipe, then shows before and after as a table and as `report.html`.

It only strings the recipe and the report together; every stage is the one that users run on their own models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yangtuo import catalog, console, pipeline
from yangtuo.artifacts.manifest import Artifact
from yangtuo.page import Samples, Section, Table, Text
from yangtuo.quickstart.outcome import Outcome, read_outcome


def run(output: Path, stage_function: pipeline.StageFunction) -> dict[str, Any]:
    """Walks the road into `output`, prints the table and the samples, writes the report; returns the figures."""
    started = time.monotonic()
    plan = pipeline.load(catalog.shipped()["quickstart"], output=output)
    artifacts = pipeline.execute(plan, stage_function)
    outcome = read_outcome(artifacts)
    lead = _lead(outcome, artifacts["merge"].path)
    page = pipeline.write_report(plan, artifacts, "quickstart", "快速上手", lead)
    seconds = time.monotonic() - started
    _show(outcome, artifacts, page, seconds)
    return {"output": str(output), "report": str(page), "seconds": round(seconds, 1), **outcome.figures}


def _lead(outcome: Outcome, model: Path) -> list[Section]:
    """What the quickstart shows first: before and after, and what to do next."""
    rows = [(f"{english} · {chinese}", before, after) for english, chinese, before, after in outcome.rows]
    asked = [
        (question, [("base · 原模型", before), ("adapted · 训练后", after)])
        for question, before, after in outcome.samples
    ]
    talk = Text(f"Talk with it · 和它聊天：yangtuo chat --model {model}", "advice")
    own = Text("Take a model and a text of your own · 换成自己的模型与语料：yangtuo recipes --copy quickstart")
    return [
        Section("Before and after · 前后对比", [Table(["", "base · 原模型", "adapted · 训练后"], rows), talk, own]),
        Section("Three questions that it was never asked · 三个没有见过的问法", [Samples(asked)]),
    ]


def _show(outcome: Outcome, artifacts: Mapping[str, Artifact], page: Path, seconds: float) -> None:
    rows = [(english, before, after) for english, _, before, after in outcome.rows]
    console.stderr.print(
        console.table(
            f"before and after, {seconds:.0f} s; bits per byte: lower is better", ["", "base", "adapted"], rows
        )
    )
    for question, before, after in outcome.samples:
        console.note(f"{question}\n  base:    {before}\n  adapted: {after}")
    console.note(f"report:        {page}\ntalk with it:  yangtuo chat --model {artifacts['merge'].path}")
