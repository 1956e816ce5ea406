"""Whether growing a vocabulary pays, said from measured figures. Knows no tokenizer, only its figures."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_GAIN = 1.25
"""Characters per token, new over base, below which sequences hardly get shorter: Llama 3 gets 1.10 with 4,000."""
_TOKENS_PER_ROW = 64
"""Tokens of training that a new row needs. Measured on stories260K with 2,500 new rows: 11.45 bits a byte of Chinese at
the start, then 3.88, 3.48, 3.41 and 3.31 after 8, 16, 33 and 66 tokens a row (benchmarks/results, expand-init)."""
_PRICE = (
    "Its price, measured: SmolLM2-135M, which reads Chinese in pieces of its own, needs 0.90 times the base's bits "
    "after `expand --text`, with 1,000 new ones (1.7 times the characters a token) as with 4,000 (2.1 times). After "
    "training on the same text it needs 0.99 and 1.00 times those of LoRA in the base's own tokens with 49 thousand "
    "of these, 1.03 and 1.05 with 500 thousand, in 0.73 and 0.56 of the time. A small base that spells Chinese in "
    "bytes was ahead at once with 1,000 (2.6 times), in windows of as many tokens."
)
_WITHOUT = "Without an expansion: `yangtuo prepare` and `yangtuo pretrain --embeddings frozen` with the base itself."


@dataclass(frozen=True)
class Advice:
    """A verdict and its reasons in one or two sentences."""

    pays: bool
    text: str


def advise(
    base_chars_per_token: float, chars_per_token: float, new_pieces: int, training_tokens: int | None = None
) -> Advice:
    """Judges an expansion by the characters per token of text in the wanted script before and after it.

    That it pays means that tokens are saved, for a price in quality that is said too. `training_tokens` is how much
    training is planned; without it nothing is said about whether that is enough.
    """
    if not base_chars_per_token or not chars_per_token:
        return Advice(False, "No text in the wanted script was measured, so nothing can be said about the gain.")
    gain = chars_per_token / base_chars_per_token
    figures = f"{base_chars_per_token:.2f} → {chars_per_token:.2f} characters per token, {gain:.2f} times"
    if gain < _LEAST_GAIN:
        return Advice(
            False,
            f"Expansion is unlikely to pay: {figures}. The base already has the script; train it as it is.",
        )
    shorter = f"{figures}: texts get {1 - 1 / gain:.0%} shorter in tokens for {new_pieces:,} new rows."
    if training_tokens is not None and training_tokens < _TOKENS_PER_ROW * new_pieces:
        return Advice(
            False,
            f"Expansion is unlikely to pay with this training: {shorter} {_PRICE} New rows still gained at "
            f"{_TOKENS_PER_ROW} tokens a row where it was measured; {training_tokens:,} tokens are "
            f"{training_tokens / new_pieces:.1f}. Train on {_TOKENS_PER_ROW * new_pieces:,} tokens, or learn "
            f"{training_tokens // _TOKENS_PER_ROW:,} pieces at most. {_WITHOUT}",
        )
    return Advice(True, f"Expansion saves cost: {shorter} {_PRICE} For the best quality leave it. {_WITHOUT}")
