"""What options are made of: marks, value types, and the base of every verb's config class.

`INPUT` marks a path whose *content* decides the result, `DATA` one whose hub id is that of a data set, `HOW` an option
that changes how the work is done but not what comes out, `COMMAND` one that a step of a recipe cannot have. This module
knows no verb.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from cyclopts import Parameter, validators

from yangtuo.errors import ConfigError

INPUT = "input"
DATA = "data"
HOW = "how"
COMMAND = "command"

InputPath = Annotated[str, INPUT]
InputPaths = Annotated[tuple[str, ...], INPUT, Parameter(negative="")]
DataPaths = Annotated[tuple[str, ...], INPUT, DATA, Parameter(negative="")]
Words = Annotated[tuple[str, ...], Parameter(negative="")]


def whole(hint: Any, tokens: Sequence[Any]) -> int:  # noqa: ARG001  the form of cyclopts' converters
    """A whole number: 1.5 is none, though cyclopts would take it for 1."""
    text: str = tokens[0].value
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise ValueError(f"{text} is not a whole number")
    return int(text)


def _finite(hint: Any, value: float | None) -> None:  # noqa: ARG001  the form of cyclopts' validators
    if value is not None and not math.isfinite(value):
        raise ValueError("Must be a finite number")


NO_OUTPUT = Path(os.devnull)
"""The output of a dry run that names none."""
OutputUnlessDry = Annotated[Path, Parameter(show_default=False)]

_MOST = 2**31 - 1
Positive = Annotated[int, Parameter(converter=whole, validator=validators.Number(gt=0, lte=_MOST))]
NonNegative = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lte=_MOST))]
Seed = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lt=2**32))]
PositiveFloat = Annotated[float, Parameter(validator=(validators.Number(gt=0, lte=_MOST), _finite))]
NonNegativeFloat = Annotated[float, Parameter(validator=(validators.Number(gte=0, lte=_MOST), _finite))]
Share = Annotated[float, Parameter(validator=(validators.Number(gte=0, lt=1), _finite))]


@dataclass(frozen=True)
class Option:
    """One option of a verb, as the rest of the package sees it."""

    name: str
    is_input: bool
    is_data: bool
    shapes_result: bool
    in_recipes: bool


@dataclass(frozen=True)
class Source:
    """A reference as users write it: `[NAME=]PATH[:WEIGHT]`."""

    path: str
    name: str
    weight: float
    is_named: bool = dataclasses.field(default=False, compare=False)
    """Whether the user gave the name."""


def is_address(reference: str) -> bool:
    """Whether a reference names a server, and no file."""
    return reference.startswith(("http://", "https://"))


def split_source(text: str) -> Source:
    """Splits `[NAME=]PATH[:WEIGHT]`; the name defaults to the path's stem or a server's address, the weight to 1."""
    named = re.fullmatch(r"([\w.+-]+)=(.+)", text)
    name, rest = (named[1], named[2]) if named else ("", text)
    if is_address(rest):
        return Source(rest, name or urlsplit(rest).fragment or urlsplit(rest).netloc, 1.0, bool(name))
    weighted = re.fullmatch(r"(.+):(\d+(?:\.\d+)?|\.\d+)", rest)
    path, weight = (weighted[1], float(weighted[2])) if weighted else (rest, 1.0)
    return Source(path, name or Path(path).name.split(".")[0], weight, bool(name))


def split_sources(option: str, references: Sequence[str]) -> list[Source]:
    """Splits what stood behind the flag `option`; raises `ConfigError` where two have one name."""
    sources = [split_source(reference) for reference in references]
    twice = sorted(name for name, number in Counter(source.name for source in sources).items() if number > 1)
    if twice:
        raise ConfigError(
            f"every {option} needs a name of its own",
            found=f"several named {', '.join(twice)}",
            expected="a name before each path",
            run=f"the same command with {option} FIRST=PATH {option} SECOND=PATH",
        )
    return sources


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What all verbs that write an artifact share."""

    verb: ClassVar[str]
    following: ClassVar[str] = ""
    """The command that usually comes next; names in braces are the verb's options, {beside} the output's directory."""

    def __post_init__(self) -> None:
        """Expands `~` in paths, as a shell does where it sees one: it sees none behind `--output=`, nor in a recipe."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                try:
                    object.__setattr__(self, field.name, value.expanduser())
                except RuntimeError as error:
                    raise ConfigError(f"{value} names no home directory", found=str(error)) from error

    @classmethod
    def options(cls) -> list[Option]:
        """The verb's options, without `output`, which names the result and does not shape it."""
        hints = typing.get_type_hints(cls, include_extras=True)
        marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
        return [
            Option(
                name=field.name,
                is_input=INPUT in marks[field.name],
                is_data=DATA in marks[field.name],
                shapes_result=HOW not in marks[field.name],
                in_recipes=COMMAND not in marks[field.name],
            )
            for field in dataclasses.fields(cls)
            if field.name != "output"
        ]

    def input_references(self) -> dict[str, tuple[str, ...]]:
        """Option name -> the references `[NAME=]PATH[:WEIGHT]` given for it, for every input that was given."""
        values = {option.name: getattr(self, option.name) for option in self.options() if option.is_input}
        return {
            name: value if isinstance(value, tuple) else (str(value),)
            for name, value in values.items()
            if value is not None
        }

    def next_command(self, result: Mapping[str, Any]) -> str | None:  # noqa: ARG002  what came of it, for some verbs
        """The command that usually comes next, ready to type but for words in capitals; None where there is none."""
        if getattr(self, "dry_run", False):
            return "the same command with --output NAME instead of --dry-run"
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        beside = Path(values["output"]).parent if values.get("output") is not None else Path()
        quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
        return self.following.format(**quoted, beside=shlex.quote(str(beside))) or None

    def output_path(self) -> Path:
        """The artifact that this config makes; raises `ConfigError` where none is named, and it is no dry run."""
        output = Path(getattr(self, "output"))  # noqa: B009  a verb without output has no artifact
        if output == NO_OUTPUT and not getattr(self, "dry_run", False):
            raise ConfigError(
                f"yangtuo {self.verb} needs --output",
                expected="a free name for what is made, or --dry-run, which makes nothing",
                run=f"yangtuo {self.verb} --help",
            )
        return output

    def to_dict(self) -> dict[str, Any]:
        """All options as plain JSON values."""
        values = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_size(text: str) -> int:
    """Bytes of a size such as `500MB`, `2GB` (powers of 1000) or `2GiB` (powers of 1024)."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"{text!r} is not a size", expected="a number and a unit, such as 500MB or 2GB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of `I/N`, such as 2/8; raises `ConfigError` where it is none."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"{text!r} is not a share of the work", expected="I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def shard_path(output: Path, number: int, count: int) -> Path:
    """Where share `number` of `count` of the work for `output` stands."""
    return output.with_name(f"{output.name}.shard-{number}-of-{count}")
