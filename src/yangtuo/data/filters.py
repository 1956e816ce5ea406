"""The filters between reading and tokens, in their order: cleaning, decontamination, repeated documents.

Knows texts only; what is left and what went comes back to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from yangtuo.data.clean import Filtered, clean
from yangtuo.data.decontaminate import Exam
from yangtuo.data.dedup import content_hash, find_equal, find_near, signatures


@dataclass(frozen=True)
class Filters:
    """Which filters run."""

    clean: bool
    dedup: Literal["none", "exact", "near"]
    exam: Exam | None


def filter_documents(texts: list[str], filters: Filters) -> tuple[list[str], Filtered]:
    """The texts that are left, cleaned, in their order, and what was removed with examples."""
    removed = Filtered()
    if filters.clean:
        texts = [clean(text, removed) for text in texts]
    if filters.exam is not None:
        texts = [_decontaminated(text, filters.exam, removed) for text in texts]
    texts = [text for text in texts if text.strip()]
    if filters.dedup == "none" or not texts:
        return texts, removed
    hashes = np.frombuffer(b"".join(map(content_hash, texts)), dtype="<u8").reshape(-1, 2)
    texts = _without(texts, find_equal(hashes), "equal documents", removed)
    if filters.dedup == "near":
        signed = signatures(texts)
        texts = _without(texts, find_near(signed, np.ones(len(texts), dtype=bool)), "near-duplicates", removed)
    return texts, removed


def _decontaminated(text: str, exam: Exam, removed: Filtered) -> str:
    text, lines = exam.clean(text)
    for line in lines:
        removed.add("lines of evaluation sets", 1, line.strip())
    return text


def _without(texts: list[str], repeated: npt.NDArray[np.bool_], reason: str, removed: Filtered) -> list[str]:
    for index in np.flatnonzero(repeated):
        removed.add(reason, 1, texts[index].strip())
    return [text for text, is_repeated in zip(texts, repeated, strict=True) if not is_repeated]
