"""Whether a model's tensors are those of its config, before anything is read or written: shapes, layers, formats.

Knows the tensors that Llama and its nearest relatives share; of other families embedding, head and formats are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from yangtuo.errors import WeightsError
from yangtuo.weights.checkpoint import Checkpoint, Tensors
from yangtuo.weights.shape import ModelShape, resolve_shape

_PLAIN = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"}
_SHOWN = 4


def check_tensors(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint, whose tensors fit its config; raises `WeightsError` with what does not."""
    tensors, shape = checkpoint.tensors, resolve_shape(checkpoint.config)
    problems = [*_odd_formats(tensors), *_misfits(tensors, shape)]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"the tensors of {name} are not those of its config",
            found="; ".join(problems[:_SHOWN]) + more,
            expected="weights and config of one model, in float32, float16 or bfloat16",
        )
    return checkpoint


def _odd_formats(tensors: Tensors) -> Iterator[str]:
    for name in tensors.names():
        if not tensors.dtype(name).is_floating_point and tensors.dtype(name) != torch.bool:
            yield f"{name} is stored as {tensors.dtype(name)}"


def _misfits(tensors: Tensors, shape: ModelShape) -> Iterator[str]:
    names = set(tensors.names())
    expected: dict[str, tuple[int | None, ...]] = {
        shape.embedding: (shape.vocabulary_size, None),
        shape.head: (shape.vocabulary_size, None),
    }
    if shape.model_type in _PLAIN:
        numbers = {int(match[1]) for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}
        if numbers != set(range(len(numbers))) or len(numbers) != shape.num_layers:
            yield f"{len(numbers):,} layers, and {shape.num_layers:,} in the config"
            return
        expected |= {f"model.layers.{n}.{part}": sizes for n in numbers for part, sizes in _layer(shape).items()}
        expected["model.norm.weight"] = (shape.hidden_size,)
        expected[shape.embedding] = (shape.vocabulary_size, shape.hidden_size)
        missing = sorted(set(expected) - names - ({shape.head} if shape.tied else set()))
        if missing:
            yield f"{len(missing):,} missing: {', '.join(missing[:_SHOWN])}"
    for name, sizes in expected.items():
        if name in names:
            actual = tensors.shape(name)
            fits = len(actual) == len(sizes) and all(b in (None, a) for a, b in zip(actual, sizes, strict=True))
            if not fits:
                wanted = tuple("any" if size is None else size for size in sizes)
                yield f"{name} is {actual}, and {wanted} in the config"


def _layer(shape: ModelShape) -> dict[str, tuple[int | None, ...]]:
    width, middle = shape.hidden_size, shape.intermediate_size
    heads, keys = shape.num_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    return {
        "self_attn.q_proj.weight": (heads, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, heads),
        "mlp.gate_proj.weight": (middle, width),
        "mlp.up_proj.weight": (middle, width),
        "mlp.down_proj.weight": (width, middle),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
