"""Windows of text for growing: spread evenly over a stream, chosen so that new tokens are seen, read in old tokens too.

Every new token stands for a fixed sequence of old ones, so both tokenisations of a window meet at the end of each
token, exactly. This module knows ids, not texts or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yangtuo.growing.cooccurrence import NEW_LANGUAGE

Ids = npt.NDArray[np.int32]

_STRETCH, _APART_EVERY, _APART = 255, 32, 24  # tokens; one in so many; of each text at most
_LOOKAHEAD = 16  # windows among which the one with the rarest tokens is taken


class WindowSample:
    """Windows of equal length, evenly spaced over a stream of documents of unknown length."""

    def __init__(self, bos_id: int | None, num_windows: int, length: int) -> None:
        """Keeps from half of `num_windows` to all but one of them; fewer of a short text."""
        self._bos = np.array([] if bos_id is None else [bos_id], dtype=np.int32)
        self._num_windows, self._length = num_windows, length
        self._kept: list[Ids] = []
        self._stride = 1

    def passing(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        """The same documents, seen in passing."""
        rest, number, length = self._bos[:0], 0, self._length
        for document in documents:
            rest = np.concatenate([rest, self._bos, document])
            for start in range(0, len(rest) - length + 1, length):
                if number % self._stride == 0:
                    self._keep(rest[start : start + length].copy())
                number += 1
            rest = rest[len(rest) // length * length :]
            yield document

    def _keep(self, window: Ids) -> None:
        self._kept.append(window)
        if len(self._kept) == self._num_windows:
            self._kept = self._kept[::2]
            self._stride *= 2

    def windows(self) -> Tensor:
        """Ids of shape (num_windows, length)."""
        return torch.from_numpy(np.array(self._kept, dtype=np.int64).reshape(-1, self._length))


def of_new_language(windows: Tensor, num_old: int) -> Tensor:
    """Which of `windows` (num_windows, length) are of the new language."""
    return (windows >= num_old).float().mean(dim=1) >= NEW_LANGUAGE


def covering(windows: Tensor, num_old: int, num_new: int, amount: int, seed: int = 0) -> Tensor:
    """`amount` of `windows`, in an order in which tokens that were seen least come first: each one a few times."""
    order = np.random.default_rng(seed).permutation(len(windows)).tolist()
    rows = [np.unique(window[window >= num_old]) - num_old for window in windows.numpy()]
    seen, chosen = np.zeros(num_new), list[int]()
    while order and len(chosen) < amount:
        gains = [float((1 / (1 + seen[rows[index]]) ** 2).sum()) for index in order[:_LOOKAHEAD]]
        place = int(np.argmax(gains))
        order[place], order[-1] = order[-1], order[place]
        chosen.append(order.pop())
        seen[rows[chosen[-1]]] += 1
    return windows[chosen]


def spread(windows: Tensor, amount: int) -> Tensor:
    """`amount` of `windows`, evenly spaced; all where there are no more."""
    return windows[torch.linspace(0, len(windows) - 1, min(amount, len(windows))).long()]


@dataclass(frozen=True)
class Aligned:
    """Windows as the base reads them."""

    ids: Tensor
    """Old ids, padded on the right: (num_windows, longest)."""
    ends: Tensor
    """Where each token of the window ends among them: (num_windows, length)."""

    def at_ends(self, states: Tensor) -> Tensor:
        """Of `states` (num_windows, longest, hidden) those at the ends: (num_windows, length, hidden)."""
        return states.gather(1, self.ends[..., None].expand(-1, -1, states.shape[-1]).to(states.device))


def align(windows: Tensor, num_old: int, sources: Sequence[Sequence[int]]) -> Aligned:
    """`windows` (num_windows, length) in old tokens: each new id as the old ones that it stands for."""
    spelled, ends = [], []
    for window in windows.tolist():
        parts = [[index] if index < num_old else sources[index - num_old] for index in window]
        spelled.append([old for part in parts for old in part])
        ends.append(np.cumsum([len(part) for part in parts]) - 1)
    ids = torch.zeros(len(windows), max(map(len, spelled), default=0), dtype=torch.long)
    for row, line in zip(ids, spelled, strict=True):
        row[: len(line)] = torch.tensor(line)
    return Aligned(ids, torch.from_numpy(np.array(ends, dtype=np.int64).reshape(windows.shape)))


def readable(windows: Tensor, num_old: int, sources: Sequence[Sequence[int]]) -> Tensor:
    """The windows without new ids that stand for nothing in old ones."""
    silent = torch.tensor([not source for source in sources], dtype=torch.bool)
    is_silent = torch.cat([torch.zeros(num_old, dtype=torch.bool), silent])
    return windows[~is_silent[windows].any(dim=1)]


class Apart:
    """Stretches of a stream that are held out: nothing is counted or learned in them."""

    def __init__(self, bos_id: int | None) -> None:
        self._bos = np.array([] if bos_id is None else [bos_id], dtype=np.int64)
        self._kept: list[Tensor] = []

    def passing(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        """The documents without one stretch in so many."""
        number = 0
        for document in documents:
            begin = 0
            for start in range(0, len(document) - _STRETCH + 1, _STRETCH):
                number += 1
                if number % _APART_EVERY == 0 and len(self._kept) < _APART:
                    stretch = document[start : start + _STRETCH].astype(np.int64)
                    self._kept.append(torch.from_numpy(np.concatenate([self._bos, stretch])))
                    yield document[begin:start]
                    begin = start + _STRETCH
            yield document[begin:]

    def windows(self) -> Tensor:
        """Ids of shape (num_windows, length), each after BOS where there is one."""
        return torch.stack(self._kept) if self._kept else torch.empty(0, len(self._bos) + _STRETCH, dtype=torch.long)
