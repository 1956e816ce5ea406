"""The protocol that every engine speaks: token ids in, a stream of token ids out.

An engine knows no text, no prompt format and no tokenizer: `inference.text` and `inference.conversation` put those
around it. Sampling settings carry the names of the OpenAI API.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from yangtuo.errors import EngineError, ServingError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop; the defaults take the likeliest token."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and reply, as transformers' parameter of this name."""
    seed: int | None = None
    """Seed of this request alone, whatever is computed beside it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Ids with what is added to their logits."""
    logprobs: int | None = None
    """How many alternatives are reported beside each token; None reports no probability at all."""
    stop_ids: tuple[int, ...] = ()
    """Any of these ends a reply; it is not part of it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only this engine knows, of its `extra_settings`."""


@dataclass(frozen=True)
class Token:
    """A token with its natural log probability under the model, before any sampling setting, where asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log probabilities, best first."""


@dataclass(frozen=True)
class Step:
    """What an engine reports: a token, or the end with its reason or its error."""

    token: Token | None = None
    finish: FinishReason | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after this step."""
        return self.token is None


Receive = Callable[[Step], None]
Cancel = Callable[[], None]


class Engine(Protocol):
    """Continues prompts, many at a time."""

    name: str
    extra_settings: frozenset[str]
    """Names of sampling settings that it knows beyond ours."""
    context_length: int | None
    """Most tokens of prompt and reply together, where the model has a limit."""

    def submit(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None = None) -> Cancel:
        """Queues a prompt; `receive` gets every step on a thread of the engine's, the last one exactly once.

        What is returned ends the work early, from any thread; the last step then says "cancelled".
        """
        ...

    def score(self, ids: Sequence[int], logprobs: int, adapter: str | None = None) -> list[Token]:
        """Each of `ids` with its probability after those before it; the first has none."""
        ...

    def embed(self, ids: Sequence[int], adapter: str | None = None) -> list[float]:
        """The mean of the last hidden states over `ids`, of length 1."""
        ...

    def check(self) -> None:
        """Raises `ServingError` where the engine can answer no more."""
        ...

    def close(self) -> None:
        """Ends all work and frees what the engine holds."""
        ...


class UnsupportedError(ServingError):
    """A request that is right, but that this engine cannot do."""


def not_finite() -> EngineError:
    """What an engine raises whose model computes NaN or infinity, from which nothing can be chosen."""
    return EngineError(
        "the model computes no numbers",
        found="logits that are not finite",
        expected="weights that are whole, in a number format that holds them",
        run="yangtuo inspect MODEL --verify, or the same command with a model in float32",
    )


def _put(steps: queue.SimpleQueue[tuple[int, Step]], index: int, step: Step) -> None:
    steps.put((index, step))


@dataclass
class Generation:
    """The tokens of one request as they come; closing it ends the work."""

    engine: Engine
    prompt: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    finish: FinishReason | None = field(default=None, init=False)

    def __iter__(self) -> Generator[Token, None, None]:
        """Yields each token; raises what the engine failed with, never ends early without a word."""
        steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        cancel = self.engine.submit(self.prompt, self.sampling, steps.put, self.adapter)
        step = Step()
        try:
            while not (step := steps.get()).is_last:
                assert step.token is not None
                yield step.token
        finally:
            if step.token is not None:  # left early
                cancel()
                while not steps.get().is_last:
                    pass
        if step.error is not None:
            raise step.error
        self.finish = step.finish


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, adapter: str | None = None
) -> list[list[int]]:
    """Continues all prompts at a time; the new ids of each, without the stop id. Raises what the engine failed with."""
    steps: queue.SimpleQueue[tuple[int, Step]] = queue.SimpleQueue()
    replies: list[list[int]] = [[] for _ in prompts]
    cancels: list[Cancel] = []
    waiting = 0
    try:
        for index, prompt in enumerate(prompts):
            cancels.append(engine.submit(prompt, sampling, partial(_put, steps, index), adapter))
            waiting += 1
        while waiting:
            index, step = steps.get()
            if step.token is not None:
                replies[index].append(step.token.id)
                continue
            waiting -= 1
            if step.error is not None:
                raise step.error
    finally:
        if waiting:
            for cancel in cancels:
                cancel()
    return replies
