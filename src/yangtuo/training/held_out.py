"""Held-out bits per byte of a model in training, one number a source (a language, as a rule).

Bits per byte compare models with different vocabularies: the summed cross-entropy of a text in bits, over its UTF-8
bytes. Here documents are read in windows of the training length, to be cheap and steady while training runs; the
figure to publish is `yangtuo evaluate`'s. This module does not depend on tokenizers or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from yangtuo.training.loss import IGNORED


class Documents(Protocol):
    """Held-out documents of one source: token ids with BOS first, and the bytes of their text."""

    @property
    def name(self) -> str: ...

    @property
    def documents(self) -> Sequence[Tensor]: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True)
class Measure:
    """One source, packed: batches as the model takes them, and the bytes that their tokens stand for."""

    name: str
    batches: list[dict[str, Tensor]]
    num_bytes: float


def pack(source: Documents, block_size: int, batch_size: int, max_tokens: int) -> Measure:
    """Packs the windows of a source's documents into rows of `block_size` tokens, `batch_size` rows at a time.

    Every token after a document's BOS is predicted exactly once. Where the source holds more than `max_tokens`, its
    first documents are taken, and the bytes are counted in proportion.
    """
    documents, taken = [], 0
    total = sum(len(document) - 1 for document in source.documents)
    for document in source.documents:
        if taken < max_tokens:
            documents.append(document[: max_tokens - taken + 1])
            taken += len(documents[-1]) - 1
    rows = _rows(documents, block_size)
    keys = ("input_ids", "labels", "position_ids")
    batches = [
        {key: torch.stack([row[index] for row in rows[start : start + batch_size]]) for index, key in enumerate(keys)}
        for start in range(0, len(rows), batch_size)
    ]
    return Measure(source.name, batches, source.num_bytes * taken / max(total, 1))


def _rows(documents: Sequence[Tensor], block_size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    windows = [
        document[start : start + block_size]
        for document in documents
        for start in range(0, len(document) - 1, block_size - 1)
    ]
    windows.sort(key=len, reverse=True)  # first fit, longest first, wastes least
    bins: list[list[Tensor]] = []
    space: list[int] = []
    for window in windows:
        index = next((i for i, free in enumerate(space) if free >= len(window)), None)
        if index is None:
            bins.append([])
            space.append(block_size)
            index = len(bins) - 1
        bins[index].append(window)
        space[index] -= len(window)
    return [_row(windows, block_size) for windows in bins]


def _row(windows: Sequence[Tensor], block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.zeros(block_size, dtype=torch.long)
    labels = torch.full((block_size,), IGNORED)
    positions = torch.zeros(block_size, dtype=torch.long)
    start = 0
    for window in windows:
        end = start + len(window)
        ids[start:end] = window
        labels[start + 1 : end] = window[1:]
        positions[start:end] = torch.arange(len(window))
        start = end
    positions[start:] = torch.arange(block_size - start)
    return ids, labels, positions


@torch.no_grad()
def bits_per_byte(model: nn.Module, measures: Sequence[Measure], context: Any) -> dict[str, float]:
    """Bits per byte of each source; `context()` gives the autocast context that training runs in."""
    was_training = model.training
    model.eval()
    result = {}
    for measure in measures:
        nats = 0.0
        for batch in measure.batches:
            device = next(model.parameters()).device
            with context():
                moved = {key: tensor.to(device) for key, tensor in batch.items()}
                nats += float(model(**moved, num_items_in_batch=1).loss)
        result[measure.name] = nats / math.log(2) / measure.num_bytes if measure.num_bytes else math.nan
    model.train(was_training)
    return result
