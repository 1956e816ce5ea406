"""Figures of a corpus: which scripts it is written in, how long its documents are. Knows no page and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]

SCRIPTS = ("Han", "Latin", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Greek", "Thai", "Devanagari")
_CLASSES = {
    **{name: rf"\p{{Script={name}}}" for name in SCRIPTS},
    "digits": r"\p{Nd}",
    "blanks": r"\s",
    "other letters": r"\p{L}",
}
_REST = "signs"


def code_units(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """How often each UTF-16 code unit occurs in `texts`, shape (65536,)."""
    encoded = "".join(texts).encode("utf-16-le")
    return np.bincount(np.frombuffer(encoded, dtype="<u2"), minlength=1 << 16)


def count_scripts(units: npt.NDArray[np.int64]) -> dict[str, int]:
    """Characters of each script (Unicode's Scripts.txt), and digits, blanks and signs; those that occur.

    A character beyond the first plane counts as what stands first in its block of 1,024.
    """
    names, table = _table()
    counts = np.bincount(table, weights=units, minlength=len(names)).astype(np.int64)
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count and name}


@lru_cache(maxsize=1)
def _table() -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of classes, and the class of every code unit; the second half of a pair has a class without a name."""
    names = [*_CLASSES, _REST, ""]
    table = np.full(1 << 16, names.index(_REST), dtype=np.int64)
    alphabet = "".join(chr(code) if not 0xD800 <= code < 0xE000 else "\0" for code in range(1 << 16))
    pairs = "".join(chr(0x10000 + 0x400 * index) for index in range(0x400))
    for number, pattern in reversed(list(enumerate(_CLASSES.values()))):  # the first class that fits counts
        compiled = regex.compile(pattern)
        table[[match.start() for match in compiled.finditer(alphabet)]] = number
        table[[0xD800 + match.start() for match in compiled.finditer(pairs)]] = number
    table[0xDC00:0xE000] = names.index("")
    return names, table


def length_histogram(num_tokens: npt.NDArray[np.uint64]) -> dict[int, int]:
    """Documents by length in tokens: power of two -> how many have at least that and less than twice that."""
    powers = np.log2(np.maximum(num_tokens, 1).astype(np.float64)).astype(np.int64)
    counts = np.bincount(powers)
    return {1 << power: int(count) for power, count in enumerate(counts) if count}
