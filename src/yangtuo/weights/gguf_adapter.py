"""LoRA adapters as GGUF, which llama.cpp (`--lora`) and Ollama (`ADAPTER`) put on their base unmerged.

The format holds low-rank pairs and nothing else. Specification: convert_lora_to_gguf.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import torch

from yangtuo.errors import WeightsError
from yangtuo.weights.adapter import Adapter, LowRank, Replace, Update
from yangtuo.weights.checkpoint import Checkpoint
from yangtuo.weights.gguf import gguf_entries, in_gguf_order
from yangtuo.weights.gguf_formats import library
from yangtuo.weights.meta import EMBEDDING, HEAD


def write_gguf_adapter(path: Path, base: Checkpoint, adapter: Adapter) -> int:
    """Writes the pairs of `adapter`, trained on `base`, as float32; returns how many there are.

    Raises `WeightsError` where it trains what is no low-rank pair, or what the base does not have.
    """
    entries, pairs = gguf_entries(base), _pairs(base, adapter)
    rank = max(adapter.tensors.shape(pair.a)[0] for pair in pairs.values())
    writer = library().GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))  # one for all pairs: the rest of each scale goes into B
    for name, pair in pairs.items():
        a, b = adapter.tensors.get(pair.a).float(), adapter.tensors.get(pair.b).float()
        b = b * (pair.scaling * a.shape[0] / rank)
        # An embedding is looked up by row: there A has a row for each token.
        a, b = (a.T, b) if pair.transposed else (a, in_gguf_order(b, entries[name], base.shape))
        writer.add_tensor(f"{entries[name].gguf}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{entries[name].gguf}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(pairs)


def _pairs(base: Checkpoint, adapter: Adapter) -> dict[str, LowRank]:
    names, pairs, others = base.tensors.names(), dict[str, LowRank](), []
    tied = {EMBEDDING.hugging_face} if HEAD.hugging_face not in names else set()  # a pair there would move the head
    for name, updates in adapter.updates.items():
        changes = [update for update in updates if not _repeats_base(update, name, base, adapter)]
        pair = changes[0] if len(changes) == 1 else None
        if isinstance(pair, LowRank) and pair.magnitude is None and name not in tied:
            pairs[name] = pair
        else:
            others.append(name)
    if others:
        raise WeightsError(
            f"{adapter.name} trains more than low-rank pairs, which is all that GGUF has of an adapter",
            found=", ".join(others[:4]),
            run=f"yangtuo merge --base BASE --adapter {adapter.path} --output NAME, then export that",
        )
    shapes = {
        name: (adapter.tensors.shape(pair.b)[0], adapter.tensors.shape(pair.a)[1])[:: -1 if pair.transposed else 1]
        for name, pair in pairs.items()
    }
    misfits = [name for name, shape in shapes.items() if name not in names or base.tensors.shape(name) != shape]
    if misfits:
        raise WeightsError(
            f"{adapter.name} does not fit its base", found=", ".join(misfits[:4]), expected="the base of its training"
        )
    return pairs


def _repeats_base(update: Update, name: str, base: Checkpoint, adapter: Adapter) -> bool:
    """Whether an update is the base's own tensor, which PEFT keeps beside a pair on embedding or head."""
    if not isinstance(update, Replace) or not update.is_base or name not in base.tensors.names():
        return False
    return torch.equal(adapter.tensors.get(update.key), base.tensors.get(name))
