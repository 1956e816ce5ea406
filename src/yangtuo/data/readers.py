"""Documents: what a file or a directory of texts holds, one by one.

A text file is one document, however long; a row is one document: its text, or the turns of a conversation. This
module does not know where documents go.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Literal

from yangtuo import console
from yangtuo.data import records
from yangtuo.data.records import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    Record,
    compose,
    decode,
    is_compressed,
    list_files,
    open_bytes,
    open_text,
    read_records,
    suffix,
    to_nfc,
)
from yangtuo.data.shapes import SHAPES, UnusableError
from yangtuo.errors import DataError

Division = Literal["file", "paragraph", "line"]
"""What one document of a text file is."""

TEXT_KEYS = ("text", "content", "raw_content", "body")
"""The fields of a row that hold its text; the first that is there counts."""

_MARKDOWN_SUFFIXES = (".md", ".markdown")
_NOT_SHOWN = re.compile(r"\A---\n.*?\n---\n|<!--.*?-->", re.DOTALL)  # front matter and comments
_EXPANSION = 4  # bytes of text that a byte of gzip or zstd is taken to hold
_CHUNK = 1 << 24  # characters of a text that are read at a time
_LEAST_PART = 1 << 20  # no smaller part of a file is read, unless the file is smaller


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
                    yield Document(compose(text), record.place, record.encoding)


def _from_text(file: Path, division: Division) -> Iterator[Document]:
    with open_text(file) as (stream, encoding):
        lines: IO[str] = stream
        if records.suffix(file) in _MARKDOWN_SUFFIXES:
            lines = io.StringIO(_NOT_SHOWN.sub("", stream.read()))
        parts = (
            _whole(lines, file) if division == "file" else {"paragraph": _paragraphs, "line": _lines}[division](lines)
        )
        yield from (Document(to_nfc(part), str(file), encoding) for part in parts if part.strip())


def _whole(stream: IO[str], file: Path) -> Iterator[str]:
    """All of a text at once; a hole in a file reads as zeros without end, and is refused where it begins."""
    chunks = []
    while chunk := stream.read(_CHUNK):
        if chunk.count("\0") * 10 > len(chunk):
            raise DataError(
                f"{file} is no text", found="long runs of zero bytes", expected="text", run="fetch it again"
            )
        chunks.append(chunk)
    yield "".join(chunks)


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
                return "\n".join(message.content for message in shape.read(record.values).messages)
            except UnusableError:
                return ""
    if wrong := [key for key in TEXT_KEYS if key in record.values]:
        raise DataError(
            f"{record.place}: {wrong[0]} is not a text",
            found=f"{type(record.values[wrong[0]]).__name__} {str(record.values[wrong[0]])[:60]}",
            expected="a text",
        )
    raise DataError(
        f"{record.place} has no text",
        found="the keys " + (", ".join(record.values) or "(none)"),
        expected="one of "
        + ", ".join(TEXT_KEYS)
        + ", or a conversation: "
        + "; ".join(f"{shape.name}: {', '.join(shape.keys)}" for shape in SHAPES),
    )


def sampled_texts(paths: Sequence[Path], budget: int) -> Iterator[str]:
    """The texts of all files, or where they hold more than `budget` bytes, an even share of each."""
    files = [file for path in paths for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES))]
    sizes = [file.stat().st_size * (_EXPANSION if is_compressed(file) else 1) for file in files]
    share = min(budget / max(sum(sizes), 1), 1.0)
    if share < 1:
        console.note(f"{sum(sizes) / 1e9:.2f} GB of text: {share:.1%} of it, taken from every part, is read")
    with console.progress("reading", sum(sizes), "bytes") as bar:
        credit = 0.0
        for file, size in zip(files, sizes, strict=True):
            credit += share * size
            # Many small files: every so many-th is read whole. Few large ones: each gives its beginning.
            if share == 1 or credit >= min(size, _LEAST_PART):
                part = size if share == 1 else min(size, int(credit))
                credit -= part
                yield from _beginning(file, part, whole=part == size)
            bar.advance(size)


def _beginning(file: Path, num_bytes: int, whole: bool) -> Iterator[str]:
    if whole or suffix(file) not in TEXT_SUFFIXES:
        left = num_bytes
        for document in read_documents(file):
            yield document.text
            left -= len(document.text.encode("utf-8", errors="replace"))
            if left <= 0 and not whole:
                return
        return
    with open_bytes(file) as stream:
        data = stream.read(num_bytes)
    complete = data.rpartition(b"\n")[0] or data
    yield compose(decode(complete, str(file))[0])
