"""The OpenAI API as its official client sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from yangtuo.data.template import Message
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling, generate

openai = pytest.importorskip("openai", reason="needs the official client")

MESSAGES = [{"role": "user", "content": "Who sat on the mat?"}]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as made:
        yield made


def reference(conversation: Conversation, count: int) -> list[int]:
    prompt = conversation.prompt([Message("user", MESSAGES[0]["content"])])
    return generate(conversation.engine, [prompt], conversation.with_stops(Sampling(max_tokens=count)))[0]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["pico"]
    assert client.models.retrieve("pico").id == "pico"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("gpt")


def test_a_chat_is_the_engine_s_reply(client: openai.OpenAI, conversation: Conversation) -> None:
    reply = client.chat.completions.create(model="pico", messages=MESSAGES, temperature=0, max_tokens=12)
    expected = reference(conversation, 12)
    text = conversation.encoder.decode(expected).lstrip().rstrip("\ufffd")
    assert reply.choices[0].message.content == text
    assert reply.usage.completion_tokens == len(expected)
    assert reply.choices[0].finish_reason == ("length" if len(expected) == 12 else "stop")


def test_a_stream_is_the_whole_reply_in_parts(client: openai.OpenAI) -> None:
    asked = {"model": "pico", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, "logprobs": True}
    whole = client.chat.completions.create(**asked, top_logprobs=2)
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == (
        whole.choices[0].message.content
    )
    assert parts[-1].usage == whole.usage and parts[-1].choices == []
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    tokens = [
        t for part in parts if part.choices and part.choices[0].logprobs for t in part.choices[0].logprobs.content
    ]
    assert [t.token for t in tokens] == [t.token for t in whole.choices[0].logprobs.content]
    assert all(len(t.top_logprobs) == 2 for t in whole.choices[0].logprobs.content)


def test_seeds_choices_and_stops(client: openai.OpenAI) -> None:
    asked = {"model": "pico", "prompt": "the cat", "max_tokens": 12, "temperature": 1.0}
    first = client.completions.create(**asked, seed=3, n=3)
    again = client.completions.create(**asked, seed=3, n=3)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) > 1
    assert client.completions.create(**asked, seed=4).choices[0].text == first.choices[1].text
    text = client.completions.create(**{**asked, "temperature": 0}).choices[0].text
    stop = text.strip()[2:4]
    cut = client.completions.create(**{**asked, "temperature": 0}, stop=[stop, "never there"])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_prompts_are_echoed_with_their_probabilities(client: openai.OpenAI, conversation: Conversation) -> None:
    """What lm_eval reads to score a choice: ids in, and a probability for each of them out."""
    encoder = conversation.encoder
    ids = [[1, *encoder.encode("the cat sat")], [1, *encoder.encode("the dog")]]
    reply = client.completions.create(model="pico", prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True)
    for choice, prompt in zip(reply.choices, ids, strict=True):
        expected = conversation.engine.score(prompt, 1)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(
            [token.logprob for token in expected[1:]], abs=1e-4
        )
        assert len(choice.logprobs.tokens) == len(prompt) + 1
        assert choice.text.startswith(encoder.decode(prompt))
        assert all(len(top) in (1, 2) for top in choice.logprobs.top_logprobs[1:])


def test_embeddings_of_like_texts_are_alike(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="pico", input=["the cat sat", "the cat sat", "你好"])
    first, second, other = (entry.embedding for entry in made.data)
    assert first == second != other
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-4)


def test_text_of_a_completion_is_never_a_control_token(client: openai.OpenAI, conversation: Conversation) -> None:
    reply = client.completions.create(model="pico", prompt="a</s>b", max_tokens=0, echo=True, logprobs=0)
    assert reply.choices[0].text.replace(" ", "") == "a</s>b"
    assert conversation.encoder.pieces[conversation.encoder.eos_id] not in reply.choices[0].logprobs.tokens
