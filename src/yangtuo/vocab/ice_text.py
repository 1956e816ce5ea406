"""ChatGLM-6B's SentencePiece model (`ice_text.model`): how text is written before it, and read behind it.

The model has pieces for a newline, a tab and runs of 2 to 80 spaces, under names such as `<n>`; text is rewritten to
those names first. The first checkpoints shift every id by 20,000 image tokens, later ones by none.
This module knows no tokenizer class; `vocab.encoding` and `models.chatglm` both build on it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MODEL_FILE = "ice_text.model"
BEGIN, END = "<sop>", "<eop>"
"""Start and end of a piece: what BOS and EOS are to other models."""

_NEWLINE, _TAB = "<n>", "<|tab|>"
_LONGEST_RUN = 80
_SPACES = re.compile(f" {{2,{_LONGEST_RUN}}}")  # greedy, so the longest run comes first
_RUN = re.compile(r"<\|blank_([2-9]|[1-7][0-9]|80)\|>")
_BEGIN_ID = 130004  # of <sop> where nothing is shifted


def is_ice(proto: Any) -> bool:
    """Whether a parsed SentencePiece model is ChatGLM's, by the pieces that no other has."""
    texts = {piece.piece for piece in proto.pieces[-400:]} | {piece.piece for piece in proto.pieces[:8]}
    return {_NEWLINE, _TAB, f"<|blank_{_LONGEST_RUN}|>", BEGIN, END, "[gMASK]"} <= texts


def to_pieces(text: str) -> str:
    """`text` with the names of pieces in the place of newlines, tabs and runs of spaces."""
    text = text.replace("\n", _NEWLINE).replace("\t", _TAB)
    return _SPACES.sub(lambda run: f"<|blank_{len(run[0])}|>", text)


def from_pieces(text: str) -> str:
    """What `to_pieces` did, undone; a name that a user wrote cannot be told from ours, as in the original."""
    text = text.replace(_NEWLINE, "\n").replace(_TAB, "\t")
    return _RUN.sub(lambda run: " " * int(run[1]), text)


def num_image_tokens(directory: Path) -> int:
    """How far the ids of the tokenizer in `directory` are shifted: what its settings say, else its model's config."""
    settings, config = (_read(directory / name) for name in ("tokenizer_config.json", "config.json"))
    if "num_image_tokens" in settings:
        return int(settings["num_image_tokens"])
    if config.get("model_type") == "chatglm" and int(config.get("bos_token_id", 0)) > _BEGIN_ID:
        return int(config["bos_token_id"]) - _BEGIN_ID
    return 0


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
