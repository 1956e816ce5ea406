"""What stands on the pages for users: their shell commands and their links.

A fenced `bash` block is run as typed, in order. A comment on the line above says where it is not:

    <!-- parsed: WHY -->     the commands of yangtuo in it are only read: their options exist and take these values
    <!-- not run: WHY -->    nothing in it is ours
    <!-- server -->          started, and kept until the page ends
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs" / "tutorials").glob("*.md") if ".zh." not in path.name),
]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>parsed|not run|server)(?:: [^\n]+)? -->\n)?```bash\n(?P<body>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]*)(?:#([^)\s]+))?(?=\))")
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


@dataclass(frozen=True)
class Command:
    """One line of a page."""

    line: str
    mark: str
    """`run`, `parsed`, `not run` or `server`."""

    @property
    def words(self) -> list[str]:
        """The words without variables before them, and without a comment behind."""
        words = shlex.split(self.line, comments=True)
        return words[len(self.variables) :]

    @property
    def variables(self) -> dict[str, str]:
        """What is set before the command: `NAME=VALUE`."""
        words = shlex.split(self.line, comments=True)
        found = {}
        for word in words:
            if not re.match(r"[A-Z_]+=", word):
                break
            name, _, value = word.partition("=")
            found[name] = value
        return found

    @property
    def ours(self) -> list[str] | None:
        """What comes behind `yangtuo` or `-m yangtuo`, or None where the command is another program's."""
        words = self.words
        if words[:1] == ["yangtuo"]:
            return words[1:]
        if words[:1] == ["torchrun"] and "yangtuo" in words:
            return words[words.index("yangtuo") + 1 :]
        return None


def commands(page: Path) -> list[Command]:
    """The commands of all shell blocks of a page, in order."""
    found = []
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        lines = block["body"].replace("\\\n", " ").splitlines()
        found += [Command(line, block["mark"] or "run") for line in lines if shlex.split(line, comments=True)]
    return found


def in_chinese(page: Path) -> Path:
    """The same page in Chinese."""
    return page.with_name(f"{page.stem}.zh.md")


def dead_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    dead = []
    for match in _LINK.finditer(_FENCED.sub("", page.read_text("utf-8"))):
        target = page.parent / match[1] if match[1] else page
        if not target.exists() or (match[2] and target.suffix == ".md" and match[2] not in anchors(target)):
            dead.append(match[0])
    return dead


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as repository hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", _FENCED.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
