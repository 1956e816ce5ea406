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

from yangtuo.errors import FileError
from yangtuo.vocab import ice_text
from yangtuo.vocab.byte_level import piece_bytes
from yangtuo.vocab.directory import FAST_FILE, MODEL_FILE, read_settings
from yangtuo.vocab.engines import Engine, FastEngine, SentencePieceEngine
from yangtuo.vocab.identity import fast_fingerprint, sentencepiece_fingerprint
from yangtuo.vocab.sentencepiece_model import BLANK, CONTROL, NORMAL, USER_DEFINED, parse_model

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
    path = Path(path)
    if (ice := ice_text.find(path)) is not None:
        return _from_ice_text(ice)
    if path.is_dir():
        return _from_directory(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist", expected="a tokenizer directory, tokenizer.model or tokenizer.json")
    if path.suffix == ".json":
        return _from_fast(read_fast_json(path), {})
    return _from_sentencepiece(path, {}, {})


def _from_directory(path: Path) -> Encoder:
    settings = {**_read_json(path / "special_tokens_map.json"), **read_settings(path)}
    fast = path / FAST_FILE
    if is_sentencepiece(path / MODEL_FILE):
        return _from_sentencepiece(path / MODEL_FILE, settings, _added_beside(path))
    if fast.is_file():
        return _from_fast(read_fast_json(fast), settings)
    if (path / MODEL_FILE).is_file():
        return _from_sentencepiece(path / MODEL_FILE, settings, {})
    raise FileError(
        f"{path} holds no tokenizer",
        found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty directory",
        expected=f"{MODEL_FILE} or {FAST_FILE}",
    )


def is_sentencepiece(file: Path) -> bool:
    """Whether `file` holds a SentencePiece model, and not, say, tiktoken's base64 lines under the same name."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"  # field 1, length-delimited: the first piece


def _added_beside(path: Path) -> dict[str, int]:
    """Tokens that the other files of a SentencePiece directory name, by text."""
    tokens = _read_json(path / FAST_FILE).get("added_tokens", [])
    return {**_read_json(path / "added_tokens.json"), **{token["content"]: token["id"] for token in tokens}}


def _from_sentencepiece(path: Path, settings: Mapping[str, Any], named: Mapping[str, int]) -> Encoder:
    proto = parse_model(path.read_bytes(), str(path))
    size = len(proto.pieces)
    beyond = dict(sorted((index, text) for text, index in named.items() if index >= size))
    if list(beyond) != list(range(size, size + len(beyond))):
        raise FileError(
            f"the added tokens beside {path} leave gaps",
            found=f"ids {list(beyond)[:8]} after {size} pieces",
            expected=f"ids from {size} on without a gap",
        )
    pieces = [piece.piece for piece in proto.pieces] + list(beyond.values())
    types = (CONTROL, USER_DEFINED)
    controls = {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in types}
    controls |= {text: index for text, index in named.items() if index >= size or proto.pieces[index].type == NORMAL}
    ids = {text: index for index, text in enumerate(pieces)}
    spec = proto.trainer_spec
    return Encoder(
        engine=SentencePieceEngine(proto, beyond),
        family=Family.SENTENCEPIECE,
        fingerprint=sentencepiece_fingerprint(proto, beyond),
        pieces=pieces,
        bos_id=_special_id(settings, "bos_token", ids, spec.bos_id),
        eos_id=_special_id(settings, "eos_token", ids, spec.eos_id),
        controls=controls,
    )


def _from_ice_text(file: Path) -> Encoder:
    """ChatGLM's tokenizer. Its user-defined pieces are whitespace and no control tokens."""
    proto = parse_model(file.read_bytes(), str(file))
    num_images = ice_text.num_image_tokens(file.parent)
    pieces = [f"<image_{index}>" for index in range(num_images)] + [piece.piece for piece in proto.pieces]
    controls = {piece.piece: num_images + at for at, piece in enumerate(proto.pieces) if piece.type == CONTROL}
    return Encoder(
        engine=ice_text.IceTextEngine(proto, num_images),
        family=Family.SENTENCEPIECE,
        fingerprint=sentencepiece_fingerprint(proto, {-1: f"ice_text, {num_images} images"}),
        pieces=pieces,
        bos_id=controls[ice_text.BEGIN],
        eos_id=controls[ice_text.END],
        controls=controls,
    )


def _from_fast(content: Mapping[str, Any], settings: Mapping[str, Any]) -> Encoder:
    vocabulary = content["model"]["vocab"]
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    ids |= added
    # Ids that no file names (Llama 3 has none, some models have) still are ids.
    pieces = [f"<unnamed {index}>" for index in range(max(ids.values(), default=-1) + 1)]
    for text, index in ids.items():
        pieces[index] = text
    return Encoder(
        engine=FastEngine(content),
        family=_fast_family(content),
        fingerprint=fast_fingerprint(content),
        pieces=pieces,
        bos_id=_special_id(settings, "bos_token", ids, ids.get("<s>", -1)),
        eos_id=_special_id(settings, "eos_token", ids, ids.get("</s>", -1)),
        controls=added,
    )


def read_fast_json(path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json; raises `FileError` where the file is none, or the library cannot read it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert_keys = content["model"]["vocab"], content["model"]["type"]
        content.setdefault("added_tokens", [])
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{path} is not a tokenizer.json",
            found=f"{type(error).__name__}: {error}",
            expected="a file that Hugging Face tokenizers wrote, with model and vocab",
        ) from error
    assert len(assert_keys) == 2
    return dict(content)


def _fast_family(content: Mapping[str, Any]) -> Family:
    if content["model"]["type"] != "BPE":
        return Family.OTHER
    if '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        return Family.BYTE_LEVEL
    return Family.SENTENCEPIECE if content["model"].get("byte_fallback") else Family.OTHER


def _special_id(settings: Mapping[str, Any], name: str, ids: Mapping[str, int], default: int) -> int | None:
    token = settings.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    index = ids.get(text, default) if isinstance(text, str) else default
    return index if index >= 0 else None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise FileError(
            f"{file} is not JSON", found=str(error), expected="a file as its tokenizer's maker wrote it"
        ) from error
