"""Repeated documents: equal ones by hash, near ones by MinHash signatures in bands (Broder 1997; Leskovec et al.,
Mining of Massive Datasets, chapter 3), computed by rensa.

A document is a set of runs of five letters or digits, blanks and punctuation left out, so that one measure serves
scripts with and without blanks. Of documents alike the first stays. This module knows no files of texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from yangtuo.errors import ConfigError

NUM_PERMUTATIONS = 128
NUM_ROWS = 4  # in a band: 32 bands of 4 find a likeness of 0.7 with probability 0.9998, one of 0.3 with 0.23
SIMILARITY = 0.5
"""Documents of at least this Jaccard similarity, as estimated by their signatures, are near-duplicates."""

_SHINGLE = 5
_SEED = 1
_AT_ONCE = 4_000_000  # documents whose band keys are in memory together
_COMPARED_AT_ONCE = 50_000

NUM_BANDS = NUM_PERMUTATIONS // NUM_ROWS
SKETCH = np.dtype([("keys", "<u8", (NUM_BANDS,)), ("marks", "u1", (NUM_PERMUTATIONS,))])

Signatures = npt.NDArray[np.uint32]
Sketches = npt.NDArray[np.void]


def content_hash(text: str) -> bytes:
    """16 bytes that tell texts apart, leading and trailing blanks aside."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def letters(text: str) -> npt.NDArray[np.uint32]:
    """The code points of `text` in lower case, without blanks, control characters and common punctuation."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kept: npt.NDArray[np.uint32] = codes[letter_table()[np.minimum(codes, 0xFFFF)]]
    return kept


@lru_cache(maxsize=1)
def letter_table() -> npt.NDArray[np.bool_]:
    """True for every code point of the first plane but blanks, controls and common punctuation."""
    table = np.ones(1 << 16, dtype=bool)
    punctuation = ((0, 0x30), (0x3A, 0x61), (0x7B, 0xC0), (0x2000, 0x2070), (0x3000, 0x3040))
    wide = ((0xFE10, 0xFE70), (0xFF00, 0xFF10), (0xFF1A, 0xFF21), (0xFF3B, 0xFF41), (0xFF5B, 0xFF66))
    for first, end in punctuation + wide:
        table[first:end] = False
    return table


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of shape (len(texts), 128); raises `ConfigError` where the library is not installed.

    The signature of a text in segments is the least of theirs, number by number.
    """
    rensa = require_rensa()
    if not texts:
        return np.zeros((0, NUM_PERMUTATIONS), dtype=np.uint32)
    hashes = [_shingle_hashes(letters(text)) for text in texts]
    offsets = np.zeros(len(hashes) + 1, dtype=np.uint64)
    offsets[1:] = np.cumsum([len(part) for part in hashes])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(hashes), offsets, num_perm=NUM_PERMUTATIONS, seed=_SEED
    )
    return np.asarray(matrix.to_rows(), dtype=np.uint32)


def require_rensa() -> Any:
    """The library of MinHash signatures; raises `ConfigError` where it is not installed."""
    try:
        import rensa  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ConfigError("finding near-duplicates needs a library", run="pip install rensa") from error
    return rensa


def sketches(signed: Signatures) -> Sketches:
    """What is kept of signatures on disk, 384 bytes a document: the key of each band, and a byte of each number.

    Bytes estimate the likeness of documents as well as whole numbers do, chance agreements of 1 in 256 aside
    (Li and König 2010, b-bit minwise hashing).
    """
    kept = np.zeros(len(signed), dtype=SKETCH)
    for band in range(NUM_BANDS):
        keys = np.zeros(len(signed), dtype=np.uint64)
        for row in range(band * NUM_ROWS, (band + 1) * NUM_ROWS):
            keys = (keys ^ signed[:, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        kept["keys"][:, band] = keys
    kept["marks"] = (signed * np.uint32(0x9E3779B1)) >> np.uint32(24)
    return kept


def _shingle_hashes(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    wide = codes.astype(np.uint64)
    num = max(len(wide) - _SHINGLE + 1, 1)
    hashes = np.zeros(num, dtype=np.uint64)
    for offset in range(min(_SHINGLE, len(wide))):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + wide[offset : offset + num]
    hashes ^= hashes >> np.uint64(31)
    return hashes * np.uint64(0xBF58476D1CE4E5B9)


def find_equal(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which documents equal an earlier one; `hashes` has shape (documents, 2), 16 bytes for each."""
    repeated = np.zeros(len(hashes), dtype=bool)
    for chosen in _partitions(hashes[:, 0]):
        order = chosen[np.lexsort((chosen, hashes[chosen, 1], hashes[chosen, 0]))]
        same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
        repeated[order[1:][same]] = True
    return repeated


def find_near(
    bands: Iterable[npt.NDArray[np.uint64]], marks: npt.NDArray[np.uint8], alive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which documents resemble an earlier one, among those `alive`.

    `bands` gives the keys of all documents, band by band; `marks` has shape (documents, 128) and may lie on disk.
    Memory is that of one band, about 30 bytes a document.
    """
    repeated = np.zeros(len(alive), dtype=bool)
    for keys in bands:
        for chosen in _partitions(keys):
            chosen = chosen[alive[chosen]]
            order = chosen[np.lexsort((chosen, keys[chosen]))]
            _compare_groups(marks, keys, order, repeated)
    return repeated


def _partitions(keys: npt.NDArray[np.uint64]) -> list[npt.NDArray[np.int64]]:
    """Indices of the keys, in parts that can be sorted in little memory; equal keys are in one part."""
    num_parts = len(keys) // _AT_ONCE + 1
    if num_parts == 1:
        return [np.arange(len(keys))]
    part = (keys >> np.uint64(40)) % np.uint64(num_parts)
    return [np.flatnonzero(part == number) for number in range(num_parts)]


def _compare_groups(
    marks: npt.NDArray[np.uint8],
    keys: npt.NDArray[np.uint64],
    order: npt.NDArray[np.int64],
    repeated: npt.NDArray[np.bool_],
) -> None:
    """Marks, among documents of equal key, those that resemble the first or the one before them."""
    if len(order) < 2:
        return
    begins = np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    later = np.flatnonzero(~begins)
    for others in (first[later], order[later - 1]):
        for begin in range(0, len(later), _COMPARED_AT_ONCE):
            mine = order[later[begin : begin + _COMPARED_AT_ONCE]]
            open_ones = ~repeated[mine]
            mine, earlier = mine[open_ones], others[begin : begin + _COMPARED_AT_ONCE][open_ones]
            alike = (marks[mine] == marks[earlier]).mean(axis=1) >= SIMILARITY
            repeated[mine[alike]] = True
