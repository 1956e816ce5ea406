"""Long texts in segments that are tokenised apart and together give the ids of the whole, in little memory.

A text is cut between lines, never before a blank. That pieces on the two sides do not depend on one another there is a
property of almost every tokenizer, and is tried out at each cut; one that takes line breaks for blanks, as unigram
models with NMT's normalisation do, is given the whole text. This module knows no files.
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

_CUT = re.compile(r"(?<=\n)(?=[^ \t\r])")
_TRIED = 64  # characters on each side of a cut with which it is tried out
_NUM_TRIALS = 16


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
    lead = encoder.encode(LEAD)
    for place in islice(_CUT.finditer(text, begin), _NUM_TRIALS if lead else 0):
        cut = place.start()
        before, after = text[cut - _TRIED : cut], text[cut : cut + _TRIED]
        whole = encoder.encode(LEAD + after)
        if whole[: len(lead)] == lead and encoder.encode(before + after) == encoder.encode(before) + whole[len(lead) :]:
            return cut
    return None
