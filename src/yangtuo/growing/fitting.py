"""New head rows fitted to the states that a model reaches, before any training.

Rows that were placed by counting know their tokens' neighbours, not the states that come before them. First one linear
map of the states, for new rows alone, is learned by cross-entropy and folded into the rows: all of them share it, so a
few thousand tokens suffice. Where more were read, each row then moves by its own evidence, and so do old rows of the
same language: once `的人` is a token, `的` alone is said less often, and before other words, than the base has learned.
The model stands still. This module knows ids and states, not texts or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from yangtuo import console
from yangtuo.growing.states import fastest, log_sums
from yangtuo.growing.windows import of_new_language

_OLD_WEIGHT = 9.0  # what all windows of the old language weigh against all of the new: it is not to pay
_HELD_OUT = 8  # one window in so many judges the fit
_RATES = (0.3, 1.2)  # of the map's elements, in units of 1 / hidden; the better one is kept
_SHIFT_RATE = 0.25  # of the common shift, against the map's, in units of the rows' deviation
_EPOCHS, _BATCH = 3, 512
_DOUBT = 50.0  # occurrences that a row must have for its evidence to outweigh where it stood
_ROW_RATE, _ROW_MOMENTUM, _ROW_EPOCHS, _ROW_BATCH = 0.025, 0.9, 8, 1024
_DAMPING = 0.1  # of the mean variance of the states, added to each direction's
_AT_ONCE = 8192  # states


@dataclass(frozen=True)
class _Positions:
    """Where a token is said: the state before it, its row, what it weighs, and what rows that stand still make of it.

    Rows that learn are counted from 0; -1 is a target whose row stands still.
    """

    states: Tensor
    """Of all windows, (states, hidden): one of them may take gigabytes, so there is no second copy."""
    where: Tensor
    """Each position's place among the states."""
    targets: Tensor
    weights: Tensor
    still_sum: Tensor
    """Logarithm of the sum of the exponentials of rows that stand still."""
    still_logit: Tensor
    """The target's logit where its row stands still."""

    def at(self, places: Tensor) -> _Positions:
        """Some of them, on a GPU where there is one, the states in float32."""
        _, device = fastest()
        where, *others = (part[places] for name, part in vars(self).items() if name != "states")
        read = self.states[where].to(device).float()
        return _Positions(read, torch.arange(len(where)), *(part.to(device) for part in others))


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
    places = torch.arange(num_old, len(head))
    parts = _apart(head, num_old, places, windows, states, generator)
    if parts is None:
        return None
    learning, judges = parts
    rows = head[places].to(fastest()[1]).float()
    lowest, best = _judged(judges, rows), None
    with console.progress("fitting the head", len(_RATES) * _EPOCHS, "passes") as bar:
        for rate in _RATES:
            for learned in _learn(learning, rows, rate, generator):
                folded = learned.folded_into(rows)
                if (loss := _judged(judges, folded)) < lowest:
                    lowest, best = loss, folded.cpu()
                bar.advance(1)
    return best


def refine_rows(
    head: Tensor, num_old: int, places: Tensor, windows: Tensor, states: Tensor, seed: int = 0
) -> Tensor | None:
    """As `fit_rows`, the rows at `places` (n,) each by its own evidence: float32 of shape (n, hidden), or None.

    Cross-entropy with a Gaussian prior at the rows as they stand, by stochastic descent that knows the curvature: the
    states are whitened, and a row's step is divided by its occurrences and the prior's. `states` are overwritten.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = _apart(head, num_old, places, windows, states, generator)
    if parts is None:
        return None
    learning, judges = parts
    rows = head[places].to(fastest()[1]).float()
    lowest, best = _judged(judges, rows), None
    with console.progress("fitting rows", _ROW_EPOCHS, "passes") as bar:
        for learned in _descend(learning, rows, generator):
            if (loss := _judged(judges, learned)) < lowest:
                lowest, best = loss, learned.cpu()
            bar.advance(1)
    return best


def _descend(positions: _Positions, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows after each pass over the positions, whose states are whitened in place."""
    states, where, (dtype, device) = positions.states, positions.where, fastest()
    num_positions, hidden = len(where), states.shape[1]
    products = torch.zeros(hidden, hidden, device=device)
    for part in torch.split(where, _AT_ONCE):
        read = states[part].to(device).float()
        products += read.T @ read / num_positions
    variance, directions = torch.linalg.eigh(products.double())
    variance = variance.clamp_min(0) + _DAMPING * variance.mean()
    whitening = (directions * variance.rsqrt()).float()
    coloring = (directions * variance.sqrt()).float()
    for part in torch.split(where, _AT_ONCE):
        states[part] = (states[part].to(device).float() @ whitening).to(states)
    counts = torch.bincount(positions.targets[positions.targets >= 0], minlength=len(rows)).float().to(device)
    start = rows @ coloring
    moved, velocity = torch.zeros_like(start), torch.zeros_like(start)
    num_steps, step = _ROW_EPOCHS * -(-num_positions // _ROW_BATCH), 0
    for _ in range(_ROW_EPOCHS):
        for places in torch.split(torch.randperm(num_positions, generator=generator), _ROW_BATCH):
            read = states[where[places]].to(device, dtype)
            targets, still_sum = positions.targets[places].to(device), positions.still_sum[places].to(device)
            logits = (read @ (start + moved).T.to(dtype)).float()
            errors = (logits - torch.logaddexp(still_sum, logits.logsumexp(1))[:, None]).exp_()
            said = (targets >= 0).nonzero()[:, 0]
            errors[said, targets[said]] -= 1
            slope = (errors.to(dtype).T @ read).float() * (num_positions / len(places))
            velocity.lerp_((slope + _DOUBT * moved) / (counts + _DOUBT)[:, None], 1 - _ROW_MOMENTUM)
            moved -= _ROW_RATE * (1 - step / num_steps) * velocity
            step += 1
        yield (start + moved) @ whitening.T


def _apart(
    head: Tensor, num_old: int, places: Tensor, windows: Tensor, states: Tensor, generator: torch.Generator
) -> tuple[_Positions, _Positions] | None:
    """The positions to learn the rows at `places` in, and those that judge them; None where new ids lack in either."""
    judging = torch.randperm(len(windows), generator=generator) % _HELD_OUT == 0
    new = windows >= num_old
    if not (new[judging].any() and new[~judging].any()):
        return None
    of_new = of_new_language(windows, num_old)
    learning, judges = (_positions(head, places, windows, states, of_new, part) for part in (~judging, judging))
    return learning, judges


def _positions(
    head: Tensor, places: Tensor, windows: Tensor, states: Tensor, of_new: Tensor, chosen: Tensor
) -> _Positions:
    """Those in the `chosen` (num_windows,) of the windows."""
    where = torch.arange(windows.numel()).view_as(windows)[chosen, :-1].flatten()
    flat, ids = states.flatten(0, 1), windows[chosen, 1:].flatten()
    is_new = of_new[chosen].float()
    weights = is_new / is_new.sum().clamp_min(1) + _OLD_WEIGHT * (1 - is_new) / (1 - is_new).sum().clamp_min(1)
    learns = torch.full((len(head),), -1)
    learns[places] = torch.arange(len(places))
    still_sum, still_logit = log_sums(head[learns < 0], flat, where), torch.empty(len(ids))
    for part, filled, said in zip(*(torch.split(each, _BATCH) for each in (where, still_logit, ids)), strict=True):
        torch.sum(flat[part].float() * head[said].float(), dim=1, out=filled)
    return _Positions(flat, where, learns[ids], weights.repeat_interleave(windows.shape[1] - 1), still_sum, still_logit)


def _learn(positions: _Positions, rows: Tensor, rate: float, generator: torch.Generator) -> Iterator[_Map]:
    """The map after each pass over the positions."""
    hidden, mean = rows.shape[1], rows.mean(dim=0)
    turn, shift = (torch.zeros(size, device=rows.device, requires_grad=True) for size in ((hidden, hidden), (hidden,)))
    learned = _Map(turn, shift)
    rates = (rate / hidden, rate * _SHIFT_RATE * float(rows.std()))
    groups = [{"params": [part], "lr": rate} for part, rate in zip((learned.turn, learned.shift), rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    num_steps = _EPOCHS * -(-len(positions.targets) // _BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    for _ in range(_EPOCHS):
        for places in torch.split(torch.randperm(len(positions.targets), generator=generator), _BATCH):
            part = positions.at(places)
            optimizer.zero_grad()
            torch.autograd.backward(_mean_loss(part, learned.logits(part.states, rows, mean)))
            optimizer.step()
            decay.step()
        yield _Map(learned.turn.detach().clone(), learned.shift.detach().clone())


@torch.no_grad()
def _judged(positions: _Positions, rows: Tensor) -> float:
    total = 0.0
    for places in torch.split(torch.arange(len(positions.targets)), _BATCH):
        part = positions.at(places)
        loss = _mean_loss(part, part.states @ rows.T)
        total += float(loss * part.weights.sum() / positions.weights.sum())
    return total


def _mean_loss(part: _Positions, logits: Tensor) -> Tensor:
    """Weighted mean of the cross-entropies, given the logits (positions, n) of rows that learn."""
    said = torch.where(part.targets >= 0, logits.gather(1, part.targets.clamp_min(0)[:, None])[:, 0], part.still_logit)
    losses = torch.logaddexp(part.still_sum, logits.logsumexp(dim=1)) - said
    return (losses * part.weights).sum() / part.weights.sum()
