"""What is measured: a model, loaded once whatever is asked of it, or a file of answers that were computed before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.data.template import Message, Template, get_template, own_template
from yangtuo.evaluation.answers import Sample, read_predictions
from yangtuo.inference.asking import asking
from yangtuo.inference.conversation import Conversation, open_encoder, open_template
from yangtuo.inference.engine import Sampling
from yangtuo.inference.transformers_engine import TransformersEngine, load_model
from yangtuo.vocab.encoding import Encoder
from yangtuo.weights.loading import load_tokenizer

_AT_A_TIME = 256  # prompts handed to the engine, which batches as it sees fit


@dataclass(frozen=True)
class FinishedAnswers:
    """A file of finished answers."""

    file: Path

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:  # noqa: ARG002
        """The answer to each sample; raises `DataError` where the file does not hold these rows."""
        return read_predictions(self.file, samples)


@dataclass(frozen=True)
class ServedModel:
    """A model behind a server of the OpenAI API, which writes the prompts itself."""

    address: str
    batch_size: int = 16

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
        """The model's answer to each sample."""
        return self.replies([sample.messages() for sample in samples], max_new_tokens)

    def replies(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        """The reply to each prompt, in order; raises `ServingError` where the server does not answer."""
        with (
            asking(self.address, max_new_tokens=max_new_tokens) as ask,
            console.progress("asking", total=len(prompts), unit="questions") as bar,
            ThreadPoolExecutor(self.batch_size) as pool,
        ):
            replies = []
            for answer in pool.map(ask, range(len(prompts)), prompts):
                replies.append(answer.text)
                bar.advance()
        return replies


@dataclass(frozen=True)
class MeasuredModel:
    """A model, with an adapter on it if given."""

    directory: Path
    adapter: Path | None = None
    batch_size: int = 16

    @cached_property
    def model(self) -> Any:
        """The model, ready for inference."""
        return load_model(self.directory, self.adapter)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer that the model's ids are of."""
        return open_encoder(self.directory, self.adapter)

    @cached_property
    def _conversation(self) -> Conversation:
        template = open_template(self.directory, self.adapter)
        return Conversation(TransformersEngine(self.model, self.batch_size), self.encoder, template)

    @cached_property
    def template(self) -> Template | None:
        """The chat template of the adapter or the model, where one has any."""
        holders = [path for path in (self.adapter, self.directory) if path and own_template(path) is not None]
        return get_template("model", holders[0]) if holders else None

    def exam_model(self, *, constrained: bool) -> Any:
        """The model as lm_eval asks it; `constrained` as Chinese-LLaMA-Alpaca does."""
        from yangtuo.evaluation.exam_model import ConstrainedModel, ExamModel

        places = [
            path for path in (self.adapter, self.directory) if path and (path / "tokenizer_config.json").is_file()
        ]
        tokenizer = load_tokenizer([*places, self.directory][0])
        if self.template:
            tokenizer.chat_template = self.template.render_jinja()
        model = self.model.get_base_model() if self.adapter else self.model
        return (ConstrainedModel if constrained else ExamModel)(model, tokenizer, self.batch_size)

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
        """The model's answer to each sample."""
        return self.replies([sample.messages() for sample in samples], max_new_tokens)

    def replies(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        """The reply to each prompt, in order."""
        conversation, sampling = self._conversation, Sampling(max_tokens=max_new_tokens)
        replies: list[str] = []
        with console.progress("asking", total=len(prompts), unit="questions") as bar:
            for first in range(0, len(prompts), _AT_A_TIME):
                replies += conversation.replies(prompts[first : first + _AT_A_TIME], sampling)
                bar.advance(len(replies) - first)
        return replies
