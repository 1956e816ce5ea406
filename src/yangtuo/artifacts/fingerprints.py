"""Fingerprints: SHA-256 sums of files, of artifacts by what they hold, and of the step that makes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from yangtuo import files

_SAMPLED_ABOVE = 64 << 20  # foreign weight files larger than this are fingerprinted by samples, in bytes
_CHUNK = 1 << 20

WEIGHT_PATTERNS = (
    ("adapter_model.safetensors",),
    ("model*.safetensors", "pytorch_model*.safetensors"),
    ("adapter_model.bin",),
    ("pytorch_model*.bin",),
    ("*.safetensors",),
    ("consolidated*.pth", "*.pth"),
)
"""Which of a directory's files are its weights: the first entry that matches any decides."""

SMALL_FILES = {
    *("config.json", "params.json", "adapter_config.json"),
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "ice_text.model"),
}
"""Those that are read whole, and decide what a directory computes."""
_MARKS = {"config.json", "params.json", "adapter_config.json", "tokenizer.model", "tokenizer.json"}


def deciding_files(names: Iterable[str]) -> list[str]:
    """Those of a directory's files that decide what a model, adapter or tokenizer computes, sorted.

    Weights in the layout that is read, config, tokenizer and templates; no README, picture or optimizer's state.
    All files of a directory of another kind, such as texts.
    """
    names = sorted(names)
    if not _MARKS.intersection(names) and not any(name.endswith(".gguf") for name in names):
        return names
    weights: list[str] = []
    for patterns in (*WEIGHT_PATTERNS, ("*.gguf",)):
        weights = [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]
        if weights:
            break
    chosen = {*weights, *(name for name in names if name in SMALL_FILES)}
    return sorted(chosen.union(name for name in names if name.startswith("additional_chat_templates/")))


def hash_file(path: Path, *, sample: bool = False) -> str:
    """SHA-256 of a file; `sample` takes size and 256 spread chunks of a weight file above 64 MiB instead of all."""
    digest = hashlib.sha256()
    size = files.check_input(path)  # a device has no end
    with path.open("rb") as file:
        if sample and size > _SAMPLED_ABOVE and path.suffix in {".safetensors", ".bin", ".pth", ".pt", ".gguf"}:
            digest.update(str(size).encode())
            for index in range(256):
                file.seek(index * (size - 4096) // 255)
                digest.update(file.read(4096))
        else:
            files.refuse_hole(path)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def digest(value: Sequence[Any]) -> str:
    """SHA-256 of values that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
