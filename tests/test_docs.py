"""Documents that users trust must say what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from yangtuo.config import STAGES, TOOLS

ROOT = Path(__file__).parent.parent


def test_reference_pages_are_up_to_date() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    assert stale == [], "run make docs"


@pytest.mark.parametrize("verb", [*STAGES, *TOOLS])
def test_every_verb_shows_an_example_of_itself(verb: str) -> None:
    """A newcomer copies the example from `--help`."""
    documentation = {**STAGES, **TOOLS}[verb].__doc__ or ""
    assert f"Example: `yangtuo {verb} " in documentation


@pytest.mark.parametrize("verb", [*STAGES, *TOOLS])
def test_every_option_is_documented(verb: str) -> None:
    page = (ROOT / "docs" / "stages" / f"{verb.replace(' ', '_')}.md").read_text("utf-8")
    options = re.findall(r"^\* `[^`]+`: *(.*)$", page, re.MULTILINE)
    assert options
    assert all(text and not text.startswith("*[") for text in options), page


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_keeps_to_its_budget(name: str) -> None:
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_commands_of_the_readme_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets
    verbs = {
        " ".join(match).strip()
        for match in re.findall(r"^yangtuo ([a-z]+)(?: (train|merge|audit)\b)?", text, re.MULTILINE)
    }
    assert verbs <= {*STAGES, *TOOLS, "run", "quickstart"}
