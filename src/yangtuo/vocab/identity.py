"""Fingerprints of tokenizers: by pieces, ids, scores or merges, and how text is cut, whatever files hold them.

A bare tokenizer.model and a directory of it have one fingerprint. This module knows no files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def sentencepiece_fingerprint(proto: Any, added: Mapping[int, str]) -> str:
    """SHA-256 of a SentencePiece model's pieces and normaliser, and of tokens `added` beyond it (id -> text)."""
    spec = proto.normalizer_spec
    return _digest(
        "sentencepiece",
        proto.trainer_spec.model_type,
        [(piece.piece, piece.score, piece.type) for piece in proto.pieces],
        [spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces],
        base64.b64encode(spec.precompiled_charsmap).decode(),
        sorted(added.items()),
    )


def fast_fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a tokenizer.json says about pieces, ids, merges, normalisation and splitting."""
    model = content["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model.get("merges") or []]
    vocabulary = model["vocab"]
    pieces = sorted(vocabulary.items(), key=lambda item: item[1]) if isinstance(vocabulary, dict) else vocabulary
    return _digest(
        "tokenizer.json",
        pieces,
        merges,
        [bool(model.get("ignore_merges")), bool(model.get("byte_fallback"))],
        [content.get("normalizer"), content.get("pre_tokenizer")],
        sorted((token["id"], token["content"]) for token in content.get("added_tokens") or []),
    )


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()
