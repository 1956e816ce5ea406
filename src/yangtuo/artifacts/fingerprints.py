"""Fingerprints: SHA-256 sums of files, of artifacts by what they hold, and of the step that makes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SAMPLED_ABOVE = 64 << 20  # foreign weight files larger than this are fingerprinted by samples, in bytes
_CHUNK = 1 << 20


def hash_file(path: Path, *, sample: bool = False) -> str:
    """SHA-256 of a file; `sample` takes size and 256 spread chunks of a weight file above 64 MiB instead of all."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if sample and size > _SAMPLED_ABOVE and path.suffix in {".safetensors", ".bin", ".pth", ".pt", ".gguf"}:
            digest.update(str(size).encode())
            for index in range(256):
                file.seek(index * (size - 4096) // 255)
                digest.update(file.read(4096))
        else:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def digest(value: Sequence[Any]) -> str:
    """SHA-256 of values that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
