"""Proof of a merge: the merged model says what base and adapters say together.

A sample of the changed tensors, some of each kind of change, is computed again in float64 by the formula; where memory
allows, logits of a text are compared with those of PEFT on the unmerged base too. It does not depend on how the merge
was computed, only on which updates belong to which tensor.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yangtuo.errors import WeightsError
from yangtuo.weights.adapter import Adapter, Add, LowRank, Replace, ReplaceRows, Update
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.merging import MergedTensors, Step
from yangtuo.weights.reader import open_tensors

# Relative distance of logits that rounding the weights once explains; measured ones are a tenth of these.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SAMPLE = 12
_WHOLE = 1 << 24  # elements of a tensor that is computed again as a whole
_MOST_ROWS = 2048


def prove(
    merged: Path, base: Path, plan: MergedTensors, adapters: Sequence[Adapter], ids: Sequence[int]
) -> dict[str, Any]:
    """Returns what was compared and how close it came; raises `WeightsError` where the merge is wrong.

    `plan` says which updates belong to which tensor; none of its arithmetic is used.
    """
    with open_tensors(merged) as tensors:
        proof = _compare_tensors(tensors, plan)
        num_elements = sum(torch.Size(tensors.shape(name)).numel() for name in tensors.names())
    # Two float32 models, one after the other, and some room for PEFT's copies of trained embeddings.
    if 4 * num_elements * 1.5 < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        proof |= _compare_logits(merged, base, adapters, ids)
    return proof


def _compare_logits(merged: Path, base: Path, adapters: Sequence[Adapter], ids: Sequence[int]) -> dict[str, Any]:
    from yangtuo.weights.loading import load_config

    actual = _logits(_load(merged), ids)
    expected = _logits(_unmerged(base, adapters), ids)
    distance = float((actual - expected).norm() / expected.norm())
    dtype = getattr(torch, str(load_config(merged).dtype).removeprefix("torch."), torch.float32)
    agreement = float((actual.argmax(-1) == expected.argmax(-1)).float().mean())
    if not distance <= _TOLERANCE.get(dtype, 1e-1):
        raise WeightsError(
            "the merged model does not say what base and adapters say",
            found=f"logits at a relative distance of {distance:.2g}",
            expected=f"at most {_TOLERANCE[dtype]:.2g} for {dtype}",
        )
    return {"compared": "logits", "tokens": len(ids), "relative_distance": distance, "same_next_token": agreement}


def _unmerged(base: Path, adapters: Sequence[Adapter]) -> Any:
    """The base with every adapter but the last folded in by PEFT, and the last one on it."""
    from yangtuo.weights.loading import load_adapter

    model = _load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied embeddings whatever is done with them
        for number, adapter in enumerate(adapters, 1):
            rows = _num_rows(adapter)
            if rows and rows != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows, mean_resizing=False)
            model = load_adapter(model, adapter.path)
            if number < len(adapters):
                model = model.merge_and_unload()
    return model


def _num_rows(adapter: Adapter) -> int | None:
    """Rows of an embedding or a head that the adapter replaces as a whole."""
    for name, updates in adapter.updates.items():
        if any(word in name for word in ("embed", "wte", "lm_head")):
            for update in updates:
                if isinstance(update, Replace):
                    return adapter.tensors.shape(update.key)[0]
    return None


def _load(path: Path) -> Any:
    from yangtuo.weights.loading import load_model

    return load_model(path, dtype=torch.float32)


def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([list(ids)])).logits[0].float()
    return logits


def _compare_tensors(merged: Tensors, plan: MergedTensors) -> dict[str, Any]:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, changes in plan.steps.items():
        kinds.setdefault(tuple(type(update).__name__ for _, update in changes), []).append(name)
    each = max(1, _SAMPLE // max(1, len(kinds)))
    sample = [name for names in kinds.values() for name in names[:: max(1, len(names) // each)][:each]]
    if not sample:
        raise WeightsError(
            "there is nothing to prove: no tensor of the base was changed",
            expected="adapters that train tensors of the base",
        )
    for name in sample:
        _compare_tensor(name, merged.get(name), plan)
    return {"compared": "tensors", "sample": len(sample), "of": len(plan.steps)}


def _compare_tensor(name: str, merged: torch.Tensor, plan: MergedTensors) -> None:
    changes = plan.steps[name]
    whole = [place for place, (_, update) in enumerate(changes) if isinstance(update, Replace)]
    changes = changes[whole[-1] if whole else 0 :]  # what was replaced whole left nothing, and may have had fewer rows
    rows = _some_rows(merged, changes)
    if isinstance(changes[0][1], Replace):
        value = torch.zeros(0, dtype=torch.float64)
    else:
        value = plan.base.get(plan.source(name))[rows].double()
    size = value.abs()  # of the largest terms: where a sum cancels, units of a small result mean nothing
    for adapter, update in changes:
        value, size = _applied(adapter, update, value, size, rows)
    unit = torch.finfo(merged.dtype).eps * size.clamp_min(torch.finfo(merged.dtype).tiny)
    worst = float(((merged[rows].double() - value).abs() / unit).max())
    if not worst <= (1.0 if merged.dtype != torch.float32 else 64.0):  # products in float32 round more than once
        raise WeightsError(f"{name} is not the sum of base and adapters", found=f"{worst:.1f} units in the last place")


def _some_rows(merged: torch.Tensor, changes: Sequence[Step]) -> torch.Tensor:
    """Which rows are computed again: all of a small matrix or where columns need each other; else those that were
    trained, and others spread over it."""
    height = merged.shape[0]
    needs_all = any(isinstance(update, LowRank) and update.magnitude and update.transposed for _, update in changes)
    if merged.numel() <= _WHOLE or needs_all:
        return torch.arange(height)
    spread = torch.linspace(0, height - 1, max(1, _WHOLE // merged[0].numel())).long()
    trained = [row for _, update in changes if isinstance(update, ReplaceRows) for row in update.rows[:_MOST_ROWS]]
    return torch.tensor(sorted({*spread.tolist(), *trained}), dtype=torch.long)


def _applied(
    adapter: Adapter, update: Update, value: torch.Tensor, size: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a tensor and the size of their largest terms after one more update, in float64."""
    get = adapter.tensors.get
    if isinstance(update, Replace):
        value = get(update.key)[rows].double()
        return value, value.abs()
    if isinstance(update, ReplaceRows):
        trained = get(update.key).double()
        places = {row: place for place, row in enumerate(update.rows)}
        for index, row in enumerate(rows.tolist()):
            if row in places:
                value[index] = trained[places[row]]
                size[index] = trained[places[row]].abs()
        return value, size
    if isinstance(update, Add):
        vector = get(update.key)[rows].double() * update.scaling
        return value + vector, size + vector.abs()
    assert isinstance(update, LowRank)
    a, b = get(update.a).double(), get(update.b).double()
    a, b = (a[:, rows], b) if update.transposed else (a, b[rows])
    product, bound = b @ a, b.abs() @ a.abs()
    value = value + update.scaling * (product.T if update.transposed else product)
    size = size + update.scaling * (bound.T if update.transposed else bound)
    if update.magnitude is None:
        return value, size
    magnitude = get(update.magnitude).double()
    norm = value.norm(dim=0 if update.transposed else 1)
    factor = magnitude / norm if update.transposed else (magnitude[rows] / norm)[:, None]
    return value * factor, size * factor.abs()
