"""How a run goes and what it came to, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from yangtuo.launcher import world_size
from yangtuo.training import rates
from yangtuo.training.sharding import Sharding

Dtype = Literal["auto", "float32", "bfloat16", "float16", "nf4"]
Keep = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes; `batch_size` counts blocks in an optimizer step over all processes."""

    learning_rate: float
    embedding_learning_rate: float | None = None
    fresh_rows: float = 0.0
    """Where new rows stand as `expand` left them and no rate is given: the share of a rate by their size at which they
    learn. 0 where they have been trained."""
    schedule: rates.Schedule = "linear"
    warmup: float = rates.WARMUP_SHARE
    """Share of the steps in which rates rise to their peak."""
    epochs: float = 1.0
    max_steps: int | None = None
    """Optimizer steps in all, whatever `epochs` says."""
    batch_size: int = 8
    micro_batch: int | None = None
    """Blocks in one forward pass of one process; its whole share of the batch when None."""
    kl_coef: float = 0.0
    """Weight of the Kullback-Leibler divergence from the model without its adapter, in text of old tokens."""
    first_new_row: int | None = None
    """The first id that is none of the base's."""
    dtype: Dtype = "auto"
    gradient_checkpointing: bool = False
    sharding: Sharding = "none"
    bound: tuple[str, ...] = ()
    """`NAME=SHARE`: training ends where held-out bits per byte of a source are worse by more than its share."""
    keep: Keep = "last"
    patience: int | None = None
    """Training ends after so many measurements in a row that were no better than the best."""
    save_every: int = 500
    eval_every: int | None = None
    """Steps between held-out measurements; those between checkpoints when None."""
    seed: int = 0
    report_to: tuple[str, ...] = ()
    """Trackers that the Trainer has callbacks for."""
    board: Path | None = None
    """Where TensorBoard's files go."""
    stored_dtype: torch.dtype = torch.float32
    """In which a whole model is written; adapters are written in float32."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the Trainer, by their names there."""

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> Settings:
        """The settings that stand under their names among `options`; the rest keep their defaults."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def num_steps(self, num_blocks: int) -> int:
        """Optimizer steps over a dataset of `num_blocks` blocks."""
        return self.max_steps or max(1, math.ceil(self.epochs * num_blocks / self.batch_size))

    def blocks_a_pass(self) -> int:
        """Blocks in one forward pass of one of the processes that take part."""
        share = self.batch_size // world_size()
        return math.gcd(share, self.micro_batch) if self.micro_batch else share


@dataclass(frozen=True)
class Outcome:
    """What a run came to; the figures do not depend on the clock."""

    steps: int
    tokens: int
    first_loss: float
    last_loss: float
    """Mean training loss of the first and of the last tenth of the steps, at most 20 steps each, in nats a token."""
    bits_per_byte_before: dict[str, float]
    bits_per_byte_after: dict[str, float]
    kept_step: int
    """The step whose adapter was kept."""
    ended: str | None = None
    """Why training ended before its last step, in words."""

    def details(self) -> dict[str, Any]:
        """The figures as the manifest keeps them, rounded."""
        return {
            "steps": self.steps,
            "kept_step": self.kept_step,
            **({"ended": self.ended} if self.ended else {}),
            "tokens": self.tokens,
            "first_loss": round(self.first_loss, 4),
            "last_loss": round(self.last_loss, 4),
            "bits_per_byte_before": {name: round(value, 4) for name, value in self.bits_per_byte_before.items()},
            "bits_per_byte_after": {name: round(value, 4) for name, value in self.bits_per_byte_after.items()},
        }


def compute_dtype(name: Dtype) -> torch.dtype:
    """The arithmetic of the forward pass: "auto" takes bfloat16 where the device computes in it, else float32.

    float16 needs a GPU (`preflight`): on a CPU accelerate scales no loss, and says nothing.
    """
    if name not in ("auto", "nf4"):
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
