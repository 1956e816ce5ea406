"""What stops a run that trains nothing, or has stopped training, and says so by name.

Every guard here answers a failure that has cost users days: labels that are all ignored, tensors that never move, a
loss that is no number, a rate that explodes, a language that is forgotten. This module does not depend on the Trainer.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yangtuo.errors import TrainingError
from yangtuo.training import processes
from yangtuo.training.adapter import is_new_rows
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
    """Watches that all that is trained moves: after the first step, LoRA's A after the second.

    A's gradient is zero while B is. A tensor that got a gradient and stands still, and a kind of tensors of which none
    moves, end the run. Rows of new tokens move with the first batch that holds one: those that no batch used are told
    at the end. Of a model that learns whole, something must move: a small rate does not move a norm's weights of 1.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise TrainingError("nothing would be trained", found="no trainable tensor", expected="at least one")
        self._parameters = dict(named)
        self._is_whole = not any("lora_" in name for name in self._parameters)
        self._before = {name: _fingerprint(parameter) for name, parameter in named}
        self._deadline = {name: _deadline(name) for name in self._before}
        self._with_gradient: set[str] = set()
        self._moved_kinds: set[str] = set()
        self._still: list[str] = []

    def see_gradients(self) -> None:
        """To be called before each step: notes which of the tensors that are still watched have a gradient."""
        for name in self._deadline.keys() - self._with_gradient:
            gradient: Any = self._parameters[name].grad  # None under DeepSpeed, which keeps gradients to itself
            if gradient is not None:
                gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                if gradient.numel() and bool(torch.count_nonzero(gradient)):
                    self._with_gradient.add(name)

    def check(self, steps: int) -> None:
        """To be called after each step, counted from where the run began; raises for what should have moved."""
        watched = sorted(self._deadline)
        driven = dict(zip(watched, processes.any_rank([name in self._with_gradient for name in watched]), strict=True))
        due = [name for name in watched if self._deadline[name] <= steps or (driven[name] and is_new_rows(name))]
        moved = processes.any_rank([_fingerprint(self._parameters[name]) != self._before[name] for name in due])
        still = [name for name, has_moved in zip(due, moved, strict=True) if not has_moved]
        self._moved_kinds |= {self._kind(name) for name, has_moved in zip(due, moved, strict=True) if has_moved}
        for name in due:
            del self._deadline[name]
        failed = [
            name
            for name in still
            if (driven[name] and not self._is_whole)
            or (not is_new_rows(name) and self._kind(name) not in self._moved_kinds)
        ]
        if failed:
            raise TrainingError(
                f"{len(failed)} trainable tensors have not moved after {steps} steps",
                found=", ".join(failed[:8]) + (" …" if len(failed) > 8 else ""),
                expected="what is trained to get a gradient and to change",
                run="the same command without gradient checkpointing, or with a larger --learning-rate",
            )
        self._still += still

    def unused(self) -> list[str]:
        """What never moved, in words; to be called after the last step."""
        watched = [*self._still, *self._deadline]
        moved = processes.any_rank([_fingerprint(self._parameters[name]) != self._before[name] for name in watched])
        still = [name for name, has_moved in zip(watched, moved, strict=True) if not has_moved]
        rows = [name for name in still if is_new_rows(name)]
        lines = [f"{name} has not been trained: no text that was read holds one of its new tokens" for name in rows]
        others = [name for name in still if name not in rows]
        if others:
            lines.append(f"{len(others)} tensors have not been trained: {', '.join(others[:4])} …")
        return lines

    def _kind(self, name: str) -> str:
        """What tensors are alike: LoRA's A of all layers, its B, DoRA's magnitudes; embedding and head are alone."""
        if self._is_whole:
            return "model"
        return next((part for part in ("lora_A", "lora_B", "lora_magnitude") if part in name), name)


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


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Reads bounds such as `en=0.05` or `en=5%`; raises `TrainingError` for what is none."""
    bounds = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=(\d+\.?\d*|\.\d+)(%?)", text.strip())
        if match is None:
            raise TrainingError(
                f"the bound {text!r} cannot be read",
                expected="NAME=SHARE with the name of a source and a share of its bits per byte, such as en=0.05",
            )
        bounds[match[1]] = float(match[2]) / (100 if match[3] else 1)
    return bounds


def require_measured(bounds: Mapping[str, float], names: Sequence[str]) -> None:
    """Raises `TrainingError` where a bound is on a source that is not measured."""
    unmeasured = [name for name in bounds if name not in names]
    if unmeasured:
        raise TrainingError(
            f"the bound on {', '.join(unmeasured)} cannot be kept: nothing of it is held out",
            found="held-out text of " + (", ".join(names) or "no source"),
            expected="the name of a source that has held-out documents",
            run="yangtuo prepare with --source NAME=PATH and --held-out 0.02, or the same command without --bound",
        )


def _deadline(name: str) -> int:
    if "trainable_tokens" in name:
        return _ROWS_DEADLINE
    return 2 if "lora_A" in name else 1


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
