"""Safetensors written tensor by tensor, in shards, hashed on the way.

With a plan (names, shapes and dtypes in order) each tensor goes to disk as it comes; without one, a shard is gathered
in memory first, because a safetensors header stands before its data. It refuses to know what a tensor means.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from yangtuo.weights.reader import DTYPES

SHARD_SIZE = 2_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and number format of a tensor that is still to come."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_size(plan: Mapping[str, TensorSpec]) -> int:
    """Bytes that a plan's tensors take on disk, headers apart."""
    return sum(spec.num_bytes for spec in plan.values())


class ShardedWriter:
    """Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index.

    `shard_size` in bytes bounds every file, except that one tensor is never split. With `plan`, tensors must be added
    in its order. Nothing is synced or renamed over: a caller writes into a directory that nobody reads yet.
    """

    def __init__(
        self,
        directory: Path,
        shard_size: int = SHARD_SIZE,
        metadata: Mapping[str, str] | None = None,
        plan: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self._directory = directory
        self._shard_size = shard_size
        self._metadata = dict(metadata or {"format": "pt"})
        self._expected = list(_cut(plan, shard_size)) if plan is not None else None
        self._gathered: dict[str, torch.Tensor] = {}
        self._homes: list[list[str]] = []
        self._digests: list[str] = []
        self._num_bytes = 0
        self._shard: _Shard | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Writes one tensor, of any device and layout; without a plan it is held until its shard is full."""
        tensor = tensor.detach().cpu().contiguous()
        self._num_bytes += tensor.nbytes
        if self._expected is not None:
            self._add_planned(name, tensor)
            return
        gathered = sum(held.nbytes for held in self._gathered.values())
        if self._gathered and gathered + tensor.nbytes > self._shard_size:
            self._write_gathered()
        assert name not in self._gathered and all(name not in names for names in self._homes), f"{name} added twice"
        self._gathered[name] = tensor

    def close(self) -> dict[str, str]:
        """Ends the last shard and writes the index; returns SHA-256 by file name."""
        if self._gathered:
            self._write_gathered()
        self._end_shard()
        self._pool.shutdown()
        assert not self._expected, f"never added: {self._expected}"
        count = len(self._homes)
        names = [
            "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            for number in range(1, count + 1)
        ]
        for number, name in enumerate(names):
            self._path(number).rename(self._directory / name)
        hashes = dict(zip(names, self._digests, strict=True))
        if count > 1:
            hashes["model.safetensors.index.json"] = self._write_index(names)
        return hashes

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None

    def _add_planned(self, name: str, tensor: torch.Tensor) -> None:
        assert self._expected is not None
        if self._shard is None:
            assert self._expected, f"{name} is not in the plan"
            self._begin_shard(self._expected.pop(0))
        assert self._shard is not None
        self._shard.write(name, tensor)
        if self._shard.is_full:
            self._end_shard()

    def _write_gathered(self) -> None:
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in self._gathered.items()}
        self._begin_shard(specs)
        assert self._shard is not None
        for name, tensor in self._gathered.items():
            self._shard.write(name, tensor)
        self._gathered.clear()
        self._end_shard()

    def _begin_shard(self, specs: dict[str, TensorSpec]) -> None:
        self._shard = _Shard(self._path(len(self._homes)), specs, self._metadata, self._pool)
        self._homes.append(list(specs))

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._digests.append(self._shard.close())
            self._shard = None

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:05d}.safetensors.partial"

    def _write_index(self, names: list[str]) -> str:
        weight_map = {tensor: file for file, home in zip(names, self._homes, strict=True) for tensor in home}
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        text = (json.dumps(index, indent=2) + "\n").encode()
        (self._directory / "model.safetensors.index.json").write_bytes(text)
        return hashlib.sha256(text).hexdigest()


class _Shard:
    """One file: header first, then tensors in the header's order, hashed by another thread while they are written."""

    def __init__(
        self, path: Path, specs: dict[str, TensorSpec], metadata: dict[str, str], pool: ThreadPoolExecutor
    ) -> None:
        self._specs = dict(specs)
        self._digest = hashlib.sha256()
        self._pool = pool
        self._hashing: Future[None] | None = None
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._write(memoryview(_header(specs, metadata)))

    @property
    def is_full(self) -> bool:
        return not self._specs

    def write(self, name: str, tensor: torch.Tensor) -> None:
        expected = next(iter(self._specs), None)
        assert name == expected, f"{name} came where the plan has {expected}"
        spec = self._specs.pop(name)
        assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), f"{name} differs from its plan: {spec}"
        if tensor.numel():
            self._write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> str:
        assert self.is_full, f"never added: {list(self._specs)}"
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._file.close()

    def _write(self, data: memoryview) -> None:
        hashing = self._pool.submit(self._digest.update, data)
        written = 0
        while written < len(data):  # one call writes 2 GiB at most
            written += self._file.write(data[written:]) or 0
        hashing.result()


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        entries[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8, so that it can be mapped
    return len(text).to_bytes(8, "little") + text


def _cut(plan: Mapping[str, TensorSpec], shard_size: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = []
    room = -1
    for name, spec in plan.items():
        if spec.num_bytes > room:
            shards.append({})
            room = shard_size
        shards[-1][name] = spec
        room -= spec.num_bytes
    return shards
