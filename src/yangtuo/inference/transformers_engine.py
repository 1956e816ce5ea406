"""The engine that runs anywhere: transformers in this process, on CPU or a GPU, with continuous batching.

A thread of its own does all that is computed, one token of every running request at a time; requests join and leave
between two tokens. The model is loaded in another that ends: OpenMP keeps workers for each thread that ever computed,
and with more of them than cores all of them sleep between two operations, which costs a third of the speed.
Models whose memory is more than keys and values are run one request at a time, through transformers' `generate`.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils.logging import disable_progress_bar

from yangtuo import console
from yangtuo.errors import EngineError
from yangtuo.inference.choosing import Chooser, choose, report
from yangtuo.inference.engine import Cancel, FinishReason, Receive, Sampling, Step, Token, UnsupportedError
from yangtuo.inference.rows import Rows, new_cache
from yangtuo.weights import loading

T = TypeVar("T")
MAX_ROWS = 16
"""Requests that are computed at a time where nothing else is said."""
_PREFILL_TOKENS = 4096
"""Most tokens, padding included, in one forward pass over prompts."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def load_model(directory: Path, adapter: Path | None = None) -> PreTrainedModel:
    """The model of `directory`, with `adapter` (PEFT) on it if given, ready for inference.

    Raises `WeightsError` where the weights do not fill the architecture or the adapter does not fit.
    """
    return load_adapted(directory, {"default": adapter} if adapter else {})


def load_adapted(directory: Path, adapters: Mapping[str, Path], dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of `directory` with all `adapters`, by name, loaded on it; the first is active.

    `dtype`: of all weights; float32 where None is given, and on a GPU that of each stored one.
    """
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(_load, directory, adapters, dtype).result()


def _load(directory: Path, adapters: Mapping[str, Path], dtype: torch.dtype | None) -> PreTrainedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = loading.load_model(directory, dtype=dtype or ("auto" if device == "cuda" else torch.float32))
    for name, adapter in adapters.items():
        model = loading.load_adapter(model, adapter, name=name)
    model.eval().to(device=device, dtype=dtype)
    return model  # type: ignore[no-any-return]


class _Job(Chooser):
    """A request on its way."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None) -> None:
        super().__init__(prompt, sampling)
        self.prompt, self.receive, self.adapter = list(prompt), receive, adapter
        self.is_cancelled = self.is_done = False

    def take(self, token: Token) -> None:
        """Passes a chosen token on; ends the request at a stop id or at its limit."""
        if self.is_cancelled:
            self.end("cancelled")
        elif token.id in self.sampling.stop_ids:
            self.end("stop")
        else:
            self.receive(Step(token))
            if len(self.produced) >= self.sampling.max_tokens:
                self.end("length")

    def end(self, reason: FinishReason | None, error: Exception | None = None) -> None:
        if not self.is_done:
            self.is_done = True
            self.receive(Step(finish=reason, error=error))


class TransformersEngine:
    """`inference.engine.Engine` over a loaded transformers model, with the names of the adapters that are on it."""

    name = "transformers"
    extra_settings: frozenset[str] = frozenset()

    def __init__(self, model: PreTrainedModel, max_rows: int = MAX_ROWS, *, by_name: bool = False) -> None:
        """With `by_name` only requests that name an adapter get it; else an only one is on for all."""
        self._model: Any = model
        self._adapters: dict[str, Any] = getattr(model, "peft_config", {})
        self._usual = next(iter(self._adapters)) if len(self._adapters) == 1 and not by_name else None
        config = model.config.get_text_config()
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        layers = set(getattr(config, "layer_types", None) or ())
        self._batches = layers <= ATTENTION_LAYERS and not getattr(config, "is_encoder_decoder", False)
        if not self._batches:
            console.note(f"{config.model_type} keeps more than keys and values: one request is computed at a time")
        forward = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
        self._max_rows = max_rows if self._batches else 1
        self._waiting: deque[_Job] = deque()
        self._running: dict[str | None, Rows[_Job]] = {}
        self._lock = threading.Lock()
        self._closed = self._is_stepping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="yangtuo-engine")

    def submit(self, prompt: Sequence[int], sampling: Sampling, receive: Receive, adapter: str | None = None) -> Cancel:
        """Queues a prompt, see `Engine.submit`."""
        assert prompt, "a prompt has at least one token"
        assert adapter is None or adapter in self._adapters, f"no adapter {adapter}"
        self._require_readable(prompt)
        job = _Job(prompt, sampling, receive, adapter or self._usual)
        with self._lock:
            if self._closed:
                raise EngineError("the engine has been stopped")
            self._waiting.append(job)
            if not self._is_stepping:
                self._is_stepping = True
                self._thread.submit(self._step)

        def cancel() -> None:
            job.is_cancelled = True

        return cancel

    def score(self, ids: Sequence[int], logprobs: int, adapter: str | None = None) -> list[Token]:
        """Each of `ids` with its probability, see `Engine.score`."""

        def compute() -> list[Token]:
            logits = self._model(torch.tensor([list(ids)], device=self._model.device), use_cache=False).logits[0]
            rows = zip(logits[:-1], ids[1:], strict=True)
            return [Token(ids[0]), *(report(row.float().cpu(), token, logprobs) for row, token in rows)]

        return self._between(compute, ids, adapter)

    def embed(self, ids: Sequence[int], adapter: str | None = None) -> list[float]:
        """The mean of the last hidden states, see `Engine.embed`."""

        def compute() -> list[float]:
            inputs = torch.tensor([list(ids)], device=self._model.device)
            states = self._model(inputs, use_cache=False, output_hidden_states=True).hidden_states[-1][0].float()
            return torch.nn.functional.normalize(states.mean(0), dim=0).tolist()

        return self._between(compute, ids, adapter)

    def _between(self, compute: Callable[[], T], ids: Sequence[int], adapter: str | None) -> T:
        """What `compute` gives with `adapter` active, on the engine's thread, between two tokens of what runs."""
        self._require_readable(ids)

        def work() -> T:
            with torch.inference_mode():
                self._activate(adapter or self._usual)
                return compute()

        with self._lock:
            self.check()
            result = self._thread.submit(work)
        return result.result()

    def check(self) -> None:
        """Raises `EngineError` once the engine is closed."""
        if self._closed:
            raise EngineError("the engine has been stopped")

    def close(self) -> None:
        """Ends all requests and the thread."""
        with self._lock:
            self._closed = True
        self._thread.shutdown()

    def _require_readable(self, prompt: Sequence[int]) -> None:
        """Raises `UnsupportedError` for running text to a model that reads nothing but prompts."""
        place_tokens = getattr(self._model, "place_tokens", None)
        if place_tokens is not None:
            ids = torch.tensor([list(prompt)])
            try:
                place_tokens(ids, torch.ones_like(ids), 1)
            except ValueError as error:
                raise UnsupportedError(str(error), run="the same as a chat, in the model's own template") from error

    def _activate(self, adapter: str | None) -> None:
        if not self._adapters:
            return
        if adapter is None:
            self._model.base_model.disable_adapter_layers()
            return
        self._model.base_model.enable_adapter_layers()
        self._model.set_adapter(adapter)

    def _step(self) -> None:
        """Computes a token of everything that runs, on the engine's thread, and queues itself while there is more."""
        is_done = False
        try:
            self._admit()
            try:
                self._work()
            except (RuntimeError, ValueError, TypeError, IndexError, EngineError) as error:
                # One bad step must not take the server along: those that were in it are told, the next go on.
                told = EngineError("the engine failed", found=f"{type(error).__name__}: {error}")
                told.__cause__ = error
                self._end_all(self._jobs(), error if isinstance(error, EngineError) else told)
                self._running.clear()
            is_done = True
        finally:
            with self._lock:
                self._is_stepping = is_done and not self._closed and bool(self._waiting or self._running)
                if self._is_stepping:
                    self._thread.submit(self._step)
                else:  # nothing is left, or will come
                    self._end_all([*self._jobs(), *self._waiting], EngineError("the engine has been stopped"))
                    self._running.clear()
                    self._waiting.clear()

    def _jobs(self) -> list[_Job]:
        return [job for rows in self._running.values() for job in rows.jobs]

    def _end_all(self, jobs: Iterable[_Job], error: Exception) -> None:
        for job in jobs:
            job.end(None, error)

    def _admit(self) -> None:
        """Moves waiting requests into the free rows."""
        with self._lock:
            for job in [job for job in self._waiting if job.is_cancelled]:
                self._waiting.remove(job)
                job.end("cancelled")
            free = 0 if self._closed else self._max_rows - len(self._jobs())
            admitted = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            for job in admitted:
                self._running.setdefault(job.adapter, Rows()).jobs.append(job)

    @torch.inference_mode()
    def _work(self) -> None:
        for adapter, rows in list(self._running.items()):
            self._activate(adapter)
            if self._batches:
                self._advance(rows)
            else:
                self._generate_alone(rows.jobs[0])
            rows.drop([job.is_done for job in rows.jobs])
            if not rows.jobs:
                del self._running[adapter]

    def _advance(self, rows: Rows[_Job]) -> None:
        """One token for every running row, and the first one for those that have just come."""
        for job in rows.jobs:
            if job.is_cancelled:
                job.end("cancelled")
        rows.drop([job.is_done for job in rows.jobs])
        old = rows.jobs[: rows.num_cached]
        if old:
            last = torch.tensor([[job.produced[-1]] for job in old])
            self._forward(rows, old, last, torch.ones_like(last))
        for fresh in _groups(rows.jobs[rows.num_cached :]):
            width = max(len(job.prompt) for job in fresh)
            pads = [width - len(job.prompt) for job in fresh]
            ids = torch.tensor([[0] * pad + job.prompt for pad, job in zip(pads, fresh, strict=True)])
            mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
            beside: Rows[_Job] = Rows(fresh)
            self._forward(beside, fresh, ids, mask)
            rows.join(beside)

    def _forward(self, rows: Rows[_Job], jobs: Sequence[_Job], ids: torch.Tensor, mask: torch.Tensor) -> None:
        device = self._model.device
        mask, positions = self._places(jobs, rows.extend_mask(mask.to(device)), ids.shape[1])
        cache = rows.cache if rows.cache is not None else new_cache()
        output = self._model(
            ids.to(device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        rows.cache = cache
        for job, token in zip(jobs, choose(jobs, output.logits[:, -1]), strict=True):
            job.take(token)

    def _places(self, jobs: Sequence[_Job], mask: torch.Tensor, num_new: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask and positions of the last `num_new` columns; ChatGLM's follow from all ids of a row."""
        place_tokens = getattr(self._model, "place_tokens", None)
        if place_tokens is None:
            return mask, (mask.cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
        rows = [[*job.prompt, *job.produced] for job in jobs]
        padded = [[0] * (mask.shape[1] - len(row)) + row for row in rows]
        result: tuple[torch.Tensor, torch.Tensor] = place_tokens(
            torch.tensor(padded, device=mask.device), mask, num_new
        )
        return result

    def _generate_alone(self, job: _Job) -> None:
        """For models that are run one request at a time."""
        settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=job.sampling.max_tokens, do_sample=False, pad_token_id=0
        )
        ids = torch.tensor([job.prompt], device=self._model.device)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Choosing(job)]),
            stopping_criteria=StoppingCriteriaList([_Ending(job)]),
        )
        job.end("length")


class _Choosing(LogitsProcessor):
    """Has `generate` take the tokens that a batch would take: all others are made impossible."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        token = choose([self._job], scores)[0]
        self._job.take(token)
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token.id], device=scores.device), 0)


class _Ending(StoppingCriteria):
    """Ends `generate` where the request ends."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._job.is_done, device=input_ids.device)


def _groups(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Requests whose prompts go through the model together: of similar length, and not too many tokens."""
    groups: list[list[_Job]] = []
    for job in sorted(jobs, key=lambda job: len(job.prompt)):
        if groups and (len(groups[-1]) + 1) * len(job.prompt) <= _PREFILL_TOKENS:
            groups[-1].append(job)
        else:
            groups.append([job])
    return groups
