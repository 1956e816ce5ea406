"""The options of `yangtuo predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import HOW, InputPath, InputPaths, NonNegativeFloat, Positive, StageConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PredictConfig(StageConfig):
    """Answers a file of questions, in its order; a run that was stopped goes on where it was.

    Example: `yangtuo predict --model models/llama-7b-zh-chat --input test.json --output predictions.jsonl`
    """

    verb: ClassVar[str] = "predict"
    following: ClassVar[str] = "yangtuo evaluate --predictions {output} --suite SUITE --data {input}"
    model: InputPath | None = None
    """The model: a directory, a GGUF file or a hub id; with --server, the model id there."""
    server: str | None = None
    """Ask this server of the OpenAI API instead, such as http://127.0.0.1:8000; its key in OPENAI_API_KEY."""
    adapter: InputPaths = ()
    """PEFT adapters to put on the model, in the order of their training; repeatable."""
    engine: Literal["auto", "transformers", "vllm", "llama.cpp"] = "auto"
    """What computes the replies of a model of our own, as in `yangtuo chat`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the arithmetic, as in `yangtuo chat`."""
    template: str | None = None
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3; the model's own when not given."""
    input: InputPath
    """Questions: lines of a txt, or rows (jsonl, json, csv, parquet) as Alpaca, instruct/query/answer, PromptCBLUE,
    messages or prompt; answers in them are not shown to the model."""
    output: Path
    """The .jsonl to write: the input's rows with prediction and finish_reason; settings go beside it."""
    submission: Annotated[bool, Parameter(negative="")] = False
    """Also write a .zip beside the output as PromptCBLUE's competition takes it."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token every time."""
    seed: int = 0
    """Seed of the choice; each row has its own, whatever is asked beside it."""
    concurrency: Annotated[Positive, HOW] = 16
    """Questions that are asked at a time."""
