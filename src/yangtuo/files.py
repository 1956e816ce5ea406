"""The one way to open what strangers wrote: input files, and JSON and YAML of bounded size, depth and types.

An input is a regular file that can be read; whatever keeps it from being one is the user's to mend and is said with
the file's name. JSON is parsed by pydantic's parser, which bounds depth and digits, and checked against a type; YAML
is bounded before it is built, since aliases multiply. This module knows nothing of what the files mean.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, overload

import yaml
from pydantic import TypeAdapter, ValidationError

from yangtuo.errors import ConfigError, FileError, OutputError, UserError

SMALL = 16 << 20
"""Bytes of a file that people or tools write by hand: configs, manifests, recipes, templates."""
LARGE = 128 << 20
"""Bytes of the largest files that are read whole: tokenizers and lists of rows."""
MAX_COUNT = 10_000_000
"""The largest number of rows, tokens or positions that a file may claim; vocabularies end below 300,000."""
MAX_LAYERS = 10_000
_HOLE = 1 << 30  # bytes of zeros that no file has for a reason

_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_DEPTH = 100  # of YAML
_MAX_NODES = 100_000  # of YAML, every alias counted as what it stands for

T = TypeVar("T")

# What an operating system says about a name or a place that the user gave; anything else is a fault of ours.
_THE_USERS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP", "EROFS"),
        *("ENOSPC", "EDQUOT", "EFBIG", "EMFILE", "ENFILE", "ENOLCK", "EIO", "ENXIO", "EBUSY", "ETXTBSY", "ESTALE"),
        *("EXDEV", "EMLINK", "ENODEV", "EILSEQ", "EOPNOTSUPP"),
    )
}
_LIMITS = {errno.EMFILE: "raise `ulimit -n`", errno.ENFILE: "raise `ulimit -n`", errno.EFBIG: "raise `ulimit -f`"}


def open_input(path: Path) -> BinaryIO:
    """Opens a regular file for reading; raises `FileError` where there is none or it cannot be read."""
    check_input(path)
    try:
        # A name may be replaced between check and open: this open waits for no pipe.
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise cannot_read(path, error) from error


def check_input(path: Path) -> int:
    """The size of the regular file `path` in bytes; raises `FileError` where it is none."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise FileError(f"{path} is not a file", found=kind, expected="a regular file")
    return status.st_size


def cannot_read(path: Path | str, error: OSError | ValueError) -> FileError:
    """The error that says why an input cannot be opened."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FileError(f"{path} cannot be read", found=reason, expected="a file that you may read")


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The content of a file of at most `limit` bytes; raises `FileError` for larger ones and for Git LFS pointers."""
    with open_input(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise cannot_read(path, error) from error
    if len(data) > limit:
        check_limit(path, path.stat().st_size, limit)
    if data.startswith(_LFS):
        raise lfs_pointer(path)
    return data


def check_limit(path: Path, size: int, limit: int) -> None:
    """Raises `FileError` where a file of `size` bytes is larger than `limit`."""
    if size > limit:
        raise FileError(f"{path} is too large", found=f"{size:,} bytes", expected=f"at most {limit:,}")


def refuse_pointer(path: Path) -> None:
    """Raises `FileError` where a Git LFS pointer stands instead of the file."""
    with open_input(path) as file:
        if file.read(len(_LFS)) == _LFS:
            raise lfs_pointer(path)


def refuse_hole(path: Path) -> None:
    """Raises `FileError` for a file in which a long stretch was never written: reading its zeros would take hours."""
    size = check_input(path)
    if size < _HOLE or not hasattr(os, "SEEK_HOLE"):
        return
    with path.open("rb") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        while start < size:
            try:
                end = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # nothing but the hole up to the end
                end = size
            if end - start >= _HOLE:
                raise FileError(
                    f"{path} is not whole",
                    found=f"{end - start:,} bytes that were never written, from byte {start:,} on",
                    expected="a file that was downloaded or copied to its end",
                )
            start = os.lseek(file.fileno(), end, os.SEEK_HOLE) if end < size else size


def lfs_pointer(path: Path) -> FileError:
    """The error for a file that Git LFS has not fetched."""
    return FileError(
        f"{path} is a Git LFS pointer, not the file",
        found="a clone without its large files",
        expected="the file itself",
        run=f"git -C {path.parent} lfs pull",
    )


def read_text(path: Path, limit: int = SMALL) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    return _decode(read_bytes(path, limit), str(path))


@overload
def read_json(path: Path, *, limit: int = SMALL) -> dict[str, Any]: ...


@overload
def read_json(path: Path, schema: type[T], limit: int = SMALL) -> T: ...


def read_json(path: Path, schema: Any = dict[str, Any], limit: int = SMALL) -> Any:
    """The content of a JSON file as `schema`; raises `FileError` with file and place where it is malformed."""
    return parse_json(read_bytes(path, limit), str(path), schema)


@overload
def parse_json(data: bytes | str, where: str) -> dict[str, Any]: ...


@overload
def parse_json(data: bytes | str, where: str, schema: type[T]) -> T: ...


def parse_json(data: bytes | str, where: str, schema: Any = dict[str, Any]) -> Any:
    """A JSON text as `schema`, any type that pydantic checks, strictly; `where` names it in errors."""
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data.removeprefix(codecs.BOM_UTF8)
    try:
        return _adapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        raise _misfits(where, text, error) from error


def check(value: Any, where: str, schema: type[T]) -> T:
    """A value that was read before, as `schema`, strictly; raises `FileError` with what does not fit.

    Keys that a `TypedDict` does not name are let through, and left out of what is returned.
    """
    try:
        checked: T = _adapter(cast(Hashable, schema)).validate_python(value, strict=True)
    except ValidationError as error:
        raise _misfits(where, b"", error) from error
    return checked


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as plain values: no tag makes an object, no key stands twice, no alias multiplies without bound."""
    try:
        _refuse_depth_and_tags(text, where)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_growth(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise FileError(
            f"{where} is not YAML that can be read", found=reason[:300], expected=_meant(text, error)
        ) from error


def missing_space(text: str) -> str | None:
    """The first line of a YAML text that YAML takes for a word where a key and its value were meant, in words."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*([^\W\d][\w-]*)(：\s*|:(?!//)(?=[^\s:]))", line):
            colon = "an ASCII colon and a space" if match[2][0] == "：" else "a space after the colon"
            return f"`{match[1]}: value`, with {colon}, in line {number}"
    return None


def _meant(text: str, error: Exception) -> str:
    """What is expected where a YAML text cannot be read: the cure of the mistakes that are made by hand."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "plain YAML"
    number = error.problem_mark.line + 1
    lines, problem = [*text.splitlines(), ""], error.problem or ""
    line = lines[min(number, len(lines)) - 1]
    if "got '{'" in problem and "${" in line:
        return f'quotes around references inside [ ] and {{ }}, such as ["${{convert}}"], in line {number}'
    if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
        return f"spaces, not tabs, in line {number}"
    if space := missing_space(text):
        return space
    if "cannot start any token" in problem or "mapping values" in problem:
        return f"quotes around the value in line {number}, or the indentation of the lines around it"
    return f"plain YAML; see line {number}"


def walk(directory: Path, without: str | None = None) -> list[Path]:
    """All files below `directory`, sorted, but for those in directories that hold a file named `without`.

    Raises `FileError` where a part cannot be listed or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise cannot_read(error.filename or directory, error) from error

    paths = []
    for place, folders, names in os.walk(directory, onerror=refuse):
        for name in (*folders, *names):
            refuse_name(os.path.join(place, name))  # noqa: PTH118  a name that is no text makes no message of a Path
        if without in names and Path(place) != directory:
            folders.clear()
            continue
        paths += [path for path in (Path(place, name) for name in names) if path.is_file()]
    return sorted(paths)


def refuse_name(name: str) -> None:
    """Raises `FileError` for a file's name that is no text, which neither JSON nor a message can hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise FileError(f"the name {shown} is not UTF-8", expected="a name in UTF-8", run="mv, to rename it") from error


def explain(error: OSError) -> UserError | None:
    """What an operating system's error means to the user, or None where it can only be a fault of ours."""
    if error.errno not in _THE_USERS:
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    return OutputError(f"{where}{error.strerror}", run=_LIMITS.get(error.errno or 0))


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte {data[error.start]:#04x} in line {line}"
        raise FileError(f"{where} is not UTF-8", found=found, expected="text in UTF-8", run="iconv -t UTF-8") from error


def _misfits(where: str, text: bytes, error: ValidationError) -> FileError:
    problems = error.errors(include_url=False, include_context=True)
    if problems[0]["type"] != "json_invalid":
        return FileError(f"{where} does not hold what it should", found="; ".join(map(_misfit, problems[:3])))
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reason = "UTF-16"
    else:
        reason = str(problems[0]["ctx"]["error"]) if text.strip() else "an empty file"
    return FileError(f"{where} is not JSON", found=reason, expected="JSON in UTF-8")


def _misfit(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{place} is missing"
    value = repr(problem["input"])
    return f"{place + ': ' if place else ''}{problem['msg']}, not {value[:60]}{'…' if len(value) > 60 else ''}"


@lru_cache(maxsize=64)
def _adapter(schema: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, schema))


def _refuse_depth_and_tags(text: str, where: str) -> None:
    """The parser builds nested nodes by recursion; its events come one by one. Tags say how to build, which we know."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if tag := getattr(event, "tag", None):
            raise FileError(f"{where} holds the tag {tag}", expected="plain YAML, without tags")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise FileError(f"{where} is nested too deep", expected=f"at most {_MAX_DEPTH} levels")


def _refuse_growth(root: yaml.Node, where: str) -> None:
    """Counts what would be built, aliases as often as they stand there, without building it."""
    sizes: dict[int, int] = {}
    pending: list[tuple[yaml.Node, bool]] = [(root, False)]
    while pending:
        node, counted = pending.pop()
        if counted:
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > _MAX_NODES:
                raise FileError(f"{where} would grow beyond bounds", expected=f"at most {_MAX_NODES:,} values")
        elif id(node) not in sizes:
            sizes[id(node)] = _MAX_NODES + 1  # an alias inside of what it stands for would never end
            _refuse_twins(node, where)
            pending += [(node, True), *((child, False) for child in _children(node))]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_twins(node: yaml.Node, where: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            raise ConfigError(
                f"{where} names {key.value!r} twice in one mapping",
                found=f"in lines {seen[key.value]} and {line}",
                expected="names that differ: of two, YAML would take the last and say nothing",
            )
        seen[key.value] = line
