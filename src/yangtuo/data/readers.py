"""Documents: what a file or a directory of texts holds, one by one.

A text file is one document, however long; a row is one document: its text, or the turns of a conversation. This
module does not know where documents go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yangtuo.data import records
from yangtuo.data.conversations import SHAPES, UnusableError
from yangtuo.data.records import Record, decode, open_bytes, read_records
from yangtuo.errors import DataError

Division = Literal["file", "paragraph", "line"]
"""What one document of a text file is."""

TEXT_KEYS = ("text", "content", "raw_content", "body")
"""The fields of a row that hold its text; the first that is there counts."""

_PARAGRAPHS = re.compile(r"\n[ \t\u3000]*\n\s*")


@dataclass(frozen=True)
class Document:
    """A text, where it stands, and how it was encoded there."""

    text: str
    place: str
    encoding: str = "utf-8"


def read_documents(path: Path, division: Division = "file") -> Iterator[Document]:
    """The documents of a file or of all files below a directory, in the order of their names; empty ones left out.

    Raises `FileError` or `DataError` where a file cannot be read or a row holds no text.
    """
    for file in records.list_files(path, (*records.TEXT_SUFFIXES, *records.RECORD_SUFFIXES)):
        if records.suffix(file) in records.TEXT_SUFFIXES:
            yield from _from_text(file, division)
        else:
            for record in read_records(file):
                text = record_text(record)
                if text.strip():
                    yield Document(text, record.place)


def _from_text(file: Path, division: Division) -> Iterator[Document]:
    with open_bytes(file) as stream:
        text, encoding = decode(stream.read(), str(file))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = {"file": [text], "paragraph": _PARAGRAPHS.split(text), "line": text.split("\n")}[division]
    for part in parts:
        if part.strip():
            yield Document(part, str(file), encoding)


def record_text(record: Record) -> str:
    """The text of a row; raises `DataError` with the keys found where it has none."""
    for key in TEXT_KEYS:
        value = record.values.get(key)
        if isinstance(value, str):
            return value
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


def read_passages(path: Path) -> Iterator[str]:
    """The texts of an evaluation set: the lines of its text files, every text field of its rows."""
    for file in records.list_files(path, (*records.TEXT_SUFFIXES, *records.RECORD_SUFFIXES)):
        if records.suffix(file) in records.TEXT_SUFFIXES:
            yield from (document.text for document in _from_text(file, "line"))
        else:
            for record in read_records(file):
                yield from (value for value in record.values.values() if isinstance(value, str))
