"""What clients of the OpenAI API may send: types, limits, and a clear 400 for all else.

A field that this module does not know goes to the engine where that knows it, else it is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from yangtuo.data.template import Message
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling

MAX_CHOICES = 16
MAX_PROMPTS = 2048
_DEFAULT_TOKENS = 2048
"""Tokens of a chat's reply where neither the client nor the model's context sets fewer."""

Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
IdLists = Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class RequestError(Exception):
    """A request that is answered with a status and one of OpenAI's error objects."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class StreamOptions(BaseModel):
    """What a stream is to carry beside its text."""

    include_usage: bool = False


class Part(BaseModel):
    """A part of a message; only text is known."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message of a conversation; names are ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def message(self) -> Message:
        """The message as templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class Generating(BaseModel):
    """What chat and completion requests share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def sampling(self, vocabulary_size: int, **more: Any) -> Sampling:
        """The engine's settings; what is not given is as OpenAI's API has it."""
        names = ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            temperature=temperature,
            top_k=max(0, self.top_k or 0),
            logit_bias=tuple(self._biases(vocabulary_size)),
            **given,
            **more,
        )

    def _biases(self, vocabulary_size: int) -> list[tuple[int, float]]:
        biases = self.logit_bias or {}
        wrong = [key for key in biases if not (key.isdecimal() and int(key) < vocabulary_size)]
        if wrong:
            raise RequestError(400, f"logit_bias: {wrong[0]!r} is no id of this model's vocabulary", "logit_bias")
        return [(int(key), value) for key, value in biases.items()]

    def refuse_unknown(self, known: frozenset[str]) -> dict[str, Any]:
        """The fields for the engine alone, which knows the names `known`; refuses all others that hold a value."""
        given = {name: value for name, value in (self.model_extra or {}).items() if value not in (None, [], {}, False)}
        unknown = sorted(given.keys() - known)
        if unknown:
            names = ", ".join(unknown)
            raise RequestError(400, f"unknown fields, of which this engine can do nothing: {names}", unknown[0])
        return given


class ChatRequest(Generating):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids that ask for the reply."""
        if self.messages[-1].role == "assistant":
            raise RequestError(
                400, "messages: the last one is the assistant's, so there is nothing to reply to", "messages"
            )
        if self.response_format and self.response_format.get("type") != "text":
            raise RequestError(400, "response_format: only text can be asked for", "response_format")
        return conversation.prompt([turn.message() for turn in self.messages])

    def count_logprobs(self) -> int | None:
        """How many alternatives are to be reported."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs: needs logprobs to be true", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def num_tokens(self, context_left: int | None) -> int:
        """The longest reply."""
        asked = self.max_completion_tokens or self.max_tokens
        return asked if asked is not None else min(_DEFAULT_TOKENS, max(1, context_left or _DEFAULT_TOKENS))


class CompletionRequest(Generating):
    """POST /v1/completions."""

    prompt: str | Texts | Ids | IdLists
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None

    def prompts(self, conversation: Conversation) -> list[list[int]]:
        """The ids of each prompt; a text begins as documents do in training."""
        if self.best_of not in (None, self.n or 1):
            raise RequestError(400, "best_of: has to be n", "best_of")
        return encode_all(conversation, self.prompt, bos=True)


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    input: str | Texts | Ids | IdLists
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


def encode_all(
    conversation: Conversation, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], *, bos: bool
) -> list[list[int]]:
    """The ids of one text or of many, or ids as they are; text never becomes a control token."""
    encoder = conversation.encoder
    start = [encoder.bos_id] if bos and encoder.bos_id is not None else []
    encode: Callable[[str], list[int]] = lambda text: [*start, *encoder.encode(text)]  # noqa: E731
    if isinstance(prompt, str):
        many = [encode(prompt)]
    elif isinstance(prompt[0], int):
        many = [list(prompt)]  # type: ignore[arg-type]
    else:
        many = [encode(part) if isinstance(part, str) else list(part) for part in prompt]  # type: ignore[arg-type]
    for ids in many:
        if not ids:
            raise RequestError(400, "the prompt is empty, and this model's vocabulary has no token to begin with")
        if max(ids) >= encoder.vocabulary_size:
            raise RequestError(400, f"the prompt holds ids beyond the vocabulary of {encoder.vocabulary_size:,}")
    return many
