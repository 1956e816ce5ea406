"""One part of a corpus on its way to the disk: its documents filtered, tokenised and measured as they come.

Memory is that of half a million characters and what becomes of them, however long a part or a document is. This
module knows no files of texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yangtuo.data.blocks import token_dtype
from yangtuo.data.clean import Filtered, Filters
from yangtuo.data.dedup import Signatures, require_rensa, signatures, sketches
from yangtuo.data.statistics import code_units, count_scripts
from yangtuo.vocab.encoding import Encoder

DOCUMENT = np.dtype([("tokens", "<u8"), ("characters", "<u8"), ("bytes", "<u8"), ("hash", "<u8", (2,))])
"""A document of a part: its tokens with BOS and EOS, the size of its text after cleaning, 16 bytes that tell texts
apart, blanks at both ends aside."""

_BATCH = 1 << 19  # characters tokenised at a time
SEGMENT = 1 << 15
"""Characters from which on a text is cut: SentencePiece takes three times as long for a letter of a book in one go."""
LEAD = "\n"
"""What stands before a segment that goes on: it is encoded along, and its ids are dropped."""

_CUT = re.compile(r"(?<=\n)(?=[^ \t\r])")
_TRIED = 64  # characters on each side of a cut with which it is tried out
_NUM_TRIALS = 16


class _Mark(Enum):
    """What happens in turn: a document begins, segments of it, it ends."""

    BEGIN = auto()
    FIRST = auto()
    LATER = auto()
    END = auto()


class PartWriter:
    """Writes documents into the directory of a part."""

    def __init__(
        self, directory: Path, encoder: Encoder, filters: Filters, sketched: bool, num_threads: int | None
    ) -> None:
        if sketched:
            require_rensa()
        assert encoder.eos_id is not None, "the stage has looked"
        self.num_characters = 0
        self._directory = directory
        self._encoder = encoder
        self._filters = filters
        self._num_threads = num_threads
        self._num_lead = len(encoder.encode(LEAD))
        self._bos = np.array([] if encoder.bos_id is None else [encoder.bos_id], dtype=np.int32)
        self._eos = np.array([encoder.eos_id], dtype=np.int32)
        self._dtype = token_dtype(encoder.vocabulary_size)
        names = ("tokens", "documents", "sketches") if sketched else ("tokens", "documents")
        self._files = {name: (directory / f"{name}.bin").open("wb") for name in names}
        self._removed = Filtered()
        self._encodings: Counter[str] = Counter()
        self._units = np.zeros(1 << 16, dtype=np.int64)
        self._num_documents = 0
        self._num_written = 0  # tokens of the document at hand
        self._signature: Signatures | None = None  # of its segments that are on disk already
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._segments: list[str] = []
        self._marks: list[_Mark] = []
        self._sizes = array("Q")  # characters and bytes of each complete document
        self._hashes = bytearray()
        self._num_pending = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, fragments: Iterable[str], encoding: str) -> None:
        """Filters and appends a document, whose text comes in `fragments`; nothing where nothing of it is left."""
        seen = _Seen()
        mark = _Mark.FIRST
        for segment in split_segments(self._filtered(fragments, seen), self._encoder):
            if not segment:
                return
            if mark is _Mark.FIRST:
                self._encodings[encoding] += 1
                self._marks.append(_Mark.BEGIN)
            self._segments.append(segment)
            self._marks.append(mark)
            self._num_pending += len(segment)
            mark = _Mark.LATER
            if self._num_pending >= _BATCH:
                self._flush()
        self._marks.append(_Mark.END)
        self._sizes.extend((seen.num_characters, seen.num_bytes))
        self._hashes += seen.hash()
        self.num_characters += seen.num_characters

    def close(self, fingerprint: str) -> None:
        """Writes what is pending and the account."""
        self._flush()
        self.__exit__()
        account = {
            "fingerprint": fingerprint,
            "documents": self._num_documents,
            "removed": dict(self._removed.counts),
            "examples": self._removed.examples,
            "encodings": dict(self._encodings),
            "scripts": count_scripts(self._units),
        }
        text = json.dumps(account, ensure_ascii=False) + "\n"
        (self._directory / "account.json").write_text(text, encoding="utf-8", errors="replace")

    def _filtered(self, fragments: Iterable[str], seen: _Seen) -> Iterator[str]:
        for fragment in fragments:
            text = self._filters.apply(fragment, self._removed)
            if seen.num_bytes == 0 and not text.strip():
                continue
            try:
                encoded = text.encode()
            except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
                encoded = text.encode(errors="replace")
                text = encoded.decode()
            seen.add(text, encoded)
            yield text

    def _flush(self) -> None:
        """Tokenises and writes what is pending, the document at hand too if it is not complete."""
        led = [LEAD + text if later else text for text, later in zip(self._segments, self._are_later(), strict=True)]
        ids = iter(self._encoder.encode_arrays(led, self._num_threads))
        written: list[npt.NDArray[np.int32]] = []
        num_tokens = array("Q")
        for mark in self._marks:
            if mark is _Mark.BEGIN:
                tokens, self._num_written = self._bos, 0
            elif mark is _Mark.END:
                tokens = self._eos
                num_tokens.append(self._num_written + 1)
            else:
                tokens = next(ids) if mark is _Mark.FIRST else next(ids)[self._num_lead :]
            self._num_written += len(tokens)
            written.append(tokens)
        if written:
            np.concatenate(written).astype(self._dtype).tofile(self._files["tokens"])
        if "sketches" in self._files:
            self._write_sketches(len(num_tokens))
        rows = np.zeros(len(num_tokens), dtype=DOCUMENT)
        rows["tokens"] = num_tokens
        rows["characters"], rows["bytes"] = self._sizes[::2], self._sizes[1::2]
        rows["hash"] = np.frombuffer(bytes(self._hashes), dtype="<u8").reshape(-1, 2)
        rows.tofile(self._files["documents"])
        self._num_documents += len(rows)
        self._units += code_units(self._segments)
        self._begin_batch()

    def _write_sketches(self, num_complete: int) -> None:
        signed = signatures(self._segments)
        begins = [not later for later in self._are_later()]
        if self._signature is not None:
            signed, begins = np.concatenate([self._signature, signed]), [True, *begins]
        merged = np.minimum.reduceat(signed, np.flatnonzero(begins)) if len(signed) else signed
        sketches(merged[:num_complete]).tofile(self._files["sketches"])
        self._signature = merged[num_complete:] if len(merged) > num_complete else None

    def _are_later(self) -> Iterator[bool]:
        return (mark is _Mark.LATER for mark in self._marks if mark in (_Mark.FIRST, _Mark.LATER))


class _Seen:
    """The size of a document's text and a hash of it, blanks at both ends aside, as its fragments pass by."""

    def __init__(self) -> None:
        self.num_characters = 0
        self.num_bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._held = ""

    def add(self, text: str, encoded: bytes) -> None:
        """Takes the next fragment, as it is and in UTF-8."""
        self._digest.update(self._held.encode())
        self._held = text if self.num_bytes else text.lstrip()
        self.num_characters += len(text)
        self.num_bytes += len(encoded)

    def hash(self) -> bytes:
        """16 bytes, when all has passed."""
        self._digest.update(self._held.rstrip().encode())
        return self._digest.digest()


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
