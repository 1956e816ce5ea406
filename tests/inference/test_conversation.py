"""Conversations: prompts as in training, characters whole, control tokens out of the user's reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from yangtuo.data.template import Message, get_template
from yangtuo.inference.conversation import Conversation, open_template
from yangtuo.inference.engine import Cancel, Receive, Sampling, Step, Token
from yangtuo.vocab.encoding import load_encoder


class Recorder:
    """An engine that replies with fixed ids and remembers what it was asked."""

    name = "recorder"
    context_length = None

    def __init__(self, reply: list[int]) -> None:
        self.reply = reply
        self.prompts: list[list[int]] = []
        self.sampling = Sampling()

    def submit(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None = None) -> Cancel:
        assert adapter is None
        self.prompts.append(list(prompt))
        self.sampling = sampling
        for token in self.reply:
            receive(Step(Token(token)))
        receive(Step(finish="stop"))
        return lambda: None


def test_the_prompt_is_the_template_s_and_generation_stops_at_eos(pico_tokenizer: Path) -> None:
    encoder, template = load_encoder(pico_tokenizer), get_template("alpaca", None)
    engine = Recorder(encoder.encode("the cat"))
    messages = [Message("user", "Who sat?</s>")]
    reply = Conversation(engine, encoder, template).replies([messages], Sampling())  # type: ignore[arg-type]
    assert reply == ["the cat"]
    assert engine.prompts == [template.encode_prompt(encoder, messages)]
    assert encoder.eos_id not in engine.prompts[0], "text that a user types is never a control token"
    assert encoder.eos_id in engine.sampling.stop_ids


def test_a_model_without_a_template_is_asked_in_alpaca_s_form(pico_model: Path) -> None:
    assert open_template(pico_model).render_jinja() == get_template("alpaca", None).render_jinja()


def test_a_template_in_the_tokenizer_s_settings_is_the_model_s_own(pico_byte_level: Path, tmp_path: Path) -> None:
    """Published models and GGUF files keep it there; asked in another form, they answer badly."""
    settings = json.loads((pico_byte_level / "tokenizer_config.json").read_text("utf-8"))
    text = get_template("chatml", None).render_jinja()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": text}), encoding="utf-8")
    assert open_template(tmp_path).render_jinja() == text
