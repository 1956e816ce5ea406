"""`yangtuo predict`: a file of questions, answered by a model of ours or by any server of the OpenAI API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yangtuo
from yangtuo.artifacts.draft import refuse_existing
from yangtuo.artifacts.manifest import content_fingerprint, open_artifact
from yangtuo.config.predict import PredictConfig
from yangtuo.data.template import Message
from yangtuo.errors import ConfigError, ServingError
from yangtuo.hub import locate
from yangtuo.inference.asking import asking
from yangtuo.inference.engine import Generation, Sampling
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.predicting import Answer, Ask, predict, read_questions, write_submission
from yangtuo.inference.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(config: PredictConfig) -> dict[str, object]:
    """Writes `config.output`, its settings beside it, and a submission where one is wanted."""
    if config.model is None and config.server is None:
        raise ConfigError("nobody is named to answer", expected="--model, --server, or a model id on a server")
    refuse_existing(config.output)
    source = locate(config.input, is_data=True)
    questions = read_questions(source)
    settings = _settings(config, source)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with _asking(config) as ask:
        asked = predict(questions, ask, config.output, settings, config.concurrency)
    beside = config.output.with_suffix(".settings.json")
    beside.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    result: dict[str, object] = {"path": str(config.output), "rows": len(questions), "asked": asked}
    if config.submission:
        result["submission"] = str(write_submission(config.output))
    return result


def _settings(config: PredictConfig, source: Path) -> dict[str, Any]:
    """What the answers depend on."""
    names = ("server", "template", "dtype", "max_new_tokens", "temperature", "seed")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings |= {"model": config.model, "input": content_fingerprint(source), "version": yangtuo.__version__}
    if config.server is None and config.model is not None:
        settings["model"] = open_artifact(config.model).fingerprint
        settings["adapter"] = [open_artifact(adapter).fingerprint for adapter in config.adapter]
    return settings


def _asking(config: PredictConfig) -> AbstractContextManager[Ask]:
    if config.server is None:
        return _local(config)
    names = ("model", "max_new_tokens", "temperature", "seed")
    return asking(config.server, **{name: getattr(config, name) for name in names})


@contextmanager
def _local(config: PredictConfig) -> Iterator[Ask]:
    assert config.model is not None
    opened = open_conversations(config.model, config.adapter, config.engine, config.template, config.dtype)
    conversation = next(iter(opened.conversations.values()))
    sampling = Sampling(max_tokens=config.max_new_tokens, temperature=config.temperature)

    def ask(index: int, messages: Sequence[Message]) -> Answer:
        prompt = conversation.prompt(messages)
        limit = conversation.engine.context_length
        if limit is not None and len(prompt) + config.max_new_tokens > limit:
            raise ServingError(
                f"question {index + 1} is longer than the model has room for",
                found=f"{len(prompt):,} tokens, and {config.max_new_tokens:,} for the reply",
                expected=f"at most {limit:,}",
                run="the same command with a smaller --max-new-tokens, or a shorter question",
            )
        own = conversation.with_stops(replace(sampling, seed=config.seed + index))
        generation = Generation(conversation.engine, prompt, own, conversation.adapter)
        text = Detokenizer(conversation.encoder, prompt)
        parts = [text.push(token.id) for token in generation]
        assert generation.finish is not None
        return Answer("".join([*parts, text.finish()]).strip(), generation.finish)

    try:
        yield ask
    finally:
        opened.close()
