"""Proof of a merge: the merged model says what base and adapters say together.

Where memory allows, logits of a text are compared with those of PEFT on the unmerged base; else a sample of tensors is
computed again in float64, whole and by the formula. It refuses to know how the merge was done.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yangtuo.errors import WeightsError
from yangtuo.weights.adapter import Adapter, LowRank, Replace, Update
from yangtuo.weights.checkpoint import EMBEDDING, HEAD, Tensors
from yangtuo.weights.reader import open_tensors

# Relative distance of logits that rounding the weights once explains; measured ones are a tenth of these.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SAMPLE = 12


def prove(
    merged: Path, base: Path, base_tensors: Tensors, adapters: Sequence[Adapter], ids: Sequence[int]
) -> dict[str, Any]:
    """Returns what was compared and how close it came; raises `WeightsError` where the merge is wrong."""
    with open_tensors(merged) as tensors:
        num_elements = sum(torch.Size(tensors.shape(name)).numel() for name in tensors.names())
        # Two float32 models, one after the other, and some room for PEFT's copies of trained embeddings.
        if 4 * num_elements * 1.5 < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            return _compare_logits(merged, base, adapters, ids)
        return _compare_tensors(tensors, base_tensors, adapters)


def _compare_logits(merged: Path, base: Path, adapters: Sequence[Adapter], ids: Sequence[int]) -> dict[str, Any]:
    from transformers import AutoConfig

    ours = _logits(_load(merged), ids)
    theirs = _logits(_unmerged(base, adapters), ids)
    distance = float((ours - theirs).norm() / theirs.norm())
    dtype = getattr(torch, str(AutoConfig.from_pretrained(merged).dtype).removeprefix("torch."), torch.float32)
    agreement = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    if not distance <= _TOLERANCE.get(dtype, 1e-1):
        raise WeightsError(
            "the merged model does not say what base and adapters say",
            found=f"logits at a relative distance of {distance:.2g}",
            expected=f"at most {_TOLERANCE[dtype]:.2g} for {dtype}",
        )
    return {"compared": "logits", "tokens": len(ids), "relative_distance": distance, "same_next_token": agreement}


def _unmerged(base: Path, adapters: Sequence[Adapter]) -> Any:
    """The base with every adapter but the last folded in by PEFT, and the last one on it."""
    from peft import PeftModel

    model = _load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied embeddings whatever is done with them
        for number, adapter in enumerate(adapters, 1):
            shapes = [adapter.tensors.shape(update.key) for update in _replacements(adapter)]
            if shapes and shapes[0][0] != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(shapes[0][0], mean_resizing=False)
            model = PeftModel.from_pretrained(model, adapter.path)
            if number < len(adapters):
                model = model.merge_and_unload()
    return model


def _replacements(adapter: Adapter) -> list[Replace]:
    updates: list[Update] = [update for name in (EMBEDDING, HEAD) for update in adapter.updates.get(name, [])]
    return [update for update in updates if isinstance(update, Replace)]


def _load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([list(ids)])).logits[0].float()
    return logits


def _compare_tensors(merged: Tensors, base: Tensors, adapters: Sequence[Adapter]) -> dict[str, Any]:
    changed = [name for name in merged.names() if any(name in adapter.updates for adapter in adapters)]
    simple = [name for name in changed if _is_simple(name, adapters)]
    sample = simple[:: max(1, len(simple) // _SAMPLE)]
    for name in sample:
        value = base.get(name if name in base.names() else EMBEDDING).double()
        size = value.abs()  # of the largest terms: where a sum cancels, units of a small result mean nothing
        for adapter in adapters:
            for update in adapter.updates.get(name, []):
                if isinstance(update, Replace):
                    value = adapter.tensors.get(update.key).double()
                    size = value.abs()
                elif isinstance(update, LowRank):
                    a, b = adapter.tensors.get(update.a).double(), adapter.tensors.get(update.b).double()
                    product, bound = b @ a, b.abs() @ a.abs()
                    value = value + update.scaling * (product.T if update.transposed else product)
                    size = size + update.scaling * (bound.T if update.transposed else bound)
        found = merged.get(name)
        unit = torch.finfo(found.dtype).eps * size.clamp_min(torch.finfo(found.dtype).tiny)
        worst = float(((found.double() - value).abs() / unit).max())
        if not worst <= (1.0 if found.dtype != torch.float32 else 16.0):  # products in float32 round more than once
            raise WeightsError(
                f"{name} is not the sum of base and adapters", found=f"{worst:.1f} units in the last place"
            )
    return {"compared": "tensors", "sample": len(sample), "of": len(changed)}


def _is_simple(name: str, adapters: Sequence[Adapter]) -> bool:
    updates = [update for adapter in adapters for update in adapter.updates.get(name, [])]
    return all(isinstance(u, Replace) or (isinstance(u, LowRank) and u.magnitude is None) for u in updates)
