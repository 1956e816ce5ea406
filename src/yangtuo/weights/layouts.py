"""Which layout published weights are in, and how each is opened; what a model directory holds, in figures.

Only headers are read here, never values. It refuses to know how a layout stores its tensors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from yangtuo.errors import FileError, WeightsError
from yangtuo.vocab.directory import GENERATION_FILE, TokenizerDirectory, has_tokenizer, is_sentencepiece, read_directory
from yangtuo.vocab.tiktoken_model import BEGIN, END, llama_3_tokenizer
from yangtuo.weights.checkpoint import CONFIG_FILE, Checkpoint, Tensors, read_config, read_json
from yangtuo.weights.consistency import check_tensors
from yangtuo.weights.gguf import open_gguf
from yangtuo.weights.meta import MetaTensors, is_meta, tokenizer_file
from yangtuo.weights.reader import BUFFERS, TensorReader, has_weights, open_tensors
from yangtuo.weights.shape import resolve_shape


class _WithoutBuffers:
    """A Hugging Face checkpoint's tensors, without buffers and without the copy of a tied head."""

    def __init__(self, reader: TensorReader, skipped: str | None) -> None:
        self._names = [name for name in reader.names() if not BUFFERS.fullmatch(name) and name != skipped]
        self.shape, self.dtype, self.get = reader.shape, reader.dtype, reader.get

    def names(self) -> list[str]:
        """Names of all parameters."""
        return self._names


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens weights in Hugging Face's or Meta's layout or a GGUF file; raises `FileError` where it is none.

    Where several layouts lie side by side, Hugging Face's says most, and is what other programs read.
    """
    if path.is_dir() and (path / CONFIG_FILE).is_file() and has_weights(path):
        return check_tensors(_open_hugging_face(path), str(path))
    if is_meta(path):
        tensors = MetaTensors(path)
        file = tokenizer_file(path)
        config = tensors.config()
        opened = Checkpoint("Meta", tensors, config, partial(_meta_tokenizer, file, config) if file else None)
        return check_tensors(opened, str(path))
    files = gguf_files(path)
    if len(files) == 1:
        return check_tensors(open_gguf(files[0]), str(files[0]))
    raise FileError(
        f"{path} holds no weights in a known layout" if not files else f"{path} holds several GGUF files",
        found=_listing(path),
        expected="config.json and weights (Hugging Face), params.json and consolidated.*.pth (Meta), or one .gguf file",
    )


def gguf_files(path: Path) -> list[Path]:
    """The GGUF files that `path` is or holds."""
    return sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.suffix == ".gguf" else []


def _open_hugging_face(path: Path) -> Checkpoint:
    config = read_config(path / CONFIG_FILE)
    if config.get("quantization_config"):
        raise WeightsError(
            f"{path} holds quantised weights",
            found=str(config["quantization_config"].get("quant_method", "quantization_config")),
            expected="the model before its quantisation, in float32, float16 or bfloat16",
        )
    reader = open_tensors(path)
    shape = resolve_shape(config)
    if shape.tied and shape.head in reader and not torch.equal(reader.get(shape.head), reader.get(shape.embedding)):
        raise WeightsError(
            f"{path} ties its head to its embedding, and holds another head",
            found=f"tie_word_embeddings true, and a {shape.head} that differs from {shape.embedding}",
            expected="one of both; transformers keeps the head, other programs drop it",
            run=f'set "tie_word_embeddings": false in {path / CONFIG_FILE}, where the head was trained',
        )
    generation = path / GENERATION_FILE
    return Checkpoint(
        "Hugging Face",
        _WithoutBuffers(reader, shape.head if shape.tied else None),
        config,
        partial(read_directory, path) if has_tokenizer(path) else None,
        generation=read_json(generation) if generation.is_file() else {},
    )


def _meta_tokenizer(file: Path, config: dict[str, Any]) -> TokenizerDirectory:
    if is_sentencepiece(file):
        return read_directory(file).with_fast()
    text = llama_3_tokenizer(file, is_3_1=config["rope_scaling"] is not None)
    settings = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    return TokenizerDirectory(str(file.parent), fast=text, settings=settings)


def summarize(checkpoint: Checkpoint) -> dict[str, Any]:
    """Figures of a model: architecture, rows, tied, dtype, parameters, layers."""
    tensors, shape = checkpoint.tensors, checkpoint.shape
    names = tensors.names()
    dtypes = Counter[torch.dtype]()
    for name in names:
        dtypes[tensors.dtype(name)] += math.prod(tensors.shape(name))
    return {
        "architecture": (checkpoint.config.get("architectures") or [shape.model_type])[0],
        "rows": tensors.shape(shape.embedding)[0] if shape.embedding in names else shape.vocabulary_size,
        "tied": shape.head not in names,
        "dtype": str(dtypes.most_common(1)[0][0]).removeprefix("torch."),
        "parameters": dtypes.total(),
        "layers": shape.num_layers,
    }


def linear_layers(tensors: Tensors) -> list[str]:
    """Kinds of linear layers inside the blocks, which LoRA can be put on: `q_proj`, `k_proj` …"""
    kinds = [
        name.split(".")[-2]
        for name in tensors.names()
        if re.search(r"\.\d+\.", name) and name.endswith(".weight") and len(tensors.shape(name)) == 2
    ]
    return list(dict.fromkeys(kinds))


def _listing(path: Path) -> str:
    if path.is_file():
        return f"a file {path.name}"
    return ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "an empty directory"
