"""Which items of a sequence are taken: an exact share, spread evenly, the same for the same seed on every machine.

Knows nothing of what the items are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_STRATUM = 4096


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


def num_held_out(num_documents: int, share: float) -> int:
    """How many documents a share is: at least one where there are two or more, never all, none of a single one."""
    if share == 0 or num_documents < 2:
        return 0
    return min(max(round(share * num_documents), 1), num_documents - 1)
