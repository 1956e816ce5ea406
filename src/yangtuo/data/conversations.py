"""Conversations to train on: rows of the known shapes become turns, dirt is dropped with an account, turns become ids.

Shapes are recognised by their keys; keys beside them are ignored. How a prompt is written is the template's affair;
how blocks lie on disk is `blocks`'.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yangtuo.data import records
from yangtuo.data.blocks import write_packed
from yangtuo.data.records import Record, read_records
from yangtuo.data.sampling import choose
from yangtuo.data.template import Message, Role, Template
from yangtuo.errors import DataError

if TYPE_CHECKING:
    from yangtuo.vocab.encoding import Encoder

Conversation = list[Message]
_EXAMPLES = 3
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


@dataclass
class Account:
    """What became of the rows."""

    num_rows: int = 0
    num_kept: int = 0
    shapes: dict[str, str] = field(default_factory=dict)
    """File -> name of the shape of its rows."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of rows."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> where the first such rows stand."""
    cut: Counter[str] = field(default_factory=Counter)
    """What was shortened to fit -> number of conversations."""

    def drop(self, reason: str, place: str) -> None:
        """Counts a row that is not used."""
        self.dropped[reason] += 1
        if len(self.examples.setdefault(reason, [])) < _EXAMPLES:
            self.examples[reason].append(place)

    def to_dict(self) -> dict[str, Any]:
        """The account as plain JSON values; rows = kept + the sum of dropped."""
        return {
            "rows": self.num_rows,
            "kept": self.num_kept,
            "shapes": self.shapes,
            "dropped": dict(self.dropped),
            "examples": self.examples,
            "cut": dict(self.cut),
        }


class UnusableError(Exception):
    """A row that is dropped and counted, never shown to a user; its text is the reason."""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
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


def _from_turns(turns: Any, role_key: str, content_key: str) -> Conversation:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnusableError("turns are not a list of objects")
    result: Conversation = []
    for turn in turns:
        role = _ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise UnusableError(f"unknown role {turn.get(role_key)!r}")
        content = _text(turn.get(content_key))
        if role == "assistant" and not any(message.role == "user" for message in result):
            continue  # an answer to nothing, as many ShareGPT rows begin with
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
    Shape("messages", ("messages",), lambda row: _from_turns(row["messages"], "role", "content")),
    Shape("ShareGPT", ("conversations",), lambda row: _from_turns(row["conversations"], "from", "value")),
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


def read_conversations(sources: Sequence[tuple[Path, float]], seed: int = 0) -> tuple[list[Conversation], Account]:
    """The conversations of files or directories, each with its weight (0.5 takes half of it, 2 takes it twice).

    Rows with an empty question or answer, repeated rows and rows that are no conversation are dropped and counted.
    Raises `DataError` for an unknown shape and where nothing is left.
    """
    account = Account()
    seen: set[str] = set()
    result: list[Conversation] = []
    for path, weight in sources:
        found = [
            conversation
            for file in records.list_files(path, records.RECORD_SUFFIXES)
            for conversation in _read_file(file, account, seen)
        ]
        result += found * int(weight)
        taken = choose(len(found), round(len(found) * (weight % 1)), f"{seed}/{path.name}")
        result += [conversation for conversation, take in zip(found, taken, strict=True) if take]
    if not result:
        raise DataError(
            "no conversation is left to learn from",
            found=f"{account.num_rows} rows; " + (_counts(account.dropped) or "none dropped"),
            expected="rows with a question and an answer, and a weight above 0",
        )
    return result, account


def _read_file(file: Path, account: Account, seen: set[str]) -> Iterator[Conversation]:
    for record in read_records(file):
        shape = recognise(record)
        account.shapes.setdefault(str(file), shape.name)
        account.num_rows += 1
        try:
            conversation = shape.read(record.values)
            _require_usable(conversation)
        except UnusableError as error:
            account.drop(str(error), record.place)
            continue
        identity = json.dumps([[message.role, message.content] for message in conversation], ensure_ascii=False)
        if identity in seen:
            account.drop("duplicate", record.place)
            continue
        seen.add(identity)
        account.num_kept += 1
        yield conversation


def _require_usable(conversation: Conversation) -> None:
    if not conversation:
        raise UnusableError("no answer")
    for message in conversation:
        if not message.content and message.role != "system":
            raise UnusableError("empty answer" if message.role == "assistant" else "empty question")
    if any(message.role == "system" for message in conversation[1:]):
        raise UnusableError("a system message after the first")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.most_common())


def encode_to_fit(
    template: Template, encoder: Encoder, conversation: Conversation, max_length: int, cut: Counter[str]
) -> tuple[list[int], list[bool]] | None:
    """Ids and mask of a conversation within `max_length` tokens, or None where no answer is left after cutting.

    What does not fit goes in this order: the oldest turns, the middle of the question, the beginning of the answer.
    The answer's end and its EOS stay. `cut` counts what was shortened.
    """
    ids, learned = template.encode_conversation(encoder, conversation)
    if len(ids) <= max_length:
        return ids, learned
    system = [message for message in conversation[:1] if message.role == "system"]
    turns = conversation[len(system) :]
    while len(turns) > 2 and len(ids) > max_length:
        turns = turns[2:]
        ids, learned = template.encode_conversation(encoder, system + turns)
        if len(ids) <= max_length:
            cut["oldest turns"] += 1
            return ids, learned
    question, answer = turns[-2:]
    low, high = 0, len(question.content)
    while low < high:  # the most characters of the question that still fit
        kept = (low + high + 1) // 2
        ids, _ = template.encode_conversation(encoder, [*system, _shortened(question, kept), answer])
        low, high = (kept, high) if len(ids) <= max_length else (low, kept - 1)
    ids, learned = template.encode_conversation(encoder, [*system, _shortened(question, low), answer])
    if len(ids) <= max_length:
        cut["question"] += 1
        return ids, learned
    first = learned.index(True)
    last = len(learned) - learned[::-1].index(True)
    surplus = len(ids) - max_length
    if last - first - surplus < 2:  # EOS alone is no answer
        return None
    cut["answer"] += 1
    return ids[:first] + ids[first + surplus :], learned[:first] + learned[first + surplus :]


def _shortened(message: Message, num_kept: int) -> Message:
    head = (num_kept + 1) // 2
    tail = num_kept - head
    return Message(message.role, message.content[:head] + message.content[len(message.content) - tail :])


def build_blocks(
    directory: Path,
    sources: Sequence[tuple[Path, float]],
    template: Template,
    encoder: Encoder,
    max_length: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads, encodes and packs conversations into blocks of `max_length` tokens in `directory`.

    Returns the account of rows with the counts of tokens and blocks; raises `DataError` where nothing is left.
    """
    conversations, account = read_conversations(sources, seed)

    def encoded() -> Iterator[tuple[list[int], list[bool]]]:
        for conversation in conversations:
            fitted = encode_to_fit(template, encoder, conversation, max_length, account.cut)
            if fitted is None:
                account.drop("no answer after cutting", conversation[-1].content[:40])
                account.num_kept -= 1
            else:
                yield fitted

    padding = encoder.eos_id or 0
    writer = write_packed(
        directory,
        encoded(),
        block_size=max_length,
        vocabulary_size=encoder.vocabulary_size,
        padding_id=padding,
    )
    if writer.num_documents == 0:
        raise DataError(
            f"no conversation fits into {max_length} tokens",
            found=_counts(account.dropped),
            expected="a longer block",
            run="the same command with a larger --max-length",
        )
    return {
        **account.to_dict(),
        "conversations": writer.num_documents,
        "tokens": writer.num_tokens,
        "blocks": writer.num_blocks,
    }
