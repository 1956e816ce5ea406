"""Text out of a stream of token ids: whole characters only, ended by stop strings.

It knows tokenizers and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from yangtuo.vocab.encoding import Encoder

_REPLACEMENT = "\ufffd"
_CONTEXT = 6
"""So many tokens before the new ones are decoded with them, for the whitespace at the seam."""
_LONGEST_CHARACTER = 4
"""UTF-8 never needs more bytes; more tokens than this that give no character never will."""


class Detokenizer:
    """Turns ids into text as they come; a character spread over several tokens is held back until it is whole.

    `prompt` is what the ids continue: without it, SentencePiece would drop the space before the first word.
    """

    def __init__(self, encoder: Encoder, prompt: Sequence[int] = ()) -> None:
        self._encoder = encoder
        self._context = list(prompt[-_CONTEXT:])
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come."""
        self._new.append(token)
        text = self._text()
        if text.endswith(_REPLACEMENT) and len(self._new) <= _LONGEST_CHARACTER:
            return ""
        if text:
            self._context = [*self._context, *self._new][-_CONTEXT:]
            self._new = []
        return text

    def finish(self) -> str:
        """What was held back, without the half of a character at its end."""
        text = self._text().rstrip(_REPLACEMENT) if self._new else ""
        self._new = []
        return text

    def _text(self) -> str:
        before = self._encoder.decode(self._context) if self._context else ""
        return self._encoder.decode([*self._context, *self._new])[len(before) :]


class StopStrings:
    """Passes text on until one of `stops` has come; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text before a stop string, as far as it is certain; nothing once one has come."""
        if self.stopped:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._take(min(places))
        length = len(self._held)
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for start in range(max(0, length - longest), length):
            if any(stop.startswith(self._held[start:]) for stop in self._stops):
                return self._take(start)
        return self._take(length)

    def finish(self) -> str:
        """What was held back, where no stop string came of it."""
        return "" if self.stopped else self._take(len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
