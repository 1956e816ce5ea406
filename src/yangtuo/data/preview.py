"""Samples of blocks as the model sees them: pieces side by side, where documents begin, what is learned.

Made from the ids of a block alone, never from the text they came from, so that what is shown is what is trained on.
This module knows neither how blocks came about nor where they are printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol

from yangtuo.data.blocks import IGNORED
from yangtuo.vocab.encoding import Encoder

if TYPE_CHECKING:
    import torch

Kind = Literal["text", "bytes", "control"]
Styled = tuple[str, str]
"""A text and its style, as `console.styled` takes them."""

_BLANK = "\u2581"
_VISIBLE = {" ": _BLANK, "\n": "\u21b5", "\t": "\u21e5", "\u3000": "\u25a1"}
_STYLES = {"learned": "green", "context": "default", "padding": "bright_black"}
_MARKS = {"text": "", "bytes": " italic", "control": " bold reverse"}
_LINES, _WIDTH = 18, 180  # of figures that are shown
_BOUNDARY, _LEARNED, _CONTEXT = "\u2502", "\u25b8", "\u25c2"


class Blocks(Protocol):
    """What is sampled: `BlockDataset`, or anything that gives blocks as it does."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Piece:
    """One token: its id, what it stands for in printable characters, and whether the loss counts it.

    A character cut into several pieces shows as the bytes of each in hexadecimal, and behind the last as itself.
    """

    id: int
    text: str
    kind: Kind
    learned: bool


@dataclass(frozen=True)
class Stretch:
    """What sees itself and nothing else within a block: a document, the part of one, or padding."""

    pieces: list[Piece]
    is_padding: bool

    @property
    def num_learned(self) -> int:
        """How many of its tokens the loss counts."""
        return sum(piece.learned for piece in self.pieces)


@dataclass(frozen=True)
class Sample:
    """A block, taken apart."""

    index: int
    stretches: list[Stretch]

    def to_dict(self) -> dict[str, Any]:
        """The sample as plain JSON values."""
        return {"block": self.index, "stretches": [asdict(stretch) for stretch in self.stretches]}


def take_samples(blocks: Blocks, encoder: Encoder, count: int) -> list[Sample]:
    """At most `count` blocks, spread evenly from the first on."""
    count = min(count, len(blocks))
    indices = [number * len(blocks) // count for number in range(count)]
    return [Sample(index, take_apart(blocks[index], encoder)) for index in indices]


def take_apart(block: Mapping[str, torch.Tensor], encoder: Encoder) -> list[Stretch]:
    """The stretches of a block: `input_ids`, `labels` and `position_ids` of shape (block_size,)."""
    ids, labels, positions = (block[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    starts = [index for index, position in enumerate(positions) if position == 0]
    controls = set(encoder.controls.values())
    stretches = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        learned = [label != IGNORED for label in labels[start:end]]
        # Padding is written with EOS, behind the last document and never instead of all.
        padding = end == len(ids) and start > 0 and set(ids[start:]) == {encoder.eos_id or 0} and not any(learned)
        shown = _shown(ids[start:end], encoder, controls)
        pieces = [
            Piece(token, text, kind, counts)
            for token, (text, kind), counts in zip(ids[start:end], shown, learned, strict=True)
        ]
        stretches.append(Stretch(pieces, padding))
    return stretches


def _shown(ids: Sequence[int], encoder: Encoder, controls: set[int]) -> Iterator[tuple[str, Kind]]:
    """The text and kind of each id; characters are put together between control tokens."""
    for is_control, run in groupby(ids, key=controls.__contains__):
        if is_control:
            yield from ((f"\u27e6{_printable(encoder.pieces[token])}\u27e7", "control") for token in run)
        else:
            yield from _characters([encoder.token_bytes(token) for token in run])


def _characters(run: Sequence[bytes]) -> Iterator[tuple[str, Kind]]:
    """For each piece its whole characters as they are, and the bytes of those that it holds a part of."""
    spans = []  # (character, first byte, byte behind it); a byte that is no UTF-8 is a character of its own
    end = 0
    for character in b"".join(run).decode(errors="surrogateescape"):
        begin, end = end, end + len(character.encode(errors="surrogateescape"))
        spans.append((character, begin, end))
    first = at = 0
    for piece in run:
        text, in_parts, behind = "", False, at + len(piece)
        while first < len(spans) and spans[first][1] < behind:
            character, begin, end = spans[first]
            stray = "\udc80" <= character <= "\udcff"
            if stray or begin < at or end > behind:
                in_parts = True
                text += piece[max(begin - at, 0) : end - at].hex(" ").upper()
            if not stray and end <= behind:
                text += ("=" if begin < at else "") + _printable(character)
            if end > behind:
                break
            first += 1
        yield text, "bytes" if in_parts else "text"
        at = behind


def _printable(text: str) -> str:
    """`text` with blanks made visible."""
    return "".join(_VISIBLE.get(character) or _harmless(character) for character in text)


def _harmless(text: str) -> str:
    """`text` with what a terminal would obey or hide written as an escape."""
    return (
        text
        if text.isprintable()
        else "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    )


@dataclass(frozen=True)
class DryRun:
    """What a dry run returns: plain JSON values, and samples of what would be trained on."""

    figures: dict[str, Any]
    samples: list[Sample]

    def result(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {**self.figures, "samples": [sample.to_dict() for sample in self.samples]}

    def show(self) -> list[Styled]:
        """What fits a screen of it, for `console.styled`."""
        lines = list(_listed(self.figures))
        more = [f"… {len(lines) - _LINES + 1} more with --json"] if len(lines) > _LINES else []
        shown = [*lines[: _LINES - len(more)], *more]
        return [*((_harmless(line[:_WIDTH]) + "\n", "") for line in shown), *render(self.samples)]


def _listed(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value, and for each of a mapping's."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield key
            yield from (f"    {name}  {_short(inner)}" for name, inner in value.items())
        else:
            yield f"{key}  {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def render(samples: Sequence[Sample], num_pieces: int = 160, num_stretches: int = 3) -> list[Styled]:
    """The samples and a legend, for `console.styled`.

    Of a longer stretch, the first and the last pieces; of more stretches, the first ones.
    """
    parts = _legend()
    for sample in samples:
        parts.append(
            (
                f"\nBlock {sample.index + 1}: {sum(len(stretch.pieces) for stretch in sample.stretches):,} tokens\n",
                "bold",
            )
        )
        for number, stretch in enumerate(sample.stretches[:num_stretches], 1):
            size, half = len(stretch.pieces), num_pieces // 2
            title = "padding" if stretch.is_padding else f"document {number}"
            parts.append((f"── {title}: {size:,} tokens, {stretch.num_learned:,} learned ──\n", "bright_black"))
            if stretch.is_padding:
                parts += [*_flow(stretch.pieces[:1], "padding"), (f" × {size:,}", "bright_black")]
            elif size <= num_pieces:
                parts += _flow(stretch.pieces, "context")
            else:
                parts += _flow(stretch.pieces[:half], "context")
                parts.append((f" … {size - 2 * half:,} pieces … ", "bright_black"))
                parts += _flow(stretch.pieces[-half:], "context")
            parts.append(("\n", ""))
        if (left := len(sample.stretches) - num_stretches) > 0:
            parts.append((f"… {left} more in this block, with --json\n", "bright_black"))
    return parts


def _flow(pieces: Sequence[Piece], otherwise: str) -> Iterator[Styled]:
    learned = False
    for number, piece in enumerate(pieces):
        if piece.learned != learned:
            yield _LEARNED if piece.learned else _CONTEXT, _STYLES["learned"]
        elif number:
            yield _BOUNDARY, "bright_black"
        learned = piece.learned
        yield piece.text, _STYLES["learned" if learned else otherwise] + _MARKS[piece.kind]
    if learned:
        yield _CONTEXT, _STYLES["learned"]


def _legend() -> list[Styled]:
    return [
        ("Legend: ", "bold"),
        (f"{_LEARNED}learned{_CONTEXT}", _STYLES["learned"]),
        ("  read, not learned  ", _STYLES["context"]),
        ("padding", _STYLES["padding"]),
        ("  ", ""),
        ("\u27e6control token\u27e7", _STYLES["context"] + _MARKS["control"]),
        ("  ", ""),
        (f"E7{_BOUNDARY}BE{_BOUNDARY}8A=羊", _STYLES["context"] + _MARKS["bytes"]),
        (f" bytes of a character cut into pieces\n        {_BOUNDARY} between pieces, {_BLANK} blank, ", ""),
        (f"{_VISIBLE[chr(10)]} end of line, {_VISIBLE[chr(9)]} tab, {_VISIBLE[chr(0x3000)]} wide blank\n", ""),
    ]
