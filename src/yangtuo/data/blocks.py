"""The dataset on disk: blocks of token ids, memory-mapped, with the boundaries of their documents.

    tokens.bin      num_blocks x block_size ids, little-endian uint16, or uint32 where the vocabulary needs it
    starts.bin      uint64 offsets into tokens.bin at which a document, or padding, begins; ascending
    learned.bin     uint8, one for each token: 1 where the loss counts it (conversations only)
    dataset.json    the sizes
    held-out.bin    the ids of documents kept apart, each behind BOS (EOS without one); held-out.json says whose

Position ids and the separation of documents derive from `starts.bin`; nothing is padded to be cut later. This module
knows no text, no tokenizer and no model. Torch is imported where tensors are made, so that the processes that only
write blocks stay small.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import TypedDict

from yangtuo import files
from yangtuo.errors import FileError

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a token that the loss does not count, as in torch and transformers."""

_FORMAT = 1
_BUFFER = 1 << 20  # tokens gathered before they go to the disk
_CHECKED = 1 << 16  # blocks whose ids are checked at a time
_PACKED_TOGETHER = 16384  # conversations that are fitted into blocks at a time

Ids = Sequence[int] | npt.NDArray[Any]


_Count = Annotated[int, Field(ge=1)]


class _Sizes(TypedDict):
    block_size: Annotated[int, Field(ge=1, le=files.MAX_COUNT)]
    num_blocks: _Count
    num_tokens: _Count
    num_documents: _Count
    dtype: Literal["<u2", "<u4"]
    masked: bool
    end: _Count


class _HeldOutSource(TypedDict):
    name: str
    num_bytes: _Count
    spans: list[tuple[Annotated[int, Field(ge=0)], _Count]]


class _HeldOutIndex(TypedDict):
    dtype: Literal["<u2", "<u4"]
    sources: list[_HeldOutSource]


class BlockDataset:
    """A torch map-style dataset over the blocks of a directory that `BlockWriter` wrote."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        sizes: Any = _read_json(self.path / "dataset.json")
        if sizes.get("format") != _FORMAT:
            raise FileError(
                f"{self.path} holds no blocks of tokens that this version can read",
                found=f"format {sizes.get('format')}",
                expected=f"format {_FORMAT}",
                run="yangtuo prepare",
            )
        sizes = files.check(sizes, str(self.path / "dataset.json"), _Sizes)
        self.block_size = int(sizes["block_size"])
        self.num_blocks = int(sizes["num_blocks"])
        self.num_tokens = int(sizes["num_tokens"])
        """Tokens of documents, without padding."""
        self.num_documents = int(sizes["num_documents"])
        shape = (self.num_blocks, self.block_size)
        width, count = np.dtype(sizes["dtype"]).itemsize, self.num_blocks * self.block_size
        _check_size(self.path / "tokens.bin", count * width)
        _check_size(self.path / "starts.bin", 8 * count, up_to=True)
        if sizes["masked"]:
            _check_size(self.path / "learned.bin", count)
        self._tokens = np.memmap(self.path / "tokens.bin", sizes["dtype"], "r", shape=shape)
        self._starts = np.memmap(self.path / "starts.bin", "<u8", "r")
        self._learned = np.memmap(self.path / "learned.bin", "u1", "r", shape=shape) if sizes["masked"] else None
        self._end = int(sizes["end"])

    def __reduce__(self) -> tuple[type[BlockDataset], tuple[Path]]:
        return BlockDataset, (self.path,)  # a data loader's worker opens the files, instead of receiving their content

    def __len__(self) -> int:
        return self.num_blocks

    def require_ids(self, vocabulary_size: int) -> None:
        """Raises `FileError` where an id is not below `vocabulary_size`: a bit flipped on a disk, as a rule."""
        for first in range(0, self.num_blocks, _CHECKED):
            _require_ids(self.path / "tokens.bin", self._tokens[first : first + _CHECKED], vocabulary_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Block `index` as `input_ids`, `labels` and `position_ids`, LongTensors of shape (block_size,).

        Position ids restart at 0 at each document. Labels are the ids themselves, for a loss that shifts them; they
        are -100 at the first token of a document, which nothing in its block predicts, on padding, and wherever
        the loss does not count.
        """
        import torch

        if not -self.num_blocks <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        index %= self.num_blocks
        ids = self._tokens[index].astype(np.int64)
        positions = self._positions(index)
        ignored = positions == 0
        if self._learned is not None:
            ignored |= self._learned[index] == 0
        ignored[max(0, self._end - index * self.block_size) :] = True
        labels = np.where(ignored, IGNORED, ids)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }

    def _positions(self, index: int) -> npt.NDArray[np.int64]:
        first = index * self.block_size
        low, high = np.searchsorted(self._starts, np.array([first, first + self.block_size], dtype=np.uint64))
        starts = self._starts[low:high].astype(np.int64) - first
        latest = np.zeros(self.block_size, dtype=np.int64)
        latest[starts] = starts
        return np.arange(self.block_size) - np.maximum.accumulate(latest)


class BlockWriter:
    """Writes documents into blocks one after another; memory does not grow with the dataset."""

    def __init__(
        self, directory: Path, *, block_size: int, vocabulary_size: int, padding_id: int, masked: bool = False
    ) -> None:
        self.block_size = block_size
        self.num_documents = 0
        self.num_tokens = 0
        self.num_blocks = 0
        self._directory = directory
        self._dtype = token_dtype(vocabulary_size)
        self._padding_id = padding_id
        self._masked = masked
        self._position = 0
        self._end = 0
        self._files = {"tokens": (directory / "tokens.bin").open("wb"), "starts": (directory / "starts.bin").open("wb")}
        if masked:
            self._files["learned"] = (directory / "learned.bin").open("wb")
        self._pending: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in self._files}
        self._num_pending = 0
        self._digests = {name: hashlib.sha256() for name in self._files}

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files of tokens, which are large, by name; after `close`."""
        return {f"{name}.bin": digest.hexdigest() for name, digest in self._digests.items()}

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_files()  # after a failure; `close` has done it otherwise

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def add(self, ids: Ids, learned: Sequence[bool] | None = None) -> None:
        """Appends a document; one that does not fit goes on in the next block."""
        if len(ids) == 0:
            return
        self.num_documents += 1
        self.num_tokens += len(ids)
        self._append(np.asarray(ids), learned)
        self._end = self._position

    def add_many(self, lengths: npt.NDArray[Any], chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Appends documents of these lengths, none of them 0, whose ids come joined, in chunks of any size."""
        if len(lengths) == 0:
            return
        ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(self._position)
        self._pending["starts"].append((ends - lengths.astype(np.uint64)).astype("<u8"))
        for ids in chunks:
            self._put(ids)
        assert self._position == int(ends[-1]), "the chunks are as long as their documents"
        self.num_documents += len(lengths)
        self.num_tokens += int(lengths.sum())
        self._end = self._position

    def fill_block(self) -> None:
        """Pads the block at hand to its end; nothing happens where it is full or empty."""
        missing = -self._position % self.block_size
        if missing:
            self._append(np.full(missing, self._padding_id), [False] * missing if self._masked else None)

    def close(self) -> None:
        """Pads the last block and writes the sizes."""
        self.fill_block()
        self.num_blocks = self._position // self.block_size
        self._flush()
        self._close_files()
        sizes = {
            "format": _FORMAT,
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "end": self._end,
            "dtype": self._dtype,
            "masked": self._masked,
        }
        (self._directory / "dataset.json").write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")

    def _append(self, ids: npt.NDArray[Any], learned: Sequence[bool] | None) -> None:
        assert (learned is not None) == self._masked, "a masked dataset needs a mask for every document, others none"
        self._pending["starts"].append(np.array([self._position], dtype="<u8"))
        if learned is not None:
            assert len(learned) == len(ids)
            self._pending["learned"].append(np.asarray(learned, dtype="u1"))
        self._put(ids)

    def _put(self, ids: npt.NDArray[Any]) -> None:
        self._pending["tokens"].append(ids.astype(self._dtype))
        self._position += len(ids)
        self._num_pending += len(ids)
        if self._num_pending >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        for name, arrays in self._pending.items():
            if arrays:
                joined = np.concatenate(arrays)
                joined.tofile(self._files[name])
                self._digests[name].update(joined.data)
                arrays.clear()
        self._num_pending = 0


def write_blocks(
    directory: Path,
    documents: Iterable[Ids],
    *,
    block_size: int,
    vocabulary_size: int,
    padding_id: int,
) -> BlockWriter:
    """Writes documents of token ids (BOS and EOS included) end to end; returns the closed writer with its counts."""
    writer = BlockWriter(directory, block_size=block_size, vocabulary_size=vocabulary_size, padding_id=padding_id)
    with writer:
        for document in documents:
            writer.add(document)
        writer.close()
    return writer


def write_packed(
    directory: Path,
    documents: Iterable[tuple[list[int], list[bool]]],
    *,
    block_size: int,
    vocabulary_size: int,
    padding_id: int,
) -> BlockWriter:
    """Writes documents with their masks, several to a block and none across two; returns the closed writer.

    Best fit, longest first, over 16,384 documents at a time. A document longer than a block is our mistake.
    """
    writer = BlockWriter(
        directory, block_size=block_size, vocabulary_size=vocabulary_size, padding_id=padding_id, masked=True
    )
    with writer:
        for block in _packed(documents, block_size):
            for ids, learned in block:
                writer.add(ids, learned)
            writer.fill_block()
        writer.close()
    return writer


def _packed(
    documents: Iterable[tuple[list[int], list[bool]]], block_size: int
) -> Iterator[list[tuple[list[int], list[bool]]]]:
    group: list[tuple[list[int], list[bool]]] = []
    for document in documents:
        assert len(document[0]) <= block_size, "a packed document is at most one block long"
        group.append(document)
        if len(group) == _PACKED_TOGETHER:
            yield from _best_fit(group, block_size)
            group = []
    yield from _best_fit(group, block_size)


def _best_fit(group: list[tuple[list[int], list[bool]]], block_size: int) -> list[list[tuple[list[int], list[bool]]]]:
    blocks: list[list[tuple[list[int], list[bool]]]] = []
    room: list[tuple[int, int]] = []  # (free tokens, block), ascending
    for document in sorted(group, key=lambda document: -len(document[0])):
        length = len(document[0])
        at = bisect.bisect_left(room, (length, 0))
        if at == len(room):
            blocks.append([document])
            free, block = block_size - length, len(blocks) - 1
        else:
            free, block = room.pop(at)
            blocks[block].append(document)
            free -= length
        if free:
            bisect.insort(room, (free, block))
    return blocks


@dataclass(frozen=True)
class HeldOut:
    """Documents of one source that are never trained on."""

    name: str
    """The source's label, such as zh."""
    documents: list[torch.Tensor]
    """Token ids, LongTensors that begin with BOS (EOS without one) and do not end with EOS."""
    num_bytes: int
    """UTF-8 bytes of the documents' text."""


class HeldOutWriter:
    """Writes the documents kept apart; sources come one after another."""

    def __init__(self, directory: Path, vocabulary_size: int) -> None:
        self._directory = directory
        self._dtype = token_dtype(vocabulary_size)
        self._file = (directory / "held-out.bin").open("wb")
        self._sources: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> HeldOutWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, ids: Ids, num_bytes: int) -> None:
        """Appends a document of source `name`: ids that begin with BOS, and the UTF-8 bytes of its text."""
        source = self._sources.setdefault(name, {"name": name, "num_bytes": 0, "spans": []})
        source["num_bytes"] += num_bytes
        source["spans"].append([self._file.tell() // np.dtype(self._dtype).itemsize, len(ids)])
        np.asarray(ids).astype(self._dtype).tofile(self._file)

    def close(self) -> None:
        """Writes the index."""
        self._file.close()
        index = {"dtype": self._dtype, "sources": list(self._sources.values())}
        (self._directory / "held-out.json").write_text(json.dumps(index) + "\n", encoding="utf-8")


def held_out(path: str | Path, vocabulary_size: int | None = None) -> list[HeldOut]:
    """The documents kept apart in the dataset at `path`, one entry a source that has any.

    Raises `FileError` where an id is not below `vocabulary_size`, if that is given.
    """
    import torch

    file = Path(path) / "held-out.json"
    index = _read_json(file, _HeldOutIndex)
    spans = [span for source in index["sources"] for span in source["spans"]]
    end = max((first + length for first, length in spans), default=0)
    _check_size(Path(path) / "held-out.bin", end * np.dtype(index["dtype"]).itemsize)
    ids = np.fromfile(Path(path) / "held-out.bin", index["dtype"]).astype(np.int64)
    if vocabulary_size is not None:
        _require_ids(Path(path) / "held-out.bin", ids, vocabulary_size)
    return [
        HeldOut(
            source["name"],
            [torch.from_numpy(ids[first : first + length].copy()) for first, length in source["spans"]],
            source["num_bytes"],
        )
        for source in index["sources"]
    ]


def token_dtype(vocabulary_size: int) -> str:
    """The numpy type of ids on disk: `<u2` where all ids fit, else `<u4`."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def _read_json(file: Path, schema: Any = dict[str, Any]) -> Any:
    if not file.is_file():
        raise FileError(
            f"{file.parent} is not a dataset of token blocks",
            found=f"no {file.name}",
            expected="a directory that yangtuo prepare wrote",
            run="yangtuo prepare --source TEXTS --tokenizer MODEL --output DATA",
        )
    return files.read_json(file, schema, limit=files.LARGE)


def _require_ids(file: Path, ids: npt.NDArray[Any], vocabulary_size: int) -> None:
    if ids.size and int(ids.max()) >= vocabulary_size:
        raise FileError(
            f"{file} is damaged",
            found=f"the token id {int(ids.max()):,}",
            expected=f"ids below {vocabulary_size:,}, the size of the tokenizer that wrote it",
            run=f"yangtuo inspect {file.parent} --verify, or yangtuo prepare again",
        )


def _check_size(file: Path, num_bytes: int, *, up_to: bool = False) -> None:
    """Raises `FileError` unless a file of a dataset is as long as its index says, or `up_to` as long."""
    size = files.check_input(file)
    is_whole = 0 < size <= num_bytes and size % 8 == 0 if up_to else size == num_bytes
    if not is_whole:
        raise FileError(
            f"{file} is damaged",
            found=f"{size:,} bytes",
            expected=f"eight for each document, at most {num_bytes:,}" if up_to else f"{num_bytes:,}",
            run=f"yangtuo inspect {file.parent} --verify, or yangtuo prepare again",
        )
