"""Files to decoded text and records: suffixes, compression, encodings, JSON, CSV, Parquet.

The encoding of a text is found out from its first megabyte that is not ASCII, and handed on for the caller to say.
Everything is read as a stream: memory holds a row, not a file. This module does not know what a document or a
conversation is.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from yangtuo import console
from yangtuo.artifacts.manifest import list_inputs
from yangtuo.data.encodings import choose_encoding, has_escapes, is_binary, undecodable
from yangtuo.data.json_values import malformed, read_values
from yangtuo.errors import DataError, FileError

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
_CHUNK = 1 << 20
_DESCRIPTIONS = ("readme.md", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_SURROGATES = re.compile("[\ud800-\udfff]")
csv.field_size_limit(sys.maxsize)  # a book is a field, too


@dataclass(frozen=True)
class Record:
    """One row of a file, and where it stands there, such as `data.jsonl:12`."""

    values: dict[str, Any]
    place: str
    encoding: str = "utf-8"


def compose(text: str) -> str:
    """The form in which all text is read, learned from, measured and prompted with: NFC, which changes no meaning.

    Files from a Mac hold Korean in NFD, and vowel marks stand in any order. Never NFKC, which folds `，` into `,`.
    Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD.
    """
    return _SURROGATES.sub("\ufffd", to_nfc(text))


def to_nfc(text: str) -> str:
    """NFC of a text without half surrogates, as a file decodes to; nothing composes over a line's end."""
    if unicodedata.is_normalized("NFC", text):
        return text
    lines = text.split("\n")
    return "\n".join(
        line if unicodedata.is_normalized("NFC", line) else unicodedata.normalize("NFC", line) for line in lines
    )


def suffix(file: Path) -> str:
    """The suffix that says the format, lower case, without .gz or .zst."""
    inner = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return inner.suffix.lower()


def is_compressed(file: Path) -> bool:
    """Whether the file's name ends in .gz or .zst."""
    return file.suffix.lower() in COMPRESSED


def list_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files at `path` that end in one of `suffixes` (compressed or not), sorted.

    Hidden ones are left out, and what describes a data set beside its rows.
    Raises `FileError` where nothing is there and `DataError` where no file is of a known format.
    """
    if not path.exists():
        raise FileError(f"{path} does not exist", expected="a file or a directory of files")
    files = [path] if path.is_file() else list_inputs(path)
    known = [file for file in files if suffix(file) in suffixes]
    if not known:
        raise DataError(
            f"{path} holds no file of a format that can be read",
            found=", ".join(sorted({file.suffix or file.name for file in files})) or "an empty directory",
            expected=" ".join(suffixes) + ", or one of these with .gz or .zst behind it",
        )
    if others := sorted({file.suffix or file.name for file in files if file not in known}):
        console.warn(f"{path}: files of other formats are left out: {' '.join(others)}")
    content = [file for file in known if file.name.lower() not in _DESCRIPTIONS]
    return content if any(suffix(file) in RECORD_SUFFIXES for file in content) else known


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed as they are read; raises `FileError` where they are cut off or damaged."""
    kind = file.suffix.lower()
    try:
        if kind == ".gz":
            with gzip.open(file) as stream:
                yield stream  # type: ignore[misc]
        elif kind == ".zst":
            with _pyarrow(file).input_stream(str(file), compression="zstd") as stream:
                yield io.BufferedReader(stream, _CHUNK)
        else:
            with file.open("rb") as raw:
                yield raw
    except (EOFError, OSError, zlib.error) as error:
        if kind not in COMPRESSED or (isinstance(error, OSError) and error.errno):
            raise
        raise FileError(
            f"{file} is damaged", found=str(error), expected="a whole compressed file", run="fetch it again"
        ) from error


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[tuple[IO[str], str]]:
    """The file's text, decoded as it is read, and its encoding; `newline` as in `open`.

    Raises `FileError` with offset and line where the text is not in that encoding.
    """
    encoding = detect_encoding(file)
    with open_bytes(file) as stream:
        try:
            yield io.TextIOWrapper(stream, "utf-8-sig" if encoding == "utf-8" else encoding, newline=newline), encoding
        except UnicodeDecodeError as error:
            raise _damage(file, encoding) from error


def detect_encoding(file: Path) -> str:
    """The name of the file's encoding; raises `FileError` where it is none of those known."""
    status = file.stat()
    return _detect(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _detect(file: Path, _size: int, _modified: int) -> str:
    with open_bytes(file) as stream:
        num_bytes = num_lines = 0
        while chunk := stream.read(_CHUNK):
            if not chunk.isascii() or is_binary(chunk) or has_escapes(chunk):
                # What comes next is looked at too, should the first character of interest be the last of its chunk.
                return choose_encoding(chunk + stream.read(_CHUNK), str(file), False, num_bytes, num_lines)
            num_bytes += len(chunk)
            num_lines += chunk.count(b"\n")
    return "utf-8"


def decode(data: bytes, place: str) -> tuple[str, str]:
    """The text of `data` and the name of its encoding; raises `FileError` where it is none of those known."""
    encoding = choose_encoding(data, place, True)
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding), encoding
    except UnicodeDecodeError as error:
        raise undecodable(place, encoding, data[error.start], error.start, data.count(b"\n", 0, error.start)) from error


def _damage(file: Path, encoding: str) -> FileError:
    """Where in the file the first byte stands that `encoding` does not allow."""
    decoder = codecs.getincrementaldecoder(encoding)()
    num_bytes = num_lines = 0
    with open_bytes(file) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            kept = decoder.getstate()[0]
            try:
                decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                data, at = kept + chunk, error.start
                lines = num_lines + data.count(b"\n", 0, at)
                return undecodable(str(file), encoding, data[at], num_bytes - len(kept) + at, lines)
            assert chunk, "the file was read without an error the second time"
            num_bytes += len(chunk)
            num_lines += chunk.count(b"\n")


def read_records(file: Path, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """The rows of a JSON, JSON lines, CSV, TSV or Parquet file.

    `begin` and `end` choose, in an uncompressed .jsonl, the lines that start within these bytes, and in a .parquet the
    row groups of these numbers. Raises `FileError` with file, line and column where a row is malformed.
    """
    kind = suffix(file)
    if kind == ".jsonl":
        yield from _json_lines(file, begin, end)
    elif kind == ".json":
        yield from _json_values(file)
    elif kind in (".csv", ".tsv"):
        yield from _csv_rows(file, "," if kind == ".csv" else "\t")
    else:
        yield from _parquet_rows(file, begin, end)


def read_lines(file: Path, begin: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of the lines that start in [begin, end); one that starts before `end` is read whole."""
    with open_bytes(file) as stream:
        if begin:
            stream.seek(begin - 1)
            begin += len(stream.readline()) - 1
        while end is None or begin < end:
            line = stream.readline()
            if not line:
                return
            yield begin, line
            begin += len(line)


def _json_lines(file: Path, begin: int, end: int | None) -> Iterator[Record]:
    encoding = detect_encoding(file)
    if encoding == "utf-16":  # its lines do not end where a byte says so
        yield from _json_values(file) if begin == 0 else ()
        return
    for number, (offset, line) in enumerate(read_lines(file, begin, end), 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if encoding == "utf-8" and offset == 0 else encoding))
        except json.JSONDecodeError as error:
            raise malformed(file, number + _num_lines_before(file, begin), error.colno, error.msg) from error
        except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
            if isinstance(error, UnicodeDecodeError):
                raise _damage(file, encoding) from error
            raise malformed(file, number + _num_lines_before(file, begin), 1, str(error)) from error
        # An offset is a place too, and costs nothing to know within a range.
        yield _record(value, f"{file}:{number}" if begin == 0 else f"{file}@{offset}", encoding)


def _num_lines_before(file: Path, begin: int) -> int:
    return sum(1 for offset, _ in read_lines(file, 0, begin)) if begin else 0


def _json_values(file: Path) -> Iterator[Record]:
    with open_text(file) as (stream, encoding):
        for number, value in enumerate(read_values(stream, file), 1):
            yield _record(value, f"{file}#{number}", encoding)


def _record(value: Any, place: str, encoding: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{place} is not a row", found=f"a JSON {type(value).__name__}", expected="an object with named fields"
        )
    return Record(value, place, encoding)


def _csv_rows(file: Path, delimiter: str) -> Iterator[Record]:
    with open_text(file, newline="") as (text, encoding):
        rows = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            for row in rows:
                place = f"{file}:{rows.line_num}"
                if None in row:  # under this key DictReader puts what the header has no name for
                    raise csv.Error(f"more than the {len(rows.fieldnames or ())} fields of the header")
                yield Record(row, place, encoding)
        except csv.Error as error:
            raise FileError(f"{file} is not valid CSV: line {rows.line_num}", found=str(error)) from error


def _parquet_rows(file: Path, begin: int, end: int | None) -> Iterator[Record]:
    parquet = open_parquet(file)
    for group in range(begin, parquet.num_row_groups if end is None else end):
        number = 0
        for batch in _batches(file, parquet, group):
            for row in batch.to_pylist():
                number += 1
                yield Record(row, f"{file}@group {group}, row {number}")


def _batches(file: Path, parquet: Any, group: int) -> Iterator[Any]:
    try:
        yield from parquet.iter_batches(batch_size=256, row_groups=[group])
    except (_pyarrow(file).ArrowException, OSError) as error:
        raise FileError(f"{file} is damaged in row group {group}", found=str(error).splitlines()[0]) from error


def open_parquet(file: Path) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile`; raises `FileError` where it is none."""
    arrow = _pyarrow(file)
    try:
        return arrow.parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise FileError(f"{file} is not a Parquet file", found=str(error)) from error


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FileError(f"{file} needs a library", run="pip install 'yangtuo[prepare]'") from error
    return pyarrow
