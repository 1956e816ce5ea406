"""Taking an exam out of the training text: lines that repeat a passage of an evaluation set are removed.

Texts are compared by their letters and digits alone, as UTF-8. A passage of 48 bytes or more (16 Chinese characters,
about ten English words) is found where 48 of its bytes in a row are met; a shorter question of 16 bytes or more where
all of it is, an option or an answer of that size where it is a line by itself. A question of 6 to 15 bytes is found
where it is a line or a sentence by itself, an item's number and a bracket to be filled left aside, and that sentence
alone goes. This module does not know what an exam is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yangtuo.data.dedup import letter_table, letters
from yangtuo.data.readers import read_documents
from yangtuo.data.records import RECORD_SUFFIXES, TEXT_SUFFIXES, compose, list_files, read_records, suffix

WINDOW = 48
"""Bytes in a row that betray a passage."""
SHORTEST = 16
"""Passages of fewer bytes are too common to look for within sentences."""
SHORTEST_QUESTION = 6
"""Questions of fewer bytes are not looked for at all."""
QUESTION_KEYS = ("question", "instruction", "query", "prompt", "problem", "stem", "input", "text", "题目", "问题")
"""The fields of a row that hold its question; the first that is there counts, else the longest field does."""

_ENDS = "\n。！？!?；;"  # of a sentence
_ITEM = (
    r"(?:第?[ ]?[0-9一二三四五六七八九十百]{1,4}[ ]?题?[ ]?[、.．,，)）:：]|[A-Za-z][、.．)）:：]"
    r"|[(（\[【][ ]?\w{1,4}[ ]?[)）\]】]"
    r"|(?:题目?|问题?|例题?|[Qq]uestion|[Qq])[ ]?[0-9]{0,4}[:：.])"
)
_FILLED = re.compile(r"[(（\[][ ]?[A-Za-z]{1,4}[ ]?[)）\]]\W*$")  # an answer where a blank was
_LONGEST_SENTENCE = 60  # characters of one that may be a short question, punctuation and all
_NUMBERING = 6  # bytes of letters and digits that number a line
_PRIME = 0x100000001B3
_FILTER_BITS = 22

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Exam:
    """The passages of evaluation sets, ready to be looked for."""

    long: Hashes
    """Sorted hashes of all windows of the long passages."""
    short: dict[int, list[tuple[bytes, bool]]] = field(default_factory=dict)
    """Hash of the first 16 bytes -> the short passages that begin so, and whether each is a question."""
    sentences: frozenset[bytes] = frozenset()
    """The questions that are found as a line or a sentence by themselves."""
    num_too_short: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Identity of what is looked for, whatever the order and the files it came from."""
        short = sorted(passage for passages in self.short.values() for passage in passages)
        digest = hashlib.sha256(self.long.tobytes())
        digest.update(repr((short, sorted(self.sentences))).encode())
        return digest.hexdigest()

    def clean(self, text: str) -> tuple[str, list[str]]:
        """The text without the lines that repeat a passage, and these lines."""
        text, lines = self._without_lines(text)
        if not self.sentences:
            return text, lines
        removed_texts: list[str] = []

        def removed(match: re.Match[str]) -> str:
            said = match["said"]
            filled = _FILLED.search(said)
            if not (_plain(said) in self.sentences or (filled and _plain(said[: filled.start()]) in self.sentences)):
                return match[0]
            removed_texts.append(match[0].strip())
            return ""

        text = self._sentence.sub(removed, text)
        return text, lines + removed_texts

    @cached_property
    def _sentence(self) -> re.Pattern[str]:
        """A line or sentence that begins, behind an item's number, with the first letter of a short question.

        A line goes with its end, a sentence within a line with its mark.
        """
        first = {passage.decode()[0] for passage in self.sentences}
        letters = "".join(map(re.escape, sorted(first | {letter.upper() for letter in first})))
        said = rf"(?P<said>[{letters}][^{_ENDS}]{{0,{_LONGEST_SENTENCE}}})"
        return re.compile(rf"(?:\A|(?<=[{_ENDS}]))[ \t\u3000]*{_ITEM}?[^\w{_ENDS}]*_*{said}(?:[{_ENDS}]+|\Z)")

    def _without_lines(self, text: str) -> tuple[str, list[str]]:
        whole = np.frombuffer(letter_bytes(text), dtype=np.uint8)
        spans = self._found(whole)
        if not spans:
            return text, []
        lines = text.split("\n")
        coded = [letter_bytes(line) for line in lines]
        ends = np.cumsum([len(line) for line in coded])
        within = (whole & 0xC0) == 0x80  # a byte of a character that is not its first
        guilty: set[int] = set()
        for begin, end, is_question in spans:
            while end < len(whole) and within[end]:
                end -= 1  # part of a character says nothing about the line it stands in
            first, last = np.searchsorted(ends, [begin, end - 1], side="right")
            # An option is a phrase that may stand in any text.
            if is_question or len(coded[first]) - (end - begin) <= _NUMBERING:
                guilty.update(range(int(first), int(last) + 1))
        if not guilty:
            return text, []
        kept = [line for number, line in enumerate(lines) if number not in guilty]
        return "\n".join(kept), [lines[number] for number in sorted(guilty) if lines[number].strip()]

    def _found(self, whole: npt.NDArray[np.uint8]) -> list[tuple[int, int, bool]]:
        hashes, places = _windows(whole, WINDOW)
        spans = [(int(at), int(at) + WINDOW, True) for at in places[self._long_index.find(hashes)]]
        if self.short:
            hashes, places = _windows(whole, SHORTEST)
            for index in self._short_index.find(hashes):
                at = int(places[index])
                for passage, is_question in self.short[int(hashes[index])]:
                    if whole[at : at + len(passage)].tobytes() == passage:
                        spans.append((at, at + len(passage), is_question))
        return spans

    @cached_property
    def _long_index(self) -> _Index:
        return _Index(self.long)

    @cached_property
    def _short_index(self) -> _Index:
        return _Index(np.array(sorted(self.short), dtype=np.uint64))


def read_exam(passages: Iterable[tuple[str, bool]]) -> Exam:
    """Prepares passages to be looked for; with each, whether it is a question, rather than an option or an answer."""
    long: list[Hashes] = []
    short: dict[int, list[tuple[bytes, bool]]] = {}
    sentences: set[bytes] = set()
    num_too_short = 0
    for text, is_question in passages:
        passage = letter_bytes(text)
        if len(passage) >= WINDOW:
            long.append(_windows(np.frombuffer(passage, dtype=np.uint8), WINDOW)[0])
        elif len(passage) >= SHORTEST:
            key = int(_windows(np.frombuffer(passage[:SHORTEST], dtype=np.uint8), SHORTEST)[0][0])
            short.setdefault(key, []).append((passage, is_question))
        elif is_question and len(passage) >= SHORTEST_QUESTION:
            sentences.add(passage)
        else:
            num_too_short += 1
    hashes = np.unique(np.concatenate(long)) if long else np.zeros(0, dtype=np.uint64)
    return Exam(hashes, short, frozenset(sentences), num_too_short)


def letter_bytes(text: str) -> bytes:
    """The letters and digits of `text` as UTF-8, what passages are compared by."""
    return letters(text).astype("<u4").tobytes().decode("utf-32-le", "ignore").encode()


def _plain(text: str) -> bytes:
    """The same as `letter_bytes`, faster for a sentence."""
    return _signs().sub("", text.lower()).encode(errors="ignore")


@lru_cache(maxsize=1)
def _signs() -> re.Pattern[str]:
    codes = (chr(code) for code, is_letter in enumerate(letter_table()) if not is_letter)
    return re.compile(f"[{''.join(map(re.escape, codes))}]+")


def _windows(whole: npt.NDArray[np.uint8], length: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of the windows of `length` bytes, a multiple of 16, that begin with a character, and where they begin."""
    if len(whole) < length:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    hashes = whole.astype(np.uint64) + np.uint64(1)
    width = 1
    while width < 16:
        hashes = hashes[:-width] * np.uint64(pow(_PRIME, width, 1 << 64)) + hashes[width:]
        width *= 2
    sixteen = hashes
    for begin in range(16, length, 16):
        hashes = hashes[: len(sixteen) - begin] * np.uint64(pow(_PRIME, 16, 1 << 64)) + sixteen[begin:]
    places = np.flatnonzero((whole[: len(hashes)] & 0xC0) != 0x80)
    hashes = hashes[places]
    return hashes ^ (hashes >> np.uint64(33)), places


class _Index:
    """Sorted hashes to be found in many texts; a bitmap spares most of the search."""

    def __init__(self, known: Hashes) -> None:
        self._known = known
        self._bitmap = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._bitmap[_folded(known)] = True

    def find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Indices of the hashes that are known."""
        likely = np.flatnonzero(self._bitmap[_folded(hashes)])
        if len(likely) == 0:
            return likely
        at = np.searchsorted(self._known, hashes[likely])
        known: npt.NDArray[np.int64] = likely[self._known[np.minimum(at, len(self._known) - 1)] == hashes[likely]]
        return known


def _folded(hashes: Hashes) -> Hashes:
    return (hashes ^ (hashes >> np.uint64(_FILTER_BITS))) & np.uint64((1 << _FILTER_BITS) - 1)


def read_passages(path: Path) -> Iterator[tuple[str, bool]]:
    """The passages of the files at `path`, and of each whether it is a question."""
    for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES)):
        if suffix(file) in TEXT_SUFFIXES:
            yield from ((document.text, True) for document in read_documents(file, "line"))
        else:
            for record in read_records(file):
                fields = {key.lower(): compose(value) for key, value in record.values.items() if isinstance(value, str)}
                named = [key for key in QUESTION_KEYS if fields.get(key)]
                question = named[0] if named else max(fields, key=lambda key: len(fields[key]), default="")
                yield from ((value, key == question) for key, value in fields.items())
