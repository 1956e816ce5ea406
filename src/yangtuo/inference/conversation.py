"""A conversation: messages in, text out, over any engine.

The prompt is written by `data.template`, as it was in training; what a user types never becomes a control token.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from yangtuo import console
from yangtuo.data.template import Message, Template, get_template, own_template
from yangtuo.inference.engine import Engine, Generation, Sampling, generate
from yangtuo.inference.text import Detokenizer
from yangtuo.vocab.directory import has_tokenizer
from yangtuo.vocab.encoding import Encoder, load_encoder

FALLBACK_TEMPLATE = "alpaca"
_TELLING = 8  # tokens before a speed is told


class Conversation:
    """Puts a tokenizer and a template around an engine."""

    def __init__(self, engine: Engine, encoder: Encoder, template: Template, adapter: str | None = None) -> None:
        self.engine, self.encoder, self.template, self.adapter = engine, encoder, template, adapter
        self.tokens_per_second: float | None = None
        """How fast the last reply came, from its first token on; None where it was too short to tell."""

    def replies(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """The replies to several conversations, computed at a time."""
        prompts = [self.prompt(messages) for messages in conversations]
        ids = generate(self.engine, prompts, self.with_stops(sampling), self.adapter)
        return [self.encoder.decode(reply).strip() for reply in ids]

    def continue_ids(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """What follows `prompt`, as text in whole characters."""
        generation = iter(Generation(self.engine, prompt, sampling, self.adapter))
        text = Detokenizer(self.encoder, prompt)
        arrivals: list[float] = []
        try:
            for token in generation:
                arrivals.append(time.monotonic())
                if part := text.push(token.id):
                    yield part
            if rest := text.finish():
                yield rest
        finally:
            generation.close()
            span = arrivals[-1] - arrivals[0] if arrivals else 0.0
            self.tokens_per_second = (len(arrivals) - 1) / span if len(arrivals) > _TELLING and span else None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that ask for the next reply, as in training."""
        return self.template.encode_prompt(self.encoder, list(messages))

    def with_stops(self, sampling: Sampling) -> Sampling:
        """The settings with the template's own stop ids among them."""
        stops = dict.fromkeys((*sampling.stop_ids, *self.template.stop_ids(self.encoder)))
        return dataclasses.replace(sampling, stop_ids=tuple(stops))


def open_template(model: Path, adapter: Path | None = None) -> Template:
    """The template that the adapter or the model was trained with; Alpaca's, with a warning, where it names none."""
    for directory in (adapter, model):
        if directory and own_template(directory) is not None:
            return get_template("model", directory)
    console.warn(f"{model} has no chat template; asking it in the form of {FALLBACK_TEMPLATE}")
    return get_template(FALLBACK_TEMPLATE, None)


def open_encoder(model: Path, adapter: Path | None = None) -> Encoder:
    """The adapter's tokenizer where it brings one, else the model's."""
    return load_encoder(adapter if adapter and has_tokenizer(adapter) else model)
