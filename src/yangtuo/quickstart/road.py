"""The quickstart: runs its recipe, then shows before and after as a table and as `report.html`.

It only strings the recipe and the report together; every stage is the one that users run on their own models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yangtuo import console, pipeline
from yangtuo.artifacts.manifest import Artifact
from yangtuo.quickstart import report
from yangtuo.quickstart.outcome import Outcome, read_outcome

RECIPE = Path(__file__).parent / "recipe.yaml"


def run(output: Path, stage_function: pipeline.StageFunction) -> dict[str, Any]:
    """Walks the road into `output`, prints the table and the samples, writes the report; returns the figures."""
    started = time.monotonic()
    plan = pipeline.load(RECIPE, output=output)
    artifacts = pipeline.execute(plan, stage_function)
    outcome = read_outcome(artifacts)
    page = output / "report.html"
    page.write_text(report.render(outcome, artifacts), encoding="utf-8")
    seconds = time.monotonic() - started
    _show(outcome, artifacts, page, seconds)
    return {"output": str(output), "report": str(page), "seconds": round(seconds, 1), **outcome.figures}


def _show(outcome: Outcome, artifacts: Mapping[str, Artifact], page: Path, seconds: float) -> None:
    rows = [(english, before, after) for english, _, before, after in outcome.rows]
    console.stderr.print(console.table(f"before and after, {seconds:.0f} s", ["", "base", "adapted"], rows))
    for question, before, after in outcome.samples:
        console.note(f"\n{question}\n  base:    {before}\n  adapted: {after}")
    console.note(f"\nreport:  {page}\nmodel:   {artifacts['merge'].path}\nall artifacts: {page.parent}")
    console.note(f"\ntalk with it:  yangtuo chat --model {artifacts['merge'].path}")
