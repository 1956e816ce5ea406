"""Conversations to train on: rows of the known shapes become turns, dirt is dropped with an account, turns become ids.

Shapes are recognised by their keys; keys beside them are ignored. How a prompt is written is the template's affair;
how blocks lie on disk is `blocks`'.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from yangtuo.data import records
from yangtuo.data.blocks import write_packed
from yangtuo.data.records import Record, read_records
from yangtuo.data.sampling import choose
from yangtuo.data.template import Message, Role, Template
from yangtuo.errors import DataError

if TYPE_CHECKING:
    from yangtuo.vocab.encoding import Encoder

Conversation = list[Message]
Encoded = tuple[list[int], list[bool]]
"""Ids of a conversation, and which of them are learned."""

_EXAMPLES = 3
_HALVES = re.compile("[\ud800-\udfff]")
_EXCERPT = 60  # characters of a row shown as an example
_LEAST_QUESTION = 32  # characters of a question that stay while there is more of the answer to cut
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "bing", "bard", "model"), "assistant"),
}


@dataclass
class Account:
    """What became of the rows."""

    num_rows: int = 0
    num_kept: int = 0
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    """File -> name of a shape -> how many of its rows have it."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of rows."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> where the first such rows stand, and how they begin."""
    cut: Counter[str] = field(default_factory=Counter)
    """What was shortened to fit -> number of conversations."""

    def drop(self, reason: str, record: Record) -> None:
        """Counts a row that is not used."""
        self.dropped[reason] += 1
        if len(self.examples.setdefault(reason, [])) < _EXAMPLES:
            row = json.dumps(record.values, ensure_ascii=False, default=str).encode(errors="replace").decode()
            self.examples[reason].append(f"{record.place}: {row[:_EXCERPT]}" + "…" * (len(row) > _EXCERPT))

    def to_dict(self) -> dict[str, Any]:
        """The account as plain JSON values; rows = kept + the sum of dropped."""
        return {
            "rows": self.num_rows,
            "kept": self.num_kept,
            "shapes": {file: dict(counts) for file, counts in self.shapes.items()},
            "dropped": dict(self.dropped),
            "examples": self.examples,
            "cut": dict(self.cut),
        }


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """What `Account.to_dict` gives, in words: the shapes recognised, what was dropped with an example, what was cut."""
    lines = [f"{file}: {_counts(shapes)}" for file, shapes in account["shapes"].items()]
    lines.append(f"{account['kept']:,} of {account['rows']:,} rows are learned from")
    lines += [
        f"dropped: {number:,} {reason}, such as {account['examples'][reason][0]}"
        for reason, number in account["dropped"].items()
    ]
    return lines + ([f"shortened: {_counts(account['cut'])}"] if account["cut"] else [])


class UnusableError(Exception):
    """A row that is dropped and counted, never shown to a user; its text is the reason."""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        if _HALVES.search(value):
            raise UnusableError("half a character, as cut emoji leave it")
        return value.strip()
    if isinstance(value, int | float):
        return str(value)
    raise UnusableError("a field is not text")


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _from_alpaca(row: dict[str, Any]) -> Conversation:
    turns = [Message("system", _text(row["system"]))] if _text(row.get("system")) else []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UnusableError("history is not a list of pairs")
        turns += [Message("user", _text(pair[0])), Message("assistant", _text(pair[1]))]
    question = _joined(_text(row["instruction"]), _text(row.get("input")))
    return [*turns, Message("user", question), Message("assistant", _text(row["output"]))]


def _from_instruct(row: dict[str, Any]) -> Conversation:
    question = _joined(_text(row["instruct"]), _text(row.get("query")))
    return [Message("user", question), Message("assistant", _text(row["answer"]))]


def _from_target(row: dict[str, Any]) -> Conversation:
    return [Message("user", _text(row["input"])), Message("assistant", _text(row["target"]))]


def _from_turns(turns: Any) -> Conversation:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnusableError("turns are not a list of objects")
    result: Conversation = []
    for turn in turns:
        name = turn.get("role", turn.get("from"))  # both names are in use under both keys
        role = _ROLES.get(str(name).lower())
        if role is None:
            raise UnusableError(f"unknown role {name!r}")
        content = _text(turn.get("content", turn.get("value")))
        if role == "assistant" and not any(message.role == "user" for message in result):
            continue  # an answer to nothing, as many ShareGPT rows begin with
        if role == "system" and not content:
            continue  # the template's own then holds
        if result and result[-1].role == role:
            content = _joined(result.pop().content, content)
        result.append(Message(role, content))
    while result and result[-1].role != "assistant":
        result.pop()
    return result


@dataclass(frozen=True)
class Shape:
    """A known form of rows."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Conversation]


SHAPES = (
    Shape("messages", ("messages",), lambda row: _from_turns(row["messages"])),
    Shape("ShareGPT", ("conversations",), lambda row: _from_turns(row["conversations"])),
    Shape("Alpaca", ("instruction", "output"), _from_alpaca),
    Shape("instruct", ("instruct", "answer"), _from_instruct),
    Shape("PromptCBLUE", ("input", "target"), _from_target),
)
"""The known shapes, in the order in which they are tried."""


def recognise(record: Record) -> Shape:
    """The shape of a row; raises `DataError` with the keys found and the shapes known."""
    for shape in SHAPES:
        if all(key in record.values for key in shape.keys):
            return shape
    raise DataError(
        f"{record.place} has the shape of no known conversation",
        found="the keys " + (", ".join(record.values) or "(none)"),
        expected="; ".join(f"{shape.name}: {', '.join(shape.keys)}" for shape in SHAPES),
    )


def read_conversations(path: Path, account: Account, seen: set[bytes]) -> Iterator[tuple[Record, Conversation]]:
    """The conversations of a file or directory with the rows that they were.

    Rows with an empty question or answer, rows that are no conversation and those in `seen` (digests, which grow) are
    dropped and counted. Raises `DataError` for an unknown shape.
    """
    for file in records.list_files(path, records.RECORD_SUFFIXES):
        for record in read_records(file):
            shape = recognise(record)
            encoding = "" if record.encoding == "utf-8" else f" in {record.encoding.upper()}"
            account.shapes.setdefault(str(file), Counter())[shape.name + encoding] += 1
            account.num_rows += 1
            try:
                conversation = shape.read(record.values)
                _require_usable(conversation)
            except UnusableError as error:
                account.drop(str(error), record)
                continue
            identity = json.dumps([[message.role, message.content] for message in conversation]).encode()
            digest = hashlib.blake2b(identity, digest_size=16).digest()
            if digest in seen:
                account.drop("duplicate", record)
            else:
                seen.add(digest)
                yield record, conversation


def _require_usable(conversation: Conversation) -> None:
    if not conversation:
        raise UnusableError("no answer")
    for message in conversation:
        if not message.content:
            raise UnusableError("empty answer" if message.role == "assistant" else "empty question")
    if any(message.role == "system" for message in conversation[1:]):
        raise UnusableError("a system message after the first")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def encode_to_fit(
    template: Template, encoder: Encoder, conversation: Conversation, max_length: int, cut: Counter[str]
) -> Encoded | None:
    """Ids and mask of a conversation within `max_length` tokens, or None where no answer is left after cutting.

    What does not fit goes in this order: the oldest turns, the middle of the question, the beginning of the answer.
    The answer's end and its EOS stay. `cut` counts what was shortened.
    """
    system = [message for message in conversation[:1] if message.role == "system"]
    turns = conversation[len(system) :]

    def encode(*last: Message) -> Encoded | None:
        ids, learned = template.encode_conversation(encoder, [*system, *last])
        return (ids, learned) if len(ids) <= max_length else None

    whole = encode(*turns)
    if whole:
        return whole
    while len(turns) > 2:
        turns = turns[2:]
        if fitted := encode(*turns):
            cut["oldest turns"] += 1
            return fitted
    question, answer = turns
    least, most = min(_LEAST_QUESTION, len(question.content)), len(question.content)
    if fitted := _longest(lambda kept: encode(_shortened(question, kept), answer), least, most):
        cut["question"] += 1
        return fitted
    asked = _shortened(question, least)
    if fitted := _longest(lambda kept: encode(asked, _ending(answer, kept)), 1, len(answer.content)):
        cut["answer"] += 1
        return fitted
    if fitted := _longest(lambda kept: encode(_shortened(question, kept), answer), 1, least):
        cut["question"] += 1
    return fitted


def _longest(encode: Callable[[int], Encoded | None], low: int, high: int) -> Encoded | None:
    """What fits with the most characters of those kept from `low` to `high`; None where not even `low` does."""
    best = encode(low)
    while best and low < high:
        kept = (low + high + 1) // 2
        fitted = encode(kept)
        best, low, high = (fitted, kept, high) if fitted else (best, low, kept - 1)
    return best


def _shortened(message: Message, num_kept: int) -> Message:
    head = (num_kept + 1) // 2
    tail = num_kept - head
    return Message(message.role, message.content[:head] + message.content[len(message.content) - tail :])


def _ending(message: Message, num_kept: int) -> Message:
    return Message(message.role, message.content[len(message.content) - num_kept :].strip() or message.content[-1])


def build_blocks(
    directory: Path,
    sources: Sequence[tuple[Path, float]],
    template: Template,
    encoder: Encoder,
    max_length: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads, encodes and packs conversations into blocks of `max_length` tokens in `directory`.

    Each source, a file or directory, has a weight: of what can be used of it, 0.5 takes half, 2 takes all twice.
    Returns the account of rows with the counts of tokens and blocks; raises `DataError` where nothing is left.
    """
    account = Account()
    writer = write_packed(
        directory,
        _weighted(sources, template, encoder, max_length, account, seed),
        block_size=max_length,
        vocabulary_size=encoder.vocabulary_size,
        padding_id=encoder.eos_id or 0,
    )
    if writer.num_documents == 0:
        raise DataError(
            "no conversation is left to learn from",
            found=f"{account.num_rows} rows; " + (_counts(account.dropped) or "none dropped"),
            expected=f"rows with a question and an answer that fits into {max_length} tokens, and a weight above 0",
        )
    return {
        **account.to_dict(),
        "conversations": writer.num_documents,
        "tokens": writer.num_tokens,
        "blocks": writer.num_blocks,
    }


def _weighted(
    sources: Sequence[tuple[Path, float]],
    template: Template,
    encoder: Encoder,
    max_length: int,
    account: Account,
    seed: int,
) -> Iterator[Encoded]:
    seen: set[bytes] = set()
    for path, weight in sources:
        encoded: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []  # a tenth of the memory of Python's numbers
        for record, conversation in read_conversations(path, account, seen):
            try:
                fitted = encode_to_fit(template, encoder, conversation, max_length, account.cut)
            except DataError as error:  # templates refuse roles in an order that they do not know
                account.drop(error.problem, record)
                continue
            if fitted is None:
                account.drop("no answer after cutting", record)
            else:
                account.num_kept += 1
                encoded.append((np.asarray(fitted[0], dtype=np.uint32), np.asarray(fitted[1])))
        some = choose(len(encoded), round(len(encoded) * (weight % 1)), f"{seed}/{path.name}")
        for taken in [*repeat([True] * len(encoded), int(weight)), some]:
            yield from (
                (ids.tolist(), learned.tolist()) for (ids, learned), take in zip(encoded, taken, strict=True) if take
            )
