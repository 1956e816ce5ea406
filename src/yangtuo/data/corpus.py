"""Text for counting: all of some files, or an even share of them where they hold more than memory should.

This module does not know what is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from yangtuo import console
from yangtuo.data.readers import read_documents
from yangtuo.data.records import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    decode,
    is_compressed,
    list_files,
    open_bytes,
    suffix,
)

_EXPANSION = 4  # bytes of text that a byte of gzip or zstd is taken to hold
_LEAST_PART = 1 << 20  # no smaller part of a file is read, unless the file is smaller


def sampled_texts(paths: Sequence[Path], budget: int) -> Iterator[str]:
    """The texts of all files, or where they hold more than `budget` bytes, an even share of each."""
    files = [file for path in paths for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES))]
    sizes = [file.stat().st_size * (_EXPANSION if is_compressed(file) else 1) for file in files]
    share = min(budget / max(sum(sizes), 1), 1.0)
    if share < 1:
        console.note(f"{sum(sizes) / 1e9:.2f} GB of text: {share:.1%} of it, taken from every part, is read")
    with console.progress("reading", sum(sizes), "bytes") as bar:
        credit = 0.0
        for file, size in zip(files, sizes, strict=True):
            credit += share * size
            # Many small files: every so many-th is read whole. Few large ones: each gives its beginning.
            if share == 1 or credit >= min(size, _LEAST_PART):
                part = size if share == 1 else min(size, int(credit))
                credit -= part
                yield from _beginning(file, part, whole=part == size)
            bar.advance(size)


def _beginning(file: Path, num_bytes: int, whole: bool) -> Iterator[str]:
    if whole or suffix(file) not in TEXT_SUFFIXES:
        left = num_bytes
        for document in read_documents(file):
            yield document.text
            left -= len(document.text.encode("utf-8", errors="replace"))
            if left <= 0 and not whole:
                return
        return
    with open_bytes(file) as stream:
        data = stream.read(num_bytes)
    complete = data.rpartition(b"\n")[0] or data
    yield decode(complete, str(file))[0]
