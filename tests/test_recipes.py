"""Every recipe that is shipped loads, whatever its step names and options."""

from __future__ import annotations

from pathlib import Path

import pytest

from yangtuo import pipeline
from yangtuo.errors import FileError, UserError

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert "quickstart.yaml" in {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only inputs that the user must bring may be missing; a wrong key or verb fails here."""
    monkeypatch.chdir(ROOT)
    try:
        plan = pipeline.load(path)
    except UserError as error:
        only_missing_files = isinstance(error, FileError) and "does not exist" in str(error)
        assert only_missing_files, error
    else:
        assert plan.steps


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_opens_with_the_command_that_runs_it(path: Path) -> None:
    comments = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert any(f"yangtuo run recipes/{path.name}" in line for line in comments)
