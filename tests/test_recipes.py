"""Every recipe that is shipped loads, whatever its step names and options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from yangtuo import catalog, cli, pipeline
from yangtuo.errors import FileError, OutputError, UserError

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert "quickstart.yaml" in {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only inputs that the user must bring may be missing; a wrong key or verb fails here."""
    monkeypatch.chdir(ROOT)
    assert catalog.shipped()[path.stem] == path
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
    assert any(f"yangtuo run {path.stem}" in line for line in comments)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_says_in_two_lines_what_it_is_and_needs(path: Path) -> None:
    about, needs = path.read_text("utf-8").splitlines()[:2]
    assert about.startswith("# ") and about.endswith(".")
    assert needs.startswith("# Needs: ") and needs.endswith(".")


def test_a_recipe_is_found_by_name_and_a_file_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-zh").mkdir()
    assert catalog.find("smollm2-zh") == ROOT / "recipes" / "smollm2-zh.yaml"
    assert "the directory smollm2-zh that is here is no recipe" in capsys.readouterr().err
    assert catalog.copy("smollm2-zh") == Path("smollm2-zh.yaml")
    assert Path("smollm2-zh.yaml").read_bytes() == (ROOT / "recipes" / "smollm2-zh.yaml").read_bytes()
    assert catalog.find("smollm2-zh") == Path("smollm2-zh.yaml")
    assert "smollm2-zh.yaml is taken, the file that is here" in capsys.readouterr().err
    with pytest.raises(OutputError, match="never overwritten"):
        catalog.copy("smollm2-zh")


def test_a_misspelt_recipe_is_told_from_those_that_there_are() -> None:
    with pytest.raises(FileError, match=r"did you mean 'smollm2-zh'(.|\n)*yangtuo recipes"):
        catalog.find("smolm2-zh")


def test_the_list_says_what_each_recipe_is_and_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(path.stem in shown for path in RECIPES) and len(shown.splitlines()) <= 40
    assert cli.invoke(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["quickstart"]["inputs"] == []
    assert "texts/zh" in listed["llama-7b-zh"]["inputs"] and "llama/7B" in listed["llama-7b-zh"]["inputs"]


def test_an_installed_wheel_brings_the_recipes(tmp_path: Path) -> None:
    """Who installs the package has no checkout: recipes come along, and their texts resolve inside it."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheel")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next((tmp_path / "wheel").glob("*.whl"))) as wheel:
        wheel.extractall(site)
    assert sorted(path.name for path in (site / "yangtuo" / "recipes").iterdir()) == [path.name for path in RECIPES]
    command = [sys.executable, "-m", "yangtuo", "run", "quickstart", "--dry-run", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    plan = json.loads(ran.stdout)
    assert plan["recipe"] == str(site / "yangtuo" / "recipes" / "quickstart.yaml")
    assert plan["steps"]["convert"]["source"].startswith(str(site))
