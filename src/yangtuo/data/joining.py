"""Finished parts become a dataset: repeated documents dropped, some held out, the rest packed by weight.

Every decision depends on the order of documents alone, not on how they were divided into parts or who made these.
Memory is about 100 bytes a document, whatever its length. This module knows no text: examples are decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from yangtuo.data.blocks import BlockWriter, HeldOutWriter, token_dtype
from yangtuo.data.clean import Filtered
from yangtuo.data.dedup import NUM_BANDS, NUM_PERMUTATIONS, SKETCH, find_equal, find_near
from yangtuo.data.part_writer import DOCUMENT
from yangtuo.data.parts import read_account
from yangtuo.data.sampling import choose, num_held_out
from yangtuo.data.statistics import length_histogram
from yangtuo.vocab.encoding import Encoder

_READ = 1 << 20  # tokens
_SKETCHES = 1 << 14  # read at a time
_SHOWN = 80  # tokens of a repeated document

Mask = npt.NDArray[np.bool_]


@dataclass
class SourceParts:
    """A source, and the directories of its finished parts in reading order."""

    name: str
    weight: float
    parts: list[Path]
    removed: Filtered = field(default_factory=Filtered)
    encodings: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for account in map(read_account, self.parts):
            part = Filtered()
            part.counts.update(account["removed"])
            part.examples = account["examples"]
            self.removed.merge(part)
            self.encodings.update(account["encodings"])
            self.scripts.update(account["scripts"])


def find_repeated(
    sources: Sequence[SourceParts], dedup: Literal["none", "exact", "near"], encoder: Encoder, scratch: Path
) -> list[Mask]:
    """For each source, which of its documents repeat an earlier one of any source; of those alike the first stays.

    `scratch` is a directory for 384 bytes a document while near-duplicates are looked for.
    """
    parts = [part for source in sources for part in source.parts]
    hashes = np.concatenate([_documents(part)["hash"] for part in parts])
    repeated = np.zeros(len(hashes), dtype=bool)
    if dedup != "none":
        repeated = find_equal(hashes)
        _account(sources, repeated, "equal documents", encoder)
    if dedup == "near" and len(repeated):
        close = find_near(*_gather_sketches(parts, len(repeated), scratch), ~repeated)
        _account(sources, close, "near-duplicates", encoder)
        repeated |= close
    sizes = [sum(read_account(part)["documents"] for part in source.parts) for source in sources]
    return np.split(repeated, np.cumsum(sizes)[:-1])


def _documents(part: Path) -> npt.NDArray[np.void]:
    return np.fromfile(part / "documents.bin", dtype=DOCUMENT)


def _gather_sketches(
    parts: Sequence[Path], num_documents: int, scratch: Path
) -> tuple[Iterator[npt.NDArray[np.uint64]], npt.NDArray[np.uint8]]:
    """The keys of all documents band by band, and their marks, mapped."""
    names = [scratch / f"band-{band}.bin" for band in range(NUM_BANDS)]
    bands = [name.open("wb") for name in names]
    with (scratch / "marks.bin").open("wb") as marks:
        for part in parts:
            with (part / "sketches.bin").open("rb") as file:
                while len(read := np.fromfile(file, SKETCH, _SKETCHES)):
                    read["marks"].tofile(marks)
                    for band, out in enumerate(bands):
                        np.ascontiguousarray(read["keys"][:, band]).tofile(out)
    for out in bands:
        out.close()
    mapped = np.memmap(scratch / "marks.bin", "u1", "r", shape=(num_documents, NUM_PERMUTATIONS))
    return (np.fromfile(name, "<u8") for name in names), mapped


def _account(sources: Sequence[SourceParts], repeated: Mask, reason: str, encoder: Encoder) -> None:
    first = 0
    for source in sources:
        for part in source.parts:
            rows = _documents(part)
            found = np.flatnonzero(repeated[first : first + len(rows)])
            first += len(rows)
            if not len(found):
                continue
            source.removed.counts[reason] += len(found)
            shown = source.removed.examples.setdefault(reason, [])
            ends = np.cumsum(rows["tokens"])
            for index in found[: max(0, Filtered.MOST - len(shown))]:
                end = int(ends[index]) - 1  # without BOS and EOS
                begin = end + 2 - int(rows["tokens"][index])
                ids = _read_tokens(part, encoder, begin, min(end, begin + _SHOWN))
                shown.append(Filtered.shortened(encoder.decode(ids.tolist()).strip()))


def _read_tokens(part: Path, encoder: Encoder, begin: int, end: int) -> npt.NDArray[Any]:
    dtype = np.dtype(token_dtype(encoder.vocabulary_size))
    return np.fromfile(part / "tokens.bin", dtype, end - begin, offset=begin * dtype.itemsize)


def join_source(
    source: SourceParts,
    repeated: Mask,
    held_out: float,
    seed: int,
    encoder: Encoder,
    writers: tuple[BlockWriter, HeldOutWriter],
) -> dict[str, Any]:
    """Writes the documents of one source; `repeated` covers them alone. Returns the source's figures.

    Whole passes over the documents first, then the part of one that the weight's fraction asks for.
    """
    writer, apart = writers
    kept = np.flatnonzero(~repeated)
    num_apart = num_held_out(len(kept), held_out)
    chosen = _chosen(len(kept), num_apart, f"{seed}/held-out/{source.name}")
    _hold_out(source, kept[chosen], encoder, apart)
    training = kept[~chosen]
    before = writer.num_tokens
    for copy in range(int(source.weight) + 1):
        share = 1.0 if copy < int(source.weight) else source.weight % 1
        taken = _chosen(len(training), round(share * len(training)), f"{seed}/weight/{source.name}")
        mask = np.zeros(len(repeated), dtype=bool)
        mask[training[taken]] = True
        _append(source, mask, encoder, writer)
    lengths, characters, num_bytes = _measured(source, ~repeated)
    return {
        "documents": len(kept),
        "held_out": num_apart,
        "characters": characters,
        "bytes": num_bytes,
        "text_tokens": int(lengths.sum()) - 2 * len(kept),
        "weight": source.weight,
        "tokens": writer.num_tokens - before,
        "removed": dict(source.removed.counts),
        "examples": source.removed.examples,
        "encodings": dict(source.encodings),
        "scripts": dict(source.scripts.most_common()),
        "lengths": length_histogram(lengths),
    }


def _chosen(num_items: int, num_chosen: int, label: str) -> Mask:
    return np.fromiter(choose(num_items, num_chosen, label), dtype=bool, count=num_items)


def _measured(source: SourceParts, kept: Mask) -> tuple[npt.NDArray[np.uint64], int, int]:
    lengths = []
    first = characters = num_bytes = 0
    for part in source.parts:
        rows = _documents(part)
        rows, first = rows[kept[first : first + len(rows)]], first + len(rows)
        lengths.append(rows["tokens"])
        characters += int(rows["characters"].sum())
        num_bytes += int(rows["bytes"].sum())
    return np.concatenate(lengths), characters, num_bytes


def _hold_out(source: SourceParts, chosen: npt.NDArray[np.int64], encoder: Encoder, apart: HeldOutWriter) -> None:
    first = 0
    for part in source.parts:
        rows = _documents(part)
        ends = np.cumsum(rows["tokens"])
        low, high = np.searchsorted(chosen, [first, first + len(rows)])
        for index in chosen[low:high] - first:
            end = int(ends[index])
            ids = _read_tokens(part, encoder, end - int(rows["tokens"][index]), end - 1)
            apart.add(source.name, ids, int(rows["bytes"][index]))
        first += len(rows)


def _append(source: SourceParts, mask: Mask, encoder: Encoder, writer: BlockWriter) -> None:
    first = 0
    for part in source.parts:
        rows = _documents(part)
        wanted = mask[first : first + len(rows)]
        first += len(rows)
        writer.add_many(rows["tokens"][wanted], _runs(part, rows["tokens"], wanted, encoder))


def _runs(part: Path, lengths: npt.NDArray[np.uint64], wanted: Mask, encoder: Encoder) -> Iterator[npt.NDArray[Any]]:
    """The tokens of the wanted documents, neighbours together, in arrays of bounded size."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    for low, high in zip(ends[edges[::2]].tolist(), ends[edges[1::2]].tolist(), strict=True):
        for begin in range(low, high, _READ):
            yield _read_tokens(part, encoder, begin, min(high, begin + _READ))
