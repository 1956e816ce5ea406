"""New head rows fitted to the states that a model reaches, before any training.

Rows that were placed by counting know their tokens' neighbours, not the states that come before them. First one linear
map of the states, for new rows alone, is learned by cross-entropy and folded into the rows: all of them share it, so a
few thousand tokens suffice. Where more were read, each row then moves by its own evidence. The model stands still. This
module knows ids and states, not texts or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from yangtuo import console
from yangtuo.growing.windows import of_new_language

_OLD_WEIGHT = 9.0  # what all windows of the old language weigh against all of the new: it is not to pay
_HELD_OUT = 8  # one window in so many judges the fit
_RATES = (0.3, 1.2)  # of the map's elements, in units of 1 / hidden; the better one is kept
_SHIFT_RATE = 0.25  # of the common shift, against the map's, in units of the rows' deviation
_EPOCHS, _BATCH = 3, 512
_DOUBT = 100.0  # occurrences that a row must have for its evidence to outweigh where it stood
_ROW_RATE, _ROW_MOMENTUM, _ROW_EPOCHS, _ROW_BATCH = 0.05, 0.9, 4, 1024
_DAMPING = 0.02  # of the mean variance of the states, added to each direction's
_ROWS = 8192  # old rows in float32 at once


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
    lowest, best = _judged(judges, num_old, rows), None
    with console.progress("fitting the head", len(_RATES) * _EPOCHS, "passes") as bar:
        for rate in _RATES:
            for learned in _learn(learning, num_old, rows, rate, generator):
                folded = learned.folded_into(rows)
                if (loss := _judged(judges, num_old, folded)) < lowest:
                    lowest, best = loss, folded
                bar.advance(1)
    return best


def refine_rows(head: Tensor, num_old: int, windows: Tensor, states: Tensor, seed: int = 0) -> Tensor | None:
    """As `fit_rows`, each row by its own evidence: float32 of shape (num_new, hidden), or None where nothing is gained.

    Cross-entropy with a Gaussian prior at the rows as they stand, by stochastic descent that knows the curvature: the
    states are whitened, and a row's step is divided by its occurrences and the prior's.
    """
    generator = torch.Generator().manual_seed(seed)
    judging = torch.randperm(len(windows), generator=generator) % _HELD_OUT == 0
    new = windows >= num_old
    if not (new[judging].any() and new[~judging].any()):
        return None
    learning, judges = (_positions(head, num_old, windows[part], states[part]) for part in (~judging, judging))
    rows = head[num_old:].float()
    lowest, best = _judged(judges, num_old, rows), None
    with console.progress("fitting new rows", _ROW_EPOCHS, "passes") as bar:
        for learned in _descend(learning, num_old, rows, generator):
            if (loss := _judged(judges, num_old, learned)) < lowest:
                lowest, best = loss, learned
            bar.advance(1)
    return best


def _descend(positions: _Positions, num_old: int, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows after each pass over the positions."""
    num_positions = len(positions.targets)
    variance, directions = torch.linalg.eigh((positions.states.T @ positions.states / num_positions).double())
    variance = variance.clamp_min(0) + _DAMPING * variance.mean()
    whitening = (directions * variance.rsqrt()).float()
    coloring = (directions * variance.sqrt()).float()
    states = (positions.states @ whitening).to(torch.bfloat16)
    is_new = positions.targets >= num_old
    counts = torch.bincount(positions.targets[is_new] - num_old, minlength=len(rows)).float()
    start = rows @ coloring
    moved, velocity = torch.zeros_like(start), torch.zeros_like(start)
    num_steps, step = _ROW_EPOCHS * -(-num_positions // _ROW_BATCH), 0
    for _ in range(_ROW_EPOCHS):
        for places in torch.split(torch.randperm(num_positions, generator=generator), _ROW_BATCH):
            logits = (states[places] @ (start + moved).T.to(torch.bfloat16)).float()
            errors = (logits - torch.logaddexp(positions.old_sum[places], logits.logsumexp(1))[:, None]).exp_()
            said = is_new[places].nonzero()[:, 0]
            errors[said, positions.targets[places][said] - num_old] -= 1
            slope = (errors.to(torch.bfloat16).T @ states[places]).float() * (num_positions / len(places))
            velocity.lerp_((slope + _DOUBT * moved) / (counts + _DOUBT)[:, None], 1 - _ROW_MOMENTUM)
            moved -= _ROW_RATE * (1 - step / num_steps) * velocity
            step += 1
        yield (start + moved) @ whitening.T


def _positions(head: Tensor, num_old: int, windows: Tensor, states: Tensor) -> _Positions:
    of_new = of_new_language(windows, num_old)[:, None].float()
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
def _judged(positions: _Positions, num_old: int, rows: Tensor) -> float:
    total = 0.0
    for places in torch.split(torch.arange(len(positions.targets)), _BATCH):
        part = positions.at(places)
        loss = _mean_loss(part, num_old, part.states @ rows.T)
        total += float(loss * part.weights.sum() / positions.weights.sum())
    return total


def _mean_loss(part: _Positions, num_old: int, logits: Tensor) -> Tensor:
    """Weighted mean of the cross-entropies, given the new rows' logits (positions, num_new)."""
    new = (part.targets - num_old).clamp_min(0)[:, None]
    said = torch.where(part.targets >= num_old, logits.gather(1, new)[:, 0], part.old_logit)
    losses = torch.logaddexp(part.old_sum, logits.logsumexp(dim=1)) - said
    return (losses * part.weights).sum() / part.weights.sum()
