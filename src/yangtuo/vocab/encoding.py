"""One face for every tokenizer: text to ids, ids to text, the special tokens, the identity.

What is read: a tokenizer directory, a bare SentencePiece model, or a bare tokenizer.json. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yangtuo.vocab.byte_level import piece_bytes
from yangtuo.vocab.directory import TokenizerDirectory, read_directory
from yangtuo.vocab.engines import Engine, FastEngine, SentencePieceEngine
from yangtuo.vocab.ice_text import IceTextEngine
from yangtuo.vocab.identity import fast_fingerprint, sentencepiece_fingerprint
from yangtuo.vocab.sentencepiece_model import BLANK, CONTROL, NORMAL, USER_DEFINED

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Family(StrEnum):
    """How a tokenizer cuts text."""

    SENTENCEPIECE = "sentencepiece"
    BYTE_LEVEL = "byte-level"
    OTHER = "other"


@dataclass(frozen=True)
class Encoder:
    """A tokenizer: `encode`, `decode`, and what is worth knowing about it."""

    engine: Engine = field(repr=False)
    family: Family
    fingerprint: str
    """SHA-256 of the tokenizer's content, see `yangtuo.vocab.identity`."""
    pieces: list[str] = field(repr=False)
    """The text of every id, added tokens included, as the tokenizer's file writes it."""
    bos_id: int | None
    eos_id: int | None
    controls: dict[str, int] = field(repr=False)
    """Control tokens by their text."""

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: pieces and added tokens."""
        return len(self.pieces)

    def control_id(self, token: str) -> int | None:
        """The id of a control token such as "<|im_start|>", or None where the tokenizer has none of that text."""
        return self.controls.get(token)

    def encode(self, text: str, *, prefix: bool = True) -> list[int]:
        """The ids of `text`, without BOS and EOS; never a control token, whatever the text holds.

        `prefix` false leaves out the blank that SentencePiece puts before a text.
        """
        return self.engine.encode(text, prefix)

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """The ids of each of `texts`, as `encode` gives them, on several threads (all cores by default)."""
        return self.engine.encode_batch(texts, num_threads)

    def encode_arrays(self, texts: Sequence[str], num_threads: int | None = None) -> list[npt.NDArray[np.int32]]:
        """As `encode_batch`, as arrays, without a Python object for each id."""
        return self.engine.encode_arrays(texts, num_threads)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens give nothing, bytes that are not UTF-8 give U+FFFD."""
        return self.engine.decode(ids)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that id `index` stands for in a text; a control token's are its name's."""
        piece = self.pieces[index]
        if self.family is Family.BYTE_LEVEL:
            return piece_bytes(piece)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(BLANK, " ").encode("utf-8", "surrogateescape")

    def split_piece(self, piece: str) -> list[int]:
        """The ids that this tokenizer makes of a foreign piece's text, without any blank put before it."""
        return self.engine.split(piece)


def load_encoder(path: str | Path) -> Encoder:
    """Reads the tokenizer directory, tokenizer.model or tokenizer.json at `path`; raises `FileError` where none is."""
    return make_encoder(read_directory(path))


def make_encoder(tokenizer: TokenizerDirectory) -> Encoder:
    """The encoder of a tokenizer's files: SentencePiece's engine where there is a model for it."""
    proto, content = tokenizer.proto, tokenizer.content
    size = len(tokenizer.vocabulary)
    beyond = {index: token.text for index, token in tokenizer.added.items() if index >= size}
    engine: Engine
    controls: dict[str, int] = {}
    if (
        proto is not None and tokenizer.image_tokens is not None
    ):  # ChatGLM's user-defined pieces are whitespace and no control tokens
        family, engine = Family.SENTENCEPIECE, IceTextEngine(proto, tokenizer.image_tokens)
        fingerprint = sentencepiece_fingerprint(proto, {-1: f"ice_text, {tokenizer.image_tokens} images"})
        controls = {piece.piece: tokenizer.vocabulary[piece.piece] for piece in proto.pieces if piece.type == CONTROL}
    elif proto is not None:
        family, engine = Family.SENTENCEPIECE, SentencePieceEngine(proto, beyond)
        fingerprint = sentencepiece_fingerprint(proto, beyond)
        marked = (CONTROL, USER_DEFINED)
        controls = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in marked}
    else:
        assert content is not None
        family, engine, fingerprint = fast_family(content), FastEngine(content), fast_fingerprint(content)
    return Encoder(
        engine=engine,
        family=family,
        fingerprint=fingerprint,
        pieces=tokenizer.pieces,
        bos_id=tokenizer.special_id("bos_token"),
        eos_id=tokenizer.special_id("eos_token"),
        controls=controls | _added_controls(tokenizer),
    )


def _added_controls(tokenizer: TokenizerDirectory) -> dict[str, int]:
    """Added tokens by text, without those that SentencePiece's model has as bytes or as its unknown piece."""
    proto = tokenizer.proto
    return {
        token.text: index
        for index, token in tokenizer.added.items()
        if proto is None or index >= len(proto.pieces) or proto.pieces[index].type == NORMAL
    }


def fast_family(content: Mapping[str, Any] | None) -> Family:
    """The family of a tokenizer.json."""
    assert content is not None
    if content["model"]["type"] != "BPE":
        return Family.OTHER
    if '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        return Family.BYTE_LEVEL
    return Family.SENTENCEPIECE if content["model"].get("byte_fallback") else Family.OTHER
