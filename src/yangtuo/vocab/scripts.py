"""Which characters new pieces may be made of, by Unicode script, so that all other text stays as it was.

A piece is accepted when at least one of its characters is proper to the wanted scripts and the rest may stand beside
them: text without those scripts then cannot meet it. Script names are those of Unicode's Scripts.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex  # type: ignore[import-untyped]

from yangtuo.errors import VocabularyError

# Without full-width digits and letters: digits and Latin stay as the base cuts them.
_CJK_PUNCTUATION = r"\u3000-\u303F\uFE30-\uFE4F\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
_SHARED_PUNCTUATION = "\u2018\u2019\u201c\u201d\u2026\u2014\u00b7"
_EAST_ASIAN = {"Han", "Hiragana", "Katakana", "Bopomofo"}
_UNSPACED = _EAST_ASIAN | {"Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}
_UTF8_LENGTH = {0xC: 2, 0xD: 2, 0xE: 3, 0xF: 4}
BLANK = "\u2581"


@dataclass(frozen=True)
class Scripts:
    """A compiled choice of scripts."""

    names: tuple[str, ...]
    own: Any
    """Pattern of one character that is proper to the scripts."""
    run: Any
    """Pattern of a stretch of text from which pieces are learned."""
    whole: Any
    """Pattern that all of an acceptable piece matches."""
    takes_blank: bool
    """Whether words are parted by blanks, so that a piece may start with one."""

    def runs(self, text: str) -> list[str]:
        """The stretches of `text` that pieces may be learned from, in order."""
        return list(self.run.findall(text))

    def accepts(self, piece: str) -> bool:
        """Whether `piece` (blanks written as U+2581) may become a new piece."""
        return self.whole.fullmatch(piece) is not None and self.own.search(piece) is not None

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
        owned = sum(bool(one) and self.own.match(one) is not None for one in candidates)
        return 3 * owned > len(candidates)

    def share(self, text: str) -> float:
        """The share of the characters of `text` that are proper to the scripts, 0 for none."""
        return len(self.own.findall(text)) / len(text) if text else 0.0


def compile_scripts(names: Sequence[str]) -> Scripts:
    """Patterns for Unicode scripts such as Han, Cyrillic or Thai; raises `VocabularyError` for an unknown one."""
    for name in names:
        try:
            regex.compile(rf"\p{{Script={name}}}")
        except regex.error as error:
            raise VocabularyError(
                f"{name} is not a Unicode script", expected="a name such as Han, Hangul, Cyrillic, Arabic or Thai"
            ) from error
    if not names:
        raise VocabularyError("no script is given", expected="at least one, such as Han")
    letters = "".join(rf"\p{{Script={name}}}" for name in names)
    east_asian = bool(_EAST_ASIAN & set(names))
    punctuation = _CJK_PUNCTUATION if east_asian else ""
    lead = "" if set(names) <= _UNSPACED else f"[ {BLANK}]?"
    runs = f"{lead}[{letters}]+" + (f"|[{punctuation}]+" if punctuation else "")
    beside = _SHARED_PUNCTUATION if east_asian else ""
    return Scripts(
        names=tuple(names),
        own=regex.compile(f"[{letters}{punctuation}]"),
        run=regex.compile(runs),
        whole=regex.compile(f"{lead}[{letters}{punctuation}{beside}]+"),
        takes_blank=bool(lead),
    )
