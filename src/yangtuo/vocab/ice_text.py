"""ChatGLM-6B's SentencePiece model (`ice_text.model`): where it lies, and how text is written before it.

The model has pieces for a newline, a tab and runs of 2 to 80 spaces, under names such as `<n>`; text is rewritten to
those names first. The first checkpoints shift every id by 20,000 image tokens, later ones by none.
`vocab.encoding` and `models.chatglm` both build on this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yangtuo.files import read_json
from yangtuo.vocab.engines import SentencePieceEngine

MODEL_FILE = "ice_text.model"
BEGIN, END = "<sop>", "<eop>"
"""Start and end of a piece: what BOS and EOS are to other models."""

_NEWLINE, _TAB = "<n>", "<|tab|>"
_LONGEST_RUN = 80
_SPACES = re.compile(f" {{2,{_LONGEST_RUN}}}")  # greedy, so the longest run comes first
_RUN = re.compile(r"<\|blank_([2-9]|[1-7][0-9]|80)\|>")
_BEGIN_ID = 130004  # of <sop> where nothing is shifted


def find(path: Path) -> Path | None:
    """The file of ChatGLM's tokenizer, which `path` is or has as a directory; None where it is another's."""
    file = path / MODEL_FILE if path.is_dir() else path
    return file if file.name == MODEL_FILE and file.is_file() else None


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
    return read_json(file) if file.is_file() else {}


class IceTextEngine:
    """SentencePiece's processor behind the rewriting of text, with ids shifted by `num_images`."""

    def __init__(self, proto: Any, num_images: int) -> None:
        self._engine = SentencePieceEngine(proto, {}, is_text=lambda _: True)  # all are whitespace
        self._num_images = num_images

    def encode(self, text: str, prefix: bool) -> list[int]:
        """The ids of `text`; `prefix` false leaves out the dummy blank."""
        return self._shifted(self._engine.encode(to_pieces(text), prefix))

    def encode_batch(self, texts: Sequence[str], num_threads: int | None) -> list[list[int]]:
        """The ids of each text."""
        return [self._shifted(ids) for ids in self._engine.encode_batch(list(map(to_pieces, texts)), num_threads)]

    def encode_arrays(self, texts: Sequence[str], num_threads: int | None) -> list[npt.NDArray[np.int32]]:
        """The ids of each text as arrays."""
        arrays = self._engine.encode_arrays(list(map(to_pieces, texts)), num_threads)
        return [ids + np.int32(self._num_images) for ids in arrays]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens, images and rows without a piece give nothing."""
        return from_pieces(self._engine.decode([i - self._num_images for i in ids if i >= self._num_images]))

    def split(self, piece: str) -> list[int]:
        """The ids of `piece`, without any blank put before it."""
        return self._shifted(self._engine.split(piece))

    def _shifted(self, ids: list[int]) -> list[int]:
        return [index + self._num_images for index in ids] if self._num_images else ids
