"""How fast what learns: peak learning rates by group of parameters, and the share of them at each step.

The figures stand by experiment (docs/lab-log.md, docs/design/040-training.md); this module does not depend on a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from yangtuo.training import adapter, processes

WARMUP_SHARE = 0.03
FRESH_EMBEDDING_RATE, FRESH_HEAD_RATE = 0.15, 0.04
"""Learning rates of rows that no run has trained yet, in units of the matrix's standard deviation: AdamW moves every
element by about its rate, and rows differ in size between models."""
DISTILLED = 0.03
"""The share of these rates for rows that were distilled from the base: they stand where they belong, and AdamW moves
those without evidence as far as the others (docs/lab-log.md). It is that of a run of `_SHORT` steps; in longer ones,
which bring more evidence, it grows with the root of the steps, up to `_MOST`, the largest that was measured."""
_SHORT, _MOST = 24, 0.1
NEW_ROWS_RATE = 2.5
"""How much faster new rows that a run has trained already learn than the rest, where no rate is given."""
_UNKNOWN = math.nan  # a rate by the size of rows whose values were not read

Schedule = Literal["linear", "cosine"]


def parameter_groups(
    model: adapter.Trained,
    learning_rate: float,
    embedding_learning_rate: float | None = None,
    *,
    fresh: float = 0.0,
    num_steps: int = 0,
) -> list[dict[str, Any]]:
    """An optimizer's groups of all that learns in `model`, with `lr`; `rows` tells those of embedding and head.

    Without `embedding_learning_rate`, rows that are `fresh` learn at that share of a rate by the size of their matrix,
    or at what `share_of_fresh` makes of it in a run of `num_steps`.
    """
    fresh = share_of_fresh(fresh, num_steps)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rows, rate = adapter.is_embedding(name), learning_rate
            if rows:
                # Of sharded weights the main process alone holds the values that rates are taken from.
                own = embedding_learning_rate or _rows_rate(model, name, learning_rate, fresh)
                rate = float(processes.broadcast(own))
            groups.setdefault((rows, rate), []).append(parameter)
    return [{"params": group, "lr": rate, "rows": rows} for (rows, rate), group in groups.items()]


def share_of_fresh(share: float, num_steps: int) -> float:
    """The `share` of fresh rows' rates in a run of `num_steps`: that of distilled rows grows with the run."""
    if not 0 < share < 1:
        return share
    return max(share, min(_MOST, share * math.sqrt(num_steps / _SHORT)))


def describe(groups: Sequence[dict[str, Any]]) -> str:
    """The peak rates of `parameter_groups` in a line."""
    lora, rows = (
        " and ".join(
            "by their size" if math.isnan(group["lr"]) else f"{group['lr']:.2g}"
            for group in groups
            if group["rows"] is kind
        )
        for kind in (False, True)
    )
    return f"peak rates: {lora}" + (f", embedding and head {rows}" if rows else "")


def share_of_peak(step: int, num_steps: int, schedule: Schedule = "linear", warmup: float = WARMUP_SHARE) -> float:
    """The share of the peak learning rate at optimizer step `step` (from 0): linear warm-up, then decay to zero."""
    rising = max(1, math.ceil(warmup * num_steps))
    if step < rising:
        return (step + 1) / rising  # never 0: a first step that moves nothing would hide that nothing can move
    gone = (step - rising) / max(1, num_steps - rising)
    return 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))


def _rows_rate(model: adapter.Trained, name: str, learning_rate: float, fresh: float) -> float:
    if not adapter.is_new_rows(name):
        return learning_rate
    if not fresh:
        return NEW_ROWS_RATE * learning_rate
    if next(model.parameters()).is_meta:
        return _UNKNOWN
    deviation, is_output = adapter.row_deviation(model, name)
    return fresh * deviation * (FRESH_HEAD_RATE if is_output else FRESH_EMBEDDING_RATE)
