"""Conversations to train on: dirt is dropped with an account, messages become ids, and ids become blocks.

What rows look like is `shapes`' affair, how a prompt is written the template's, how blocks lie on disk `blocks`'.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from yangtuo.data import records
from yangtuo.data.blocks import BlockWriter, write_packed
from yangtuo.data.records import Record, read_records
from yangtuo.data.sampling import choose
from yangtuo.data.shapes import Conversation, Shape, UnusableError, recognise, require_usable
from yangtuo.data.template import Template
from yangtuo.errors import DataError

if TYPE_CHECKING:
    from yangtuo.vocab.encoding import Encoder

TooLong = Literal["cut", "drop"]
Row = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Encoded = tuple[list[int], list[bool]]
"""Ids of a conversation, and which of them are learned."""

HELD_OUT = "held-out"
"""The directory of the blocks of conversations that are measured and not learned, beside those that are."""

_EXAMPLES = 3
_EXCERPT = 60  # characters of a row shown as an example
_SHARE, _ENOUGH = 0.02, 1000  # what is held out where nothing is said, and of how many conversations
_NO_ROOM = "no room for the answer"


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
    if account["held_out"]:
        lines.append(f"{account['held_out']:,} conversations are held out, and their answers measured")
    return lines + ([f"cut: {_counts(account['cut'])}"] if account["cut"] else [])


def read_conversations(
    path: Path, account: Account, seen: set[bytes], columns: Shape | None = None
) -> Iterator[tuple[Record, Conversation]]:
    """The conversations of a file or directory with the rows that they were.

    Rows with an empty question or answer, rows that are no conversation and those in `seen` (digests, which grow) are
    dropped and counted. Raises `DataError` for an unknown shape.
    """
    for file in records.list_files(path, records.RECORD_SUFFIXES):
        for record in read_records(file):
            shape = recognise(record, columns)
            encoding = "" if record.encoding == "utf-8" else f" in {record.encoding.upper()}"
            account.shapes.setdefault(str(file), Counter())[shape.name + encoding] += 1
            account.num_rows += 1
            try:
                conversation = shape.read(record.values)
                require_usable(conversation)
            except UnusableError as error:
                account.drop(str(error), record)
                continue
            turns = [[message.role, message.content, message.extra] for message in conversation.messages]
            identity = json.dumps([turns, conversation.tools], default=str).encode()
            digest = hashlib.blake2b(identity, digest_size=16).digest()
            if digest in seen:
                account.drop("duplicate", record)
            else:
                seen.add(digest)
                yield record, conversation


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def fit(whole: Encoded, max_length: int, too_long: TooLong) -> Encoded | None:
    """The ids and mask of a conversation within `max_length` tokens, or None where it is dropped.

    What does not fit is cut at its end: an answer then ends without EOS, as one that goes on. Nothing is ever cut from
    the beginning of an answer, and a question that leaves no room for one is dropped.
    """
    ids, learned = whole
    if len(ids) <= max_length:
        return whole
    if too_long == "drop" or not any(learned[:max_length]):
        return None
    return ids[:max_length], learned[:max_length]


@dataclass(frozen=True, kw_only=True)
class Building:
    """How conversations become blocks."""

    max_length: int
    too_long: TooLong = "cut"
    columns: Shape | None = None
    held_out: float | None = None
    """Share of the conversations that is kept apart; None keeps 2 % apart where there are a thousand."""
    seed: int = 0


def build_blocks(
    directory: Path, sources: Sequence[tuple[Path, float]], template: Template, encoder: Encoder, how: Building
) -> dict[str, Any]:
    """Reads, encodes and packs conversations into blocks in `directory`, and those held out in `directory/held-out`.

    Each source, a file or directory, has a weight: of what can be used of it, 0.5 takes half, 2 takes all twice.
    Returns the account of rows with the counts of tokens and blocks; raises `DataError` where nothing is left.
    """
    account = Account()
    encoded = _encode(sources, template, encoder, how, account)
    apart = _choose_held_out([len(rows) for rows in encoded], how)
    kept = [
        [row for row, is_apart in zip(rows, flags, strict=True) if not is_apart]
        for rows, flags in zip(encoded, apart, strict=True)
    ]
    writer = _write(directory, _weighted(sources, kept, how.seed), encoder, how)
    if writer.num_documents == 0:
        raise DataError(
            "no conversation is left to learn from",
            found=f"{account.num_rows} rows; " + (_counts(account.dropped) or "none dropped"),
            expected=f"rows with a question and an answer that fit into {how.max_length} tokens, and a weight above 0",
        )
    held = [
        row
        for rows, flags in zip(encoded, apart, strict=True)
        for row, is_apart in zip(rows, flags, strict=True)
        if is_apart
    ]
    num_bytes = 0
    if held:
        (directory / HELD_OUT).mkdir()
        _write(directory / HELD_OUT, iter(held), encoder, how)
        num_bytes = sum(len(encoder.decode(ids[learned].tolist()).encode()) for ids, learned in held)
    return {
        **account.to_dict(),
        "held_out": len(held),
        "held_out_bytes": num_bytes,
        "conversations": writer.num_documents,
        "tokens": writer.num_tokens,
        "blocks": writer.num_blocks,
    }


def _write(directory: Path, rows: Iterator[Row], encoder: Encoder, how: Building) -> BlockWriter:
    return write_packed(
        directory,
        ((ids.tolist(), learned.tolist()) for ids, learned in rows),
        block_size=how.max_length,
        vocabulary_size=encoder.vocabulary_size,
        padding_id=encoder.eos_id or 0,
    )


def _encode(
    sources: Sequence[tuple[Path, float]], template: Template, encoder: Encoder, how: Building, account: Account
) -> list[list[Row]]:
    """The usable rows of each source, as arrays: a tenth of the memory of Python's numbers."""
    seen: set[bytes] = set()
    encoded: list[list[Row]] = []
    for path, _ in sources:
        rows: list[Row] = []
        for record, conversation in read_conversations(path, account, seen, how.columns):
            try:
                whole = template.encode_conversation(encoder, conversation.messages, conversation.tools)
            except DataError as error:  # templates refuse roles in an order that they do not know
                account.drop(error.problem, record)
                continue
            fitted = fit(whole, how.max_length, how.too_long)
            if fitted is None:
                account.drop(f"longer than {how.max_length} tokens" if how.too_long == "drop" else _NO_ROOM, record)
                continue
            account.num_kept += 1
            if fitted is not whole:
                account.cut["at the end"] += 1
            rows.append((np.asarray(fitted[0], dtype=np.uint32), np.asarray(fitted[1])))
        encoded.append(rows)
    return encoded


def _choose_held_out(counts: Sequence[int], how: Building) -> list[list[bool]]:
    """For each usable row of each source whether it is held out, drawn from the seed alone."""
    total = sum(counts)
    share = how.held_out if how.held_out is not None else _SHARE if total >= _ENOUGH else 0.0
    num_apart = min(max(1, round(total * share)), total - 1) if share and total > 1 else 0
    flags = list(choose(total, num_apart, f"{how.seed}/held-out"))
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [flags[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _weighted(sources: Sequence[tuple[Path, float]], encoded: Sequence[list[Row]], seed: int) -> Iterator[Row]:
    for (path, weight), rows in zip(sources, encoded, strict=True):
        some = choose(len(rows), round(len(rows) * (weight % 1)), f"{seed}/{path.name}")
        for taken in [*repeat([True] * len(rows), int(weight)), some]:
            yield from (row for row, take in zip(rows, taken, strict=True) if take)
