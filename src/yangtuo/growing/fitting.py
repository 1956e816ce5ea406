"""New head rows fitted to the states that a model reaches: the last touch of a start, before any training.

Rows that were placed by counting know the company of their tokens, not the states that come before them. One linear
map of the states, for new rows alone, is learned by cross-entropy while the model stands still, and folded into the
rows. All of them share it, so a few thousand tokens suffice. This module knows ids and states, not texts or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yangtuo import console
from yangtuo.growing.cooccurrence import NEW_LANGUAGE

Ids = npt.NDArray[np.int32]

_NUM_WINDOWS, _WINDOW = 64, 256
_OLD_WEIGHT = 9.0  # what all windows of the old language weigh against all of the new: it is not to pay
_HELD_OUT = 8  # one window in so many judges the fit
_RATES = (0.3, 1.2)  # of the map's elements, in units of 1 / hidden; the better one is kept
_SHIFT_RATE = 0.25  # of the common shift, against the map's, in units of the rows' deviation
_EPOCHS, _BATCH = 3, 512
_ROWS = 8192  # old rows in float32 at once


class WindowSample:
    """Windows of equal length, evenly spaced over a stream of documents of unknown length."""

    def __init__(self, bos_id: int | None) -> None:
        self._bos = np.array([] if bos_id is None else [bos_id], dtype=np.int32)
        self._kept: list[Ids] = []
        self._stride = 1

    def passing(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        """The same documents, seen in passing."""
        rest, number = self._bos[:0], 0
        for document in documents:
            rest = np.concatenate([rest, self._bos, document])
            for start in range(0, len(rest) - _WINDOW + 1, _WINDOW):
                if number % self._stride == 0:
                    self._keep(rest[start : start + _WINDOW].copy())
                number += 1
            rest = rest[len(rest) // _WINDOW * _WINDOW :]
            yield document

    def _keep(self, window: Ids) -> None:
        self._kept.append(window)
        if len(self._kept) == _NUM_WINDOWS:
            self._kept = self._kept[::2]
            self._stride *= 2

    def windows(self) -> Tensor:
        """Ids of shape (num_windows, window); fewer windows of a short text."""
        return torch.from_numpy(np.array(self._kept, dtype=np.int64).reshape(-1, _WINDOW))


@dataclass(frozen=True)
class _Positions:
    """Where a token is said: the state before it, its id, what the position weighs, and what old rows make of it."""

    states: Tensor
    targets: Tensor
    weights: Tensor
    old_sum: Tensor
    """Logarithm of the sum of the old rows' exponentials."""
    old_logit: Tensor
    """The target's logit where it is an old token."""

    def at(self, places: Tensor) -> _Positions:
        return _Positions(*(part[places] for part in vars(self).values()))


@dataclass(frozen=True)
class _Map:
    """What is learned: states are turned before they meet the new rows, and all these rows are shifted.

    Only what tells rows apart is turned, so the map of zeros leaves everything as it was.
    """

    turn: Tensor
    shift: Tensor

    def logits(self, states: Tensor, rows: Tensor, mean: Tensor) -> Tensor:
        """Of `rows` (num_new, hidden), whose mean is `mean`, in `states` (positions, hidden)."""
        turned = states @ self.turn
        return (states + turned) @ rows.T + (states @ self.shift - turned @ mean)[:, None]

    def folded_into(self, rows: Tensor) -> Tensor:
        """Rows that give the same logits without it."""
        return rows + self.shift + (rows - rows.mean(dim=0)) @ self.turn.T


def fit_rows(head: Tensor, num_old: int, windows: Tensor, states: Tensor, seed: int = 0) -> Tensor | None:
    """The rows of `head` (rows, hidden) from `num_old` on, fitted: float32 of shape (num_new, hidden).

    `windows` are ids (num_windows, window) and `states` (num_windows, window, hidden) what the head is given there.
    Windows of the old language weigh enough to keep it from paying. None where windows that were held out gain nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    judging = torch.randperm(len(windows), generator=generator) % _HELD_OUT == 0
    new = windows >= num_old
    if not (new[judging].any() and new[~judging].any()):
        return None
    learning, judges = (_positions(head, num_old, windows[part], states[part]) for part in (~judging, judging))
    rows = head[num_old:].float()
    nothing = _Map(torch.zeros(head.shape[1], head.shape[1]), torch.zeros(head.shape[1]))
    lowest, best = _judged(judges, num_old, rows, nothing), None
    with console.progress("fitting the head", len(_RATES) * _EPOCHS, "passes") as bar:
        for rate in _RATES:
            for learned in _learn(learning, num_old, rows, rate, generator):
                if (loss := _judged(judges, num_old, rows, learned)) < lowest:
                    lowest, best = loss, learned
                bar.advance(1)
    return None if best is None else best.folded_into(rows)


def _positions(head: Tensor, num_old: int, windows: Tensor, states: Tensor) -> _Positions:
    of_new = ((windows >= num_old).float().mean(dim=1, keepdim=True) >= NEW_LANGUAGE).float()
    weights = of_new / of_new.sum().clamp_min(1) + _OLD_WEIGHT * (1 - of_new) / (1 - of_new).sum().clamp_min(1)
    targets, flat = windows[:, 1:].flatten(), states[:, :-1].flatten(0, 1).float()
    sums = [
        torch.cat([(part @ rows.float().T).logsumexp(dim=1) for part in torch.split(flat, _BATCH)])
        for rows in torch.split(head[:num_old], _ROWS)
    ]
    old_sum = torch.stack(sums).logsumexp(dim=0)
    old_logit = (flat * head[targets.clamp_max(num_old - 1)].float()).sum(dim=1)
    return _Positions(flat, targets, weights.expand_as(windows[:, 1:]).flatten(), old_sum, old_logit)


def _learn(
    positions: _Positions, num_old: int, rows: Tensor, rate: float, generator: torch.Generator
) -> Iterator[_Map]:
    """The map after each pass over the positions."""
    hidden, mean = rows.shape[1], rows.mean(dim=0)
    learned = _Map(torch.zeros(hidden, hidden, requires_grad=True), torch.zeros(hidden, requires_grad=True))
    rates = (rate / hidden, rate * _SHIFT_RATE * float(rows.std()))
    groups = [{"params": [part], "lr": rate} for part, rate in zip((learned.turn, learned.shift), rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    num_steps = _EPOCHS * -(-len(positions.targets) // _BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for _ in range(_EPOCHS):
        for places in torch.split(torch.randperm(len(positions.targets), generator=generator), _BATCH):
            part = positions.at(places)
            optimizer.zero_grad()
            torch.autograd.backward(_mean_loss(part, num_old, learned.logits(part.states, rows, mean)))
            optimizer.step()
            decay.step()
        yield _Map(learned.turn.detach().clone(), learned.shift.detach().clone())


@torch.no_grad()
def _judged(positions: _Positions, num_old: int, rows: Tensor, learned: _Map) -> float:
    mean, total = rows.mean(dim=0), 0.0
    for places in torch.split(torch.arange(len(positions.targets)), _BATCH):
        part = positions.at(places)
        loss = _mean_loss(part, num_old, learned.logits(part.states, rows, mean))
        total += float(loss * part.weights.sum() / positions.weights.sum())
    return total


def _mean_loss(part: _Positions, num_old: int, logits: Tensor) -> Tensor:
    """Weighted mean of the cross-entropies, given the new rows' logits (positions, num_new)."""
    new = (part.targets - num_old).clamp_min(0)[:, None]
    said = torch.where(part.targets >= num_old, logits.gather(1, new)[:, 0], part.old_logit)
    losses = torch.logaddexp(part.old_sum, logits.logsumexp(dim=1)) - said
    return (losses * part.weights).sum() / part.weights.sum()
