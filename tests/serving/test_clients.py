"""Clients that people have: what each of them sends, and what it reads of the answer."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from yangtuo.data.template import Message
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling, generate
from yangtuo.serving.app import Front

from .conftest import served

QUESTION = "Who sat on the mat?"
SAID = [{"role": "user", "content": QUESTION}]
SEEN = [{"type": "text", "text": QUESTION}]
REPLAYS: dict[str, dict[str, Any]] = {
    "langchain-openai": {
        "messages": [{"content": QUESTION, "role": "user"}],
        "model": "pico",
        "max_completion_tokens": 12,
        "stream": False,
        "temperature": 0.0,
    },
    "langchain-openai, streaming": {
        "messages": [{"content": QUESTION, "role": "user"}],
        "model": "pico",
        "max_completion_tokens": 12,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    },
    "Open WebUI": {
        "stream": True,
        "model": "pico",
        "messages": [{"role": "user", "content": SEEN}],
        "temperature": 0,
        "top_k": 40,
        "min_p": 0.0,
        "max_tokens": 12,
        "stop": ["never there"],
        "stream_options": {"include_usage": True},
    },
    "Open WebUI, naming a talk": {
        "model": "pico",
        "messages": SAID,
        "stream": False,
        "max_completion_tokens": 12,
        "temperature": 0,
    },
    "Cherry Studio": {
        "model": "pico",
        "messages": [{"role": "user", "content": SEEN}],
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 12,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": None,
    },
    "Cherry Studio, checking the key": {
        "model": "pico",
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": False,
        "max_tokens": 12,
        "temperature": 0,
    },
    "lm_eval local-chat-completions": {
        "messages": SAID,
        "model": "pico",
        "max_tokens": 12,
        "temperature": 0,
        "stop": ["\n\n\n\n\n"],
        "seed": 1234,
    },
}


@pytest.fixture(scope="module")
def keyed(conversation: Conversation) -> Any:
    """The address of a server that wants a key."""
    with served(Front({"pico": conversation}, api_keys=["sk-本地"])) as address:
        yield address


def call(address: str, path: str, body: Any = None, key: str | None = "sk-本地") -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    headers: dict[str, Any] = {"Content-Type": "application/json", "Accept": "*/*"}
    if key:
        headers["Authorization"] = f"Bearer {key}".encode()
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    said = response.read().decode()
    connection.close()
    return response.status, said


def expected(conversation: Conversation) -> str:
    prompt = conversation.prompt([Message("user", QUESTION)])
    ids = generate(conversation.engine, [prompt], conversation.with_stops(Sampling(max_tokens=12)))[0]
    return conversation.encoder.decode(ids).lstrip().rstrip("\ufffd")


@pytest.mark.parametrize("client", REPLAYS)
def test_what_a_client_sends_is_answered(client: str, keyed: str, conversation: Conversation) -> None:
    body = REPLAYS[client]
    status, said = call(keyed, "/v1/chat/completions", body)
    assert status == 200, said
    if not body.get("stream"):
        choice = json.loads(said)["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": expected(conversation)}
        return
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    assert said.rstrip().endswith("data: [DONE]")
    deltas = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(deltas) == expected(conversation)
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] > 0


def test_a_connection_is_verified_by_its_models(keyed: str) -> None:
    """Open WebUI and Cherry Studio ask for the models with the key, and take any status but 200 for a refusal."""
    assert call(keyed, "/v1/models", key="sk-wrong")[0] == call(keyed, "/v1/models", key=None)[0] == 401
    status, said = call(keyed, "/v1/models")
    assert status == 200
    (model,) = json.loads(said)["data"]
    assert model["id"] == "pico" and model["object"] == "model" and {"created", "owned_by"} <= model.keys()


def test_lm_evals_chat_client_gets_the_reply(address: str, conversation: Conversation) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    pytest.importorskip("tenacity", reason="needs lm_eval's own extra `api`")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    client = LocalChatCompletion(base_url=f"{address}/v1/chat/completions", model="pico")
    chat = client.apply_chat_template([{"role": "user", "content": QUESTION}])
    asked = Instance("generate_until", {}, (chat, {"until": ["never there"], "max_gen_toks": 12}), 0)
    assert client.generate_until([asked]) == [expected(conversation)]


def test_a_directory_loads_as_text_generation_webui_loads_it(pico_model: Path, conversation: Conversation) -> None:
    """It reads config, tokenizer (fast or not) and weights with transformers, and no code of the model's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(pico_model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(pico_model, config=config, dtype=torch.float32, use_safetensors=True)
    prompt = conversation.encoder.encode("the cat")
    for use_fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(pico_model, trust_remote_code=False, use_fast=use_fast)
        assert tokenizer("the cat", add_special_tokens=False).input_ids == prompt
    ids = model.generate(torch.tensor([[1, *prompt]]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    reply = generate(conversation.engine, [[1, *prompt]], Sampling(max_tokens=8))[0]
    assert ids[0, len(prompt) + 1 :].tolist() == reply
