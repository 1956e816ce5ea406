"""Rows as people have them become conversations: shapes are known by their keys, or told by `--columns`.

Alpaca, Dolly, prompt and completion, ShareGPT as LLaMA-Factory writes it, OpenAI's messages with tools. Keys beside
those of a shape are ignored. How a prompt is written is the template's affair.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yangtuo.data.records import Record
from yangtuo.data.template import Message, Role
from yangtuo.errors import ConfigError, DataError

_HALVES = re.compile("[\ud800-\udfff]")
_EMPTY_LINES = re.compile(r"^(?:[^\S\n]*\n)+")
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
_CALLS = ("function_call", "tool_call")
_GIVEN_ON = ("reasoning_content", "name", "tool_call_id")
_COLUMNS = ("question", "answer", "system", "input", "history")


@dataclass(frozen=True)
class Conversation:
    """Messages, and the descriptions of the tools that the assistant may call."""

    messages: list[Message]
    tools: list[Any] = field(default_factory=list)


class UnusableError(Exception):
    """A row that is dropped and counted, never shown to a user; its text is the reason."""


@dataclass(frozen=True)
class Shape:
    """A known form of rows."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Conversation]


def text_of(value: Any) -> str:
    """A field as text: no trailing whitespace or empty lines before it, but the indentation of its first line.

    Nothing, and JSON's NaN, which a table's missing cells become, are no text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        if _HALVES.search(value):
            raise UnusableError("half a character, as cut emoji leave it")
        text = _EMPTY_LINES.sub("", value).rstrip()
        return text[1:] if re.match(r" \S", text) else text  # one space is how old completions begin
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UnusableError("a field is not text")


def _pair(question: str, answer: str, *more: str) -> Callable[[dict[str, Any]], Conversation]:
    """Reads rows of a question, what is added to it in the columns `more`, and an answer."""

    def read(row: dict[str, Any]) -> Conversation:
        asked, answered = row[question], row[answer]
        if _are_messages(asked) or _are_messages(answered):
            messages = _as_messages(asked, "user") + _as_messages(answered, "assistant")
            return _from_messages(messages, row)
        turns = _history(row.get("history"))
        turns.append(Message("user", _joined(text_of(asked), *(text_of(row.get(key)) for key in more))))
        turns.append(Message("assistant", text_of(answered)))
        return Conversation(_with_system(row.get("system", row.get("system_prompt")), turns))

    return read


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _as_messages(value: Any, role: Role) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _history(pairs: Any) -> list[Message]:
    turns: list[Message] = []
    for pair in pairs or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UnusableError("history is not a list of pairs")
        turns += [Message("user", text_of(pair[0])), Message("assistant", text_of(pair[1]))]
    return turns


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _with_system(value: Any, turns: list[Message]) -> list[Message]:
    system = text_of(value)
    if not system or (turns and turns[0].role == "system"):
        return turns
    return [Message("system", system), *turns]


def _from_messages(turns: Any, row: Mapping[str, Any]) -> Conversation:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnusableError("turns are not a list of objects")
    messages: list[Message] = []
    for turn in turns:
        message = _message(turn)
        if message.role == "assistant" and not any(earlier.role == "user" for earlier in messages):
            continue  # an answer to nothing, as many ShareGPT rows begin with
        if message.role == "system" and not message.content:
            continue  # the template's own then holds
        if messages and _can_join(messages[-1], message):
            message = Message(message.role, _joined(messages.pop().content, message.content), learned=message.learned)
        messages.append(message)
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return Conversation(_with_system(row.get("system"), messages), _tools(row.get("tools", row.get("functions"))))


def _can_join(earlier: Message, later: Message) -> bool:
    plain = not earlier.extra and not later.extra and earlier.learned == later.learned
    return plain and earlier.role == later.role != "tool"


def _message(turn: Mapping[str, Any]) -> Message:
    name = str(turn.get("role", turn.get("from")))  # both names are in use under both keys
    role = _ROLES.get(name.lower())
    if role is None:
        raise UnusableError(f"unknown role {name!r}")
    content = turn.get("content", turn.get("value"))
    extra = {key: turn[key] for key in _GIVEN_ON if turn.get(key)}
    calls = turn.get("tool_calls")
    if name.lower() in _CALLS:
        calls, content = _json(content, "a call of a function"), None
    if calls:
        extra["tool_calls"] = [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    counts = turn.get("weight", 1) != 0 and turn.get("train", True) is not False and turn.get("loss", True) is not False
    return Message(role, _content(content), extra, learned=counts)


def _content(value: Any) -> str:
    """A message's text, which may come in parts."""
    if not isinstance(value, list):
        return text_of(value)
    parts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise UnusableError("a message with pictures or sounds")
        parts.append(text_of(part.get("text")))
    return _joined(*parts)


def _call(call: Any) -> dict[str, Any]:
    """A call as chat templates take it, whose arguments are an object and not its JSON."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or "name" not in inner:
        raise UnusableError("a call of a function without a name")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    arguments = _json(arguments, "arguments of a function")
    known = {key: call[key] for key in ("id",) if call.get(key)}
    return {**known, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def _tools(value: Any) -> list[Any]:
    tools = _json(value, "descriptions of tools") if value else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableError("tools are not a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{what} that is not JSON") from error


SHAPES = (
    Shape("messages", ("messages",), lambda row: _from_messages(row["messages"], row)),
    Shape("ShareGPT", ("conversations",), lambda row: _from_messages(row["conversations"], row)),
    Shape("ShareGPT", ("conversation",), lambda row: _from_messages(row["conversation"], row)),
    Shape("Alpaca", ("instruction", "output"), _pair("instruction", "output", "input")),
    Shape("Dolly", ("instruction", "response"), _pair("instruction", "response", "context", "input")),
    Shape("prompt/completion", ("prompt", "completion"), _pair("prompt", "completion")),
    Shape("prompt/response", ("prompt", "response"), _pair("prompt", "response")),
    Shape("query/response", ("query", "response"), _pair("query", "response")),
    Shape("question/answer", ("question", "answer"), _pair("question", "answer", "context")),
    Shape("question/response", ("question", "response"), _pair("question", "response", "context")),
    Shape("instruct", ("instruct", "answer"), _pair("instruct", "answer", "query")),
    Shape("PromptCBLUE", ("input", "target"), _pair("input", "target")),
)
"""The known shapes, in the order in which they are tried."""


def read_columns(text: str | None) -> Shape | None:
    """The shape that `--columns question=…,answer=…` describes; raises `ConfigError` for what it is not."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    columns = {key.strip(): column.strip() for key, _, column in pairs}
    if not {"question", "answer"} <= columns.keys() <= set(_COLUMNS) or not all(columns.values()):
        raise ConfigError(
            f"--columns {text!r} cannot be read",
            expected="question=COLUMN,answer=COLUMN and, where there are such columns, system=, input=, history=",
        )

    def read(row: dict[str, Any]) -> Conversation:
        return _pair("question", "answer", "input")({key: row.get(column) for key, column in columns.items()})

    return Shape("columns", (columns["question"], columns["answer"]), read)


def recognise(record: Record, told: Shape | None = None) -> Shape:
    """The shape of a row, which may be `told`; raises `DataError` with the keys found and the shapes known."""
    known = SHAPES if told is None else (told,)
    for shape in known:
        if all(key in record.values for key in shape.keys):
            return shape
    keys = list(record.values)
    raise DataError(
        f"{record.place} has the shape of no known conversation",
        found="the keys " + (", ".join(keys) or "(none)"),
        expected="; ".join(f"{shape.name}: {', '.join(shape.keys)}" for shape in known),
        run="the same command with --columns question=COLUMN,answer=COLUMN" if keys else None,
    )


def require_usable(conversation: Conversation) -> None:
    """Raises `UnusableError` for a conversation that nothing can be learned from."""
    messages = conversation.messages
    if not any(message.role == "user" for message in messages) or messages[-1].role != "assistant":
        raise UnusableError("no answer")
    for message in messages:
        if not message.content and "tool_calls" not in message.extra and message.role != "tool":
            raise UnusableError("empty answer" if message.role == "assistant" else "empty question")
    if any(message.role == "system" for message in messages[1:]):
        raise UnusableError("a system message after the first")
    if not any(message.learned for message in messages if message.role == "assistant"):
        raise UnusableError("no answer that counts")
