"""The options of `yangtuo chat`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import InputPath, InputPaths, NonNegativeFloat, Positive, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ChatConfig(StageConfig):
    """Talks with a model in the terminal.

    Example: `yangtuo chat --model models/llama-7b-zh-chat --once 你好`
    """

    verb: ClassVar[str] = "chat"
    model: InputPath
    """The model: a directory, a GGUF file or a hub id."""
    adapter: InputPaths = ()
    """PEFT adapters to put on the model, in the order of their training; repeatable."""
    engine: Literal["auto", "transformers", "vllm", "llama.cpp"] = "auto"
    """What computes the replies; auto takes vLLM on a GPU where it is installed, llama.cpp on a CPU for Llamas, else
    transformers."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the arithmetic; auto takes float32 on a CPU, and what is stored on a GPU. bfloat16 is faster
    on CPUs with AMX (lscpu says amx_bf16), and now and then replies differ."""
    once: str | None = None
    """Say this, print the reply and end."""
    with_prompt: bool | None = None
    """Ask in the model's chat template (Alpaca's where it has none), or have the text itself continued. When not given,
    a model with a template is asked in it, and a base model continues."""
    system: str | None = None
    """What the conversation begins with, instead of the template's own system prompt."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token every time; higher values choose more freely."""
    seed: int | None = None
    """Seed of the choice."""
