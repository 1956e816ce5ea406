"""Files to decoded text and records: suffixes, compression, encodings, JSON, CSV, Parquet.

Text is UTF-8 (with or without its mark), UTF-16 with its mark, GB18030 or Big5; which one is found out and handed on,
for the caller to say. This module does not know what a document or a conversation is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from yangtuo.errors import DataError, FileError

TEXT_SUFFIXES = (".txt", ".md")
RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_PLAUSIBLE = 0.7  # share of characters in the frequent half of a legacy encoding that makes it believable
_SCORED = 1 << 16  # characters looked at for that


@dataclass(frozen=True)
class Record:
    """One row of a file, and where it stands there, such as `data.jsonl:12`."""

    values: dict[str, Any]
    place: str


def suffix(file: Path) -> str:
    """The suffix that says the format, lower case, without .gz or .zst."""
    inner = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return inner.suffix.lower()


def is_compressed(file: Path) -> bool:
    """Whether the file's name ends in .gz or .zst."""
    return file.suffix.lower() in COMPRESSED


def list_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files at `path` that end in one of `suffixes` (compressed or not), sorted; hidden ones are left out.

    Raises `FileError` where nothing is there and `DataError` where no file is of a known format.
    """
    if not path.exists():
        raise FileError(f"{path} does not exist", expected="a file or a directory of files")
    if path.is_file():
        found = [path]
    else:
        below = sorted(path.rglob("*"))
        found = [file for file in below if file.is_file() and not _is_hidden(file.relative_to(path))]
    known = [file for file in found if suffix(file) in suffixes]
    if not known:
        raise DataError(
            f"{path} holds no file of a format that can be read",
            found=", ".join(sorted({file.suffix or file.name for file in found})) or "an empty directory",
            expected=" ".join(suffixes) + ", or one of these with .gz or .zst behind it",
        )
    return known


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed as they are read."""
    with file.open("rb") as raw:
        if file.suffix.lower() == ".gz":
            with gzip.open(raw) as stream:
                yield stream  # type: ignore[misc]
        elif file.suffix.lower() == ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise FileError(f"{file} needs a library", run="pip install 'yangtuo[prepare]'") from error
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield io.BufferedReader(stream)
        else:
            yield raw


def decode(data: bytes, place: str) -> tuple[str, str]:
    """The text of `data` and the name of its encoding; raises `FileError` where it is none of those known."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding.removesuffix("-sig")
            except UnicodeDecodeError as error:
                raise _undecodable(place, data, error.start, encoding) from error
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        scores = {encoding: _plausibility(data, encoding) for encoding in ("gb18030", "big5hkscs")}
        best = max(scores, key=lambda encoding: scores[encoding])
        if scores[best] < _PLAUSIBLE:
            raise _undecodable(place, data, error.start, "UTF-8") from error
        return data.decode(best), best


def _plausibility(data: bytes, encoding: str) -> float:
    """The share of two-byte characters that lie in the half of the encoding meant for frequent ones; 0 if invalid."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    first, last = (0xB0, 0xD7) if encoding == "gb18030" else (0xA4, 0xC6)
    wide = [char for char in text[:_SCORED] if ord(char) >= 0x2E80 and not 0x3000 <= ord(char) < 0x3040]
    han = [char for char in wide if not 0xFF00 <= ord(char) < 0xFFEF]
    frequent = sum(first <= char.encode(encoding)[0] <= last and len(char.encode(encoding)) == 2 for char in han)
    return frequent / len(han) if han else 0.0


def _undecodable(place: str, data: bytes, at: int, encoding: str) -> FileError:
    line = data.count(b"\n", 0, at) + 1
    return FileError(
        f"{place} is not {encoding.upper()} text",
        found=f"byte 0x{data[at]:02x} at offset {at}, line {line}; GB18030 and Big5 do not fit either",
        expected="UTF-8, UTF-16 with a byte order mark, GB18030 or Big5",
        run=f"iconv -f ENCODING -t UTF-8 {place}",
    )


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
    for number, (offset, line) in enumerate(read_lines(file, begin, end), 1):
        if line.isspace():
            continue
        text, _ = decode(line, str(file))
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            at = number + _num_lines_before(file, begin)
            raise _malformed(file, at, error.colno, error.msg) from error
        # An offset is a place too, and costs nothing to know within a range.
        yield _record(value, f"{file}:{number}" if begin == 0 else f"{file}@{offset}")


def _num_lines_before(file: Path, begin: int) -> int:
    if begin == 0:
        return 0
    return sum(1 for _ in read_lines(file, 0, begin))


def _json_values(file: Path) -> Iterator[Record]:
    with open_bytes(file) as stream:
        text, _ = decode(stream.read(), str(file))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # JSON lines under the name .json
            yield from _json_lines(file, 0, None)
            return
        raise _malformed(file, error.lineno, error.colno, error.msg) from error
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        yield _record(row, f"{file}#{number}")


def _malformed(file: Path, line: int, column: int, reason: str) -> FileError:
    return FileError(
        f"{file} is not valid JSON: line {line}, column {column}",
        found=reason,
        expected="a JSON list of objects, or one JSON object on each line",
    )


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{place} is not a row", found=f"a JSON {type(value).__name__}", expected="an object with named fields"
        )
    return Record(value, place)


def _csv_rows(file: Path, delimiter: str) -> Iterator[Record]:
    with open_bytes(file) as stream:
        encoding = decode(stream.read(_SCORED).rpartition(b"\n")[0], str(file))[1]
    with open_bytes(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")
        rows = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            for row in rows:
                yield Record({str(key): value for key, value in row.items()}, f"{file}:{rows.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileError(f"{file} is not valid CSV: line {rows.line_num}", found=str(error)) from error


def _parquet_rows(file: Path, begin: int, end: int | None) -> Iterator[Record]:
    parquet = open_parquet(file)
    for group in range(begin, parquet.num_row_groups if end is None else end):
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, row_groups=[group]):
            for row in batch.to_pylist():
                number += 1
                yield Record(row, f"{file}@group {group}, row {number}")


def open_parquet(file: Path) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile`; raises `FileError` where it is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FileError(f"{file} needs a library", run="pip install 'yangtuo[prepare]'") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise FileError(f"{file} is not a Parquet file", found=str(error)) from error
