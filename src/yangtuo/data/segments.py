"""Long texts in segments that are tokenised apart and together give the ids of the whole, in little memory.

A text is cut between a line that ends in a character and one that begins with one. That no piece crosses such a cut
is a property of almost every tokenizer, and is tried out at each cut. This module knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from yangtuo.vocab.encoding import Encoder

SEGMENT = 1 << 15
"""Characters from which on a text is cut: SentencePiece takes three times as long for a letter of a book in one go."""
LEAD = "\n"
"""What stands before a segment that goes on: it is encoded along, and its ids are dropped."""

_CUT = re.compile(r"(?<=\S\n)(?=\S)")
_TRIED = 64  # characters on each side of a cut with which it is tried out
_NUM_TRIALS = 8


def split_segments(fragments: Iterable[str], encoder: Encoder) -> Iterator[str]:
    """The joined `fragments` in segments; all but the first go on from the one before.

    Encode the first as it is, the others behind `LEAD`. What cannot be cut stays whole, and in memory.
    """
    rest = ""
    for fragment in fragments:
        rest += fragment
        begin = 0
        while len(rest) - begin > SEGMENT:
            cut = _find_cut(rest, begin + SEGMENT, encoder)
            if cut is None:
                break
            yield rest[begin:cut]
            begin = cut
        rest = rest[begin:]
    yield rest


def _find_cut(text: str, begin: int, encoder: Encoder) -> int | None:
    for place in islice(_CUT.finditer(text, begin), _NUM_TRIALS):
        cut = place.start()
        before, after = text[cut - _TRIED : cut], text[cut : cut + _TRIED]
        lead, whole = encoder.encode(LEAD), encoder.encode(LEAD + after)
        if whole[: len(lead)] == lead and encoder.encode(before + after) == encoder.encode(before) + whole[len(lead) :]:
            return cut
    return None
