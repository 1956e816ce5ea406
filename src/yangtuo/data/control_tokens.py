"""The control tokens of a tokenizer as texts, and how a message is shown to a template without becoming one.

`hide` puts marks in the place of control tokens' texts, `veil` writes the rest in letters that none has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yangtuo.vocab.encoding import Encoder

MARK_BEGIN, MARK_END = "\ue000", "\ue001"
HIDDEN = re.compile(f"({MARK_BEGIN}\\d+{MARK_END})")  # without spaces, which here are the message's own


@dataclass(frozen=True)
class Controls:
    """The control tokens of a tokenizer."""

    ids: dict[str, int]
    pattern: re.Pattern[str]
    bos: str
    eos: str
    eos_id: int | None

    @cached_property
    def hidden(self) -> list[str]:
        """What must not stand in a message while a template is rendered: control tokens' texts, and our marks."""
        return [*self.ids, MARK_BEGIN, MARK_END]

    def hide(self, text: str) -> str:
        """The text with marks in the place of what is `hidden`; they count in its order."""
        pattern = re.compile("|".join(map(re.escape, self.hidden)))
        return pattern.sub(lambda match: f"{MARK_BEGIN}{self.hidden.index(match[0])}{MARK_END}", text)

    @cached_property
    def _veils(self) -> dict[int, int]:
        """A private character for each that control tokens are written with."""
        letters = sorted({letter for text in self.ids for letter in text if not letter.isspace()})
        return {ord(letter): 0xF0000 + number for number, letter in enumerate(letters)}

    def veil(self, text: str) -> str:
        """The text so written that no part of it is one of a control token, whatever a template does to it."""
        parts = HIDDEN.split(text)  # every second is a mark
        return "".join(part if number % 2 else part.translate(self._veils) for number, part in enumerate(parts))

    def unveil(self, text: str) -> str:
        """Undoes `veil`."""
        return text.translate({veil: letter for letter, veil in self._veils.items()})


_CONTROLS: dict[tuple[str, int | None, int | None], Controls] = {}


def find_controls(encoder: Encoder) -> Controls:
    """The control tokens of a tokenizer, found once."""
    key = (encoder.fingerprint, encoder.bos_id, encoder.eos_id)
    if key not in _CONTROLS:
        texts = sorted((text for text in encoder.controls if text), key=len, reverse=True)
        _CONTROLS[key] = Controls(
            ids={text: encoder.controls[text] for text in texts},
            pattern=re.compile("|".join(map(re.escape, texts)) or r"(?!)"),
            bos="" if encoder.bos_id is None else encoder.pieces[encoder.bos_id],
            eos="" if encoder.eos_id is None else encoder.pieces[encoder.eos_id],
            eos_id=encoder.eos_id,
        )
    return _CONTROLS[key]
