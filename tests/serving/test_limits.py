"""What a server refuses, and how: a clean 4xx for each bad request, and a server that goes on."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from yangtuo.data.template import Message
from yangtuo.inference.conversation import Conversation
from yangtuo.serving.app import MAX_BODY, Front

from .conftest import served

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def post(address: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()


def begin(address: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    """A chat request that nobody has read the answer of."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("chat/completions", b"{", 400, "body"),
        ("chat/completions", b"\xff\xfe", 400, "body"),
        ("chat/completions", b"[]", 400, "body"),
        ("chat/completions", b'{"a":' * 5000, 400, "body"),
        ("chat/completions", {}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "content"),
        ("chat/completions", {**CHAT, "messages": [{"role": "assistant", "content": "x"}]}, 400, "last"),
        ("chat/completions", {**CHAT, "temperature": -1}, 400, "temperature"),
        ("chat/completions", {**CHAT, "temperature": "hot"}, 400, "temperature"),
        ("chat/completions", b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400, ""),
        ("chat/completions", {**CHAT, "top_p": 0}, 400, "top_p"),
        ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens"),
        ("chat/completions", {**CHAT, "max_tokens": True}, 400, "max_tokens"),
        ("chat/completions", {**CHAT, "max_tokens": 10**9}, 400, "room"),
        ("chat/completions", {**CHAT, "n": 1000}, 400, "n"),
        ("chat/completions", {**CHAT, "stop": [""]}, 400, "stop"),
        ("chat/completions", {**CHAT, "top_logprobs": 3}, 400, "logprobs"),
        ("chat/completions", {**CHAT, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "tools"),
        ("chat/completions", {**CHAT, "mirostat": 2}, 400, "mirostat"),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format"),
        ("chat/completions", {**CHAT, "model": "other"}, 404, "other"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": "long " * 500}]}, 400, "room"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": [[]]}, 400, "prompt"),
        ("completions", {"prompt": [10**6]}, 400, "vocabulary"),
        ("completions", {"prompt": [-1]}, 400, "prompt"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ("completions", {"prompt": "x", "best_of": 4}, 400, "best_of"),
        ("embeddings", {"input": "x", "dimensions": 3}, 400, "dimensions"),
        ("nothing", {}, 404, ""),
    ],
)  # fmt: skip
def test_a_bad_request_is_named(address: str, path: str, body: Any, status: int, says: str) -> None:
    got, answer = post(address, f"/v1/{path}", body)
    assert got == status, answer
    assert says in answer["error"]["message"] or says in str(answer["error"]["param"])
    assert answer["error"]["type"] == "invalid_request_error"


def test_fields_without_a_value_are_no_reason_to_refuse(address: str) -> None:
    """Clients send what they have: null, empty lists, false."""
    body = {**CHAT, "tools": [], "functions": None, "store": False, "response_format": {"type": "text"}, "user": "me"}
    assert post(address, "/v1/chat/completions", body)[0] == 200


def test_a_body_that_is_too_large_is_refused(address: str) -> None:
    body = json.dumps({**CHAT, "user": "x" * MAX_BODY}).encode()
    assert post(address, "/v1/chat/completions", body)[0] == 413
    assert post(address, "/v1/chat/completions", CHAT)[0] == 200


def test_a_key_is_wanted(conversation: Conversation) -> None:
    with served(Front({"pico": conversation}, api_keys=["right", "also"])) as address:
        for key, status in ((None, 401), ("wrong", 401), ("right", 200), ("also", 200), ("鍵", 401)):
            headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
            assert post(address, "/v1/chat/completions", CHAT, headers)[0] == status  # type: ignore[arg-type]
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200, "a supervisor has no key"
        connection.close()


def test_more_than_may_wait_is_refused_at_once(held: Any) -> None:
    with served(Front({"held": held}, max_waiting=2)) as address:
        first = begin(address, {**CHAT, "n": 2, "stream": True})
        held.engine.began.acquire(timeout=30)
        assert post(address, "/v1/chat/completions", CHAT)[0] == 429
        first.close()
        held.engine.ended.acquire(timeout=30)
        held.engine.ended.acquire(timeout=30)
        second = begin(address, CHAT)
        for _ in range(2):
            assert held.engine.began.acquire(timeout=30), "a reply that has ended makes room for another"
        second.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_replies(held: Any, stream: bool) -> None:
    with served(Front({"held": held})) as address:
        connection = begin(address, {**CHAT, "n": 3, "stream": stream})
        for _ in range(3):
            assert held.engine.began.acquire(timeout=30)
        connection.close()
        for _ in range(3):
            assert held.engine.ended.acquire(timeout=30), "nobody reads what this engine goes on to compute"
        assert held.engine.running == 0


def test_time_is_limited(held: Any) -> None:
    with served(Front({"held": held}, timeout=0.2)) as address:
        status, answer = post(address, "/v1/chat/completions", CHAT)
        assert status == 504 and "seconds" in answer["error"]["message"]
        assert held.engine.running == 0
        connection = begin(address, {**CHAT, "stream": True})
        text = connection.getresponse().read().decode()
        assert '"error"' in text and "[DONE]" not in text, "a stream that was cut must not look whole"
        connection.close()


def test_a_failing_engine_is_an_error_never_an_empty_reply(pico_model: Any, conversation: Conversation) -> None:
    from yangtuo.inference.transformers_engine import TransformersEngine, load_model

    broken = load_model(pico_model)
    broken.get_output_embeddings().weight.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    engine = TransformersEngine(broken)
    bad = Conversation(engine, conversation.encoder, conversation.template)
    with served(Front({"bad": bad})) as address:
        status, answer = post(address, "/v1/chat/completions", CHAT)
        assert status == 500 and "no numbers" in answer["error"]["message"]
        assert post(address, "/v1/chat/completions", {**CHAT, "stream": True})[0] == 500
    engine.close()


def test_running_text_to_a_model_that_reads_prompts_alone_is_a_bad_request(pico_glm: Any) -> None:
    from yangtuo.data.template import get_template
    from yangtuo.inference.transformers_engine import TransformersEngine, load_model
    from yangtuo.vocab.encoding import load_encoder

    engine = TransformersEngine(load_model(pico_glm))
    glm = Conversation(engine, load_encoder(pico_glm), get_template("model", pico_glm))
    with served(Front({"glm": glm})) as address:
        assert post(address, "/v1/chat/completions", CHAT)[0] == 200
        bare = {"prompt": "hello", "max_tokens": 2}
        for path, body in (
            ("completions", bare),
            ("completions", {**bare, "stream": True}),
            ("completions", {**bare, "echo": True, "logprobs": 1}),
            ("embeddings", {"input": "hello"}),
        ):
            status, answer = post(address, f"/v1/{path}", body)
            assert status == 400 and "[gMASK]" in answer["error"]["message"]
        assert post(address, "/v1/completions", {"prompt": glm.prompt([Message("user", "hello")])})[0] == 200
    engine.close()


def test_figures_are_counted(conversation: Conversation) -> None:
    with served(Front({"pico": conversation})) as address:
        post(address, "/v1/chat/completions", {**CHAT, "logit_bias": {"2": -100}})
        post(address, "/v1/chat/completions", {})
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    assert 'yangtuo_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'yangtuo_requests_total{path="/v1/chat/completions",status="400"} 1.0' in text
    assert 'yangtuo_tokens_total{direction="out"} 3.0' in text
    assert "yangtuo_replies_running 0.0" in text
