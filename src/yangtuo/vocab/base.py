"""A base tokenizer that can be extended, of either family, behind one protocol: learn for it, join to it.

The family decides the form of learned pieces on disk: a SentencePiece model, or GPT-2's merges.txt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from yangtuo.errors import FileError, VocabularyError
from yangtuo.files import LARGE, read_text
from yangtuo.vocab.byte_level import Merge, chars_per_word, learn_merges, merge_byte_level, require_byte_level, widen
from yangtuo.vocab.directory import MODEL_FILE, TokenizerDirectory, read_directory
from yangtuo.vocab.encoding import Family, fast_family
from yangtuo.vocab.fast_tokenizer import extended_fast
from yangtuo.vocab.learn import learn_pieces, sentencepiece_pieces
from yangtuo.vocab.merge import merge_faithful, merge_published, ordered_pieces
from yangtuo.vocab.scripts import Scripts
from yangtuo.vocab.sentencepiece_model import parse_model, read_model, require_extensible

MERGES_FILE = "merges.txt"
Style = Literal["faithful", "published"]
_PADS = ("[PAD]", "<pad>", "<|pad|>")


@dataclass(frozen=True)
class LearnedPieces:
    """What was written, in figures."""

    num_pieces: int
    num_characters: int


@dataclass(frozen=True)
class Outcome:
    """What became of the pieces that were to be joined; all by their text."""

    added: list[str]
    closed: list[str] = field(default_factory=list)
    """Intermediates among `added` that were not asked for, but without which others cannot be reached."""
    out_of_script: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)


class Base(Protocol):
    """A tokenizer to extend."""

    @property
    def size(self) -> int:
        """Number of its ids."""
        ...

    def ceiling(self, lines: Sequence[str]) -> float | None:
        """Characters per token of `lines` that no new pieces can go beyond; None where there is no such limit."""
        ...

    def widened(self, scripts: Scripts) -> Base:
        """The base with words of `scripts` kept whole before merges; raises `VocabularyError` where it cannot be."""
        ...

    def learn(
        self, texts: Iterable[str], size: int, scripts: Scripts, directory: Path, held_out: Sequence[str] = ()
    ) -> LearnedPieces:
        """Learns `size` new pieces, those first that `held_out` uses, and writes them into `directory`."""
        ...

    def merge(
        self, pieces: Path, style: Style, scripts: Scripts, add_tokens: Sequence[str], directory: Path
    ) -> Outcome:
        """Joins the pieces at `pieces` and the control tokens to the base, and writes a tokenizer directory."""
        ...


def open_base(path: Path) -> Base:
    """Opens a tokenizer directory, a tokenizer.model or a tokenizer.json; raises where it cannot be extended."""
    tokenizer = read_directory(path)
    if tokenizer.proto is not None or fast_family(tokenizer.content) is Family.SENTENCEPIECE:
        if tokenizer.proto is not None:
            require_extensible(tokenizer.proto, str(path))
        return SentencePieceBase(tokenizer, tokenizer.whole_proto())
    assert tokenizer.content is not None
    require_byte_level(tokenizer.content, str(path))
    return ByteLevelBase(tokenizer, tokenizer.content)


@dataclass(frozen=True)
class SentencePieceBase:
    """A SentencePiece BPE model, with all added tokens as its last pieces, and the files that it was read from."""

    tokenizer: TokenizerDirectory
    proto: Any = field(repr=False)

    @property
    def size(self) -> int:
        """Number of pieces."""
        return len(self.proto.pieces)

    def ceiling(self, lines: Sequence[str]) -> float | None:  # noqa: ARG002
        """None: SentencePiece parts text at nothing that pieces could not hold."""
        return None

    def widened(self, scripts: Scripts) -> Base:  # noqa: ARG002
        """Raises `VocabularyError`: there is nothing to widen."""
        raise VocabularyError(
            "a SentencePiece base has no pre-tokenizer to widen",
            expected="--widen for byte-level bases alone",
            run="the same command without --widen",
        )

    def learn(
        self, texts: Iterable[str], size: int, scripts: Scripts, directory: Path, held_out: Sequence[str] = ()
    ) -> LearnedPieces:
        """Learns pieces and writes them as a SentencePiece model."""
        learned = learn_pieces(self.proto, texts, size, scripts, held_out)
        (directory / MODEL_FILE).write_bytes(sentencepiece_pieces(learned.pieces))
        return LearnedPieces(len(learned.pieces), learned.num_characters)

    def merge(
        self, pieces: Path, style: Style, scripts: Scripts, add_tokens: Sequence[str], directory: Path
    ) -> Outcome:
        """Joins a SentencePiece model's pieces; writes tokenizer.model, tokenizer.json and the settings."""
        file = pieces / MODEL_FILE if pieces.is_dir() else pieces
        if pieces.is_dir() and not file.is_file():
            raise _other_family(pieces, MODEL_FILE, "SentencePiece")
        model = read_model(file)
        if style == "published":
            merged = merge_published(self.proto, model, add_tokens)
        else:
            merged = merge_faithful(self.proto, ordered_pieces(model), scripts, add_tokens)
        self._grown(merged.model, add_tokens).write(directory)
        return Outcome(merged.added, merged.closed, merged.out_of_script, merged.unreachable)

    def _grown(self, model: bytes, add_tokens: Sequence[str]) -> TokenizerDirectory:
        """The files of the joined model; a tokenizer.json alone where the base has nothing else, to cut as it did."""
        ends = {"add_bos_token": self.tokenizer.adds_bos, "add_eos_token": self.tokenizer.adds_eos}
        settings = {**self.tokenizer.settings, **ends, **_pad(add_tokens)}
        if self.tokenizer.content is not None and self.tokenizer.proto is None:
            content = extended_fast(self.tokenizer.content, parse_model(model, "the joined model"), add_tokens)
            return replace(self.tokenizer, settings=settings).with_content(content)
        return replace(self.tokenizer, model=model, fast=None, settings=settings).with_fast(add_tokens)


@dataclass(frozen=True)
class ByteLevelBase:
    """A byte-level tokenizer.json and the files beside it."""

    tokenizer: TokenizerDirectory
    content: Mapping[str, Any] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of its ids, added tokens included."""
        return len(self.tokenizer.pieces)

    def ceiling(self, lines: Sequence[str]) -> float | None:
        """Characters per word as the pre-tokenizer parts words."""
        return chars_per_word(self.content, lines)

    def widened(self, scripts: Scripts) -> ByteLevelBase:
        """The base with a pre-tokenizer that keeps words of `scripts` whole."""
        return replace(self, content=widen(self.content, scripts))

    def learn(
        self, texts: Iterable[str], size: int, scripts: Scripts, directory: Path, held_out: Sequence[str] = ()
    ) -> LearnedPieces:
        """Learns merges and writes them as merges.txt."""
        learned = learn_merges(self.content, texts, size, scripts, held_out)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in learned.merges)]
        (directory / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return LearnedPieces(len(learned.merges), learned.num_characters)

    def merge(
        self, pieces: Path, style: Style, scripts: Scripts, add_tokens: Sequence[str], directory: Path
    ) -> Outcome:
        """Joins the merges of a merges.txt; writes tokenizer.json and the settings."""
        if style == "published":
            raise VocabularyError(
                "the published style is a recipe for SentencePiece models",
                found="a byte-level BPE base",
                expected="--style faithful",
            )
        file = pieces / MERGES_FILE if pieces.is_dir() else pieces
        if not file.is_file() or file.suffix != ".txt":
            raise _other_family(pieces, MERGES_FILE, "byte-level")
        merged = merge_byte_level(self.content, _read_merges(file), scripts, add_tokens)
        grown = replace(self.tokenizer, settings={**self.tokenizer.settings, **_pad(add_tokens)})
        grown.with_content(merged.content).write(directory)
        return Outcome(merged.added, [], merged.out_of_script, merged.unreachable)


def _read_merges(file: Path) -> list[Merge]:
    merges: list[Merge] = []
    for number, line in enumerate(read_text(file, LARGE).splitlines(), 1):
        if line.startswith("#version") or not line:
            continue
        left, blank, right = line.partition(" ")
        if not (left and blank and right) or " " in right:
            raise FileError(f"{file} is not a list of merges", found=f"line {number}: {line!r}", expected="LEFT RIGHT")
        merges.append((left, right))
    return merges


def _pad(add_tokens: Sequence[str]) -> dict[str, str]:
    pads = [token for token in add_tokens if token in _PADS]
    return {"pad_token": pads[0]} if pads else {}


def _other_family(pieces: Path, file: str, family: str) -> VocabularyError:
    return VocabularyError(
        f"{pieces} holds no pieces for a {family} base",
        expected=f"a {file} of pieces; the families' pieces cannot be exchanged",
        run="yangtuo tokenizer train --base BASE --corpus TEXTS --size SIZE --output PIECES",
    )
