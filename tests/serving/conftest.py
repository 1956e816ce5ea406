"""A server of the OpenAI API on a free port of loopback, in a thread of the tests' own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")

from yangtuo.data.template import get_template
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Cancel, Receive, Sampling, Step, Token
from yangtuo.inference.transformers_engine import TransformersEngine, load_model
from yangtuo.serving.app import Front
from yangtuo.serving.server import in_background, listen
from yangtuo.vocab.encoding import load_encoder


@contextmanager
def served(front: Front) -> Iterator[str]:
    """The address of `front` while it is served."""
    opened = listen("127.0.0.1", 0)
    with in_background(front.app(), opened):
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"


class Held:
    """An engine that gives one token and then nothing, until the request is cancelled."""

    name = "held"
    extra_settings: frozenset[str] = frozenset()
    context_length = None

    def __init__(self) -> None:
        self.running = 0
        self.began = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def submit(self, _prompt: Sequence[int], _sampling: Sampling, receive: Receive, _adapter: str | None) -> Cancel:
        def cancel() -> None:
            self.running -= 1
            receive(Step(finish="cancelled"))
            self.ended.release()

        self.running += 1
        receive(Step(Token(5)))
        self.began.release()
        return cancel

    def check(self) -> None:
        """Always well."""


@pytest.fixture
def held(conversation: Conversation) -> Conversation:
    """A conversation that never ends by itself."""
    return Conversation(Held(), conversation.encoder, conversation.template)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def conversation(pico_model: Path) -> Iterator[Conversation]:
    """The pico model, asked in Alpaca's form, over transformers."""
    engine = TransformersEngine(load_model(pico_model))
    yield Conversation(engine, load_encoder(pico_model), get_template("alpaca", None))
    engine.close()


@pytest.fixture(scope="session")
def front(conversation: Conversation) -> Front:
    return Front({"pico": conversation})


@pytest.fixture(scope="session")
def address(front: Front) -> Iterator[str]:
    with served(front) as where:
        yield where
