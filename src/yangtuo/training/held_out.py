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

Row = tuple[Tensor, Tensor, Tensor]
"""Ids, labels and position ids, each of shape (block_size,)."""


class Documents(Protocol):
    """Held-out documents of one source: token ids with BOS first, and the bytes of their text."""

    @property
    def name(self) -> str: ...

    @property
    def documents(self) -> Sequence[Tensor]: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True)
class Blocks:
    """Held-out blocks whose labels say what is measured, such as the answers of conversations, and its bytes."""

    name: str
    blocks: Any
    num_bytes: int


Source = Documents | Blocks


@dataclass(frozen=True)
class Measure:
    """One source, packed: batches as the model takes them, and the bytes that their tokens stand for."""

    name: str
    batches: list[dict[str, Tensor]]
    num_bytes: float


def pack(source: Source, block_size: int, batch_size: int, max_tokens: int) -> Measure:
    """Packs a source into rows of `block_size` tokens, `batch_size` rows at a time.

    Every token after a document's BOS is predicted exactly once, in windows of the row's length; blocks are rows as
    they are. Where the source holds more than `max_tokens`, its first are taken, and bytes are counted in proportion.
    """
    rows, share = (
        _block_rows(source, max_tokens) if isinstance(source, Blocks) else _text_rows(source, block_size, max_tokens)
    )
    keys = ("input_ids", "labels", "position_ids")
    batches = [
        {key: torch.stack([row[index] for row in rows[start : start + batch_size]]) for index, key in enumerate(keys)}
        for start in range(0, len(rows), batch_size)
    ]
    return Measure(source.name, batches, source.num_bytes * share)


def _text_rows(source: Documents, block_size: int, max_tokens: int) -> tuple[list[Row], float]:
    documents, taken = [], 0
    total = sum(len(document) - 1 for document in source.documents)
    for document in source.documents:
        if taken < max_tokens:
            documents.append(document[: max_tokens - taken + 1])
            taken += len(documents[-1]) - 1
    return _rows(documents, block_size), taken / max(total, 1)


def _block_rows(source: Blocks, max_tokens: int) -> tuple[list[Row], float]:
    blocks = [source.blocks[index] for index in range(len(source.blocks))]
    counts = [int((block["labels"][1:] != IGNORED).sum()) for block in blocks]
    num_taken = max(1, max_tokens // len(blocks[0]["input_ids"])) if blocks else 0
    rows = [(block["input_ids"], block["labels"], block["position_ids"]) for block in blocks[:num_taken]]
    return rows, sum(counts[:num_taken]) / max(sum(counts), 1)


def _rows(documents: Sequence[Tensor], block_size: int) -> list[Row]:
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


def _row(windows: Sequence[Tensor], block_size: int) -> Row:
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
def bits_per_byte(
    model: nn.Module, measures: Sequence[Measure], context: Any, device: torch.device
) -> dict[str, float]:
    """Bits per byte of each source by the model as it is trained, sharded or not, on its `device`.

    `context()` gives the autocast context that training runs in. All processes call it.
    """
    was_training = model.training
    model.eval()
    result = {}
    for measure in measures:
        nats = 0.0
        for batch in measure.batches:
            with context():
                moved = {key: tensor.to(device) for key, tensor in batch.items()}
                nats += float(model(**moved, num_items_in_batch=1).loss)
        result[measure.name] = nats / math.log(2) / measure.num_bytes if measure.num_bytes else math.nan
    model.train(was_training)
    return result
