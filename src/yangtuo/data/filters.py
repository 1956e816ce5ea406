"""What a text passes before it is tokenised, in this order: cleaning, then decontamination.

Repeated documents are found later, when all are known. Knows texts only.
"""

from __future__ import annotations

from dataclasses import dataclass

from yangtuo.data.clean import Filtered, clean
from yangtuo.data.decontaminate import Exam


@dataclass(frozen=True)
class Filters:
    """Which filters run."""

    clean: bool
    exam: Exam | None

    def apply(self, text: str, removed: Filtered) -> str:
        """What is left of `text`; what went is counted in `removed`."""
        if self.clean:
            text = clean(text, removed)
        if self.exam is not None:
            text, lines = self.exam.clean(text)
            for line in lines:
                removed.add("lines of evaluation sets", 1, line.strip())
        return text
