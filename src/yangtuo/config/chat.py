"""The options of `yangtuo chat`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import InputPath, NonNegativeFloat, Positive, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatConfig(StageConfig):
    """Talks with a model in the terminal.

    Example: `yangtuo chat --model models/llama-7b-zh-chat --once 你好`
    """

    verb: ClassVar[str] = "chat"
    model: InputPath
    """The model: a directory or a hub id."""
    adapter: InputPath | None = None
    """A PEFT adapter to put on the model."""
    engine: Literal["auto", "transformers"] = "auto"
    """What computes the replies."""
    once: str | None = None
    """Say this, print the reply and end."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token every time; higher values choose more freely."""
