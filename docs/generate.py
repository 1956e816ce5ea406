"""Writes docs/stages/<verb>.md from the command line's own help and the stages' docstrings; `--check` only compares.

python docs/generate.py            writes the pages again
python docs/generate.py --check    exit status 1 where a page is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from yangtuo import cli, config

ROOT = Path(__file__).parent.parent
OTHER_COMMANDS = ("run", "recipes", "quickstart")


def page(verb: str) -> str:
    """The reference page of one verb."""
    app = cli.app
    for word in verb.split():
        app = app[word]
    _, _, body = app.generate_docs().partition("\n")
    # The usage line begins with however this very process was started; only the arguments are wanted.
    body = re.sub(r"(?<=```console\n).*?(?=--|\[|[A-Z]{2})", f"yangtuo {verb} ", body, count=1)
    return f"# yangtuo {verb}\n{body.rstrip()}\n{background(verb)}"


def background(verb: str) -> str:
    """The docstring of the stage's module beyond its first line, if it has more to say."""
    module = ROOT / "src" / "yangtuo" / "stages" / f"{verb.replace(' ', '_')}.py"
    if not module.exists():
        return ""
    _, _, rest = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")
    return f"\n## How it works\n\n{rest.strip()}\n" if rest.strip() else ""


def pages() -> dict[Path, str]:
    """File -> content of every reference page."""
    verbs = [*config.STAGES, *config.TOOLS, *OTHER_COMMANDS]
    return {ROOT / "docs" / "stages" / f"{verb.replace(' ', '_')}.md": page(verb) for verb in verbs}


def main() -> int:
    """Writes or compares the pages; returns the exit status."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs")  # noqa: T201
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
