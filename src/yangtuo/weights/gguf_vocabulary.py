"""Tokenizers as GGUF's metadata carries them, to and from tokenizer directories.

Two families: "llama", SentencePiece BPE with scores, and "gpt2", byte-level BPE with merges, whose pre-tokenizer GGUF
only names: the table here says what the names mean. This module knows no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, pre_tokenizers

from yangtuo.errors import WeightsError
from yangtuo.vocab.directory import TokenizerDirectory
from yangtuo.vocab.encoding import Family, fast_family
from yangtuo.vocab.fast_tokenizer import fast_text
from yangtuo.vocab.sentencepiece_model import CONTROL, NORMAL, UNUSED, USER_DEFINED
from yangtuo.vocab.tiktoken_model import llama_3_words

# llama.cpp's names of pre-tokenizers, and the tokenizers object that cuts alike.
PRE_TOKENIZERS: dict[str, Any] = {
    "llama-bpe": llama_3_words(),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}
_MERGED_WHOLE = {"llama-bpe"}  # words that are pieces are never merged from bytes
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_of_metadata(metadata: Mapping[str, Any]) -> TokenizerDirectory:
    """The tokenizer in GGUF's metadata; raises `WeightsError` for families that are not known."""
    model = metadata.get("tokenizer.ggml.model")
    template = metadata.get("tokenizer.chat_template")
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    places = {name: metadata.get(f"tokenizer.ggml.{key}_token_id", -1) for name, key in _SPECIAL.items()}
    settings: dict[str, Any] = {
        f"{name}_token": tokens[index] for name, index in places.items() if 0 <= index < len(tokens)
    }
    for name in ("bos", "eos"):
        if isinstance(adds := metadata.get(f"tokenizer.ggml.add_{name}_token"), bool):
            settings[f"add_{name}_token"] = adds
    templates = {"default": template} if template else {}
    bare = TokenizerDirectory("the GGUF file", settings=settings, templates=templates)
    if model == "llama":
        proto = _sentencepiece(metadata, places)
        return TokenizerDirectory(
            bare.name, model=proto.SerializeToString(), settings=settings, templates=templates
        ).with_fast()
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise WeightsError(
            "the GGUF file's tokenizer is of an unknown family",
            found=f"{model}, pre-tokenizer {pre}",
            expected=f"llama, or gpt2 with {', '.join(PRE_TOKENIZERS)}",
        )
    content = json.loads(_byte_level(metadata, pre, places["bos"]))
    return bare.with_content(content)


def tokenizer_metadata(tokenizer: TokenizerDirectory, rows: int) -> dict[str, Any]:
    """GGUF's metadata for a tokenizer and an embedding of `rows` rows."""
    values: dict[str, Any] = {}
    for name in ("bos", "eos"):
        index = tokenizer.special_id(f"{name}_token")
        if index is not None:
            values[f"tokenizer.ggml.{name}_token_id"] = index
    pad = tokenizer.special_id("pad_token")
    if pad is not None:
        values["tokenizer.ggml.padding_token_id"] = pad
    if tokenizer.template is not None:
        values["tokenizer.chat_template"] = tokenizer.template
    values["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    values["tokenizer.ggml.add_eos_token"] = tokenizer.adds_eos
    is_sentencepiece = tokenizer.proto is not None or fast_family(tokenizer.content) is Family.SENTENCEPIECE
    values |= _from_sentencepiece(tokenizer) if is_sentencepiece else _from_byte_level(tokenizer)
    unused = range(len(values["tokenizer.ggml.tokens"]), rows)
    values["tokenizer.ggml.tokens"] += [f"[PAD{index}]" for index in unused]
    values["tokenizer.ggml.token_type"] += [UNUSED for _ in unused]
    if "tokenizer.ggml.scores" in values:
        values["tokenizer.ggml.scores"] += [-1e4 for _ in unused]
    return values


def _from_sentencepiece(tokenizer: TokenizerDirectory) -> dict[str, Any]:
    proto = tokenizer.whole_proto()
    marked = {token.text for token in tokenizer.added.values() if token.special}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [
            CONTROL if piece.type == NORMAL and piece.piece in marked else piece.type for piece in proto.pieces
        ],
        "tokenizer.ggml.unknown_token_id": proto.trainer_spec.unk_id,
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }


def _from_byte_level(tokenizer: TokenizerDirectory) -> dict[str, Any]:
    content = tokenizer.content
    assert content is not None
    own = _comparable(content.get("pre_tokenizer"))
    pre = next((name for name, known in PRE_TOKENIZERS.items() if _comparable(_object(known)) == own), None)
    if pre is None or fast_family(content) is not Family.BYTE_LEVEL:
        raise WeightsError(
            f"llama.cpp has no name for the pre-tokenizer of {tokenizer.name}",
            found=json.dumps(content.get("pre_tokenizer")),
            expected=", ".join(PRE_TOKENIZERS),
        )
    special = {token.text: token.special for token in tokenizer.added.values()}
    pieces = tokenizer.pieces
    merges = content["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.token_type": [
            CONTROL if special.get(piece) else USER_DEFINED if piece in special else NORMAL for piece in pieces
        ],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


def _object(pre_tokenizer: Any) -> Any:
    return json.loads(pre_tokenizer.__getstate__())


def _comparable(step: Any) -> Any:
    """A pre-tokenizer without what does not change the cuts."""
    if isinstance(step, dict):
        return {key: _comparable(value) for key, value in step.items() if key != "trim_offsets"}
    return [_comparable(item) for item in step] if isinstance(step, list) else step


def _sentencepiece(metadata: Mapping[str, Any], places: Mapping[str, int]) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()
    tokens, scores, kinds = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    kept = len(tokens)
    while kept and kinds[kept - 1] == UNUSED:  # rows without a piece, which a tokenizer does not have
        kept -= 1
    for piece, score, kind in zip(tokens[:kept], scores[:kept], kinds[:kept], strict=True):
        proto.pieces.add(piece=piece, score=score, type=CONTROL if kind == UNUSED else kind)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(proto.pieces)
    for name, index in places.items():
        setattr(spec, f"{name}_id", int(index) if name != "unk" or index >= 0 else 0)
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    return proto


def _byte_level(metadata: Mapping[str, Any], pre: str, bos: int) -> str:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    kept = len(tokens)
    while kept and kinds[kept - 1] == UNUSED:
        kept -= 1
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and bos >= 0
    return fast_text(
        {token: index for index, token in enumerate(tokens[:kept])},
        [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]],
        [
            (token, kind == CONTROL)
            for token, kind in zip(tokens[:kept], kinds[:kept], strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ],
        pre_tokenizer=PRE_TOKENIZERS[pre],
        decoder=decoders.ByteLevel(),
        first=tokens[bos] if adds_bos else None,
        ignore_merges=pre in _MERGED_WHOLE,
    )
