"""Rows of a running batch: requests with their keys and values, which join on the right side and leave anywhere.

Rows of different lengths are padded on the left, so that all continue in the same column.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns that a batch may grow by before its keys and values are copied
Job = TypeVar("Job")


class Rows(Generic[Job]):
    """The requests of a batch; the first `num_cached` of `jobs` have a row in `cache`, the others wait for one."""

    def __init__(self, jobs: list[Job] | None = None) -> None:
        self.jobs: list[Job] = list(jobs or ())
        self.cache: Any = None
        """transformers' DynamicCache, of keys and values (rows, heads, columns, size); see `new_cache`."""
        self._mask: torch.Tensor | None = None

    @property
    def num_cached(self) -> int:
        """How many rows the cache has."""
        return 0 if self._mask is None else len(self._mask)

    def extend_mask(self, new: torch.Tensor) -> torch.Tensor:
        """The mask of all columns (rows, columns), with those of `new` tokens appended for good."""
        self._mask = new if self._mask is None else torch.cat([self._mask, new], dim=1)
        return self._mask

    def join(self, other: Rows[Job]) -> None:
        """Takes over the cached rows of `other`, whose jobs are among those that still wait here."""
        assert other._mask is not None
        cached = self.jobs[: self.num_cached]
        waiting = [job for job in self.jobs[self.num_cached :] if not any(job is taken for taken in other.jobs)]
        self.jobs = [*cached, *other.jobs, *waiting]
        if self._mask is None:
            self.cache, self._mask = other.cache, other._mask
            return
        width = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([_padded(self._mask, width, 1), _padded(other._mask, width, 1)])
        for mine, new in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, width, 2), _padded(new.keys, width, 2)])
            mine.values = torch.cat([_padded(mine.values, width, 2), _padded(new.values, width, 2)])

    def drop(self, done: list[bool]) -> None:
        """Removes the jobs that are `done`, their rows, and the columns that only they needed."""
        if not any(done):
            return
        kept = [index for index, is_done in enumerate(done[: self.num_cached]) if not is_done]
        self.jobs = [job for job, is_done in zip(self.jobs, done, strict=True) if not is_done]
        if self._mask is None:
            return
        if not kept:
            self.cache = self._mask = None
            return
        mask = self._mask[kept]
        start = int(mask.any(0).int().argmax())
        self._mask = mask[:, start:]
        for layer in self.cache.layers:
            layer.keys = layer.keys[kept, :, start:]
            layer.values = layer.values[kept, :, start:]


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values with room for more columns: a new one is written into it, where the parent copies all of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._rooms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys, keys = _append(self.keys, key_states, self._rooms[0])
        self.values, values = _append(self.values, value_states, self._rooms[1])
        self._rooms = (keys, values)
        return self.keys, self.values


def new_cache() -> DynamicCache:
    """An empty cache for a batch; every layer keeps all columns, sliding ones too, since rows share them."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _RoomyLayer
    return cache


def _append(cached: torch.Tensor, new: torch.Tensor, room: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`cached` with the columns of `new`, as the beginning of the `room` that is returned beside it."""
    width = cached.shape[-2] if cached.numel() else 0
    total = width + new.shape[-2]
    if room is None or cached.data_ptr() != room.data_ptr() or len(new) != len(room) or total > room.shape[-2]:
        room = new.new_empty((*new.shape[:-2], total + _ROOM, new.shape[-1]))
        if width:
            room[..., :width, :] = cached
    room[..., width:total, :] = new
    return room[..., :total, :], room


def _padded(tensor: torch.Tensor, width: int, dimension: int) -> torch.Tensor:
    """`tensor` with zeros before its columns, up to `width` of them."""
    missing = width - tensor.shape[dimension]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dimension] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dimension)
