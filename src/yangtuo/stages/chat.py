"""`yangtuo chat`: talks with a model in the terminal."""

from __future__ import annotations

from yangtuo import console
from yangtuo.artifacts.lineage import check_chain
from yangtuo.artifacts.manifest import Kind, open_artifact
from yangtuo.config.chat import ChatConfig
from yangtuo.data.template import Message
from yangtuo.errors import raise_all
from yangtuo.inference.conversation import Conversation, open_encoder, open_template
from yangtuo.inference.engine import Sampling
from yangtuo.inference.transformers_engine import TransformersEngine, load_model


def run(config: ChatConfig) -> str | None:
    """Answers `once` and returns the reply, or talks until the user leaves and returns nothing."""
    base = open_artifact(config.model, Kind.MODEL)
    adapters = [open_artifact(config.adapter, Kind.ADAPTER)] if config.adapter else []
    raise_all(check_chain(base, adapters))
    model, adapter = base.path, adapters[0].path if adapters else None
    encoder, template = open_encoder(model, adapter), open_template(model, adapter)
    conversation = Conversation(TransformersEngine(load_model(model, adapter)), encoder, template)
    sampling = Sampling(max_tokens=config.max_new_tokens, temperature=config.temperature)
    if config.once is not None:
        return "".join(conversation.stream([Message("user", config.once)], sampling)).strip()
    _talk(conversation, sampling)
    return None


def _talk(conversation: Conversation, sampling: Sampling) -> None:
    """Reads lines until /exit or end of input; /clear forgets, Ctrl-C cuts a reply short."""
    console.note("/clear starts anew, /exit or Ctrl-D ends, Ctrl-C cuts a reply short")
    messages: list[Message] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/clear":
            messages = []
        elif text:
            messages.append(Message("user", text))
            messages.append(Message("assistant", _say(conversation, messages, sampling)))


def _say(conversation: Conversation, messages: list[Message], sampling: Sampling) -> str:
    parts: list[str] = []
    stream = conversation.stream(messages, sampling)
    try:
        for part in stream:
            parts.append(part)
            console.stdout.print(part, end="", markup=False)
    except KeyboardInterrupt:
        console.note(" …")
    finally:
        stream.close()  # type: ignore[attr-defined]
    console.stdout.print()
    return "".join(parts).strip()
