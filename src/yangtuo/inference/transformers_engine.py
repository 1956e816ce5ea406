"""The engine that runs anywhere: transformers' own `generate`, on CPU or a GPU.

It reads weights from safetensors only and never runs code that comes with a model.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from yangtuo.errors import WeightsError
from yangtuo.inference.engine import Sampling


def load_model(directory: Path, adapter: Path | None = None) -> PreTrainedModel:
    """The model of `directory`, with `adapter` (PEFT) on it if given, ready for inference.

    Raises `WeightsError` where the weights do not fill the architecture or the adapter does not fit.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto" if device == "cuda" else torch.float32, use_safetensors=True, local_files_only=True
        )
        if adapter:
            from peft import PeftModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about names in transformers
                model = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{adapter or directory} cannot be loaded",
            found=str(error).strip().splitlines()[0],
            expected="a whole model directory" + (", and an adapter trained on it" if adapter else ""),
            run=f"yangtuo inspect {adapter or directory}",
        ) from error
    model.eval().to(device)
    return model  # type: ignore[no-any-return]


class TransformersEngine:
    """`inference.engine.Engine` over a loaded transformers model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Continues all prompts in one left-padded batch."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self._generate(ids, mask, sampling)
        return [_until_stop(row[width:], sampling.stop_ids) for row in output.tolist()]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Continues one prompt in a thread of its own; closing the iterator ends the thread."""
        tokens = _TokenQueue()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                ids = torch.tensor([list(prompt)])
                self._generate(ids, torch.ones_like(ids), sampling, streamer=tokens, stopping_criteria=[tokens])
            except RuntimeError as error:
                failure.append(error)
            finally:
                tokens.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (token := tokens.get()) is not None:
                if token not in sampling.stop_ids:
                    yield token
        finally:
            tokens.cancelled.set()
            thread.join()
        if failure:
            raise failure[0]

    @torch.inference_mode()
    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, sampling: Sampling, **extra: Any) -> torch.Tensor:
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        chosen = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            eos_token_id=list(sampling.stop_ids) or None,
            pad_token_id=sampling.stop_ids[0] if sampling.stop_ids else 0,
            **chosen,
        )
        device = self._model.device
        generate: Any = self._model.generate
        result: torch.Tensor = generate(
            ids.to(device), attention_mask=mask.to(device), generation_config=settings, **extra
        )
        return result


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in stop_ids:
            return ids[:index]
    return ids


class _TokenQueue(BaseStreamer, StoppingCriteria):
    """Carries tokens out of `generate`, and the wish to stop into it."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._queue: queue.Queue[int | None] = queue.Queue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._queue.put(int(value.reshape(-1)[0]))
        self._prompt_seen = True

    def end(self) -> None:
        self._queue.put(None)

    def get(self) -> int | None:
        return self._queue.get()

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)
