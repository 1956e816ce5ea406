"""GGUF, the format of llama.cpp: Llamas read from it and written to it, tensor by tensor.

GGUF keeps query and key rows in Meta's rotary order, so both directions use the tables of `yangtuo.weights.meta`.
Quantisation and file layout are the `gguf` library's. Specification: docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import console, files
from yangtuo.errors import WeightsError
from yangtuo.weights.checkpoint import Checkpoint
from yangtuo.weights.gguf_formats import QUANTIZATIONS, library, quantize, tensor_type
from yangtuo.weights.gguf_header import check_header
from yangtuo.weights.gguf_vocabulary import tokenizer_metadata, tokenizer_of_metadata
from yangtuo.weights.meta import (
    EMBEDDING,
    HEAD,
    LLAMA_CONFIG,
    Entry,
    Heads,
    llama_3_scaling,
    table,
    to_halves,
    to_pairs,
)
from yangtuo.weights.shape import ModelShape

ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_Size = Annotated[int, Field(ge=1, le=files.MAX_COUNT)]
Metadata = TypedDict(
    "Metadata",
    {
        "general.architecture": str,
        "llama.block_count": Annotated[int, Field(ge=0, le=files.MAX_LAYERS)],
        "llama.embedding_length": _Size,
        "llama.feed_forward_length": _Size,
        "llama.context_length": _Size,
        "llama.attention.head_count": _Size,
        "llama.attention.head_count_kv": _Size,
        "llama.attention.key_length": _Size,
        "llama.attention.layer_norm_rms_epsilon": float,
        "llama.rope.freq_base": float,
        "llama.rope.dimension_count": Annotated[int, Field(ge=0, le=files.MAX_COUNT)],
        "llama.rope.scaling.type": str,
        "llama.rope.scaling.factor": float,
        "split.count": int,
        "tokenizer.ggml.model": str,
        "tokenizer.ggml.pre": str,
        "tokenizer.ggml.tokens": list[str],
        "tokenizer.ggml.scores": list[float],
        "tokenizer.ggml.token_type": list[int],
        "tokenizer.ggml.merges": list[str],
        "tokenizer.ggml.bos_token_id": int,
        "tokenizer.ggml.eos_token_id": int,
        "tokenizer.chat_template": str,
    },
    total=False,
)
"""What is read of a file's metadata."""


class GgufTensors:
    """The tensors of a GGUF file under Hugging Face's names and row order, dequantised when they are asked for."""

    def __init__(self, path: Path) -> None:
        check_header(path)
        try:
            self._reader = library().GGUFReader(path, "c")  # copy-on-write: torch wants memory that it might write
            self.metadata = {name: field.contents() for name, field in self._reader.fields.items()}
        except (ValueError, OSError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise WeightsError(
                f"{path} is no GGUF file that can be read",
                found=f"{error} ({path.stat().st_size:,} bytes)",
                expected="the whole file as published",
            ) from error
        files.check(self.metadata, f"the metadata of {path}", Metadata)
        self._raw = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise WeightsError(f"{path} is no Llama", found=f"architecture {architecture}", expected="llama")
        self._check_size(path)
        if int(self._value("block_count")) > len(self._raw):
            raise WeightsError(
                f"{path} holds fewer tensors than layers",
                found=f"{len(self._raw):,} tensors",
                expected=f"{self._value('block_count'):,} layers",
            )
        self._dequantize = library().quants.dequantize
        entries = [entry for entry in table(int(self._value("block_count"))) if entry.gguf in self._raw]
        self._entries = {entry.hugging_face: entry for entry in entries}
        self._check_names(path)
        formats = {
            self._raw[entry.gguf].tensor_type.name for entry in entries if len(self.shape(entry.hugging_face)) > 1
        }
        self._dtype = _FLOATS.get(formats.pop(), torch.float32) if len(formats) == 1 else torch.float32
        self.tied = HEAD.hugging_face not in self._entries
        sizes = Counter[str]()
        for entry in entries:
            sizes[self._raw[entry.gguf].tensor_type.name] += int(self._raw[entry.gguf].n_elements)
        most = sizes.most_common(1)[0][0] if sizes else "F32"
        self.quantization = None if most in _FLOATS else most

    def names(self) -> list[str]:
        """Hugging Face's names, in the order of the table."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape; GGUF writes it in reverse."""
        return tuple(int(size) for size in reversed(self._raw[self._entries[name].gguf].shape))

    def dtype(self, name: str) -> torch.dtype:
        """The format of the matrices where they are of one float format, else float32."""
        assert name in self._entries
        return self._dtype

    def get(self, name: str) -> torch.Tensor:
        """The dequantised tensor."""
        entry = self._entries[name]
        raw = self._raw[entry.gguf]
        form = raw.tensor_type.name
        if form in ("F32", "F16"):
            tensor = torch.from_numpy(raw.data)
        elif form == "BF16":
            tensor = torch.from_numpy(raw.data).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(self._dequantize(raw.data, raw.tensor_type))
        tensor = tensor.reshape(self.shape(name)).to(self._dtype)
        heads = self._heads(entry)
        return to_halves(tensor, heads) if heads else tensor

    def config(self) -> dict[str, Any]:
        """What config.json says of this model."""
        heads = int(self._value("attention.head_count"))
        width = int(self._value("embedding_length"))
        config: dict[str, Any] = {
            **LLAMA_CONFIG,
            "vocab_size": self.shape(EMBEDDING.hugging_face)[0],
            "hidden_size": width,
            "intermediate_size": int(self._value("feed_forward_length")),
            "num_hidden_layers": int(self._value("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self._value("attention.head_count_kv", heads)),
            "head_dim": int(self._value("attention.key_length", width // heads)),
            "rms_norm_eps": _shortest(self._value("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._value("rope.freq_base", 10000.0)),
            "max_position_embeddings": int(self._value("context_length")),
            "tie_word_embeddings": self.tied,
            "torch_dtype": str(self._dtype).removeprefix("torch."),
        }
        if ROPE_FACTORS in self._raw:  # only Llama 3.1 and later have it; the other three numbers never varied
            factor = float(self._raw[ROPE_FACTORS].data.max())
            config["rope_scaling"] = llama_3_scaling(factor)
        elif scaling := self._scaling():
            config["rope_scaling"] = scaling
        for name in ("bos", "eos"):
            if f"tokenizer.ggml.{name}_token_id" in self.metadata:
                config[f"{name}_token_id"] = int(self.metadata[f"tokenizer.ggml.{name}_token_id"])
        return config

    def _value(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise WeightsError(f"the GGUF file lacks llama.{key}", expected="a file as llama.cpp's converter writes it")
        return value

    def _scaling(self) -> dict[str, Any] | None:
        """Scaling of positions as the metadata name it; raises `WeightsError` where transformers' would differ."""
        kind = self.metadata.get("llama.rope.scaling.type", "none")
        factor = float(
            self.metadata.get("llama.rope.scaling.factor", self.metadata.get("llama.rope.scale_linear", 1.0))
        )
        rotated = int(self.metadata.get("llama.rope.dimension_count", 0))
        head_dim = int(self._value("embedding_length")) // int(self._value("attention.head_count"))
        head_dim = int(self._value("attention.key_length", head_dim))
        if kind not in ("none", "linear") or rotated not in (0, head_dim):
            raise WeightsError(
                "the GGUF file's rotary positions are of a kind that is not converted",
                found=f"rope scaling {kind}, {rotated or head_dim} of {head_dim} dimensions rotated",
                expected="rope scaling none, linear or Llama 3.1's, all dimensions rotated; or the model as "
                "transformers has it",
            )
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None

    def _heads(self, entry: Entry) -> int | None:
        heads = int(self._value("attention.head_count"))
        key_value_heads = int(self._value("attention.head_count_kv", heads))
        return {Heads.QUERY: heads, Heads.KEY: key_value_heads}.get(entry.heads) if entry.heads else None

    def _check_size(self, path: Path) -> None:
        end = max((int(t.data_offset) + int(t.n_bytes) for t in self._reader.tensors), default=0)
        if end > path.stat().st_size:
            raise WeightsError(
                f"{path} is cut short", found=f"{path.stat().st_size:,} bytes", expected=f"{end:,} bytes"
            )
        if int(self.metadata.get("split.count", 1)) > 1:
            raise WeightsError(f"{path} is one of several parts", run="llama-gguf-split --merge FIRST-PART WHOLE.gguf")

    def _check_names(self, path: Path) -> None:
        wanted = {entry.gguf for entry in table(int(self._value("block_count")))} - {HEAD.gguf}
        missing = sorted(wanted - set(self._raw))
        unknown = sorted(set(self._raw) - wanted - {HEAD.gguf, ROPE_FACTORS})
        if missing or unknown:
            raise WeightsError(
                f"{path} does not hold the tensors of a Llama",
                found=f"missing: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(unknown[:4]) or 'none'}",
            )


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file as a checkpoint."""
    tensors = GgufTensors(path)
    config = tensors.config()
    generation: dict[str, Any] = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    return Checkpoint(
        "GGUF",
        tensors,
        config,
        lambda: tokenizer_of_metadata(tensors.metadata),
        generation=generation,
        quantization=tensors.quantization,
    )


def write_gguf(path: Path, checkpoint: Checkpoint, quantization: str) -> None:
    """Writes a Llama checkpoint with its tokenizer as one GGUF file, in the memory of one tensor.

    `quantization` is one of `QUANTIZATIONS`. Raises `WeightsError` for models that are no Llama.
    """
    assert quantization in QUANTIZATIONS
    tensors, shape = checkpoint.tensors, checkpoint.shape
    entries = gguf_entries(checkpoint)
    tied = HEAD.hugging_face not in tensors.names()
    writer = library().GGUFWriter(path, "llama")
    _add_metadata(writer, checkpoint, quantization)
    factors = rope_factors(shape)
    types = {
        name: tensor_type(entries[name].gguf, tensors.shape(name), quantization, shape.num_layers, tied=tied)
        for name in tensors.names()
    }
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name, kind in types.items():
        sizes = tensors.shape(name)
        block, size = library().GGML_QUANT_SIZES[kind]
        num_bytes = math.prod(sizes) // block * size
        writer.add_tensor_info(entries[name].gguf, sizes, numpy.dtype("float32"), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    with console.progress("writing GGUF", len(types)) as bar:
        for name, kind in types.items():
            tensor = in_gguf_order(tensors.get(name), entries[name], shape)
            writer.write_tensor_data(quantize(tensor.float().numpy(), kind))
            bar.advance()
    writer.close()


def gguf_entries(checkpoint: Checkpoint) -> dict[str, Entry]:
    """The table's entries by Hugging Face's names; raises `WeightsError` for models that are no Llama."""
    shape = checkpoint.shape
    entries = {entry.hugging_face: entry for entry in table(shape.num_layers)}
    unknown = [name for name in checkpoint.tensors.names() if name not in entries]
    if "gguf" not in shape.family.layouts or unknown or shape.partial_rotary != 1.0:
        raise WeightsError(
            "only Llamas can be written as GGUF here",
            found=f"{shape.model_type}; tensors {', '.join(unknown[:4]) or 'as expected'}",
            expected="model_type llama or mistral, without biases",
            run="llama.cpp's own convert_hf_to_gguf.py, which knows other architectures",
        )
    return entries


def rope_factors(shape: ModelShape) -> numpy.ndarray[Any, Any] | None:
    """Llama 3.1's factors of the rotary frequencies, float32 (head_dim / 2,), or None for models without."""
    scaling = shape.rope_scaling
    if scaling is None or scaling["rope_type"] == "linear":
        return None
    if scaling["rope_type"] != "llama3":
        raise WeightsError(
            f"rope scaling of type {scaling['rope_type']} cannot be written as GGUF", expected="none, linear or llama3"
        )
    size = shape.head_dim
    length, factor = float(scaling["original_max_position_embeddings"]), float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    waves = 2 * numpy.pi * shape.rope_theta ** (numpy.arange(0, size, 2, dtype=numpy.float64) / size)
    smooth = (length / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = numpy.where(waves < length / high, 1.0, numpy.where(waves > length / low, factor, between))
    return factors.astype(numpy.float32)


def _add_metadata(writer: Any, checkpoint: Checkpoint, quantization: str) -> None:
    shape = checkpoint.shape
    rows = checkpoint.tensors.shape(EMBEDDING.hugging_face)[0]
    writer.add_file_type(QUANTIZATIONS[quantization])
    writer.add_quantization_version(2)
    writer.add_vocab_size(rows)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    if shape.rope_scaling is not None and shape.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope_scaling["factor"]))
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    for key, value in tokenizer_metadata(checkpoint.tokenizer, rows).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)


def in_gguf_order(tensor: torch.Tensor, entry: Entry, shape: ModelShape) -> torch.Tensor:
    """A tensor with its rows as GGUF has them."""
    heads = (
        {Heads.QUERY: shape.num_heads, Heads.KEY: shape.num_key_value_heads}.get(entry.heads) if entry.heads else None
    )
    return to_pairs(tensor, heads) if heads else tensor


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value)))
