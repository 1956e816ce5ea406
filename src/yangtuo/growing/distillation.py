"""New rows distilled from the base itself: after a new token the model says what it said after the old ones.

The base reads a text in old tokens, the grown model the same text in new ones, and where both meet their states are
compared, as in Token Distillation (Dobler et al. 2025), but after the lower layers alone: there words have been put
together from their pieces (Kaplan et al. 2025), and a step costs a fraction of a pass. The body stands still. Rows
move by their own evidence: those that a batch lacks do not move at all. This module knows ids and tensors, not texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yangtuo import console
from yangtuo.growing.fitting import refine_rows
from yangtuo.growing.rows import GrownTensors
from yangtuo.growing.states import LowerLayers, last_states
from yangtuo.growing.windows import align, covering, of_new_language, readable, spread
from yangtuo.weights.checkpoint import Tensors

WINDOW = 64
"""Tokens of a window: words are put together from what is near."""
_PER_ROW, _LEAST_WINDOWS, _MOST_WINDOWS = 2, 4096, 16384  # to match states in: each row is seen a few times
_MOST_PASSES = 4  # over a text that holds fewer windows than that
_HEAD_WINDOWS = 16384  # refine the head: the old rows of the language need them however few are new
_OLD = 0.25  # of these as many again are of the old language
NUM_READ = int(_HEAD_WINDOWS * (1 + _OLD) * WINDOW)
"""Tokens that the grown model reads to refine the head, at most."""
POOL = 4 * _HEAD_WINDOWS
"""Windows of all texts to choose from: up to so many, or half."""
_MOST_STATES = 1 << 30  # elements of the states that are kept for the head at once: two gigabytes in bfloat16
_BATCH = 16
_RATE = 0.1  # of a row's elements, in units of the old rows' deviation; falls linearly to nothing
_FIRST, _SECOND = 0.8, 0.95  # Adam's decays, counted by the batches that have a row
_SAVE_SECONDS = 60


@dataclass
class _Rows:
    """New rows and what the optimiser knows of each."""

    rows: Tensor
    momentum: Tensor
    squares: Tensor
    counts: Tensor
    batch: int = 0

    @classmethod
    def starting_at(cls, rows: Tensor) -> _Rows:
        zeros = torch.zeros(len(rows))
        return cls(rows.clone(), torch.zeros_like(rows), zeros, zeros.clone())

    def move(self, places: Tensor, gradient: Tensor, rate: float) -> None:
        """Adam with one second moment a row, for the rows at `places` alone."""
        self.counts[places] += 1
        first = self.momentum[places].lerp(gradient, 1 - _FIRST)
        second = self.squares[places].lerp(gradient.square().mean(dim=1), 1 - _SECOND)
        self.momentum[places], self.squares[places] = first, second
        counts = self.counts[places][:, None]
        deviation = (second[:, None] / (1 - _SECOND**counts)).sqrt().clamp_min(1e-20)
        self.rows[places] -= rate * first / (1 - _FIRST**counts) / deviation

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        torch.save(vars(self), temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> _Rows:
        return cls(**torch.load(path, weights_only=True))


def distil(
    config: Mapping[str, Any],
    base: Tensors,
    grown: GrownTensors,
    windows: Tensor,
    sources: Sequence[Sequence[int]],
    related: Sequence[int],
    progress: Path,
    seed: int = 0,
) -> int:
    """Learns the new rows of `grown` from `base`, and returns in how many tokens of `windows` (num_windows, WINDOW).

    First those of the embedding, then those of the head in the states that the grown model then reaches, with the
    head's `related` rows: old ids of the new language. A tied head is untied: one row cannot be where the body reads it
    best and where it is predicted best.
    """
    num_old = grown.num_kept
    windows = readable(windows, num_old, sources)
    of_new = of_new_language(windows, num_old)
    if not of_new.any():
        return 0
    amount = min(max(_LEAST_WINDOWS, _PER_ROW * len(sources)), _MOST_WINDOWS)
    learning = covering(windows[of_new], num_old, len(sources), amount, seed)
    passes = min(_MOST_PASSES, -(-amount // len(learning)))
    grown.untie()
    embedding = grown.get(grown.embedding)
    layers = LowerLayers(config, base)
    again = learning.repeat(passes, 1)[:amount]
    rows = match_states(layers, embedding[:num_old], embedding[num_old:], again, sources, progress)
    del layers
    grown.replace(grown.embedding, grown.new_places, rows)
    evenly = spread(windows[of_new], _HEAD_WINDOWS)
    return learning.numel() + _refine_head(config, grown, evenly, windows[~of_new], related, seed)


def _refine_head(
    config: Mapping[str, Any], grown: GrownTensors, learning: Tensor, old: Tensor, related: Sequence[int], seed: int
) -> int:
    """Refines the head's new and `related` rows in the windows `learning`, some of `old` beside them; returns tokens.

    They are read in parts, so that the states of all never stand in memory; each part begins where the last one ended.
    """
    places = torch.cat([torch.tensor(related, dtype=torch.long), grown.new_places])
    hidden = grown.shape(grown.head)[1]
    num_parts = math.ceil(len(learning) * (1 + _OLD) * WINDOW * hidden / _MOST_STATES)
    beside = spread(old, int(len(learning) * _OLD))
    for part in range(num_parts):
        read = torch.cat([learning[part::num_parts], beside[part::num_parts]])
        rows = refine_rows(grown.get(grown.head), grown.num_kept, places, read, last_states(config, grown, read), seed)
        if rows is not None:
            grown.replace(grown.head, places, rows)
    return learning.numel() + beside.numel()


def match_states(
    layers: LowerLayers,
    embedding: Tensor,
    rows: Tensor,
    windows: Tensor,
    sources: Sequence[Sequence[int]],
    progress: Path,
) -> Tensor:
    """The embedding's new `rows` (num_new, hidden), learned: float32, of the same shape.

    `embedding` (num_old, hidden) are the old rows, `windows` (num_windows, length) ids in the order of learning. The
    work so far is kept in the file `progress`, from which the same call goes on.
    """
    num_old = len(embedding)
    state = _Rows.load(progress) if progress.is_file() else _Rows.starting_at(rows.float())
    deviation = float(embedding[:: max(1, num_old // 4096)].float().std())
    batches = torch.split(windows, _BATCH)
    saved = time.monotonic()
    with console.progress("distilling", len(batches), "batches") as bar:
        bar.advance(state.batch)
        for batch in batches[state.batch :]:
            aligned = align(batch, num_old, sources)
            with torch.no_grad():
                expected = aligned.at_ends(layers(embedding[aligned.ids]))
            new = batch >= num_old
            places, index = torch.unique(batch[new] - num_old, return_inverse=True)
            moving = state.rows[places].requires_grad_()
            inputs = embedding[batch.clamp_max(num_old - 1)].float()
            inputs = inputs.index_put((new,), moving[index])
            actual = layers(inputs)
            counted = (new.cumsum(dim=1) > 0).to(actual.device)
            counted[:, 0] = False  # the first state of a window is a sink of attention, unlike all others
            difference = (actual - expected)[counted].square().sum() / expected[counted].square().sum().clamp_min(1e-12)
            (gradient,) = torch.autograd.grad(difference, moving)
            rate = _RATE * deviation * (1 - state.batch / len(batches))
            state.move(places, gradient.float().cpu(), rate)
            state.batch += 1
            bar.advance(1)
            if time.monotonic() - saved > _SAVE_SECONDS:
                state.save(progress)
                saved = time.monotonic()
    state.save(progress)
    return state.rows
