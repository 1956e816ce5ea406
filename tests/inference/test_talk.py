"""A talk of many turns: what no longer fits is left out from the oldest, and said; commands change what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from yangtuo.data.template import get_template
from yangtuo.errors import ConfigError, ServingError, UserError
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Sampling
from yangtuo.inference.talk import Talk
from yangtuo.vocab.encoding import load_encoder

from .test_conversation import Recorder


@pytest.fixture
def talk(pico_tokenizer: Path) -> Talk:
    encoder = load_encoder(pico_tokenizer)
    engine = Recorder(encoder.encode("fine"))
    return Talk(Conversation(engine, encoder, get_template("alpaca", None)), Sampling(max_tokens=10))  # type: ignore[arg-type]


def test_turns_are_remembered_as_in_training(talk: Talk) -> None:
    for text in ("one", "two"):
        assert "".join(talk.say(text)) == "fine"
    engine = talk.conversation.engine
    assert engine.prompts[1] == talk.conversation.prompt(talk.turns[:3])  # type: ignore[attr-defined]


def test_the_oldest_turns_are_left_out_first(talk: Talk) -> None:
    talk.conversation.engine.context_length = 150
    for number in range(8):
        list(talk.say(f"number {number}"))
        prompt = talk.conversation.engine.prompts[-1]  # type: ignore[attr-defined]
        assert len(prompt) + 10 <= 150
        assert f"number {number}" in talk.conversation.encoder.decode(prompt)
    assert talk.num_forgotten > 0 and talk.num_forgotten % 2 == 0
    assert len(talk.turns) == 16, "what is left out of a prompt is not forgotten by /save"
    with pytest.raises(ServingError, match="room"):
        list(talk.say("long " * 200))
    assert len(talk.turns) == 16


def test_a_reply_as_long_as_the_context_is_cut_to_the_room_that_is_left(talk: Talk) -> None:
    """A small model reads 250 tokens, and the usual reply may have 256: half of what it reads is kept for one."""
    talk.conversation.engine.context_length = 250
    talk.command("/set max_tokens 256")
    assert "".join(talk.say("a")) == "fine"
    engine = talk.conversation.engine
    assert engine.sampling.max_tokens == 250 - len(engine.prompts[-1]) >= 125  # type: ignore[attr-defined]


def test_commands(talk: Talk, tmp_path: Path) -> None:
    list(talk.say("one"))
    talk.command("/system Be brief. 简短。")
    talk.command(f"/save {tmp_path / 'talk.json'}")
    talk.command("/set temperature 0.7")
    talk.command("/set max_tokens 3")
    assert (talk.sampling.temperature, talk.sampling.max_tokens) == (0.7, 3)
    assert talk.command("/retry") == "one" and talk.turns == []
    talk.command("/reset")
    talk.command("/system")
    assert talk.system is None
    talk.command(f"/load {tmp_path / 'talk.json'}")
    assert talk.system == "Be brief. 简短。" and [turn.content for turn in talk.turns] == ["one", "fine"]


@pytest.mark.parametrize(
    "line", ["/nothing", "/set", "/set color red", "/set temperature hot", "/set top_p -1", "/save", "/load /nowhere/x"]
)
def test_a_wrong_command_is_named(talk: Talk, line: str) -> None:
    with pytest.raises(UserError):
        talk.command(line)


def test_there_is_nothing_to_retry_at_the_start(talk: Talk) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        talk.command("/retry")
