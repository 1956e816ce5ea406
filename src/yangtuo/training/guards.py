"""What stops a run that trains nothing, or has stopped training, and says so by name.

Every guard here answers a failure that has cost users days: labels that are all ignored, tensors that never move, a
loss that is no number, a rate that explodes, a language that is forgotten. This module does not depend on the Trainer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yangtuo.errors import TrainingError
from yangtuo.training import processes
from yangtuo.training.adapter import is_embedding
from yangtuo.training.loss import IGNORED

_SAMPLED_BLOCKS = 256
_DIVERGED = 1.5  # times the loss at the start, or that of guessing, whichever is higher
_WINDOW = 10
_ROWS_DEADLINE = 50  # steps within which some batch holds a new piece


def require_learned(blocks: Any) -> None:
    """Raises `TrainingError` where every label of the blocks (256 of them, evenly spread) is ignored."""
    step = max(1, len(blocks) // _SAMPLED_BLOCKS)
    for index in range(0, len(blocks), step):
        if bool((blocks[index]["labels"][1:] != IGNORED).any()):
            return
    raise TrainingError(
        "the loss would count no token at all",
        found=f"labels that are all {IGNORED} in {len(range(0, len(blocks), step))} of {len(blocks)} blocks looked at",
        expected="at least one label to learn; answers that are cut away leave none",
        run="the same command with a larger --max-length, or prepare the data again",
    )


def require_graph(loss: Tensor) -> None:
    """Raises `TrainingError` for a loss that no trainable tensor has a part in, before it is taken backward."""
    if loss.grad_fn is None:
        raise no_graph(is_declared=loss.requires_grad)


def no_graph(*, is_declared: bool) -> TrainingError:
    """What to say of a loss without a graph; one `is_declared` to need gradients would train nothing in silence."""
    return TrainingError(
        "no trainable tensor has a part in the loss, so nothing would be learned",
        found=f"a loss {'declared by requires_grad_(True) to need gradients' if is_declared else 'without a gradient'}"
        ", as reentrant checkpointing over frozen embeddings leaves it",
        expected="a graph from the loss to the adapter: checkpointing that is not reentrant, or input embeddings that "
        "require gradients",
        run="the same command without gradient checkpointing",
    )


class Movement:
    """Watches that every trainable tensor moves: after the first step, LoRA's A after the second.

    A's gradient is zero while B is. New rows of an embedding move with the first batch that holds a new piece. Where a
    phase of `rows_first_steps` trains embedding and head alone, LoRA's tensors are due after it.
    """

    def __init__(self, model: nn.Module, rows_first_steps: int = 0) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise TrainingError("nothing would be trained", found="no trainable tensor", expected="at least one")
        self._parameters = dict(named)
        self._before = {name: _fingerprint(parameter) for name, parameter in named}
        self._deadline = {name: _deadline(name, rows_first_steps) for name in self._before}

    def check(self, steps: int) -> None:
        """To be called after each step, counted from where the run began; raises for tensors that have not moved."""
        due = [name for name, deadline in self._deadline.items() if deadline <= steps]
        moved = processes.any_rank([_fingerprint(self._parameters[name]) != self._before[name] for name in due])
        still = [name for name, has_moved in zip(due, moved, strict=True) if not has_moved]
        for name in due:
            del self._deadline[name], self._before[name]
        if still:
            raise TrainingError(
                f"{len(still)} trainable tensors have not moved after {steps} steps",
                found=", ".join(still[:8]) + (" …" if len(still) > 8 else ""),
                expected="every trainable tensor to get a gradient and to change",
                run="the same command without gradient checkpointing, or with a larger --learning-rate",
            )


class Finite:
    """Stops at the first loss or gradient that is no number, and at a loss that runs away."""

    def __init__(self, vocabulary_size: int, scaled: bool) -> None:
        self._guessing = math.log(vocabulary_size)
        self._scaled = scaled
        self._num_overflows = 0
        self._losses: list[float] = []
        self._start: float | None = None

    def check(self, step: int, loss: float, gradient_norm: float | None, batch: Callable[[int], str]) -> None:
        """`batch` says which blocks a step was made of. Float16 may overflow 20 times while its scale settles."""
        overflow = gradient_norm is not None and not math.isfinite(gradient_norm)
        self._num_overflows = self._num_overflows + 1 if overflow else 0
        allowed = 20 if self._scaled else 0
        if not math.isfinite(loss) or self._num_overflows > allowed:
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise TrainingError(
                f"the {what} is not finite at step {step}",
                found=f"loss {loss}, gradient norm {gradient_norm}, in {batch(step)}",
                expected="finite numbers; checkpoints written before are kept",
                run="the same command with a smaller --learning-rate, or without the documents named",
            )
        self._losses.append(loss)
        if self._start is None:
            self._start = max(loss, self._guessing)
        recent = statistics.median(self._losses[-_WINDOW:])
        if len(self._losses) >= _WINDOW and recent > _DIVERGED * self._start:
            raise TrainingError(
                f"training diverges: at step {step} the loss is {recent:.2f}",
                found=f"a median of {recent:.2f} over {_WINDOW} steps",
                expected=f"below the {self._start:.2f} that it began with, or that guessing gives",
                run="the same command with a smaller --learning-rate",
            )


def forgotten(bounds: Mapping[str, float], before: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    """The first source whose bits per byte are worse than `before` by more than its share in `bounds`, or None."""
    return next((name for name, share in bounds.items() if now[name] > before[name] * (1 + share)), None)


def parse_bounds(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Reads bounds such as `en=0.05`; raises `TrainingError` for a source that is not measured."""
    bounds = {}
    for text in texts:
        name, _, share = text.partition("=")
        if name not in names or not share.replace(".", "", 1).isdigit():
            raise TrainingError(
                f"the bound {text!r} cannot be kept",
                found="held-out text of " + (", ".join(names) or "no source"),
                expected="NAME=SHARE, such as en=0.05, with the name of a source that has held-out documents",
            )
        bounds[name] = float(share)
    return bounds


def _deadline(name: str, rows_first_steps: int) -> int:
    if "trainable_tokens" in name:
        return _ROWS_DEADLINE
    if is_embedding(name):
        return 1
    return rows_first_steps + (2 if "lora_A" in name else 1)


@torch.no_grad()
def _fingerprint(parameter: Tensor) -> tuple[float, float]:
    """Sum and norm in float64 of this process's part of a tensor: no step of one float32 can hide from both."""
    local: Any = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3's share
    local = local.to_local() if hasattr(local, "to_local") else local  # FSDP2's
    if local.numel() == 0:
        return (0.0, 0.0)
    total = torch.sum(local, dtype=torch.float64)
    norm = torch.linalg.vector_norm(local, dtype=torch.float64)
    return (float(total), float(norm))
