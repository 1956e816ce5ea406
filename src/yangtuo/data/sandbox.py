"""Chat templates from outside, rendered within bounds: on steps, on sizes, and without reach into Python.

A template is a program that a stranger wrote. Jinja's sandbox keeps it from everything but its arguments; here it also
gets a budget of steps (turns of loops, calls) and a limit on every text it makes, so that it ends. This module knows
nothing of messages.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yangtuo.errors import DataError

_MAX_STEPS = 1_000_000
_MAX_LENGTH = 10_000_000  # characters or elements of anything made
_MAX_NUMBER = 100_000  # as an argument: widths, counts
_MAX_BITS = 4096  # of a whole number
_MAX_SOURCE = 1 << 20  # characters of a template
_WIDTH = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*")  # in a format
# What a template's code raises on arguments that it did not expect; RuntimeError is that of endless recursion.
FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)

_left: ContextVar[list[int]] = ContextVar("steps left")


def compile_template(source: str) -> jinja2.Template:
    """The template of a Jinja source; raises `DataError` where it is none."""
    if len(source) > _MAX_SOURCE:
        raise DataError(
            "the chat template is too long", found=f"{len(source):,} characters", expected=f"{_MAX_SOURCE:,}"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"the chat template is not valid Jinja: {error.message}", found=f"line {error.lineno}"
        ) from error
    except (*FAILURES, SyntaxError, MemoryError) as error:
        raise DataError("the chat template is not valid Jinja", found=f"{type(error).__name__}: {error}") from error


def render(template: jinja2.Template, **values: Any) -> str:
    """What a template makes of its arguments; raises `DataError` where it fails or goes beyond its bounds."""
    token = _left.set([_MAX_STEPS])
    parts, length = [], 0
    try:
        for part in template.generate(**values):
            length += len(part)
            if length > _MAX_LENGTH:
                raise SecurityError(f"more than {_MAX_LENGTH:,} characters")
            parts.append(part)
    except (*FAILURES, MemoryError) as error:
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"the chat template cannot write these messages: {reason[:300]}") from error
    finally:
        _left.reset(token)
    return "".join(parts)


class _Bounded(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("**", "*", "%", "+"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            _refuse_beyond(bits, _MAX_BITS, "bits in a number")
        elif operator == "*":
            sizes = [len(side) if hasattr(side, "__len__") else side for side in (left, right)]
            if all(isinstance(size, int) for size in sizes):
                _refuse_beyond(sizes[0] * sizes[1], _MAX_LENGTH, "characters or elements")
        return _sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in Jinja
        _spend(1)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # the sandbox wraps str.format
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name in ("format", "format_map"):
                _check_format(owner)
            _check_growth(name, owner, args)
        _check_arguments(args, kwargs, name)
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        for loop in list(source.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "counted")
        for node in list(source.find_all(nodes.Concat)):
            node.nodes = [_filtered(nodes.Concat(node.nodes, lineno=node.lineno), "sized")]
        return super()._generate(source, *args, **options)


@functools.cache
def _environment() -> _Bounded:
    environment = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.filters = {name: _guarded(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"counted": _counted, "sized": _sized}
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    del environment.globals["lipsum"]
    return environment


def _refuse(message: str) -> NoReturn:
    raise DataError(f"the chat template refuses these messages: {message}")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _spend(1)
        _check_arguments(args[1:], kwargs, name)
        texts = [argument for argument in args if isinstance(argument, str)]
        if name == "format" and texts:
            _check_format(texts[0])
        if texts:
            _check_growth(name, texts[0], texts[1:])
        return _sized(function(*args, **kwargs))

    return guarded


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(values: Any) -> Any:
    """What a loop goes over, paid for."""
    if hasattr(values, "__len__"):
        _spend(len(values))
        return values
    return _paid(values)


def _paid(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(1)
        yield value


def _spend(steps: int) -> None:
    left = _left.get(None)
    if left is not None:
        left[0] -= steps
        if left[0] < 0:
            raise SecurityError(f"more than {_MAX_STEPS:,} steps")


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict):
        _refuse_beyond(len(value), _MAX_LENGTH, "characters or elements")
    return value


def _check_arguments(args: Iterable[Any], kwargs: dict[str, Any], name: str) -> None:
    if name in ("range", "raise_exception"):
        return  # the sandbox bounds the one, and the other ends all
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, int):
            _refuse_beyond(abs(argument), _MAX_NUMBER, "as an argument")


def _check_growth(name: str, text: str, args: Iterable[Any]) -> None:
    """A text that another is put into many times."""
    texts = [argument for argument in args if isinstance(argument, str)]
    if name == "replace" and len(texts) == 2:
        _refuse_beyond(len(text) + text.count(texts[0]) * len(texts[1]), _MAX_LENGTH, "characters")


def _check_format(text: str) -> None:
    if _WIDTH.search(text):
        raise SecurityError("a format wider than a line")


def _refuse_beyond(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise SecurityError(f"more than {limit:,} {what}")
