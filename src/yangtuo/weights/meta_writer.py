"""Llamas written in Meta's layout: `consolidated.*.pth` for any number of shards, and `params.json`.

The inverse of `yangtuo.weights.meta`, by the same tables. It refuses to know tokenizers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from yangtuo import console
from yangtuo.errors import ConfigError, UserError, WeightsError, raise_all
from yangtuo.weights.checkpoint import Checkpoint, Tensors
from yangtuo.weights.meta import EMBEDDING, HEAD, Entry, Heads, Split, table, to_pairs
from yangtuo.weights.reader import open_tensors
from yangtuo.weights.shape import ModelShape
from yangtuo.weights.writer import ShardedWriter, TensorSpec

_LLAMA_3_THETA = 500_000.0
_MULTIPLES = (256, 1024, 4096, 512, 128, 64, 32, 16, 8, 4, 2, 1)


def write_meta(directory: Path, checkpoint: Checkpoint, num_shards: int) -> None:
    """Writes a Llama checkpoint in Meta's layout, one shard at a time, in the memory of a few tensors.

    Tied heads are written out, as Meta does. Raises `ConfigError` where the heads cannot be dealt to `num_shards`, and
    `WeightsError` for models that are no Llama.
    """
    shape, tensors = checkpoint.shape, checkpoint.tensors
    entries = table(shape.num_layers)
    raise_all(_problems(checkpoint, entries, num_shards))
    params = _params(shape, HEAD.hugging_face not in tensors.names())
    (directory / "params.json").write_text(json.dumps(params) + "\n", encoding="utf-8")
    with console.progress("writing Meta's layout", num_shards * len(entries)) as bar:
        for shard in range(num_shards):
            target = directory / f"consolidated.{shard:02d}.pth"
            plan = {entry.meta: _spec(tensors, entry, shape, shard, num_shards) for entry in entries}
            # An archive is saved from whole tensors: they are laid out on disk first, and mapped from there.
            scratch = directory / f".consolidated.{shard:02d}"
            scratch.mkdir()
            with ShardedWriter(scratch, 1 << 62, plan=plan) as writer:
                for entry in entries:
                    writer.add(entry.meta, _part(tensors, entry, shape, shard, num_shards).clone())
                    bar.advance()
                writer.close()
            with open_tensors(scratch) as laid_out:
                torch.save({name: laid_out.get(name) for name in plan}, target)
            (scratch / "model.safetensors").unlink()
            scratch.rmdir()


def _problems(checkpoint: Checkpoint, entries: list[Entry], num_shards: int) -> list[UserError]:
    shape, errors = checkpoint.shape, list[UserError]()
    unknown = sorted(set(checkpoint.tensors.names()) - {entry.hugging_face for entry in entries})
    width, heads, inside = shape.hidden_size, shape.num_heads, int(shape.intermediate_size or 0)
    if unknown or "meta" not in shape.family.layouts or shape.partial_rotary != 1.0:
        found = f"{shape.model_type}; tensors {', '.join(unknown[:4]) or 'as expected'}"
        errors.append(WeightsError("only Llamas have a form in Meta's layout", found=found))
    if shape.head_dim * heads != width:
        errors.append(WeightsError("Meta's layout has no place for head_dim", found=f"{heads} heads, width {width}"))
    fits = heads % num_shards == 0 and inside % num_shards == 0 and width % num_shards == 0
    if not fits or (shape.num_key_value_heads % num_shards and num_shards % shape.num_key_value_heads):
        found = f"{heads} heads over {shape.num_key_value_heads}, width {width}, {inside} inside"
        errors.append(
            ConfigError(f"the model cannot be dealt to {num_shards} shards", found=found, expected="divisors of these")
        )
    return errors


def _params(shape: ModelShape, tied: bool) -> dict[str, Any]:
    scaling = shape.rope_scaling
    params: dict[str, Any] = {
        "dim": shape.hidden_size,
        "n_layers": shape.num_layers,
        "n_heads": shape.num_heads,
        "n_kv_heads": shape.num_key_value_heads,
        "norm_eps": shape.norm_eps,
        "vocab_size": shape.vocabulary_size,
        **_inner_size(shape.hidden_size, int(shape.intermediate_size or 0)),
    }
    if shape.rope_theta != 10000.0:
        params["rope_theta"] = shape.rope_theta
    if scaling:
        if scaling["rope_type"] != "llama3":
            raise WeightsError("Meta's layout knows one rope scaling", found=str(dict(scaling)), expected="llama3")
        params["use_scaled_rope"] = True
        if float(scaling["factor"]) != (32.0 if tied else 8.0):  # what readers assume, see `meta`
            params["rope_scaling_factor"] = float(scaling["factor"])
    return params


def _inner_size(width: int, inside: int) -> dict[str, Any]:
    """`multiple_of` and, where it takes one, `ffn_dim_multiplier` from which Meta's code computes `inside`."""
    usual = 8 * width // 3
    for multiple in _MULTIPLES:
        if multiple * math.ceil(usual / multiple) == inside:
            return {"multiple_of": multiple}
    multiple = next(multiple for multiple in _MULTIPLES if inside % multiple == 0)
    return {"multiple_of": multiple, "ffn_dim_multiplier": round((inside + 0.5) / usual, 9)}


def _bounds(size: int, shard: int, num_shards: int) -> slice:
    return slice(size * shard // num_shards, size * (shard + 1) // num_shards)


def _part(tensors: Tensors, entry: Entry, model: ModelShape, shard: int, num_shards: int) -> torch.Tensor:
    """One shard's part of a tensor, in Meta's row order."""
    name = entry.hugging_face if entry.hugging_face in tensors.names() else EMBEDDING.hugging_face
    tensor = tensors.get(name)
    if entry.heads is Heads.QUERY:
        tensor = to_pairs(tensor, model.num_heads)
    elif entry.heads is Heads.KEY:
        tensor = to_pairs(tensor, model.num_key_value_heads)
    axis, part = _cut(entry, model, tuple(tensor.shape), shard, num_shards)
    return tensor if axis is None else tensor[part] if axis == 0 else tensor[:, part]


def _spec(tensors: Tensors, entry: Entry, model: ModelShape, shard: int, num_shards: int) -> TensorSpec:
    name = entry.hugging_face if entry.hugging_face in tensors.names() else EMBEDDING.hugging_face
    shape = tensors.shape(name)
    axis, part = _cut(entry, model, shape, shard, num_shards)
    sizes = tuple(part.stop - part.start if i == axis else size for i, size in enumerate(shape))
    return TensorSpec(sizes, tensors.dtype(name))


def _cut(
    entry: Entry, model: ModelShape, shape: tuple[int, ...], shard: int, num_shards: int
) -> tuple[int | None, slice]:
    """Axis and range of one shard's part; with more shards than key-value heads, neighbours share a head."""
    if entry.split is Split.WHOLE or num_shards == 1:
        return None, slice(0, shape[0])
    key_value_heads = model.num_key_value_heads
    if entry.heads in (Heads.KEY, Heads.VALUE) and num_shards > key_value_heads:
        return 0, _bounds(shape[0], shard * key_value_heads // num_shards, key_value_heads)
    axis = 0 if entry.split is Split.ROWS else 1
    if entry.split is Split.EMBEDDING:
        axis = 0 if model.rope_theta >= _LLAMA_3_THETA else 1
    return axis, _bounds(shape[axis], shard, num_shards)
