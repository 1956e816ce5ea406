"""`yangtuo chat`: talks with a model in the terminal."""

from __future__ import annotations

from yangtuo import console
from yangtuo.config.chat import ChatConfig
from yangtuo.data.template import own_template
from yangtuo.errors import ConfigError
from yangtuo.hub import locate
from yangtuo.inference.engine import Sampling
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.talk import Talk
from yangtuo.inference.terminal import say_speed, talk_in_terminal


def run(config: ChatConfig) -> str | None:
    """Answers `once` and returns the reply, or talks until the user leaves and returns nothing."""
    if config.once is not None and not config.once.strip():
        raise ConfigError("--once needs a text", found="an empty one")
    plain = not _has_template(config) if config.with_prompt is None else not config.with_prompt
    # A text that is continued needs no template, and the one that is named is never looked at.
    opened = open_conversations(config.model, config.adapter, config.engine, "alpaca" if plain else None, config.dtype)
    sampling = Sampling(max_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed)
    talk = Talk(next(iter(opened.conversations.values())), sampling, plain, config.system)
    try:
        if config.once is not None:
            reply = "".join(talk.say(config.once)).strip()
            if console.stderr.is_terminal:  # scripts are told the reply and nothing else
                say_speed(talk, opened.faster)
            return reply
        talk_in_terminal(talk, opened.faster)
        return None
    finally:
        opened.close()


def _has_template(config: ChatConfig) -> bool:
    """Whether the model or one of its adapters brings a template; a GGUF file is taken to be a chat model's."""
    places = [locate(reference) for reference in (*config.adapter, config.model)]
    return any(place.is_file() or own_template(place) is not None for place in places)
