"""What the user sees while a command works: notes, progress bars and tables, all on stderr.

Stdout belongs to results (`--json`, answers, tables that a command exists to print). This module knows nothing of
stages; it is the only one that touches rich.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """A text without the control characters by which a file's content could write to the terminal what it likes."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def note(message: str) -> None:
    """Prints one line of information to stderr."""
    stderr.print(plain(message), markup=False)


def warn(message: str) -> None:
    """Prints one warning to stderr."""
    stderr.print(plain(f"warning: {message}"), style="yellow", markup=False)


class Progress:
    """A running bar; `advance` moves it, `describe` changes its text."""

    def __init__(self, bar: object, task: object) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float = 1, description: str | None = None) -> None:
        """Moves the bar on by `amount` of its total."""
        self._bar.update(self._task, advance=amount, description=description)  # type: ignore[attr-defined]


@contextmanager
def progress(description: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    """A progress bar on stderr, shown only on a terminal; `total` None for work of unknown length.

    `unit` "bytes" prints sizes and speed, any other unit prints counts.
    """
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit), TimeRemainingColumn())
    with Bar(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        yield Progress(bar, bar.add_task(description, total=total))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is left-aligned and whose other columns are right-aligned."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*map(Text, row))  # a path or a token may look like markup
    return result


def styled(parts: Iterable[tuple[str, str]]) -> Text:
    """A text of parts with their styles; nothing in it is read as markup."""
    return Text.assemble(*parts)
