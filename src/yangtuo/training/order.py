"""In which order blocks are trained on: a pure function of the seed, so that a resumed run needs no memory of it.

Each pass over the data is a permutation of its own, with a share of other blocks mixed in where asked. This module
does not depend on tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


class Replayed(Dataset[dict[str, torch.Tensor]]):
    """`blocks`, to which each pass adds `weight` times as many of `replay`, other ones each pass.

    Numbers from `len(blocks)` on are those of `replay`, which is read through in the order of a permutation. Each
    block says by `is_replayed` (a bool tensor without dimensions) which it is.
    """

    def __init__(self, blocks: Any, replay: Any, weight: float, seed: int) -> None:
        self._blocks = blocks
        self._replay = replay
        self._num_added = round(len(blocks) * weight)
        self._added = OrderedBlocks(replay, 0, seed + 1)

    def __len__(self) -> int:
        return len(self._blocks) + self._num_added

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        own = len(self._blocks)
        block: dict[str, torch.Tensor] = self._blocks[number] if number < own else self._replay[number - own]
        return {**block, "is_replayed": torch.tensor(number >= own)}

    def numbers(self, number_of_pass: int) -> list[int]:
        """The blocks of one pass."""
        own, first = len(self._blocks), number_of_pass * self._num_added
        return [*range(own), *(own + self._added.block_number(first + place) for place in range(self._num_added))]


class OrderedBlocks(Dataset[dict[str, torch.Tensor]]):
    """`num_blocks` blocks of `blocks`, pass after pass, each pass in an order drawn from (`seed`, pass)."""

    def __init__(self, blocks: Any, num_blocks: int, seed: int) -> None:
        self._blocks = blocks
        self._num_blocks = num_blocks
        self._seed = seed
        self._pass = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self._num_blocks

    def block_number(self, index: int) -> int:
        """Which block of the dataset stands at place `index` of the run."""
        number, place = divmod(index, len(self._blocks))
        if number != self._pass:
            generator = torch.Generator().manual_seed((self._seed << 20) + number)
            order = torch.randperm(len(self._blocks), generator=generator).tolist()
            numbers = self._blocks.numbers(number) if isinstance(self._blocks, Replayed) else range(len(self._blocks))
            self._order = [numbers[place] for place in order]
            self._pass = number
        return self._order[place]

    def block(self, number: int) -> dict[str, torch.Tensor]:
        """Block `number` of the dataset."""
        block: dict[str, torch.Tensor] = self._blocks[number]
        return block

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self._num_blocks:
            raise IndexError(index)
        return self.block(self.block_number(index))
