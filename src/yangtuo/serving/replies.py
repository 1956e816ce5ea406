"""The objects that the OpenAI API answers with, built from the tokens of an engine as they come."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yangtuo.inference.engine import Step, Token
from yangtuo.inference.text import Detokenizer, StopStrings
from yangtuo.vocab.encoding import Encoder

_LEAST = -9999.0
"""What OpenAI's API writes for a probability of zero, which JSON has no logarithm of."""


class Choice:
    """One reply in the making: text and tokens that are certain, and why it ended."""

    def __init__(self, encoder: Encoder, prompt: Sequence[int], stops: Sequence[str], *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._characters, self._stops = Detokenizer(encoder, prompt), StopStrings(stops)
        self.prompt = prompt
        self.tokens: list[Token] = []
        self.text = ""
        self.finish: str | None = None

    def take(self, step: Step) -> str:
        """The text that is certain with this step; sets `finish` at the end or at a stop string."""
        if self.finish is not None:
            return ""
        if step.token is not None:
            self.tokens.append(step.token)
            text = self._stops.push(self._characters.push(step.token.id))
        else:
            text = self._stops.push(self._characters.finish()) + self._stops.finish()
            self.finish = step.finish
        if self._stops.stopped:
            self.finish = "stop"
        if self._is_chat and not self.text:
            text = text.lstrip()  # SentencePiece's own space, which no message has
        self.text += text
        return text


@dataclass
class Answer:
    """What all parts of one response share."""

    model: str
    is_chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """The response in one object."""
        return {**self._head(""), "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None = None) -> dict[str, Any]:
        """A part of a stream."""
        return {**self._head(".chunk"), "choices": list(choices), **({"usage": usage} if usage is not None else {})}

    def choice(self, index: int, text: str, logprobs: Any, finish: str | None, *, delta: bool) -> dict[str, Any]:
        """A choice, whole or a part of it."""
        rest = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if not self.is_chat:
            return {"text": text, **rest}
        content: dict[str, Any] = {"content": text} if text or not delta else {}
        return {"delta": content, **rest} if delta else {"message": {"role": "assistant", **content}, **rest}

    def _head(self, part: str) -> dict[str, Any]:
        name, prefix = (f"chat.completion{part}", "chatcmpl-") if self.is_chat else ("text_completion", "cmpl-")
        return {"id": prefix + self.id, "object": name, "created": self.created, "model": self.model}


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens in and out."""
    num_in, num_out = sum(map(len, prompts)), sum(len(choice.tokens) for choice in choices)
    return {"prompt_tokens": num_in, "completion_tokens": num_out, "total_tokens": num_in + num_out}


def chat_logprobs(encoder: Encoder, tokens: Sequence[Token]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        raw = encoder.token_bytes(token)
        return {"token": _name(raw), "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*pair) for pair in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(encoder: Encoder, tokens: Sequence[Token], count: int, offset: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a completion, of `count` alternatives; the first token begins at `offset`."""
    names = [_name(encoder.token_bytes(token.id)) for token in tokens]
    offsets: list[int] = []
    top: list[dict[str, float] | None] = []
    for token, name in zip(tokens, names, strict=True):
        offsets.append(offset)
        offset += len(name)
        if token.logprob is None:
            top.append(None)  # the first token of a prompt follows nothing
            continue
        likeliest = {name: _finite(token.logprob)}
        for index, value in token.top[:count]:
            likely = _name(encoder.token_bytes(index))
            likeliest[likely] = max(_finite(value), likeliest.get(likely, _LEAST))
        top.append(likeliest)
    values = [None if token.logprob is None else _finite(token.logprob) for token in tokens]
    return {"tokens": names, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float | None) -> float:
    return max(_LEAST, logprob if logprob is not None else _LEAST)
