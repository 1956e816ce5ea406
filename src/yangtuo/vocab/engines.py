"""How text becomes ids and back: SentencePiece's own library, or Hugging Face tokenizers.

Neither engine ever makes a control token out of text: SentencePiece has no such path, the other is told not to. This
module knows no files.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from yangtuo.errors import FileError, UserError
from yangtuo.vocab.sentencepiece_model import BLANK, CONTROL, UNKNOWN, USER_DEFINED, load_processor

_UNREACHABLE = "\U000f1ace"  # begins the name of a control token where a text must not reach it; private, unassigned
_MARKUP = re.compile(
    r"</?(a|b|blockquote|br|caption|code|em|h[1-6]|hr|i|li|ol|p|pre|s|strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)


def stands_for_text(token: str) -> bool:
    """Whether a user-defined piece is found in text: runs of spaces and line breaks, and HTML's tags, as in Gemma's.

    All others (`<end_of_turn>`, `<tool_call>`) are what templates write, and a user's text never becomes one.
    """
    return not token.replace(BLANK, "").strip() or _MARKUP.fullmatch(token) is not None


class Engine(Protocol):
    """What an encoder needs of a library."""

    def encode(self, text: str, prefix: bool) -> list[int]:
        """The ids of `text`."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int | None) -> list[list[int]]:
        """The ids of each text."""
        ...

    def encode_arrays(self, texts: Sequence[str], num_threads: int | None) -> list[npt.NDArray[np.int32]]:
        """The ids of each text, as arrays."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""
        ...

    def split(self, piece: str) -> list[int]:
        """The ids that merges alone make of a piece's text, written as in the tokenizer's file."""
        ...


class MergingEngine(Engine, Protocol):
    """An engine of a tokenizer that can be extended."""

    def encode_words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The ids of each word of each text, as the tokenizer parts words before it merges."""
        ...


class SentencePieceEngine:
    """SentencePiece's processor, with tokens beyond the model's pieces as `added` (id -> text)."""

    def __init__(self, proto: Any, added: Mapping[int, str], is_text: Callable[[str], bool] = stands_for_text) -> None:
        """`is_text` says of a user-defined piece whether it is found in text."""
        self._proto = proto = _without_controls_in_text(proto, is_text)
        self._processor = load_processor(proto)
        self._num_pieces = len(proto.pieces)
        self._added = dict(added)
        self._dropped = {index for index, piece in enumerate(proto.pieces) if piece.type in (CONTROL, UNKNOWN)}

    @cached_property
    def _unprefixed(self) -> Any:
        return load_processor(self._proto, prefix=False)

    def encode(self, text: str, prefix: bool) -> list[int]:
        """The ids of `text`; `prefix` false leaves out the dummy blank."""
        return list((self._processor if prefix else self._unprefixed).encode(text))

    def encode_batch(self, texts: Sequence[str], num_threads: int | None) -> list[list[int]]:
        """The ids of each text, on SentencePiece's own threads."""
        threads = num_threads or os.cpu_count() or 1
        return list(self._processor.encode(list(texts), num_threads=threads)) if texts else []

    def encode_arrays(self, texts: Sequence[str], num_threads: int | None) -> list[npt.NDArray[np.int32]]:
        """The ids of each text as arrays, which SentencePiece from 0.2.3 on makes itself, in half the time."""
        if not texts or not hasattr(self._processor, "encode_as_numpy"):
            return [np.array(ids, dtype=np.int32) for ids in self.encode_batch(texts, num_threads)]
        threads = num_threads or os.cpu_count() or 1
        return list(self._processor.encode(list(texts), num_threads=threads, return_type="numpy"))

    def encode_words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The ids of each text, all of it one word: SentencePiece merges over spaces where it has such pieces."""
        return [[ids] for ids in self.encode_batch(texts, None)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; tokens beyond the model's pieces are controls and give nothing."""
        kept = [int(index) for index in ids if index < self._num_pieces and index not in self._dropped]
        return str(self._processor.decode(kept)) if kept else ""

    def split(self, piece: str) -> list[int]:
        """The ids of `piece`; its U+2581 counts as a blank, and none is put before it."""
        return list(self._unprefixed.encode(piece))


def _without_controls_in_text(proto: Any, is_text: Callable[[str], bool]) -> Any:
    """The model with user-defined pieces that are no text as control pieces, which SentencePiece never finds."""
    controls = [
        index for index, piece in enumerate(proto.pieces) if piece.type == USER_DEFINED and not is_text(piece.piece)
    ]
    if not controls:
        return proto
    model = sentencepiece_model_pb2.ModelProto()
    model.CopyFrom(proto)
    for index in controls:
        model.pieces[index].type = CONTROL
    return model


class FastEngine:
    """A tokenizer of Hugging Face's library, from the content of its tokenizer.json."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = _without_reachable_controls(content)
        self._tokenizer = _tokenizer(self._content)

    @cached_property
    def _unprefixed(self) -> Any:
        content = copy.copy(self._content)
        content["normalizer"] = _without_prefix(content.get("normalizer"))
        content["pre_tokenizer"] = _without_prefix(content.get("pre_tokenizer"))
        return self._tokenizer if content == self._content else _tokenizer(content)

    def encode(self, text: str, prefix: bool) -> list[int]:
        """The ids of `text`; `prefix` false leaves out the blank that SentencePiece-like tokenizers put first."""
        return list((self._tokenizer if prefix else self._unprefixed).encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], num_threads: int | None) -> list[list[int]]:  # noqa: ARG002
        """The ids of each text, on the library's own threads, however many `num_threads` asks for."""
        return [
            list(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_arrays(self, texts: Sequence[str], num_threads: int | None) -> list[npt.NDArray[np.int32]]:
        """The ids of each text as arrays."""
        return [np.array(ids, dtype=np.int32) for ids in self.encode_batch(texts, num_threads)]

    def encode_words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """The ids of each word of each text, as its pre-tokenizer cuts words."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            [
                [index for index, _ in word]
                for _, word in groupby(zip(encoding.ids, encoding.word_ids, strict=True), itemgetter(1))
            ]
            for encoding in encodings
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return str(self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True))

    def split(self, piece: str) -> list[int]:
        """The ids of `piece`, past normaliser and pre-tokenizer."""
        return [token.id for token in self._tokenizer.model.tokenize(piece)]


def is_word(token: str) -> bool:
    """Whether an added token that is not marked special is a word of a text, and no control: as expansions add them."""
    return stands_for_text(token) or (token.isalpha() and token.lower() == token.upper())


def _without_reachable_controls(content: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json whose control tokens no text can reach.

    The library keeps special tokens out of text itself; those that are not marked so, whatever they look like, are
    marked here. Models that look whole words up (WordLevel, WordPiece, Unigram) find a control that is in their
    vocabulary too: there it gets a name that no text has. The unknown token stays, for text may be unknown.
    """
    model = dict(content["model"])
    tokens = content["added_tokens"]
    added = [{**token, "special": token["special"] or not is_word(token["content"])} for token in tokens]
    unknown = {model.get("unk_token")}
    if isinstance(model["vocab"], list) and model.get("unk_id") is not None:
        unknown |= {text for text, _ in model["vocab"][model["unk_id"] :][:1]}
    names = {
        token["content"]: f"{_UNREACHABLE}{token['id']}"
        for token in added
        if token["special"] and token["content"] not in unknown
    }
    if isinstance(model["vocab"], list):
        known = names.keys() & {text for text, _ in model["vocab"]}
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    else:
        known = names.keys() & model["vocab"].keys()
        model["vocab"] = {names.get(text, text): index for text, index in model["vocab"].items()}
    added = [{**token, "content": names[token["content"]]} if token["content"] in known else token for token in added]
    return {**content, "model": model, "added_tokens": added}


@contextmanager
def library_refusals(name: str) -> Iterator[None]:
    """Whatever Hugging Face's libraries say against the tokenizer called `name` becomes a `FileError`."""
    try:
        yield
    except BaseException as error:  # tokenizers has no errors of its own, and its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | UserError):
            raise
        raise FileError(
            f"{name} is none that Hugging Face's library can read",
            found=(str(error).splitlines() or [type(error).__name__])[0][:300],
            expected="files as tokenizers wrote them",
        ) from error


def _tokenizer(content: Mapping[str, Any]) -> Any:
    with library_refusals("the tokenizer.json"):
        tokenizer = Tokenizer.from_str(json.dumps({**content, "truncation": None, "padding": None}))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_prefix(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step["type"] == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, key: [_without_prefix(inner) for inner in step[key]]}
    return step
