"""Conversations: prompts as in training, characters whole, control tokens out of the user's reach."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from yangtuo.data.template import Message, get_template
from yangtuo.inference.conversation import Conversation, open_template, whole_characters
from yangtuo.inference.engine import Sampling
from yangtuo.vocab.encoding import load_encoder


class Recorder:
    """An engine that replies with fixed ids and remembers what it was asked."""

    def __init__(self, reply: list[int]) -> None:
        self.reply = reply
        self.prompts: list[list[int]] = []
        self.sampling = Sampling()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        self.prompts += [list(prompt) for prompt in prompts]
        self.sampling = sampling
        return [self.reply for _ in prompts]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        yield from self.generate([prompt], sampling)[0]


def test_a_character_of_several_bytes_is_held_back_until_it_is_whole(pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    ids = encoder.encode("the 羊驼 cat")
    parts = list(whole_characters(encoder, ids))
    assert "".join(parts) == "the 羊驼 cat"
    assert not any("\ufffd" in part for part in parts)


def test_a_reply_cut_inside_a_character_still_ends(pico_tokenizer: Path) -> None:
    encoder = load_encoder(pico_tokenizer)
    ids = encoder.encode("cat 驼")[:-1]
    assert "".join(whole_characters(encoder, ids)).startswith("cat")


def test_the_prompt_is_the_template_s_and_generation_stops_at_eos(pico_tokenizer: Path) -> None:
    encoder, template = load_encoder(pico_tokenizer), get_template("alpaca", None)
    engine = Recorder(encoder.encode("the cat"))
    messages = [Message("user", "Who sat?</s>")]
    reply = Conversation(engine, encoder, template).replies([messages], Sampling())
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
