"""Whether growing a vocabulary pays, said from measured figures. Knows no tokenizer, only its figures."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_GAIN = 1.25
"""Characters per token, new over base, below which sequences hardly get shorter."""


@dataclass(frozen=True)
class Advice:
    """A verdict and its reasons in one or two sentences."""

    pays: bool
    text: str


def advise(base_chars_per_token: float, chars_per_token: float, new_pieces: int) -> Advice:
    """Judges an expansion by the characters per token of text in the wanted script before and after it."""
    if not base_chars_per_token or not chars_per_token:
        return Advice(False, "No text in the wanted script was measured, so nothing can be said about the gain.")
    gain = chars_per_token / base_chars_per_token
    figures = f"{base_chars_per_token:.2f} → {chars_per_token:.2f} characters per token, {gain:.2f} times"
    if gain < _LEAST_GAIN:
        return Advice(
            False,
            f"Expansion is unlikely to pay: {figures}. The base already has the script; train it as it is.",
        )
    return Advice(True, f"{figures}: texts get {1 - 1 / gain:.0%} shorter in tokens for {new_pieces:,} new rows.")
