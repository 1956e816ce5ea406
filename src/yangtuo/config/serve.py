"""The options of `yangtuo serve`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter, validators

from yangtuo.config.options import InputPath, InputPaths, Positive, PositiveFloat, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServeConfig(StageConfig):
    """Serves a model over the OpenAI API: chat, completions, embeddings, streaming, metrics.

    Example: `yangtuo serve --model models/llama-7b-zh-chat --port 8000`
    """

    verb: ClassVar[str] = "serve"
    following: ClassVar[str] = "yangtuo chat --model {model}"
    model: InputPath
    """The model: a directory, a GGUF file or a hub id."""
    adapter: InputPaths = ()
    """PEFT adapters: PATH, in the order of their training, on the model itself; NAME=PATH as a model id of its own;
    repeatable."""
    engine: Literal["auto", "transformers", "vllm", "llama.cpp"] = "auto"
    """What computes the replies; auto takes vLLM on a GPU where it is installed, llama.cpp on a CPU for Llamas, else
    transformers."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the arithmetic; auto takes float32 on a CPU, and what is stored on a GPU. bfloat16 is faster
    on CPUs with AMX (lscpu says amx_bf16), and now and then replies differ."""
    template: str | None = None
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3; the model's own when not given."""
    host: str = "127.0.0.1"
    """The address to listen on; others than loopback should go with --api-key."""
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lt=1 << 16))] = 8000
    """The port to listen on; 0 takes a free one."""
    api_key: Words = ()
    """A key of which clients must send one; repeatable, or in the variable YANGTUO_API_KEY."""
    max_waiting: Positive = 256
    """Replies that may run or wait at a time; further ones are refused with status 429."""
    timeout: PositiveFloat = 600.0
    """Seconds that a reply may take."""
