"""What strangers wrote is read once, in one way: whatever is wrong with it is told with file and place, and soon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.errors import FileError, UserError


class Shape(TypedDict, total=False):
    layers: Annotated[int, Field(ge=1, le=100)]
    names: list[str]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000, "recursion limit"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number out of range"),
        (b'{"a": "\\ud83d"}', "hex escape"),
        (b'{"a": 1', "line 1 column 7"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b'"\xff"', "unicode"),
        (b"  ", "an empty file"),
        (b"[]", "should be an object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_its_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(FileError, match=reason) as caught:
        files.read_json(file)
    assert str(file) in str(caught.value)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xe7\xbe\x8a"}')
    assert files.read_json(file) == {"a": "羊"}


@pytest.mark.parametrize("value", ['"3"', "1.5", "true", "0", "101", "null", "[1]"])
def test_a_value_of_another_type_is_named_by_its_place(value: str) -> None:
    with pytest.raises(FileError, match="layers: Input should be"):
        files.check(files.parse_json(f'{{"layers": {value}}}', "x"), "x", Shape)


def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)  # sparse: only whoever reads it notices
    with pytest.raises(FileError, match="too large"):
        files.read_json(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "beyond bounds"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ), "beyond bounds"),
        ("a: " + "[" * 1000, "nested too deep"),
        ("steps: {x: 1, x: 2}", "names 'x' twice"),
        ("a: !!python/object/apply:os.getpid []", "tag"),
        ("a: 2020-13-45", "month"),
        ("a: " + "9" * 5000, "digits"),
        ("a: [", "expected the node content"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_used_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        files.parse_yaml(text, "recipe.yaml")
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("merge: {adapter: [${pretrain}]}", r'quotes around references.*\["\$\{convert\}"\], in line 1'),
        ("merge: {base: ${convert}}", "quotes around references"),
        ("data: [\n  a,\n  ${prepare}:0.1,\n]", "quotes around references.*in line 3"),
        ("a:\n\tb: 1", "spaces, not tabs, in line 2"),
        ("a:\n  b: 1\n\tc: 2", "spaces, not tabs, in line 3"),
        ("steps:\n  convert:\n    source:x\n    dtype: y", "a space after the colon, in line 3"),
        ("steps:\n  convert:\n    dtype: y\n    source:x\n", "a space after the colon, in line 4"),
        ("steps:\n  convert：\n    source: x", "an ASCII colon and a space, in line 2"),
        ("a: @x", "quotes around the value in line 1"),
        ("a: b: c", "quotes around the value in line 1"),
        ("a: {x: 1,\n  x: 2}", "in lines 1 and 2"),
    ],
)
def test_a_mistake_in_yaml_is_told_with_its_cure(text: str, meant: str) -> None:
    with pytest.raises(UserError, match=meant):
        files.parse_yaml(text, "recipe.yaml")


def test_yaml_may_name_what_it_repeats() -> None:
    assert files.parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "r")["b"] == {"x": 1, "y": 2}


def test_only_a_regular_file_is_an_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none", Path("/dev/null"), Path("a\0b"), tmp_path / ("n" * 300)):
        with pytest.raises(FileError):
            files.open_input(path)


def test_a_file_that_was_never_written_to_its_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[]")
    os.truncate(path, 64 << 30)
    with pytest.raises(FileError, match=r"rows\.json is not whole") as caught:
        hash_file(path)
    assert "bytes that were never written" in str(caught.value.found)
    os.truncate(path, 64 << 20)
    files.refuse_hole(path)


def test_a_name_that_is_no_text_is_refused_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/b\xff.txt")).write_text("x")
    with pytest.raises(FileError, match=r"b\\xff\.txt is not UTF-8"):
        files.walk(tmp_path)
