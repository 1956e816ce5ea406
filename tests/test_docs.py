"""Documents that users trust must say what the program does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, commands, dead_links, in_chinese
from yangtuo.config import STAGES, TOOLS

README = PAGES[0]
REFERENCE = ROOT / "docs" / "stages"


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


@pytest.mark.parametrize("page", [README, in_chinese(README)], ids=lambda page: page.name)
def test_targets_of_the_readme_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    typed = {command.words[1] for command in commands(page) if command.words[0] == "make"}
    assert typed and typed <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_in_chinese_has_the_same_commands(page: Path) -> None:
    """Those of the English page alone are run, in tests/end_to_end/test_pages.py."""
    ours = [(command.words, command.variables, command.mark) for command in commands(page)]
    assert [(command.words, command.variables, command.mark) for command in commands(in_chinese(page))] == ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_shell_block_is_run_or_says_why_not(page: Path) -> None:
    """A fence that the reader of pages does not see is a command that nobody runs."""
    text = page.read_text("utf-8")
    fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
    assert set(fences) <= {"bash", "yaml", "python", "text", ""}
    assert not re.search(r"^    (yangtuo|torchrun|pip) ", text, re.MULTILINE)
    assert not re.search(r"<!-- (?:parsed|not run) -->", text)  # a reason belongs to it


@pytest.mark.parametrize("page", [*PAGES, *map(in_chinese, PAGES)], ids=lambda page: page.name)
def test_options_named_within_the_text_exist(page: Path) -> None:
    """`yangtuo inspect PATH --sums FILE` in a sentence is typed as well as what stands in a block."""
    for line in re.findall(r"`(?:\.venv/bin/)?yangtuo ([a-z][^`]*)`", page.read_text("utf-8")):
        words = [word for word in line.split() if not word.startswith("-")]
        verb = next((name for name in ("_".join(words[:2]), words[0]) if (REFERENCE / f"{name}.md").exists()), None)
        assert verb, line
        known = set(re.findall(r"--[a-z][a-z-]*", (REFERENCE / f"{verb}.md").read_text("utf-8")))
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line)) <= known | {"--help"}, line


def test_there_is_no_dead_link() -> None:
    """In any page of the project; the site's build looks at them again (`make docs`)."""
    pages = [
        path
        for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
        for path in ROOT.glob(pattern)
    ]
    dead = {str(page.relative_to(ROOT)): links for page in pages if (links := dead_links(page))}
    assert dead == {}


def test_every_page_is_linked_from_the_readme() -> None:
    for readme, ending in ((README, ".md"), (in_chinese(README), ".zh.md")):
        text = readme.read_text("utf-8")
        missing = [page.name for page in PAGES[1:] if f"docs/tutorials/{page.stem}{ending}" not in text]
        assert missing == []


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "index.zh.html", "pretrain.html", "faq.zh.html"} <= {path.name for path in pages}
