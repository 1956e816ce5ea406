"""Which characters new pieces may be made of, by Unicode script, so that all other text stays as it was.

A piece is accepted when at least one of its characters is proper to the wanted scripts and the rest may stand beside
them: text without those scripts then cannot meet it. Scripts are those of Unicode's Scripts.txt and
ScriptExtensions.txt: the Japanese long-vowel mark, Arabic vowel marks and dandas belong to all scripts that use them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]
from fontTools import unicodedata as unicode

from yangtuo.errors import VocabularyError

DEFAULT_SCRIPTS = ("Han",)
ASCII = "ASCII"
"""Beside Latin: pieces may be made of English letters alone, too, and English is cut otherwise."""
# Without full-width digits and letters: digits and Latin stay as the base cuts them.
_CJK_PUNCTUATION = r"\u3000-\u303F\uFE30-\uFE4F\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
_SHARED_PUNCTUATION = "\u2018\u2019\u201c\u201d\u2026\u2014\u00b7"
_EAST_ASIAN = {"Han", "Hiragana", "Katakana", "Bopomofo"}
_SOUTH_EAST_ASIAN = {"Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"}
_UNSPACED = _EAST_ASIAN | _SOUTH_EAST_ASIAN | {"Tibetan", "Yi", "Javanese", "Balinese", "Tangut", "Nushu"}
_JOINERS = r"\u200c\u200d"
_WORD_BREAK = r"\u200b"  # zero-width space, which Khmer, Thai, Lao and Burmese put between words
_UTF8_LENGTH = {0xC: 2, 0xD: 2, 0xE: 3, 0xF: 4}
BLANK = "\u2581"

_NAMES = {
    name.lower(): name for name in unicode.Scripts.NAMES.values() if name not in ("Common", "Inherited", "Unknown")
}
_CODES = {code.lower(): name for code, name in unicode.Scripts.NAMES.items() if name in _NAMES.values()}
_MIXED = {
    "jpan": ("Han", "Hiragana", "Katakana"),
    "kore": ("Hangul", "Han"),
    "hans": ("Han",),
    "hant": ("Han",),
    "hanb": ("Han", "Bopomofo"),
    "hrkt": ("Hiragana", "Katakana"),
}
"""ISO 15924's codes of several scripts."""
# ISO 639 code of a language -> ISO 15924 code of its usual script, as in CLDR's likely subtags.
_LANGUAGES = {
    language: code
    for code, languages in {
        "Arab": "ar arz ary azb ckb fa ks ps sd ug ur",
        "Armn": "hy hyw",
        "Beng": "as bn",
        "Cans": "cr iu oj",
        "Cher": "chr",
        "Cyrl": "ab ba be bg ce cv kk ky mk mn os ru sah sr tg tt tyv uk",
        "Deva": "awa bho brx doi hi kok mai mr ne new sa",
        "Ethi": "am ti tig",
        "Geor": "ka xmf",
        "Grek": "el",
        "Gujr": "gu",
        "Guru": "pa",
        "Hans": "zh wuu",
        "Hant": "yue nan",
        "Hebr": "he yi",
        "Jpan": "ja",
        "Khmr": "km",
        "Knda": "kn tcy",
        "Kore": "ko",
        "Laoo": "lo",
        "Latn": "af ast az bs br ca cs cy da de eo es et eu fi fil fr fy ga gd gl gn ha haw hr ht hu id ig is it jv "
        "kmr ku la lb ln lt lv mg mi ms mt nb nl nn no nso oc om pl pt qu rm ro rw sk sl sn so sq ss st su sv sw tk tl "
        "tn tr ts uz ve vi wo xh yo zu",
        "Mlym": "ml",
        "Mymr": "my shn mnw",
        "Nkoo": "nqo",
        "Olck": "sat",
        "Orya": "or",
        "Sinh": "si",
        "Taml": "ta",
        "Telu": "te",
        "Tfng": "ber shi zgh",
        "Thaa": "dv",
        "Thai": "th",
        "Tibt": "bo dz",
        "Yiii": "ii",
    }.items()
    for language in languages.split()
}


@dataclass(frozen=True)
class Scripts:
    """A compiled choice of scripts."""

    names: tuple[str, ...]
    own: Any
    """Pattern of one character that is proper to the scripts."""
    letter: Any
    """Pattern of one character that words are made of and begin with."""
    run: Any
    """Pattern of a stretch of text from which pieces are learned."""
    whole: Any
    """Pattern that all of an acceptable piece matches."""
    takes_blank: bool
    """Whether words are parted by spaces, so that a piece may start with one."""

    @property
    def share_base(self) -> bool:
        """Whether pieces may be made of English letters alone, so that English is cut otherwise."""
        return ASCII in self.names

    def runs(self, text: str) -> list[str]:
        """The stretches of `text` that pieces may be learned from, in order."""
        return list(self.run.findall(text))

    def accepts(self, piece: str) -> bool:
        """Whether `piece` (spaces written as U+2581) may become a new piece."""
        return self.whole.fullmatch(piece) is not None and self.own.search(piece) is not None

    def stands_in(self, piece: str) -> bool:
        """Whether `piece`, of whatever characters, may be part of a new piece."""
        return self.whole.fullmatch(piece) is not None or (self.takes_blank and piece in (" ", BLANK))

    def borrowed(self, piece: str) -> str:
        """The characters of `piece` that are not proper to the scripts: only a base that has them can join them."""
        return str(self.own.sub("", piece)).replace(BLANK, "")

    def begins(self, complete: bytes, partial: bytes) -> bool:
        """Whether UTF-8 `complete` is acceptable or empty, and a third of the characters that begin with `partial` are.

        Not all of them, for full-width punctuation shares its block with full-width digits and letters.
        """
        if complete and not self.accepts(complete.decode("utf-8")):
            return False
        missing = _UTF8_LENGTH.get(partial[0] >> 4, 0) - len(partial)
        if missing not in (1, 2):
            return False
        tails = [bytes([a]) if missing == 1 else bytes([a, 0x9F]) for a in range(0x80, 0xC0)]
        candidates = [(partial + tail).decode("utf-8", errors="ignore") for tail in tails]
        owned = sum(bool(candidate) and self.own.match(candidate) is not None for candidate in candidates)
        return 3 * owned > len(candidates)

    def share(self, text: str) -> float:
        """The share of the characters of `text` that are proper to the scripts, 0 for none."""
        return len(self.own.findall(text)) / len(text) if text else 0.0


def scripts_of_language(tag: str) -> tuple[str, ...]:
    """The scripts of a language by its BCP 47 tag, such as ja, ko, zh-TW or sr-Latn; raises `VocabularyError`."""
    parts = tag.replace("_", "-").split("-")
    written = next((part for part in parts[1:] if len(part) == 4), None)
    code = written or _LANGUAGES.get(parts[0].lower(), "")
    names = _MIXED.get(code.lower()) or tuple(name for name in (_CODES.get(code.lower()),) if name)
    if not names:
        raise VocabularyError(
            f"the script of language {tag!r} is not known here",
            expected="a tag such as ja, ko, zh, hi, ar or sr-Latn",
            run="the same command with --script instead of --language",
        )
    return names


def compile_scripts(names: Sequence[str]) -> Scripts:
    """Patterns for Unicode scripts such as Han, Cyrillic or Thai; raises `VocabularyError` for an unknown one."""
    names = tuple(dict.fromkeys(name for given in names for name in _resolve(given)))
    if not names:
        raise VocabularyError("no script is given", expected="at least one, such as Han")
    real = [name for name in names if name != ASCII]
    # What Latin shares is English's, too; of Latin itself only what English lacks is proper to another language.
    shared = r"[\p{ASCII}\p{scx=Latin}]" if "Latin" not in real else r"\p{ASCII}"
    taken = "".join(rf"\p{{Script={name}}}" for name in real)
    extended = "".join(rf"\p{{scx={name}}}" for name in real)
    letters = rf"[[{taken}[[{extended}]--[\p{{P}}\p{{S}}]--\p{{scx=Latin}}]]--{shared}]" if real else ""
    if "Latin" in real:
        letters = rf"[[{taken}{extended}]--\p{{ASCII}}--[\p{{P}}\p{{S}}]]"
    if ASCII in names:
        letters = f"[{letters}A-Za-z]"
    signs = rf"[[[{extended}]&&[\p{{P}}\p{{S}}]]--[{taken}]--[\p{{ASCII}}\p{{scx=Latin}}]]" if real else ""
    east_asian = bool(_EAST_ASIAN & set(names))
    if east_asian:
        signs = f"[{signs}{_CJK_PUNCTUATION}]"
    own = f"[{letters}{signs}]"
    joined = r"\p{M}" + _JOINERS + (_WORD_BREAK if _SOUTH_EAST_ASIAN & set(names) else "")
    beside = "A-Za-z" if "Latin" in real else ""
    lead = "" if set(names) <= _UNSPACED else f"[ {BLANK}]?"
    word = (
        f"{lead}[{beside}]*{letters}[{letters}{joined}{beside}]*" if beside else f"{lead}{letters}[{letters}{joined}]*"
    )
    return Scripts(
        names=names,
        own=_compile(own),
        letter=_compile(letters or own),
        run=_compile(word + (f"|{signs}+" if signs else "")),
        whole=_compile(f"{lead}[{own}{joined}{beside}{_SHARED_PUNCTUATION if east_asian else ''}]+"),
        takes_blank=bool(lead),
    )


def _compile(pattern: str) -> Any:
    return regex.compile("(?V1)" + pattern)


def _resolve(name: str) -> tuple[str, ...]:
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key == ASCII.lower():
        return (ASCII,)
    if key in _MIXED:
        return _MIXED[key]
    if known := _NAMES.get(key) or _CODES.get(key):
        return (known,)
    near = get_close_matches(key, _NAMES, 1)
    raise VocabularyError(
        f"{name} is not a Unicode script" + (f"; did you mean {_NAMES[near[0]]}?" if near else ""),
        expected="a name such as Han, Hangul, Cyrillic, Arabic or Thai",
    )


def writes_spaces(script: str) -> bool:
    """Whether words of this script are parted by spaces."""
    return script not in _UNSPACED


@lru_cache(maxsize=1)
def script_table() -> tuple[list[str], npt.NDArray[np.uint8]]:
    """All names of Unicode scripts, and for every code point the index of its own."""
    names = list(
        dict.fromkeys(unicode.Scripts.NAMES[code] for code in ("Zyyy", "Zinh", "Zzzz", *unicode.Scripts.NAMES))
    )
    indices = {name: index for index, name in enumerate(names)}
    table = np.zeros(0x110000, dtype=np.uint8)
    ends = [*unicode.Scripts.RANGES[1:], 0x110000]
    for begin, end, code in zip(unicode.Scripts.RANGES, ends, unicode.Scripts.VALUES, strict=True):
        table[begin:end] = indices[unicode.Scripts.NAMES[code]]
    return names, table


def letter_counts(text: str) -> Counter[str]:
    """How many characters of each script `text` holds, the most frequent first; what scripts share is left out."""
    names, table = script_table()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    counts = np.bincount(table[codes], minlength=len(names))
    counts[:3] = 0  # common, inherited, unknown
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return Counter({names[index]: int(counts[index]) for index in order})
