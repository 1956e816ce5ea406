"""Which part of a text is taken: a share of its tokens, spread by chance, the same for the same seed on every machine.

Whole documents are taken as far as they fit; where they are too long for what is missing, sections of them. Knows
lengths, not what the texts are.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

SPAN = np.dtype([("document", "<i8"), ("begin", "<i8"), ("end", "<i8")])
"""The tokens [begin, end) of a document, counted without BOS and EOS."""
Spans = npt.NDArray[np.void]
Cut = Callable[[int, int, int], tuple[int, int] | None]
"""Cuts a section of about `size` tokens out of document `document` behind token `at`, given as (document, at, size)."""

_STRATUM = 4096
_TOLERANCE = 0.05  # of the target, within which a share counts as met
_LEAST_SECTION = 64  # tokens; what is shorter says too little to be cut out for
_NUM_SECTIONS = 4  # documents that share in what whole ones do not fill
_NUM_TRIED = 1000  # documents looked at where the next one by chance does not fit


def choose(num_items: int, num_chosen: int, label: str) -> Iterator[bool]:
    """Says for each of `num_items` in turn whether it is among the `num_chosen`; memory stays constant.

    Each stratum of 4,096 items gives its proportional part, drawn at random by `label` (seed and purpose).
    """
    assert 0 <= num_chosen <= num_items
    for begin in range(0, num_items, _STRATUM):
        end = min(begin + _STRATUM, num_items)
        quota = num_chosen * end // num_items - num_chosen * begin // num_items
        drawn = set(random.Random(f"{label}/{begin}").sample(range(begin, end), quota))
        yield from (index in drawn for index in range(begin, end))


def num_tokens(spans: Spans) -> int:
    """Tokens of all spans together."""
    return int((spans["end"] - spans["begin"]).sum())


def take_share(spans: Spans, share: float, label: str, cut: Cut) -> tuple[Spans, Spans]:
    """Divides `spans`, which are in order, into what holds `share` of their tokens, as near as can be, and the rest.

    Drawn at random by `label` (seed and purpose). Of several spans at least one is left on both sides, unless `share`
    is 0 or 1. Of little text the share is at least 64 tokens or a twentieth.
    """
    if share in (0, 1) or not len(spans):
        return (spans, spans[:0]) if share == 1 else (spans[:0], spans)
    total = num_tokens(spans)
    target = max(share * total, min(_LEAST_SECTION, total / 20))
    sizes = spans["end"] - spans["begin"]
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(spans))
    first = int(np.searchsorted(np.cumsum(sizes[order]), target, side="right"))
    taken, missing = list(order[:first]), target - int(sizes[order[:first]].sum())
    skipped: list[int] = []
    for index in order[first : first + _NUM_TRIED].tolist():
        if sizes[index] - missing <= min(sizes[index] / 2, _TOLERANCE * target):
            taken.append(index)
            missing -= sizes[index]
        else:
            skipped.append(index)
    sections: dict[int, tuple[int, int]] = {}
    if missing > _TOLERANCE * target:
        sections = _sections(spans, skipped, missing, generator, cut)
        missing -= sum(end - begin for begin, end in sections.values())
        whole = [index for index in skipped if index not in sections]
        nearest = min(whole, key=lambda index: abs(sizes[index] - missing), default=None)
        nothing = not taken and not sections and len(spans) > 1
        if nearest is not None and (abs(sizes[nearest] - missing) < missing or nothing):
            taken.append(nearest)
    chosen = np.zeros(len(spans), dtype=bool)
    chosen[taken] = True
    return _divide(spans, chosen, sections)


def _sections(
    spans: Spans, candidates: list[int], missing: float, generator: np.random.Generator, cut: Cut
) -> dict[int, tuple[int, int]]:
    """Sections of some of the spans `candidates`, by their index, that hold about `missing` tokens together."""
    sections: dict[int, tuple[int, int]] = {}
    for tried, index in enumerate(candidates[: 8 * _NUM_SECTIONS]):
        left = min(_NUM_SECTIONS - len(sections), len(candidates) - tried)
        size = round(missing / max(left, 1))
        if left < 1 or missing < _LEAST_SECTION / 2:
            break
        span = spans[index]
        size = max(size, _LEAST_SECTION)
        length = int(span["end"] - span["begin"])
        if length <= size:
            continue
        for at in (int(generator.integers(0, length - size)), 0):
            section = cut(int(span["document"]), int(span["begin"]) + at, size)
            if section and section[0] >= span["begin"] and section[1] <= span["end"]:
                taken = section[1] - section[0]
                if _LEAST_SECTION / 2 <= taken <= 2 * size and taken < length:
                    sections[index] = section
                    missing -= taken
                    break
    return sections


def _divide(spans: Spans, chosen: npt.NDArray[np.bool_], sections: dict[int, tuple[int, int]]) -> tuple[Spans, Spans]:
    """The chosen spans and sections in order, and what is left of all."""
    taken, rest = [spans[chosen]], [spans[~chosen & ~np.isin(np.arange(len(spans)), list(sections))]]
    for index, (begin, end) in sections.items():
        document, first, last = spans[index].tolist()
        taken.append(np.array([(document, begin, end)], dtype=SPAN))
        pieces = [(document, first, begin), (document, end, last)]
        rest.append(np.array([piece for piece in pieces if piece[1] < piece[2]], dtype=SPAN))
    return np.sort(np.concatenate(taken), order=("document", "begin")), np.sort(
        np.concatenate(rest), order=("document", "begin")
    )
