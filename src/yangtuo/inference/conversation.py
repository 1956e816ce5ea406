"""A conversation: messages in, text out, over any engine.

The prompt is written by `data.template`, as it was in training; what a user types never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from yangtuo import console
from yangtuo.data.template import Message, Template, get_template, own_template
from yangtuo.inference.engine import Engine, Sampling
from yangtuo.vocab.encoding import Encoder, load_encoder

FALLBACK_TEMPLATE = "alpaca"


class Conversation:
    """Puts a tokenizer and a template around an engine."""

    def __init__(self, engine: Engine, encoder: Encoder, template: Template) -> None:
        self._engine, self._encoder, self._template = engine, encoder, template

    def replies(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[str]:
        """The replies to several conversations, computed as one batch."""
        prompts = [self._template.encode_prompt(self._encoder, list(messages)) for messages in conversations]
        ids = self._engine.generate(prompts, self._with_stops(sampling))
        return [self._encoder.decode(reply).strip() for reply in ids]

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The reply to one conversation, in pieces of whole characters as they come."""
        prompt = self._template.encode_prompt(self._encoder, list(messages))
        return whole_characters(self._encoder, self._engine.stream(prompt, self._with_stops(sampling)))

    def _with_stops(self, sampling: Sampling) -> Sampling:
        stops = (*sampling.stop_ids, *self._template.stop_ids(self._encoder))
        return Sampling(sampling.max_new_tokens, sampling.temperature, sampling.top_p, stops, sampling.seed)


def open_template(model: Path, adapter: Path | None = None) -> Template:
    """The template that the adapter or the model was trained with; Alpaca's, with a warning, where it names none."""
    for directory in (adapter, model):
        if directory and own_template(directory) is not None:
            return get_template("model", directory)
    console.warn(f"{model} has no chat template; asking it in the form of {FALLBACK_TEMPLATE}")
    return get_template(FALLBACK_TEMPLATE, None)


def open_encoder(model: Path, adapter: Path | None = None) -> Encoder:
    """The adapter's tokenizer where it brings one, else the model's."""
    brings_one = adapter and any((adapter / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    return load_encoder(adapter if adapter and brings_one else model)


def whole_characters(encoder: Encoder, ids: Iterable[int]) -> Iterator[str]:
    """Text of a stream of ids; a character spread over several byte tokens is held back until it is whole."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = encoder.decode(seen)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = encoder.decode(seen)[len(shown) :] if seen else ""
    if rest:
        yield rest
