"""SentencePiece model files: reading them with checks, and the `tokenizer.json` that gives the same ids.

The format is sentencepiece_model.proto of google/sentencepiece. This module knows no directory layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2

from yangtuo.errors import FileError, VocabularyError

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
    return proto


def read_model(path: Path) -> Any:
    """The `ModelProto` of the file `path`; raises as `parse_model`."""
    return parse_model(path.read_bytes(), str(path))


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


def fast_tokenizer_json(proto: Any, controls: Sequence[str] = ()) -> str:
    """The text of a `tokenizer.json` that gives the ids of the BPE model `proto` on every text.

    `controls` are normal pieces to list as special tokens beside those that `proto` marks.

    Three things are unlike the common conversion: the dummy blank is put before a text that starts with a blank too,
    runs of blanks are merged from the left as SentencePiece does, and only normal pieces take part in merges.
    """
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    special = [
        (index, piece)
        for index, piece in enumerate(proto.pieces)
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED) or piece.piece in controls
    ]
    bos = proto.trainer_spec.bos_id
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(index, piece.piece, piece.type != USER_DEFINED) for index, piece in special],
        "normalizer": _normalizer(proto.normalizer_spec),
        "pre_tokenizer": None,
        "post_processor": _post_processor(proto.pieces[bos].piece, bos) if bos >= 0 else None,
        "decoder": _decoder(proto.normalizer_spec.add_dummy_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in ranked_merges(proto)],
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in a tokenizer.json."""
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


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


def _normalizer(spec: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        import base64

        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +|[ \u2581]+\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": BLANK})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _post_processor(bos: str, bos_id: int) -> dict[str, Any]:
    def template(sequence: str) -> list[dict[str, Any]]:
        type_id = 0 if sequence == "A" else 1
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": sequence, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A") + template("B"),
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
