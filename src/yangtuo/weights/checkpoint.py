"""Published weights in whatever layout, seen as a Hugging Face checkpoint: a config, tensors by name, a tokenizer.

Says which layout a path holds and hands over to the module that knows it. It refuses to know any layout itself, and
writes nothing but what it is told.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import console, files
from yangtuo.errors import FileError, OutputError, WeightsError
from yangtuo.vocab.directory import TokenizerDirectory
from yangtuo.vocab.encoding import Encoder
from yangtuo.weights.shape import ModelShape, resolve_shape
from yangtuo.weights.writer import SHARD_SIZE, ShardedWriter, TensorSpec, plan_size

CONFIG_FILE = "config.json"


class Tensors(Protocol):
    """Tensors by name, read one at a time; `TensorReader` is one."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def get(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Checkpoint:
    """A model as published, under Hugging Face's names."""

    layout: str
    tensors: Tensors
    config: dict[str, Any]
    """Content of config.json."""
    read_tokenizer: Callable[[], TokenizerDirectory] | None = None
    """Reads the tokenizer; None where the source has none."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Content of generation_config.json."""
    quantization: str | None = None
    """The format, such as Q4_0, that most weights were rounded to when the source was made; None for floats."""

    @cached_property
    def shape(self) -> ModelShape:
        """What config.json stands for; raises `WeightsError` as `resolve_shape` does."""
        return resolve_shape(self.config)

    @cached_property
    def tokenizer(self) -> TokenizerDirectory:
        """The tokenizer; raises `FileError` where the source has none."""
        if self.read_tokenizer is None:
            raise FileError(
                "the model has no tokenizer",
                found=f"weights in {self.layout}'s layout alone",
                expected="tokenizer.model or tokenizer.json beside them: a model directory is always whole",
            )
        return self.read_tokenizer()


def write_weights(
    directory: Path,
    tensors: Tensors,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_SIZE,
    description: str = "writing weights",
) -> dict[str, str]:
    """Writes all tensors as safetensors, floating ones as `dtype` where given; returns SHA-256 by file name.

    Raises `OutputError` where the disk has no room for them, before anything is written, and `WeightsError` where a
    value does not fit into `dtype`.
    """
    plan = {}
    for name in tensors.names():
        kept = tensors.dtype(name)
        plan[name] = TensorSpec(tensors.shape(name), dtype if dtype and kept.is_floating_point else kept)
    total = plan_size(plan)
    free = shutil.disk_usage(directory).free
    if total > free:
        raise OutputError(
            f"the model needs {total / 1e6:,.1f} MB, and there is no room for it",
            found=f"{free / 1e6:,.1f} MB free in {directory.parent}",
            run=f"df -h {directory.parent}",
        )
    names = list(plan)
    with (
        ShardedWriter(directory, shard_size, plan=plan) as writer,
        console.progress(description, total, "bytes") as bar,
        ThreadPoolExecutor(max_workers=1) as ahead,  # reads or computes the next tensor while one is written
    ):

        def prepare(name: str) -> torch.Tensor:
            return cast(name, tensors.get(name), plan[name].dtype)

        coming = ahead.submit(prepare, names[0])
        for name, following in zip_longest(names, names[1:]):
            tensor = coming.result()
            if following is not None:
                coming = ahead.submit(prepare, following)
            writer.add(name, tensor)
            del tensor  # or it would stay while the one after next is made
            bar.advance(plan[name].num_bytes)
        return writer.close()


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor as `dtype`; raises `WeightsError` where finite values would become infinite."""
    if tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and not all_finite(result) and all_finite(tensor):
        raise WeightsError(
            f"{name} holds values that {dtype} cannot",
            found=f"largest magnitude {float(tensor.abs().max()):.6g}",
            expected=f"at most {torch.finfo(dtype).max:.6g}; choose --dtype bfloat16 or float32",
        )
    return result


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    least, greatest = torch.aminmax(tensor)  # NaN passes through; several times faster than isfinite().all()
    return bool(torch.isfinite(least) and torch.isfinite(greatest))


def mended_ids(values: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A config's values with the special ids that LLaMA's first conversions had wrong put right, and said.

    They named BOS 0, EOS 1 and padding -1; the tokenizer's own ids are 1 and 2, and there is no padding. Padding beyond
    the tokenizer's pieces, which no library can load, is none either.
    """
    own = {"bos_token_id": encoder.bos_id, "eos_token_id": encoder.eos_id}
    if (values.get("bos_token_id"), values.get("eos_token_id")) == (0, 1) and tuple(own.values()) == (1, 2):
        console.warn("BOS 0 and EOS 1 are a known mistake of early conversions; the tokenizer's 1 and 2 are written")
        values = {**values, **own}
    pad = values.get("pad_token_id")
    if isinstance(pad, int) and not 0 <= pad < encoder.vocabulary_size:
        console.warn(f"the padding token {pad} does not exist and is left out")
        values = {**values, "pad_token_id": None}
    return dict(values)


_Size = Annotated[int, Field(ge=0, le=files.MAX_COUNT)] | None
_Layers = Annotated[int, Field(ge=0, le=files.MAX_LAYERS)] | None


class ModelConfig(TypedDict, total=False):
    """The numbers in a config.json that decide how much is built."""

    model_type: str
    architectures: list[str] | None
    vocab_size: _Size
    hidden_size: _Size
    n_embd: _Size
    intermediate_size: _Size
    num_hidden_layers: _Layers
    n_layer: _Layers
    num_layers: _Layers
    num_attention_heads: _Size
    num_key_value_heads: _Size
    head_dim: _Size
    tie_word_embeddings: bool | None
    quantization_config: dict[str, Any] | None
    auto_map: dict[str, Any] | None


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json whose sizes are within bounds; raises `FileError`."""
    values = files.read_json(path)
    files.check(values, str(path), ModelConfig)
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `FileError` where it is missing or malformed."""
    return files.read_json(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object as Hugging Face's libraries do."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
