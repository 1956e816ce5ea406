"""The protocol that every engine speaks: token ids in, token ids out.

An engine knows no text, no prompt format and no tokenizer; `inference.conversation` puts those around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    """Any of these ends a reply; it is not part of it."""
    seed: int | None = None


class Engine(Protocol):
    """Computes replies."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Continues each prompt; returns the new ids alone, without the stop id."""
        ...

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Continues one prompt, yielding each new id as it comes; closing the iterator stops the work."""
        ...
