"""JSON of any length, one value at a time: the elements of a list, or values one behind the other.

The standard library's scanner is given a window of the text, which grows while a value does not end within it. So
memory holds a value and not a file, and an error knows its line and column, which streaming parsers (ijson) do not
tell. This module knows nothing of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from yangtuo.errors import FileError

_BLANKS = re.compile(r"[ \t\r\n]*")
_WINDOW = 1 << 20  # characters
_LOOKAHEAD = 16  # characters behind an error that could still mend it: the rest of \uXXXX, of a literal


def read_values(stream: IO[str], file: Path) -> Iterator[Any]:
    """The elements of the list in `stream`, or its values one behind the other, however they are laid out in lines.

    Raises `FileError` with file, line and column where the text is malformed.
    """
    text = _Text(stream, file)
    in_list = text.skip("[")
    is_first = True
    while not (text.skip("]") if in_list else text.at_end()):
        if in_list and not is_first and not text.skip(","):
            raise text.malformed("Expecting ',' delimiter")
        is_first = False
        yield text.value()
    if not text.at_end():
        raise text.malformed("Extra data")


def malformed(file: Path, line: int, column: int, reason: str) -> FileError:
    """The error that says where a file is no JSON, and why."""
    return FileError(
        f"{file} is not valid JSON: line {line}, column {column}",
        found=reason,
        expected="a JSON list of objects, or one JSON object on each line",
    )


class _Text:
    """A JSON text of any length, of which one value at a time is in memory, and whose errors know their place."""

    def __init__(self, stream: IO[str], file: Path) -> None:
        self._stream, self._file = stream, file
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # where `_text` begins
        self._decoder = json.JSONDecoder()

    def at_end(self) -> bool:
        """Passes over blanks; whether nothing is behind them."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return False
            if not self._read():
                return True

    def skip(self, mark: str) -> bool:
        """Passes over blanks and the character `mark`; whether it was there."""
        is_there = not self.at_end() and self._text[self._at] == mark
        self._at += is_there
        return is_there

    def value(self) -> Any:
        """The next value."""
        self.at_end()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LOOKAHEAD
                behind = error.pos - self._at
                if not (cut_off and self._read()):
                    self._at += behind
                    raise self.malformed(error.msg) from error
            except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
                raise self.malformed(str(error)) from error

    def malformed(self, reason: str) -> FileError:
        """The error that stands at this place."""
        self._pass()
        return malformed(self._file, self._line, self._column, reason)

    def _pass(self) -> None:
        num_lines = self._text.count("\n", 0, self._at)
        self._line += num_lines
        self._column = self._at - self._text.rfind("\n", 0, self._at) if num_lines else self._column + self._at
        self._text, self._at = self._text[self._at :], 0

    def _read(self) -> bool:
        self._pass()
        more = self._stream.read(max(_WINDOW, len(self._text)))  # doubled: a long value is not tried again and again
        self._text += more
        return bool(more)
