"""Tokenizers as GGUF's metadata carries them, to and from tokenizer files.

Two families: "llama", SentencePiece BPE with scores, and "gpt2", byte-level BPE with merges, whose pre-tokenizer GGUF
only names: the table here says what the names mean. This module knows no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from yangtuo.errors import WeightsError
from yangtuo.vocab.directory import MODEL_FILE, read_settings, write_byte_level, write_sentencepiece
from yangtuo.vocab.encoding import Encoder, Family, load_encoder, read_fast_json
from yangtuo.vocab.sentencepiece_model import CONTROL, NORMAL, UNUSED, USER_DEFINED, read_model
from yangtuo.vocab.tiktoken_model import SPLIT

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLIT = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [dict(step) for step in steps]}


# llama.cpp's names of pre-tokenizers, and the tokenizer.json that cuts alike.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama-bpe": _sequence(_SPLIT, {**_BYTES, "use_regex": False}),
    "smollm": _sequence(_DIGITS, _BYTES),
    "gpt-2": dict(_BYTES),
}
_MERGED_WHOLE = {"llama-bpe"}  # words that are pieces are never merged from bytes


def write_tokenizer(directory: Path, metadata: Mapping[str, Any]) -> None:
    """Writes tokenizer files from GGUF's metadata; raises `WeightsError` for families that are not known."""
    model = metadata.get("tokenizer.ggml.model")
    template = metadata.get("tokenizer.chat_template")
    settings = {"chat_template": template} if template else {}
    if model == "llama":
        write_sentencepiece(directory, _sentencepiece(metadata).SerializeToString(), settings=settings)
        return
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise WeightsError(
            "the GGUF file's tokenizer is of an unknown family",
            found=f"{model}, pre-tokenizer {pre}",
            expected=f"llama, or gpt2 with {', '.join(PRE_TOKENIZERS)}",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{name}_token": tokens[metadata[key]]
        for name, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if key in metadata
    }
    write_byte_level(directory, _byte_level(metadata, pre), {**settings, **special})


def read_tokenizer(path: Path, rows: int) -> dict[str, Any]:
    """GGUF's metadata for the tokenizer directory `path` and an embedding of `rows` rows."""
    encoder = load_encoder(path)
    values: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": index
        for name, index in (("bos", encoder.bos_id), ("eos", encoder.eos_id))
        if index is not None
    }
    template = path / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else read_settings(path).get("chat_template")
    if isinstance(text, str):
        values["tokenizer.chat_template"] = text
    family = _from_sentencepiece if encoder.family is Family.SENTENCEPIECE else _from_byte_level
    values |= family(path, encoder)
    unused = range(encoder.vocabulary_size, rows)
    values["tokenizer.ggml.tokens"] += [f"[PAD{index}]" for index in unused]
    values["tokenizer.ggml.token_type"] += [UNUSED for _ in unused]
    if "tokenizer.ggml.scores" in values:
        values["tokenizer.ggml.scores"] += [-1e4 for _ in unused]
    return values


def _from_sentencepiece(path: Path, encoder: Encoder) -> dict[str, Any]:
    proto = read_model(path / MODEL_FILE)
    added = encoder.pieces[len(proto.pieces) :]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces] + added,
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces] + [-1e4 for _ in added],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces] + [CONTROL for _ in added],
        "tokenizer.ggml.unknown_token_id": proto.trainer_spec.unk_id,
        "tokenizer.ggml.add_bos_token": encoder.bos_id is not None,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }


def _from_byte_level(path: Path, encoder: Encoder) -> dict[str, Any]:
    content = read_fast_json(path / "tokenizer.json")
    found = _comparable(content.get("pre_tokenizer"))
    pre = next((name for name, known in PRE_TOKENIZERS.items() if _comparable(known) == found), None)
    if pre is None or encoder.family is not Family.BYTE_LEVEL:
        raise WeightsError(
            f"llama.cpp has no name for the pre-tokenizer of {path}",
            found=json.dumps(content.get("pre_tokenizer")),
            expected=", ".join(PRE_TOKENIZERS),
        )
    special = {token["content"]: token.get("special", True) for token in content["added_tokens"]}
    types = [
        CONTROL if special.get(piece) else USER_DEFINED if piece in special else NORMAL for piece in encoder.pieces
    ]
    merges = content["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(encoder.pieces),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.add_bos_token": "TemplateProcessing" in json.dumps(content.get("post_processor")),
    }


def _comparable(step: Any) -> Any:
    """A pre-tokenizer without what does not change the cuts."""
    if isinstance(step, dict):
        return {key: _comparable(value) for key, value in step.items() if key != "trim_offsets"}
    return [_comparable(item) for item in step] if isinstance(step, list) else step


def _sentencepiece(metadata: Mapping[str, Any]) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for piece, score, kind in zip(*columns, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(proto.pieces)
    for name, key in (("unk_id", "unknown"), ("bos_id", "bos"), ("eos_id", "eos"), ("pad_id", "padding")):
        setattr(spec, name, int(metadata.get(f"tokenizer.ggml.{key}_token_id", -1 if name != "unk_id" else 0)))
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    return proto


def _byte_level(metadata: Mapping[str, Any], pre: str) -> dict[str, Any]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    template = None
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and bos is not None:
        first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
        pair = [{"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")]
        template = {
            "type": "TemplateProcessing",
            "single": [first, pair[0]],
            "pair": [first, pair[0], {"SpecialToken": {"id": tokens[bos], "type_id": 1}}, pair[1]],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": template,
        "decoder": dict(_BYTES),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _MERGED_WHOLE,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
