"""Bits per byte of text that nothing was trained in: the one code by which training measures, and `yangtuo evaluate`.

Bits per byte compare models with different vocabularies: the summed cross-entropy of a text in bits, over its UTF-8
bytes. A document that is longer than a window is read in windows that slide by half their length, and of each but the
first only the second half counts: every token has at least half a window before it, so that the figure hardly depends
on the window's length. Long documents are read twice for that, those that fit once. This module does not depend on
tokenizers or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
class Blocks:
    """Held-out blocks whose labels say what is measured, such as the answers of conversations, and its bytes."""

    name: str
    blocks: Any
    num_bytes: int


Source = Documents | Blocks


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a document, of which those from `scored` on count."""

    document: int
    begin: int
    scored: int
    end: int


Batch = tuple[dict[str, Tensor], list[int]]
"""What a model takes, `labels` included, and the document that each row is of."""


@dataclass(frozen=True)
class Measure:
    """One source in batches, and the bytes that the tokens that count in them stand for."""

    name: str
    batches: list[Batch]
    num_bytes: float


def slide(lengths: Sequence[int], size: int) -> list[Window]:
    """Windows of at most `size` tokens over documents of `lengths` tokens: each token after the first counts once."""
    size = max(size, 2)
    context = size // 2
    windows = []
    for document, length in enumerate(lengths):
        done = 1
        while done < length:
            begin = max(0, done - context) if done > 1 else 0
            windows.append(Window(document, begin, done, min(begin + size, length)))
            done = windows[-1].end
    return windows


def group(windows: Sequence[Window], num_tokens: int) -> list[list[Window]]:
    """The windows in batches of at most `num_tokens`, padding included; longest first, so that there is little."""
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: window.begin - window.end):
        if not batches or (len(batches[-1]) + 1) * _length(batches[-1][0]) > num_tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


def collate(documents: Sequence[Tensor], windows: Sequence[Window]) -> Batch:
    """The windows as rows, padded on the right, where nothing that counts can see it."""
    width = max(map(_length, windows))
    ids = torch.zeros(len(windows), width, dtype=torch.long)
    labels = torch.full((len(windows), width), IGNORED)
    for row, window in enumerate(windows):
        tokens = documents[window.document][window.begin : window.end]
        ids[row, : len(tokens)] = tokens
        labels[row, window.scored - window.begin : len(tokens)] = tokens[window.scored - window.begin :]
    return {"input_ids": ids, "labels": labels}, [window.document for window in windows]


def pack(source: Source, block_size: int, batch_size: int, max_tokens: int) -> Measure:
    """The batches by which a source is measured while training runs: windows of `block_size`, or blocks as they are.

    At most `max_tokens` pass through the model, those that are context alone included: of a larger source the first are
    taken, and bytes are counted in proportion. A batch has no more tokens than `batch_size` blocks.
    """
    if isinstance(source, Blocks):
        return _pack_blocks(source, batch_size, max_tokens)
    documents = source.documents
    windows, taken = slide([len(document) for document in documents], block_size), 0
    for count, window in enumerate(windows):
        taken += _length(window)
        if taken > max_tokens and count:
            windows = windows[:count]
            break
    counted = sum(window.end - window.scored for window in windows)
    share = counted / max(1, sum(len(document) - 1 for document in documents))
    batches = [collate(documents, batch) for batch in group(windows, batch_size * block_size)]
    return Measure(source.name, batches, source.num_bytes * share)


def _pack_blocks(source: Blocks, batch_size: int, max_tokens: int) -> Measure:
    blocks = [source.blocks[index] for index in range(len(source.blocks))]
    counts = [int((block["labels"][1:] != IGNORED).sum()) for block in blocks]
    num_taken = max(1, max_tokens // len(blocks[0]["input_ids"])) if blocks else 0
    taken = blocks[:num_taken]
    batches: list[Batch] = []
    for start in range(0, len(taken), batch_size):
        rows = taken[start : start + batch_size]
        batches.append(({key: torch.stack([row[key] for row in rows]) for key in rows[0]}, [0] * len(rows)))
    return Measure(source.name, batches, source.num_bytes * sum(counts[:num_taken]) / max(sum(counts), 1))


def bits_per_byte(
    model: nn.Module, measures: Sequence[Measure], context: Any, device: torch.device, show: Callable[[str], None]
) -> dict[str, float]:
    """Bits per byte of each source by the model as it is trained, sharded or not, on its `device`.

    `context()` gives the autocast context that training runs in, `show` is told how far it is. All processes call it.
    """
    was_training = model.training
    model.eval()
    result = {}
    for measure in measures:
        nats = 0.0
        for number, (inputs, _) in enumerate(measure.batches, 1):
            show(f"measuring {measure.name}: {number} of {len(measure.batches)} batches")
            with torch.no_grad(), context():
                moved = {key: tensor.to(device) for key, tensor in inputs.items()}
                nats += float(model(**moved, by_row=True).loss.sum())
        result[measure.name] = nats / math.log(2) / measure.num_bytes if measure.num_bytes else math.nan
    model.train(was_training)
    return result


def _length(window: Window) -> int:
    return window.end - window.begin
