"""The OpenAI API over conversations, whatever engine is behind them.

The front writes prompts with the one template module and sends ids, so that what a user types is text in every engine.
It bounds what it takes: bytes of a body, tokens of a prompt, replies at a time, seconds of a reply.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from yangtuo.errors import DataError, FileError, ServingError, UserError
from yangtuo.files import parse_json
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling, Token, UnsupportedError
from yangtuo.serving.metrics import Metrics
from yangtuo.serving.replies import Answer, Choice, chat_logprobs, completion_logprobs, usage
from yangtuo.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generating,
    RequestError,
    encode_all,
)
from yangtuo.serving.running import Gone, Overdue, run

Body = TypeVar("Body", bound=BaseModel)
MAX_BODY = 8 << 20


@dataclass
class Front:
    """What the routes share."""

    conversations: Mapping[str, Conversation]
    """By model id; the first is taken where a request names none."""
    api_keys: Sequence[str] = ()
    max_waiting: int = 256
    """Replies that run or wait at a time; further ones are refused with 429."""
    timeout: float = 600
    """Seconds from a request to the end of its reply."""
    metrics: Metrics = field(default_factory=Metrics)
    started: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.model)),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
            Route("/v1/embeddings", self._guarded(self.embeddings), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: lambda _, error: _failure(error.status_code, str(error.detail))}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def health(self, _: Request) -> Response:
        """200 while requests are answered, else 503 with the reason."""
        try:
            for conversation in self.conversations.values():
                conversation.engine.check()
        except ServingError as error:
            return _failure(503, str(error))
        return _failure(503, "stopping") if self.stopping else JSONResponse({"status": "ok"})

    async def show_metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """All model ids."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.conversations]})

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["name"]
        self._conversation(name)
        return JSONResponse(self._card(name))

    async def chat(self, request: Request) -> Response:
        """The reply to a conversation."""
        asked = await _body(request, ChatRequest)
        name, conversation = self._conversation(asked.model)
        prompt = asked.prompt(conversation)
        left = (conversation.engine.context_length or 0) - len(prompt) or None
        sampling = self._sampling(asked, conversation, asked.num_tokens(left), asked.count_logprobs())
        return await self._answer(request, asked, conversation, [prompt], sampling, Answer(name, is_chat=True))

    async def completions(self, request: Request) -> Response:
        """What follows one or many prompts."""
        asked = await _body(request, CompletionRequest)
        name, conversation = self._conversation(asked.model)
        prompts = asked.prompts(conversation)
        max_tokens = 16 if asked.max_tokens is None else asked.max_tokens
        sampling = self._sampling(asked, conversation, max_tokens, asked.logprobs)
        echoed: list[list[Token]] | None = None
        if asked.echo:
            echoed = [await self._scored(conversation, ids, asked.logprobs) for ids in prompts]
        elif max_tokens == 0:
            raise RequestError(400, "max_tokens: 0 gives nothing without echo", "max_tokens")
        return await self._answer(request, asked, conversation, prompts, sampling, Answer(name, is_chat=False), echoed)

    async def embeddings(self, request: Request) -> Response:
        """The mean of the last hidden states of each input."""
        asked = await _body(request, EmbeddingRequest)
        name, conversation = self._conversation(asked.model)
        inputs = encode_all(conversation, asked.input, bos=True)
        for ids in inputs:
            _check_length(conversation, ids, 0)
        data = []
        for index, ids in enumerate(inputs):
            values = await asyncio.to_thread(conversation.engine.embed, ids, conversation.adapter)
            packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            vector = values if asked.encoding_format == "float" else packed
            data.append({"object": "embedding", "index": index, "embedding": vector})
        count = sum(map(len, inputs))
        totals = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": totals})

    async def _answer(
        self,
        request: Request,
        asked: Generating,
        conversation: Conversation,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        answer: Answer,
        echoed: Sequence[Sequence[Token]] | None = None,
    ) -> Response:
        for ids in prompts:
            _check_length(conversation, ids, sampling.max_tokens)
        count = asked.n or 1
        if len(prompts) * count > self.max_waiting:
            raise RequestError(400, f"at most {self.max_waiting} replies can be asked for in one request")
        if self.metrics.running + len(prompts) * count > self.max_waiting:
            raise RequestError(429, "the server has as much to do as it may: try again in a second", code="overloaded")
        encoder, stops = conversation.encoder, asked.stops()
        choices = [Choice(encoder, ids, stops, is_chat=answer.is_chat) for ids in prompts for _ in range(count)]
        samplings = [
            sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number)
            for _ in prompts
            for number in range(count)
        ]
        shown = _Shown(conversation, answer, asked, echoed, count)
        # The first step is awaited before anything is sent: what an engine refuses at once still gets its status.
        steps = run(request, conversation, choices, samplings, self.timeout, self.metrics)
        if asked.stream:
            return await _stream(shown, choices, prompts, steps)
        try:
            async for _ in steps:
                pass
        except Gone as error:
            raise ClientDisconnect from error
        whole = [shown.whole(index, choice) for index, choice in enumerate(choices)]
        return JSONResponse(answer.whole(whole, usage(prompts, choices)))

    def _sampling(self, asked: Generating, of: Conversation, max_tokens: int, logprobs: int | None) -> Sampling:
        extra = asked.refuse_unknown(of.engine.extra_settings)
        sampling = asked.sampling(of.encoder.vocabulary_size, max_tokens=max_tokens, logprobs=logprobs, extra=extra)
        return of.with_stops(sampling)

    async def _scored(self, conversation: Conversation, ids: Sequence[int], logprobs: int | None) -> list[Token]:
        _check_length(conversation, ids, 0)
        if logprobs is None:
            return [Token(token) for token in ids]
        return await asyncio.to_thread(conversation.engine.score, ids, logprobs, conversation.adapter)

    def _conversation(self, name: str | None) -> tuple[str, Conversation]:
        name = name or next(iter(self.conversations))
        if name not in self.conversations:
            known = ", ".join(self.conversations)
            raise RequestError(404, f"there is no model {name!r} here, but {known}", "model", "model_not_found")
        return name, self.conversations[name]

    def _card(self, name: str) -> dict[str, Any]:
        length = self.conversations[name].engine.context_length
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "yangtuo",
            "max_model_len": length,
        }

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A route that wants one of the keys, counts what it answers, and turns errors into OpenAI's objects."""

        async def guarded(request: Request) -> Response:
            with self.metrics.request(request.url.path) as outcome:
                response = await self._respond(request, handle)
                outcome(response.status_code)
                return response

        return guarded

    async def _respond(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            self._check_key(request)
            return await handle(request)
        except RequestError as error:
            return _failure(error.status, error.message, error.param, error.code)
        except ClientDisconnect:
            return Response(status_code=499)
        except Overdue:
            return _failure(504, f"no reply within {self.timeout:g} seconds", code="timeout")
        except (UnsupportedError, DataError) as error:
            return _failure(400, str(error))
        except UserError as error:
            return _failure(500, str(error))

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if self.api_keys and not any(secrets.compare_digest(given, key.encode()) for key in self.api_keys):
            raise RequestError(401, "a key is wanted: Authorization: Bearer KEY", code="invalid_api_key")


@dataclass
class _Shown:
    """How choices are shown in one response."""

    conversation: Conversation
    answer: Answer
    asked: Generating
    echoed: Sequence[Sequence[Token]] | None
    per_prompt: int

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        before, text = self._echo(index)
        logprobs = self._logprobs([*before, *choice.tokens], 0)
        return self.answer.choice(index, text + choice.text, logprobs, choice.finish, delta=False)

    def part(self, index: int, text: str, tokens: Sequence[Token], finish: str | None, offset: int) -> dict[str, Any]:
        """A part of a choice."""
        return self.answer.choice(index, text, self._logprobs(tokens, offset), finish, delta=True)

    def beginning(self, index: int) -> dict[str, Any]:
        """What a stream says of a choice before its first token: the role, or the prompt that is echoed."""
        if self.answer.is_chat:
            delta = {"role": "assistant", "content": ""}
            return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        before, text = self._echo(index)
        return self.part(index, text, before, None, 0)

    @property
    def wants_logprobs(self) -> bool:
        """Whether every token is reported."""
        assert isinstance(self.asked, ChatRequest | CompletionRequest)
        return self.asked.logprobs not in (None, False)

    def _echo(self, index: int) -> tuple[Sequence[Token], str]:
        if self.echoed is None:
            return (), ""
        tokens = self.echoed[index // self.per_prompt]
        return tokens, self.conversation.encoder.decode([token.id for token in tokens])

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        encoder = self.conversation.encoder
        if isinstance(self.asked, CompletionRequest):
            count = self.asked.logprobs
            return None if count is None else completion_logprobs(encoder, tokens, count, offset)
        assert isinstance(self.asked, ChatRequest)
        return chat_logprobs(encoder, tokens) if self.asked.logprobs else None


async def _stream(
    shown: _Shown, choices: Sequence[Choice], prompts: Sequence[Sequence[int]], steps: AsyncIterator[Any]
) -> Response:
    """The response as server-sent events."""
    first = await anext(steps, None)

    async def events() -> AsyncIterator[str]:
        for index in range(len(choices)):
            if shown.answer.is_chat or shown.echoed is not None:
                yield _event(shown.answer.chunk([shown.beginning(index)]))
        num_shown = [0] * len(choices)
        item = first
        try:
            while item is not None:
                index, text = item
                choice = choices[index]
                fresh = choice.tokens[num_shown[index] :]
                if text or choice.finish or (fresh and shown.wants_logprobs):
                    num_shown[index] = len(choice.tokens)
                    part = shown.part(index, text, fresh, choice.finish, len(choice.text) - len(text))
                    yield _event(shown.answer.chunk([part]))
                item = await anext(steps, None)
        except Gone:
            return
        except (ServingError, Overdue) as error:
            yield _event(_error(500, str(error) or "the reply took too long"))
            return
        if shown.asked.stream_options and shown.asked.stream_options.include_usage:
            yield _event(shown.answer.chunk([], usage(prompts, choices)))
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _body(request: Request, kind: type[Body]) -> Body:
    """The request's body as `kind`; 413 where it is too large, 400 with the field where it does not fit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise RequestError(413, f"the body has more than {MAX_BODY >> 20} MiB")
        parts.append(part)
    try:
        return kind.model_validate(parse_json(b"".join(parts), "the body", dict[str, Any]))
    except FileError as error:
        raise RequestError(400, str(error)) from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(step) for step in problem["loc"] if step not in ("str", "list[str]"))
        raise RequestError(400, f"{place or 'the body'}: {problem['msg']}", place or None) from error


def _check_length(conversation: Conversation, ids: Sequence[int], max_tokens: int) -> None:
    limit = conversation.engine.context_length
    if limit is not None and len(ids) + max_tokens > limit:
        raise RequestError(
            400,
            f"the model has room for {limit} tokens; the prompt has {len(ids)}, the reply may have {max_tokens}",
            "messages" if max_tokens else "prompt",
            "context_length_exceeded",
        )


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _failure(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
    return JSONResponse(_error(status, message, param, code), status_code=status, headers=headers)
