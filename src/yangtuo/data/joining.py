"""Finished parts become a dataset: repeated documents dropped, some held out, the rest packed by weight.

Every decision depends on the order of documents alone, not on how they were divided into parts or who made these.
Memory is about 100 bytes a document, whatever its length. This module knows no text: examples are decoded.
"""

from __future__ import annotations

import re
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
from yangtuo.data.sampling import SPAN, Spans, num_tokens, take_share
from yangtuo.data.statistics import length_histogram
from yangtuo.vocab.encoding import Encoder

_READ = 1 << 20  # tokens
_SKETCHES = 1 << 14  # read at a time
_SHOWN = 80  # tokens of a repeated document
_LEAST_WINDOW = 512  # tokens within which a boundary is looked for
_SENTENCE_ENDS = "|".join(["[.!?](?=[ \n\"')])", *"。！？؟۔।॥။៕།።։"])
_CLOSING = "|".join("”’」』")
_BOUNDARIES = [
    re.compile(pattern.encode())
    for pattern in (r"\n[ \t\r]*\n\s*", r"\n", rf"(?:{_SENTENCE_ENDS})(?:[\"')]|{_CLOSING})*")
]
"""Where a text may be cut, the best kind first, in UTF-8."""

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
            repeats = np.flatnonzero(repeated[first : first + len(rows)])
            first += len(rows)
            if not len(repeats):
                continue
            source.removed.counts[reason] += len(repeats)
            shown = source.removed.examples.setdefault(reason, [])
            ends = np.cumsum(rows["tokens"])
            for index in repeats[: max(0, Filtered.MOST - len(shown))]:
                end = int(ends[index]) - 1  # without BOS and EOS
                begin = end + 1 + _num_ahead(encoder) - int(rows["tokens"][index])
                ids = _read_tokens(part, encoder, begin, min(end, begin + _SHOWN))
                shown.append(Filtered.shortened(encoder.decode(ids.tolist()).strip()))


def _num_ahead(encoder: Encoder) -> int:
    """Tokens of a document before its text: BOS, where the tokenizer has one."""
    return int(encoder.bos_id is not None)


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

    Whole passes over the text first, then the part of one that the weight's fraction asks for; shares are of tokens.
    """
    writer, apart = writers
    lengths, characters, num_bytes = _measured(source, ~repeated)
    spans = np.zeros(len(lengths), dtype=SPAN)
    spans["document"], spans["end"] = np.flatnonzero(~repeated), lengths - 1 - _num_ahead(encoder)
    cutter = _Cutter(source, encoder)
    kept_apart, training = take_share(spans, held_out, f"{seed}/held-out/{source.name}", cutter)
    _hold_out(source, kept_apart, encoder, apart)
    before, taken = writer.num_tokens, 0
    for copy in range(int(source.weight) + 1):
        share = 1.0 if copy < int(source.weight) else source.weight % 1
        chosen, _ = take_share(training, share, f"{seed}/weight/{source.name}", cutter)
        taken += num_tokens(chosen)
        _append(source, chosen, encoder, writer)
    total = num_tokens(spans)
    return {
        "documents": len(spans),
        "characters": characters,
        "bytes": num_bytes,
        "text_tokens": total,
        "held_out": len(np.unique(kept_apart["document"])),
        "held_out_tokens": num_tokens(kept_apart),
        "held_out_share": round(num_tokens(kept_apart) / max(total, 1), 4),
        "weight": source.weight,
        "taken_weight": round(taken / max(num_tokens(training), 1), 4),
        "tokens": writer.num_tokens - before,
        "removed": dict(source.removed.counts),
        "examples": source.removed.examples,
        "encodings": dict(source.encodings),
        "scripts": dict(source.scripts.most_common()),
        "lengths": length_histogram(lengths),
    }


class _Cutter:
    """Finds sections of documents that begin and end with a paragraph, or else a line, or else a sentence."""

    def __init__(self, source: SourceParts, encoder: Encoder) -> None:
        self._source = source
        self._encoder = encoder
        self._firsts = np.cumsum([0, *(len(_documents(part)) for part in source.parts)])

    def __call__(self, document: int, at: int, size: int) -> tuple[int, int] | None:
        """About `size` tokens of `document` from the first boundary at or behind token `at` on; None without one."""
        begin = self._boundary(document, at, size)
        end = None if begin is None else self._boundary(document, begin + size, size)
        return None if begin is None or end is None else (begin, end)

    def _boundary(self, document: int, at: int, size: int) -> int | None:
        if at == 0:
            return 0
        number = int(np.searchsorted(self._firsts, document, side="right")) - 1
        part = self._source.parts[number]
        rows = _documents(part)["tokens"].astype(np.int64)
        index = document - int(self._firsts[number])
        ahead = _num_ahead(self._encoder)
        first, length = int(rows[:index].sum()) + ahead, int(rows[index]) - ahead - 1  # behind BOS, before EOS
        if at >= length:
            return length
        window = min(length, at + max(size // 2, _LEAST_WINDOW))
        ids = _read_tokens(part, self._encoder, first + at - 1, first + window)
        pieces = [self._encoder.token_bytes(token) for token in ids.tolist()]
        ends = {int(end): at + count for count, end in enumerate(np.cumsum([len(piece) for piece in pieces]))}
        text = b"".join(pieces)
        for boundary in _BOUNDARIES:
            for match in boundary.finditer(text):
                if match.end() in ends:
                    return ends[match.end()]
        return length if window == length else None


def _measured(source: SourceParts, kept: Mask) -> tuple[npt.NDArray[np.int64], int, int]:
    """Tokens of each document kept, with BOS and EOS, and the characters and bytes of all."""
    lengths = []
    first = characters = num_bytes = 0
    for part in source.parts:
        rows = _documents(part)
        rows, first = rows[kept[first : first + len(rows)]], first + len(rows)
        lengths.append(rows["tokens"])
        characters += int(rows["characters"].sum())
        num_bytes += int(rows["bytes"].sum())
    return np.concatenate(lengths).astype(np.int64), characters, num_bytes


def _by_part(source: SourceParts, spans: Spans) -> Iterator[tuple[Path, npt.NDArray[np.int64], Spans]]:
    """Each part, where its documents begin in its tokens, and its spans, with documents numbered within the part."""
    first = 0
    for part in source.parts:
        rows = _documents(part)
        low, high = np.searchsorted(spans["document"], [first, first + len(rows)])
        own = spans[low:high].copy()
        own["document"] -= first
        yield part, np.concatenate([[0], np.cumsum(rows["tokens"])]).astype(np.int64), own
        first += len(rows)


def _hold_out(source: SourceParts, spans: Spans, encoder: Encoder, apart: HeldOutWriter) -> None:
    for part, begins, own in _by_part(source, spans):
        for document, begin, end in own.tolist():
            first = int(begins[document]) + _num_ahead(encoder)
            ids = _read_tokens(part, encoder, first + begin, first + end)
            whole = end - begin == int(begins[document + 1]) - first - 1
            num_bytes = (
                int(_documents(part)["bytes"][document]) if whole else len(encoder.decode(ids.tolist()).encode())
            )
            # What the first token is predicted from: BOS, or the end of another document where there is none.
            start = encoder.eos_id if encoder.bos_id is None else encoder.bos_id
            apart.add(source.name, np.concatenate([np.array([start], ids.dtype), ids]), num_bytes)


def _append(source: SourceParts, spans: Spans, encoder: Encoder, writer: BlockWriter) -> None:
    for part, begins, own in _by_part(source, spans):
        lengths = np.diff(begins)
        sections = np.flatnonzero(own["end"] - own["begin"] != lengths[own["document"]] - 1 - _num_ahead(encoder))
        for low, high in zip([0, *(sections + 1)], [*sections, len(own)], strict=True):
            wanted = np.zeros(len(lengths), dtype=bool)
            wanted[own["document"][low:high]] = True
            writer.add_many(lengths[wanted], _runs(part, begins, wanted, encoder))
            if high < len(own):  # a section, between the BOS and the EOS of its document
                document, begin, end = own[high].tolist()
                first, last = int(begins[document]), int(begins[document + 1])
                text = first + _num_ahead(encoder)
                edges = ((first, text), (text + begin, text + end), (last - 1, last))
                writer.add(np.concatenate([_read_tokens(part, encoder, *edge) for edge in edges]))


def _runs(part: Path, begins: npt.NDArray[np.int64], wanted: Mask, encoder: Encoder) -> Iterator[npt.NDArray[Any]]:
    """The tokens of the wanted documents, neighbours together, in arrays of bounded size."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    for low, high in zip(begins[edges[::2]].tolist(), begins[edges[1::2]].tolist(), strict=True):
        for begin in range(low, high, _READ):
            yield _read_tokens(part, encoder, begin, min(high, begin + _READ))
