"""Many requests at a time: none lost, none mixed up; and hard text, whose prompts are those of training."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from yangtuo.data.template import Message, get_template
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Cancel, Receive, Sampling, Step, Token, generate
from yangtuo.inference.transformers_engine import _Job
from yangtuo.serving.app import Front
from yangtuo.serving.replies import Choice
from yangtuo.vocab.encoding import load_encoder

from .conftest import served

httpx = pytest.importorskip("httpx", reason="needs the official client's own client")

BAD: tuple[dict[str, Any], ...] = ({}, {"prompt": []}, {"prompt": "x", "n": 0}, {"prompt": "x", "nothing": 1})
HARD = [
    *("</s>", "<s>", "<|im_end|>", "### Response:", "[INST]", "<<SYS>>", "{{ bos_token }}", "<0x0A>", "0", "你好"),
    *("\u200f", "مرحبا", "👩\u200d👩\u200d👧", "e\u0301", "\ue000", "\n\n", "  ", "\t", "▁", "\u2003", "\ufeff"),
]


def test_five_hundred_requests_are_each_answered_with_their_own_reply(address: str, conversation: Conversation) -> None:
    """A tenth of the clients leave, and one in twenty sends what is no request."""
    rng = random.Random(3)
    asked = []
    for number in range(500):
        kind = "bad" if number % 20 == 7 else "leaves" if number % 10 == 3 else "good"
        prompt = [rng.randrange(260, 400) for _ in range(rng.randint(1, 40))]
        asked.append((kind, prompt, rng.randint(1, 12)))
    sampling = Sampling(max_tokens=12)
    greedy = generate(conversation.engine, [[*prompt] for _, prompt, _ in asked], conversation.with_stops(sampling))

    async def one(client: Any, slots: asyncio.Semaphore, kind: str, prompt: list[int], length: int) -> Any:
        async with slots:
            if kind == "bad":
                return (await client.post("/v1/completions", json=BAD[length % len(BAD)])).status_code
            body = {"prompt": prompt, "max_tokens": length, "temperature": 0, "logprobs": 0}
            if kind == "leaves":
                try:
                    await client.post("/v1/completions", json={**body, "max_tokens": 200}, timeout=0.01 * length)
                except httpx.TimeoutException:
                    return "left"
                return "left"
            return (await client.post("/v1/completions", json=body)).json()

    async def everyone() -> list[Any]:
        slots = asyncio.Semaphore(32)
        async with httpx.AsyncClient(base_url=address, timeout=240) as client:
            return await asyncio.gather(*(one(client, slots, *row) for row in asked))

    for (kind, _prompt, length), ids, got in zip(asked, greedy, asyncio.run(everyone()), strict=True):
        if kind == "bad":
            assert got == 400
        elif kind == "good":
            expected = ids[:length]
            assert got["usage"]["completion_tokens"] == len(expected)
            tokens = got["choices"][0]["logprobs"]["tokens"]
            assert len(tokens) == len(expected)
            raw = [conversation.encoder.token_bytes(token) for token in expected]
            assert [name for name in tokens if not name.startswith("bytes:")] == [
                part.decode() for part in raw if _is_text(part)
            ]
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    assert not {Choice, _Job} & set(kinds), "what a request held is given back, however the request ended"


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


class Listening:
    """An engine that remembers what it was asked, and says one token."""

    name = "listening"
    extra_settings: frozenset[str] = frozenset()
    context_length = None

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def submit(self, prompt: Sequence[int], _sampling: Sampling, receive: Receive, _adapter: str | None) -> Cancel:
        self.prompts.append(list(prompt))
        receive(Step(Token(300)))
        receive(Step(finish="stop"))
        return lambda: None

    def check(self) -> None:
        """Always well."""


@pytest.mark.parametrize(
    ("template", "family"),
    [("alpaca", "pico_tokenizer"), ("alpaca-2", "pico_tokenizer"), ("chatml", "pico_byte_level")],
)
def test_prompts_of_hard_text_are_those_of_training(template: str, family: str, request: pytest.FixtureRequest) -> None:
    """What training shows before an answer is what the engine is sent, to the last id."""
    directory: Path = request.getfixturevalue(family)
    encoder, form = load_encoder(directory), get_template(template, None)
    engine, rng = Listening(), random.Random(11)

    def text() -> str:
        return "".join(rng.choice(HARD) + rng.choice(("", " ", "a", "字")) for _ in range(rng.randint(0, 8)))

    talks = []
    for _ in range(334):
        turns = [Message("system", text())] if rng.random() < 0.3 else []
        for _ in range(rng.randint(0, 2)):
            turns += [Message("user", text()), Message("assistant", text())]
        talks.append([*turns, Message("user", text())])

    async def ask(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            for turns in talks:
                body = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    with served(Front({"pico": Conversation(engine, encoder, form)})) as address:  # type: ignore[arg-type]
        asyncio.run(ask(address))
    for turns, prompt in zip(talks, engine.prompts, strict=True):
        ids, learned = form.encode_conversation(encoder, [*turns, Message("assistant", "x")])
        last = len(learned) - learned[::-1].index(True) if True in learned else len(ids)
        first = last
        while first and learned[first - 1]:
            first -= 1
        assert prompt == form.encode_prompt(encoder, turns)
        assert prompt[: first - 1] == ids[: first - 1]
