"""SentencePiece model files: reading them with checks, and the merges that their scores stand for.

The format is sentencepiece_model.proto of google/sentencepiece. This module knows no directory layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2

from yangtuo.errors import FileError, VocabularyError
from yangtuo.files import LARGE, read_bytes

BLANK = "\u2581"  # how SentencePiece writes a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_BPE = 2


def parse_model(data: bytes, name: str) -> Any:
    """The `ModelProto` of a serialized SentencePiece model; raises `FileError` where `data` is none or is cut short."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
        complete = proto.HasField("trainer_spec") and proto.HasField("normalizer_spec") and len(proto.pieces) > 0
        if complete:
            load_processor(proto)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise _not_a_model(name, data, str(error).strip().splitlines()[-1]) from error
    if not complete:
        raise _not_a_model(name, data, "no trainer settings or no pieces: cut short, or another format")
    broken = next((index for index, piece in enumerate(proto.pieces) if not isinstance(piece.piece, str)), None)
    if broken is not None:  # protobuf gives a text that is no UTF-8 as bytes
        raise _not_a_model(name, data, f"piece {broken:,} is no UTF-8: {proto.pieces[broken].piece[:20]!r}")
    return proto


def read_model(path: Path) -> Any:
    """The `ModelProto` of the file `path`; raises as `parse_model`."""
    return parse_model(read_bytes(path, LARGE), str(path))


def _not_a_model(name: str, data: bytes, reason: str) -> FileError:
    if b"[UNK]\n" in data:
        reason = "lines of a WordPiece vocabulary, which has no merges to continue"
    return FileError(
        f"{name} is not a SentencePiece model",
        found=f"{len(data):,} bytes; {reason}",
        expected="a whole tokenizer.model as SentencePiece writes it",
        run=f"ls -l {name}, and fetch the file again",
    )


def load_processor(proto: Any, *, prefix: bool = True) -> Any:
    """A `SentencePieceProcessor` of `proto`; without `prefix` it leaves out the dummy blank before the text."""
    if not prefix and proto.normalizer_spec.add_dummy_prefix:
        copy = sentencepiece_model_pb2.ModelProto()
        copy.CopyFrom(proto)
        copy.normalizer_spec.add_dummy_prefix = False
        proto = copy
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def require_extensible(proto: Any, name: str) -> None:
    """Raises `VocabularyError` unless `proto` is a BPE model with byte fallback, the family that can be extended."""
    kind = _MODEL_TYPES.get(proto.trainer_spec.model_type, "unknown")
    if kind != "BPE":
        raise VocabularyError(
            f"{name} cannot be extended with BPE pieces",
            found=f"a SentencePiece {kind} model",
            expected="a SentencePiece BPE model (LLaMA, Mistral) or a byte-level BPE tokenizer (Llama 3, SmolLM2)",
        )
    byte_pieces = sum(piece.type == BYTE for piece in proto.pieces)
    unused = sum(piece.type == UNUSED for piece in proto.pieces)
    if byte_pieces != 256 or unused or proto.trainer_spec.treat_whitespace_as_suffix:
        raise VocabularyError(
            f"{name} is a SentencePiece BPE model of a kind that is not supported as a base",
            found=f"{byte_pieces} byte pieces, {unused} unused pieces, blanks as "
            f"{'suffix' if proto.trainer_spec.treat_whitespace_as_suffix else 'prefix'}",
            expected="256 byte pieces (byte fallback), no unused piece, blanks as prefix",
        )


def is_bpe(proto: Any) -> bool:
    """Whether the model segments by BPE merges."""
    return bool(proto.trainer_spec.model_type == _BPE)


def extended_proto(proto: Any, pieces: Sequence[tuple[str, int]]) -> Any:
    """`proto` with further pieces, each a text and its type, behind its own."""
    if not pieces:
        return proto
    model = sentencepiece_model_pb2.ModelProto()
    model.CopyFrom(proto)
    for text, kind in pieces:
        model.pieces.add(piece=text, score=0.0, type=kind)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model


def ranked_merges(proto: Any) -> list[tuple[str, str]]:
    """The merges that the scores of `proto` stand for, first merge first."""
    normal = [(piece.piece, piece.score, index) for index, piece in enumerate(proto.pieces) if piece.type == NORMAL]
    known = {text for text, _, _ in normal}
    normal.sort(key=lambda entry: (-entry[1], entry[2]))
    merges: list[tuple[str, str]] = []
    for _, group in groupby(normal, key=lambda entry: entry[1]):
        texts = [text for text, _, _ in group]
        pairs = [pair for text in texts for pair in _splits(text, known)]
        if len(texts) > 1 and all(text.strip(BLANK) == "" for text in texts):
            # Equal scores: SentencePiece takes the leftmost pair, so a run of blanks grows from its left end.
            pairs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))
        merges += pairs
    return merges


def _splits(text: str, known: set[str]) -> list[tuple[str, str]]:
    cuts = range(len(text) - 1, 0, -1)
    return [(text[:cut], text[cut:]) for cut in cuts if text[:cut] in known and text[cut:] in known]
