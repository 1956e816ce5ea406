"""The options of `yangtuo evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import HOW, InputPaths, Positive, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StageConfig):
    """Measures models: bits per byte of text, or questions answered.

    Example: `yangtuo evaluate --model base --model adapted --suite bits-per-byte --data zh=held-out-zh --output scores`
    """

    verb: ClassVar[str] = "evaluate"
    model: InputPaths
    """A model as [NAME=]PATH: a directory or a hub id; repeatable, for a comparison."""
    suite: Literal["bits-per-byte", "questions"]
    """bits-per-byte reads text; questions asks each question of a JSON file and looks for its answers in the reply."""
    data: InputPaths
    """What to measure on, as [NAME=]PATH: text for bits-per-byte, JSON for questions; repeatable."""
    output: Path
    """The directory of results to write."""
    max_new_tokens: Positive = 64
    """Longest reply, in tokens (questions)."""
    batch_size: Annotated[Positive, HOW] = 16
    """Sequences in one forward pass."""
