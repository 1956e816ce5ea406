"""What MkDocs does not do by itself: pages that lie outside docs/, links to them, and folders in the navigation.

A hook (mkdocs.yml names it). README, changelog, results and examples become pages under `project/`; relative links are
rewritten between their places on disk, where they work on any repository host, and their places on the site. A link
that leads nowhere is left as it stands, so that a strict build fails by it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = (
    "*.md",
    "recipes/*.yaml",
    "benchmarks/results/*.md",
    "examples/**/*.md",
    "examples/*.html",
    "src/**/README.md",
)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Folders in the navigation (`stages/`) become the list of their pages."""
    config.nav = _listed(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/."""
    for path in _outside():
        files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Relative links, as they are right on disk, lead to the same pages on the site."""
    source = Path(str(page.file.abs_src_path))
    folder = PurePosixPath(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[1]))
        return os.path.relpath(_place(target), folder) if target.is_file() else match[1]

    return _LINK.sub(moved, markdown)


def _outside() -> list[Path]:
    return sorted({path for pattern in OUTSIDE for path in ROOT.glob(pattern)})


def _place(path: Path) -> str:
    """Where a file of the project stands on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"project/{path.relative_to(ROOT).as_posix()}" if path.is_relative_to(ROOT) else str(path)


def _listed(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_listed(item) for item in nav]
    if isinstance(nav, dict):
        return {title: _listed(item) for title, item in nav.items()}
    if not nav.endswith("/"):
        return nav
    places = [_place(path) for path in [*sorted(DOCS.rglob("*.md")), *_outside()]]
    return [place for place in places if str(PurePosixPath(place).parent) == nav.rstrip("/")]
