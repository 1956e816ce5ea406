"""Any server of the OpenAI API, asked one conversation after another; the official client retries and backs off."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urldefrag, urlsplit

from yangtuo.data.template import Message
from yangtuo.errors import ConfigError, ServingError
from yangtuo.inference.predicting import Answer, Ask

_RETRIES = 6


@contextmanager
def asking(
    server: str, *, model: str | None = None, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[Ask]:
    """What asks `model`, or the first one, of the server at an address such as http://127.0.0.1:8000 or …/v1#MODEL.

    The key is taken from OPENAI_API_KEY. Raises `ServingError` where the server does not answer.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError("asking a server needs the openai package", run="pip install 'yangtuo[serve]'") from error
    server, fragment = urldefrag(server)
    address = server if urlsplit(server).path.strip("/") else server.rstrip("/") + "/v1"
    key = os.environ.get("OPENAI_API_KEY") or "none"
    with openai.OpenAI(base_url=address, api_key=key, max_retries=_RETRIES, timeout=600) as client:
        told = _explaining(openai, server)
        name = model or fragment or told(lambda: next(iter(client.models.list())).id)

        def ask(index: int, messages: Sequence[Message]) -> Answer:
            asked: Any = [{"role": message.role, "content": message.content} for message in messages]
            reply = told(
                lambda: client.chat.completions.create(
                    model=name, messages=asked, max_tokens=max_new_tokens, temperature=temperature, seed=seed + index
                )
            )
            choice = reply.choices[0]
            return Answer((choice.message.content or "").strip(), choice.finish_reason)

        yield ask


def _explaining(openai: Any, server: str) -> Callable[[Callable[[], Any]], Any]:
    """Calls the client, whose errors after its own retries are said as ours."""

    def told(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (openai.APIError, StopIteration) as error:
            raise ServingError(
                f"{server} does not answer",
                found=str(getattr(error, "message", "")) or "no model",
                expected="a server of the OpenAI API; answers so far are kept, and the same command goes on",
            ) from error

    return told
