"""Which layout published weights are in, and how each is opened; what a model directory holds, in figures.

Only headers are read here, never values. It refuses to know how a layout stores its tensors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from yangtuo.errors import FileError, WeightsError
from yangtuo.vocab.directory import copy_tokenizer, write_byte_level
from yangtuo.vocab.encoding import is_sentencepiece
from yangtuo.vocab.tiktoken_model import BEGIN, END, llama_3_tokenizer
from yangtuo.weights.checkpoint import CONFIG_FILE, EMBEDDING, GENERATION_FILE, HEAD, Checkpoint, Tensors, read_json
from yangtuo.weights.gguf import open_gguf
from yangtuo.weights.meta import MetaTensors, is_meta, tokenizer_file
from yangtuo.weights.reader import open_tensors

# Buffers that old checkpoints carry and every reader computes anew.
_BUFFERS = re.compile(r".*rotary_emb\.inv_freq|.*\.attn\.(bias|masked_bias)|.*\.attention\.(bias|masked_bias)")
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "ice_text.model")


class _WithoutBuffers:
    """A Hugging Face checkpoint's tensors, without buffers and without the copy of a tied head."""

    def __init__(self, path: Path, tied: bool) -> None:
        self._reader = open_tensors(path)
        self._names = [
            name for name in self._reader.names() if not _BUFFERS.fullmatch(name) and not (tied and name == HEAD)
        ]
        self.shape, self.dtype, self.get = self._reader.shape, self._reader.dtype, self._reader.get

    def names(self) -> list[str]:
        """Names of all parameters."""
        return self._names


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens weights in Meta's or Hugging Face's layout or a GGUF file; raises `FileError` where it is none."""
    if is_meta(path):
        tensors = MetaTensors(path)
        return _with_meta_tokenizer(Checkpoint("Meta", tensors, tensors.config()), tokenizer_file(path))
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return _open_hugging_face(path)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) == 1 and files[0].suffix == ".gguf":
        return open_gguf(files[0])
    raise FileError(
        f"{path} holds no weights in a known layout",
        found=_listing(path),
        expected="params.json and consolidated.*.pth (Meta), config.json and weights (Hugging Face), or a .gguf file",
    )


def _open_hugging_face(path: Path) -> Checkpoint:
    config = read_json(path / CONFIG_FILE)
    if config.get("quantization_config"):
        raise WeightsError(
            f"{path} holds quantised weights",
            found=str(config["quantization_config"].get("quant_method", "quantization_config")),
            expected="the model before its quantisation, in float32, float16 or bfloat16",
        )
    generation = path / GENERATION_FILE
    checkpoint = Checkpoint(
        "Hugging Face",
        _WithoutBuffers(path, bool(config.get("tie_word_embeddings"))),
        config,
        generation=read_json(generation) if generation.is_file() else {},
    )
    return _with_tokenizer(checkpoint, path if any((path / name).is_file() for name in _TOKENIZER_FILES) else None)


def _with_meta_tokenizer(checkpoint: Checkpoint, path: Path | None) -> Checkpoint:
    if path is None or is_sentencepiece(path):
        return _with_tokenizer(checkpoint, path)

    def write(directory: Path) -> None:
        content = llama_3_tokenizer(path, is_3_1=checkpoint.config["rope_scaling"] is not None)
        write_byte_level(directory, content, {"bos_token": BEGIN, "eos_token": END})

    return replace(checkpoint, write_tokenizer=write)


def _with_tokenizer(checkpoint: Checkpoint, path: Path | None) -> Checkpoint:
    return replace(checkpoint, tokenizer=path, write_tokenizer=partial(copy_tokenizer, path)) if path else checkpoint


def summarize(checkpoint: Checkpoint) -> dict[str, Any]:
    """Figures of a model: architecture, rows, tied, dtype, parameters, layers."""
    tensors, config = checkpoint.tensors, checkpoint.config
    names = tensors.names()
    dtypes = Counter[torch.dtype]()
    for name in names:
        dtypes[tensors.dtype(name)] += math.prod(tensors.shape(name))
    return {
        "architecture": (config.get("architectures") or ["unknown"])[0],
        "rows": tensors.shape(EMBEDDING)[0] if EMBEDDING in names else int(config.get("vocab_size", 0)),
        "tied": HEAD not in names,
        "dtype": str(dtypes.most_common(1)[0][0]).removeprefix("torch."),
        "parameters": dtypes.total(),
        "layers": config.get("num_hidden_layers"),
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
