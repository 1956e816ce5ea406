"""Files of every format and encoding give the same rows, a row at a time, and damage is named with its place."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yangtuo.data import json_values, records
from yangtuo.data.records import detect_encoding, read_records
from yangtuo.errors import DataError, FileError

pyarrow = pytest.importorskip("pyarrow", reason="Parquet and Zstandard need pyarrow, which is not installed here")

ROWS = [
    {"text": "道可道，非常道。\n名可名，非常名。", "source": "老子, 一"},
    {"text": 'She said "yes".', "source": ""},
    {"text": "學而時習之，不亦說乎？", "source": "論語"},
]
# Characters that Big5 has, enough of them to tell it from GB18030.
TRADITIONAL = "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？"
SIMPLIFIED = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"


def json_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def separated(delimiter: str) -> Callable[[list[dict[str, str]]], str]:
    def write(rows: list[dict[str, str]]) -> str:
        quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in rows]
        return "".join(delimiter.join(line) + "\r\n" for line in [list(rows[0]), *quoted])

    return write


FORMATS: dict[str, Callable[[list[dict[str, str]]], str]] = {
    ".jsonl": json_lines,
    ".json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=2),
    ".csv": separated(","),
    ".tsv": separated("\t"),
}


def compress(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    if name.endswith(".zst"):
        return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
    return data


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "big5hkscs"])
@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_the_same_in_every_clothing(kind: str, encoding: str, packed: str, tmp_path: Path) -> None:
    long = TRADITIONAL if encoding == "big5hkscs" else SIMPLIFIED
    rows = [{key: value.replace("论", "論") for key, value in row.items()} for row in ROWS] + [
        {"text": long, "source": "x"}
    ]
    file = tmp_path / f"rows{kind}{packed}"
    file.write_bytes(compress(FORMATS[kind](rows).encode(encoding), file.name))
    read = list(read_records(file))
    assert [record.values for record in read] == rows
    assert {record.encoding for record in read} == {encoding.removesuffix("-sig")}


def test_rows_of_parquet_files_by_row_groups(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(Table.from_pylist(ROWS), file, row_group_size=2)
    assert [record.values for record in read_records(file)] == ROWS
    assert [record.values for record in read_records(file, 1, 2)] == ROWS[2:]
    data = bytearray(file.read_bytes())
    data[4:40] = b"\xff" * 36
    file.write_bytes(data)
    with pytest.raises(FileError, match=r"rows.parquet is damaged in row group 0"):
        list(read_records(file))
    file.write_bytes(b"PAR1 is not all")
    with pytest.raises(FileError, match="is not a Parquet file"):
        list(read_records(file))


def test_ranges_of_json_lines_meet_without_gap_or_overlap(tmp_path: Path) -> None:
    """Parts of a corpus that several processes read must be the whole of it."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json_lines(ROWS * 5), encoding="utf-8")
    size = file.stat().st_size
    for step in (7, 64, 100):
        parts = [record.values for begin in range(0, size, step) for record in read_records(file, begin, begin + step)]
        assert parts == ROWS * 5


def test_json_values_one_behind_the_other(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS), encoding="utf-8")
    assert [record.values for record in read_records(file)] == ROWS
    file.write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert [record.values for record in read_records(file)] == ROWS[:1]
    for nothing in ("", "[]", " [ ] \n"):
        file.write_text(nothing, encoding="utf-8")
        assert list(read_records(file)) == []


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_no_window_cuts_a_value(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[Any] = [{"a": 'é\n\\"\u2028', "b": [1.5, True, None, -2e-7]}, {}, {"漢": {"x": [[]]}}, {"n": 12345}]
    for text in (json.dumps(values), json.dumps(values, indent=3), " \n".join(map(json.dumps, values))):
        monkeypatch.setattr(json_values, "_WINDOW", window)
        assert list(json_values.read_values(io.StringIO(text), Path("x"))) == values


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},\n {"a": }]',
        '[{"a": 1}\n {"a": 2}]',
        '[{"a": 1},\n\n  {"a": "x\n"}]',
        '[{"a": 1},\n {"a": 2}',
        '[{"a": 1},\n {"b": "never ends',
        '[{"a": 1},\n {"a": tru}]',
        '[{"a": 1}]\n  {"b": 2}',
        "[",
    ],
)
@pytest.mark.parametrize("window", [1, 9, 1000])
def test_malformed_json_is_placed_as_by_the_standard_library(
    text: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file of gigabytes, nobody finds the missing comma without line and column."""
    with pytest.raises(json.JSONDecodeError) as known:
        json.loads(text)
    monkeypatch.setattr(json_values, "_WINDOW", window)
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as error:
        list(read_records(file))
    place = f"{file} is not valid JSON: line {known.value.lineno}, column {known.value.colno}\n"
    assert str(error.value).startswith(place)


def test_malformed_lines_are_placed_in_the_file_not_in_the_range(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n{"a": }\n', encoding="utf-8")
    for begin in (0, 12):
        with pytest.raises(FileError, match=r"rows.jsonl is not valid JSON: line 4, column 7\n"):
            list(read_records(file, begin))
    file.write_text('{"a": 1}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl:2 is not a row\n.*a JSON list"):
        list(read_records(file))


def test_a_csv_row_with_too_many_fields_is_refused(tmp_path: Path) -> None:
    """A comma without quotes would shift every column behind it."""
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2\n3,4,5\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"not valid CSV: line 3\n.*more than the 2 fields"):
        list(read_records(file))
    file.write_text(f'a,b\n1,"{"long " * 40_000}"\n', encoding="utf-8")
    [record] = read_records(file)
    assert len(record.values["b"]) == 200_000


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_the_first_row_comes_before_the_end_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two terabytes must not go through memory as one."""
    file = tmp_path / name
    rows = [{"text": f"row {index} " + "x" * 1000} for index in range(3000)]
    # The end is malformed: whoever reads it stumbles.
    file.write_text(FORMATS[file.suffix](rows) + "\x00" + '{"' * 9, encoding="utf-8")
    monkeypatch.setattr(json_values, "_WINDOW", 4096)
    stream = read_records(file)
    assert [next(stream).values for _ in range(1000)] == rows[:1000]
    if name != "rows.csv":
        with pytest.raises(FileError, match="is not valid JSON"):
            list(stream)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_an_archive_that_was_cut_off_is_no_whole_one(packed: str, tmp_path: Path) -> None:
    """A broken download would otherwise be trained on as if it were all."""
    text = "".join(f'{{"text": "{index * 7919}"}}\n' for index in range(20_000)).encode()
    file = tmp_path / f"rows.jsonl{packed}"
    whole = compress(text, file.name)
    file.write_bytes(whole + whole)
    assert len(list(read_records(file))) == 40_000
    for damaged in (whole[:-3], whole[: len(whole) // 2], whole + whole[:100], b"x" * len(whole)):
        file.write_bytes(damaged)
        with pytest.raises(FileError, match=r"is damaged\n"):
            list(read_records(file))


@pytest.mark.parametrize(("encoding", "text"), [("gb18030", SIMPLIFIED), ("big5hkscs", TRADITIONAL), ("utf-8", "é")])
def test_the_encoding_shows_however_late(
    encoding: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first megabytes of a file may be English."""
    monkeypatch.setattr(records, "_CHUNK", 1000)
    file = tmp_path / "a.txt"
    for num_english in (0, 997, 998, 999, 1000, 5003):
        file.write_bytes(b"x" * num_english + (text * 40).encode(encoding) + b"tail")
        assert detect_encoding(file) == encoding


def test_damage_is_placed_by_offset_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_CHUNK", 64)
    file = tmp_path / "rows.jsonl"
    whole = json_lines([{"text": SIMPLIFIED}] * 40).encode()
    file.write_bytes(whole + b'{"text": "\xff"}\n')
    with pytest.raises(FileError, match=rf"not UTF-8 text\n.*byte 0xff at offset {len(whole) + 10}, line 41"):
        list(read_records(file))
    file = tmp_path / "rows.csv"
    whole = ("text\n" + (SIMPLIFIED + "\n") * 40).encode("gb18030")
    file.write_bytes(whole + b"\xb0\n")
    with pytest.raises(FileError, match=rf"not GB18030 text\n.*byte 0xb0 at offset {len(whole)}, line 42"):
        list(read_records(file))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for data in ("plain English".encode("utf-16-le"), bytes(range(256)) * 10, "中文".encode("utf-16-be")):
        file.write_bytes(data)
        with pytest.raises(FileError, match=r"a\.csv is not UTF-8 text"):
            list(read_records(file))


def test_descriptions_beside_rows_are_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data set of a hub brings a card and its schema."""
    for name in ("README.md", "dataset_infos.json", "data/a.jsonl", "data/.hidden.jsonl", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    suffixes = (*records.TEXT_SUFFIXES, *records.RECORD_SUFFIXES)
    assert records.list_files(tmp_path, suffixes) == [tmp_path / "data" / "a.jsonl"]
    assert "files of other formats are left out: .png\n" in capsys.readouterr().err
    assert records.list_files(tmp_path / "README.md", suffixes) == [tmp_path / "README.md"]
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "a.txt")
    assert tmp_path / "README.md" in records.list_files(tmp_path, suffixes)
