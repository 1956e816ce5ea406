"""Documents: what a file or a directory of texts holds, one by one.

A text file is one document, however long; a row is one document: its text, or the turns of a conversation. This
module does not know where documents go.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Literal

from yangtuo.data import records
from yangtuo.data.conversations import SHAPES, UnusableError
from yangtuo.data.records import Record, open_text, read_records
from yangtuo.errors import DataError

Division = Literal["file", "paragraph", "line"]
"""What one document of a text file is."""

TEXT_KEYS = ("text", "content", "raw_content", "body")
"""The fields of a row that hold its text; the first that is there counts."""

_MARKDOWN_SUFFIXES = (".md", ".markdown")
_NOT_SHOWN = re.compile(r"\A---\n.*?\n---\n|<!--.*?-->", re.DOTALL)  # front matter and comments


@dataclass(frozen=True)
class Document:
    """A text, where it stands, and how it was encoded there."""

    text: str
    place: str
    encoding: str = "utf-8"


def read_documents(path: Path, division: Division = "file") -> Iterator[Document]:
    """The documents of a file or of all files below a directory, in the order of their names; empty ones left out.

    One document is in memory at a time: a row, or what `division` makes of a text file.
    Raises `FileError` or `DataError` where a file cannot be read or a row holds no text.
    """
    for file in records.list_files(path, (*records.TEXT_SUFFIXES, *records.RECORD_SUFFIXES)):
        if records.suffix(file) in records.TEXT_SUFFIXES:
            yield from _from_text(file, division)
        else:
            for record in read_records(file):
                text = record_text(record)
                if text.strip():
                    yield Document(text, record.place, record.encoding)


def _from_text(file: Path, division: Division) -> Iterator[Document]:
    with open_text(file) as (stream, encoding):
        lines: IO[str] = stream
        if records.suffix(file) in _MARKDOWN_SUFFIXES:
            lines = io.StringIO(_NOT_SHOWN.sub("", stream.read()))
        parts = {"file": _whole, "paragraph": _paragraphs, "line": _lines}[division](lines)
        yield from (Document(part, str(file), encoding) for part in parts if part.strip())


def _whole(stream: IO[str]) -> Iterator[str]:
    yield stream.read()


def _lines(stream: IO[str]) -> Iterator[str]:
    return (line.removesuffix("\n") for line in stream)


def _paragraphs(stream: IO[str]) -> Iterator[str]:
    """What stands between empty lines, without the first line's indent."""
    for is_blank, lines in groupby(stream, key=str.isspace):
        if not is_blank:
            yield "".join(lines).strip()


def record_text(record: Record) -> str:
    """The text of a row; raises `DataError` with the keys found where it has none."""
    for key in TEXT_KEYS:
        value = record.values.get(key, 0)
        if value is None or isinstance(value, str):
            return value or ""
    for shape in SHAPES:
        if all(key in record.values for key in shape.keys):
            try:
                return "\n".join(message.content for message in shape.read(record.values))
            except UnusableError:
                return ""
    raise DataError(
        f"{record.place} has no text",
        found="the keys " + (", ".join(record.values) or "(none)"),
        expected="one of "
        + ", ".join(TEXT_KEYS)
        + ", or a conversation: "
        + "; ".join(f"{shape.name}: {', '.join(shape.keys)}" for shape in SHAPES),
    )
