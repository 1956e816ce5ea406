"""Which encoding bytes are in: Unicode by its marks and rules, others by charset-normalizer, and what it may not judge.

Measured on real texts (docs/design/032-languages.md): the library names Korean, Japanese, Cyrillic, Greek, Arabic and
Thai encodings rightly, gives up on some literary Chinese, which the share of frequent characters still tells, takes
Hebrew for Cyrillic, and cannot tell the encodings of Latin letters apart: those are refused. Knows no files.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from yangtuo.errors import FileError
from yangtuo.vocab.scripts import letter_counts

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_PLAUSIBLE = 0.7  # share of characters in the frequent half of a Chinese encoding that makes it believable
_SCORED = 1 << 16  # characters looked at for that
_JUDGED = 1 << 15  # bytes that the library looks at
_WIDE = re.compile(r"[\u2e80-\u2fff\u3040-\ufeff\uffef-\U0010ffff]")
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]|\x1b\([JI]")
_LEAST_LETTERS = 4  # that show which script a text is in
_LEAST_HEBREW = 60  # letters; so many of Bulgarian hold a capital, or one behind `ъ`
_UNLIKELY = re.compile(r"[\uff61-\uff9f\ue000-\uf8ff\ufffd]")  # half-width katakana, private characters
_LETTERS = re.compile(rb"[\xc0-\xff]")
# What the library names -> the superset that is read instead.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz": "hz",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
    "euc_kr": "cp949",
    "iso8859_8": "cp1255",
    "iso8859_11": "cp874",
    "tis_620": "cp874",
    "cp1125": "cp866",
}
_RIVALS = {"cp1253": ("cp1253", "iso8859_7"), "iso8859_7": ("iso8859_7", "cp1253")}
_JAPANESE = ("euc_jis_2004", "euc_jisx0213", "euc_jp", "shift_jis", "shift_jis_2004", "shift_jisx0213", "cp932")


def choose_encoding(data: bytes, place: str, final: bool, num_bytes: int = 0, num_lines: int = 0) -> str:
    """The encoding of `data`, before which `num_bytes` of ASCII stand; not `final`: it may end within a character.

    Raises `FileError` where it is none that can be told for certain.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark) and num_bytes == 0:
            return encoding.removesuffix("-sig")
    at = data.find(b"\0") if is_binary(data) else -1
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final)
    except UnicodeDecodeError as error:
        at = error.start if at < 0 else at
    else:
        if at < 0:
            return "iso2022_jp" if _ISO_2022_JP.search(data) else "utf-8"
    guess = None if is_binary(data) else _guess(data, final)
    if guess and _is_certain(data, guess, final):
        return guess
    lines = num_lines + data.count(b"\n", 0, at)
    raise undecodable(place, "utf-8", data[at], num_bytes + at, lines, guess)


def is_binary(data: bytes) -> bool:
    """Whether so many bytes are zero that it is no text, or UTF-16 without its mark."""
    return data.count(0) * 10 > len(data)


def has_escapes(data: bytes) -> bool:
    """Whether ASCII bytes may be those of an encoding that switches alphabets by escapes."""
    return _ISO_2022_JP.search(data) is not None


def _guess(data: bytes, final: bool) -> str | None:
    import charset_normalizer  # most files are UTF-8, and never come here

    first = next((index for index, byte in enumerate(data) if byte > 127), 0)
    sample = data[data.rfind(b"\n", 0, first) + 1 :][:_JUDGED]
    if len(sample) == _JUDGED:  # not to end within a character: the last line break, or the last byte of ASCII
        ends = (sample.rfind(b"\n"), max(map(sample.rfind, (b" ", b".", b",", b">", b'"'))))
        sample = sample[: next((end for end in ends if end > _JUDGED // 2), _JUDGED) + 1]
    best = charset_normalizer.from_bytes(sample).best()
    guess = _SUPERSETS.get(best.encoding, best.encoding) if best else None
    if guess in _JAPANESE:
        return _most_letters(data, ("cp932", "euc_jis_2004"), final)
    if guess in _RIVALS:
        return _most_letters(data, _RIVALS[guess], final)
    if guess in ("cp1251", "koi8_r", "mac_cyrillic") and (letters := _LETTERS.findall(data[:_SCORED])):
        # Hebrew's alphabet stands where cp1251 has small letters up to `ъ`; Russian has capitals, and letters behind.
        hebrew = sum(b"\xe0" <= letter <= b"\xfa" for letter in letters)
        others = sum(letter < b"\xe0" or letter in b"\xfb\xfc\xff" for letter in letters)
        if others * 100 < hebrew:
            return "cp1255" if hebrew >= _LEAST_HEBREW else None
    if guess is None or guess in ("gb18030", "big5hkscs", "johab"):
        scores = {encoding: _plausibility(data, encoding, final) for encoding in ("gb18030", "big5hkscs")}
        likely = max(scores, key=lambda encoding: scores[encoding])
        return likely if guess != "johab" and scores[likely] >= _PLAUSIBLE else guess
    return guess


def _is_certain(data: bytes, encoding: str, final: bool) -> bool:
    """Whether the text that `encoding` gives is of a script that no other encoding would show in its place."""
    text = _decoded(data, encoding, final)
    shown = "".join(character for character in (text or "")[:_SCORED] if not character.isascii())
    counts = letter_counts(shown)
    if counts.total() < _LEAST_LETTERS or next(iter(counts)) == "Latin" or counts["Latin"] * 10 > counts.total():
        return False
    return len(_UNLIKELY.findall(shown)) * 10 < len(shown)


def _decoded(data: bytes, encoding: str, final: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data, final)
    except UnicodeDecodeError:
        return None


def _most_letters(data: bytes, encodings: Sequence[str], final: bool) -> str | None:
    """The encoding that shows fewest signs among the letters; the first of equal ones."""
    texts = {encoding: _decoded(data, encoding, final) for encoding in encodings}
    scores = {
        encoding: sum(map(str.isalpha, text[:_SCORED])) - 2 * len(_UNLIKELY.findall(text[:_SCORED]))
        for encoding, text in texts.items()
        if text is not None
    }
    return max(scores, key=lambda encoding: scores[encoding], default=None)


def _plausibility(data: bytes, encoding: str, final: bool) -> float:
    """The share of two-byte characters that lie in the half of the encoding meant for frequent ones; 0 if invalid."""
    text = _decoded(data, encoding, final)
    if text is None:
        return 0.0
    first, last = (0xB0, 0xD7) if encoding == "gb18030" else (0xA4, 0xC6)
    han = [match[0].encode(encoding) for match, _ in zip(_WIDE.finditer(text), range(_SCORED), strict=False)]
    frequent = sum(first <= char[0] <= last and len(char) == 2 for char in han)
    return frequent / len(han) if han else 0.0


def undecodable(
    place: str, encoding: str, byte: int, offset: int, num_lines: int, guess: str | None = None
) -> FileError:
    """The refusal of bytes that `encoding` does not allow, with what they might be."""
    named = (
        f"perhaps {guess.upper().replace('_', '-')}, but others fit as well" if guess else "no other that is certain"
    )
    return FileError(
        f"{place} is not {encoding.upper()} text",
        found=f"byte 0x{byte:02x} at offset {offset}, line {num_lines + 1}"
        + (f"; {named}" if encoding == "utf-8" and byte else ""),
        expected="UTF-8, or another encoding that can be told for certain, the same to the end",
        run=f"iconv -f {guess.upper() if guess else 'ENCODING'} -t UTF-8 {place}",
    )
