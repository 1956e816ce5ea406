"""The options of `yangtuo web`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter, validators

from yangtuo.config.options import InputPath, InputPaths, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WebConfig(StageConfig):
    """A page in the browser, in Chinese and English: chat, completion, and two models beside each other.

    Example: `yangtuo web --model models/llama-7b-zh-chat --listen-port 8080`
    """

    verb: ClassVar[str] = "web"
    following: ClassVar[str] = "yangtuo chat --model {model}"
    model: InputPath | None = None
    """The model: a directory, a GGUF file or a hub id."""
    server: str | None = None
    """Show what this server of the OpenAI API has instead, such as http://127.0.0.1:8000; its key in OPENAI_API_KEY."""
    adapter: InputPaths = ()
    """PEFT adapters: PATH, in the order of their training, on the model itself; NAME=PATH as a model of its own, to be
    compared; repeatable."""
    engine: Literal["auto", "transformers", "vllm", "llama.cpp"] = "auto"
    """What computes the replies of a model of our own, as in `yangtuo serve`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the arithmetic, as in `yangtuo chat`."""
    template: str | None = None
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3; the model's own when not given."""
    listen: Annotated[bool, Parameter(negative="")] = False
    """Listen on all addresses of this machine, not on loopback only; goes with --password."""
    password: str | None = None
    """What visitors have to give, under any name, or in the variable YANGTUO_PASSWORD."""
    listen_port: Annotated[int, Parameter(validator=validators.Number(gte=0, lt=1 << 16))] = 7860
    """The port of the page."""
