"""What the user sees while a command works: notes, progress bars and tables, all on stderr.

Stdout belongs to results (`--json`, answers, tables that a command exists to print). This module knows nothing of
stages; it is the only one that touches rich.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)
_details = stderr  # where details go: the log of a recipe while its steps run
_ROWS = 24  # of a table: what is shown fits a screen, what is written has all
_EVERY = 60.0  # seconds between the lines of a step where there is no terminal for a bar


_MEANINGS = {
    "bits_per_byte": "lower is better",
    "loss": "nats a token, lower is better",
    "chars_per_token": "more characters a token: shorter text",
    "tokens_per_character": "fewer: shorter text",
    **dict.fromkeys(("accuracy", "f1", "rouge", "share_right", "overall"), "higher is better"),
}


def meaning(name: str) -> str:
    """How the figure called `name` is to be read, in brackets behind two spaces; nothing for counts and names."""
    word = name.replace(" ", "_").lower()
    if word.endswith("_interval"):
        return ""
    return next((f"  ({said})" for measure, said in _MEANINGS.items() if measure in word), "")


def plain(text: str) -> str:
    """A text without the control characters by which a file's content could write to the terminal what it likes."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def note(message: str) -> None:
    """Prints one line of information to stderr."""
    stderr.print(plain(message), markup=False)


def detail(message: str | Table) -> None:
    """Prints to stderr what a verb says beside its results; while a recipe runs, into its log: a run fits a screen."""
    _details.print(plain(message) if isinstance(message, str) else message, markup=False)


@contextmanager
def details_in(log: Path) -> Iterator[None]:
    """Sends details to the end of `log` while inside."""
    global _details
    if stderr.quiet:  # another process writes it
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        _details = Console(file=file, highlight=False, soft_wrap=True, width=120)
        try:
            yield
        finally:
            _details = stderr


def warn(message: str) -> None:
    """Prints one warning to stderr."""
    stderr.print(plain(f"warning: {message}"), style="yellow", markup=False)


class Progress:
    """A running bar that `advance` moves; where stderr is no terminal, it is a line a minute."""

    def __init__(self, bar: Any, task: Any, unit: str) -> None:
        self._bar, self._task, self._unit = bar, task, unit
        self._started = self._told = time.monotonic()

    def advance(self, amount: float = 1, description: str | None = None) -> None:
        """Moves the bar on by `amount` of its total, and changes its text where one is given."""
        self._bar.update(self._task, advance=amount, description=description)
        now = time.monotonic()
        if not stderr.is_terminal and now - self._told >= _EVERY:
            self._told = now
            note(self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        task = next(task for task in self._bar.tasks if task.id == self._task)
        amounts = [
            decimal(int(amount)) if self._unit == "bytes" else f"{amount:,.0f}"
            for amount in (task.completed, task.total)
            if amount is not None
        ]
        unit = "" if self._unit == "bytes" else f" {self._unit}".rstrip()
        line = f"{task.description}  {' of '.join(amounts)}{unit}"
        if not task.total or not task.completed:
            return line
        left = seconds * (task.total - task.completed) / task.completed
        return f"{line}, {task.completed / task.total:.0%}, about {duration(left)} left"


@contextmanager
def progress(description: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    """A progress bar on stderr, or lines where that is no terminal; `total` None for work of unknown length.

    `unit` "bytes" prints sizes and speed, any other unit prints counts.
    """
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit), TimeRemainingColumn())
    with Bar(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        yield Progress(bar, bar.add_task(description, total=total), unit)


def duration(seconds: float) -> str:
    """A span of time in words: minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is left-aligned and whose other columns are right-aligned; its first rows, if many."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    rows = list(rows)
    shown = rows if len(rows) <= _ROWS else [*rows[: _ROWS - 1], (f"… {len(rows) - _ROWS + 1} more rows",)]
    for row in shown:
        result.add_row(*map(Text, row))  # a path or a token may look like markup
    return result


def styled(parts: Iterable[tuple[str, str]]) -> Text:
    """A text of parts with their styles; nothing in it is read as markup."""
    return Text.assemble(*parts)
