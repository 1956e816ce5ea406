"""The options of `yangtuo sft`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import HOW, DataPaths, InputPath, Positive, PositiveFloat
from yangtuo.config.training import TrainingConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainingConfig):
    """Fine-tunes on conversations; the loss counts answers only.

    Example: `yangtuo sft --model models/llama-7b-zh --data alpaca_zh.json --template alpaca --output adapters/sft`
    """

    verb: ClassVar[str] = "sft"
    following: ClassVar[str] = "yangtuo merge --base {model} --adapter {output} --output {output}-merged"
    data: DataPaths
    """Conversations as PATH[:WEIGHT] (json, jsonl, csv, parquet, gz, zst), shaped as Alpaca, instruct/query/answer,
    PromptCBLUE, ShareGPT or messages; a weight of 0.5 takes half of the usable rows, 2 takes them twice; repeatable."""
    template: str = "alpaca"
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3, or model for the model's own."""
    max_length: Positive = 512
    """Tokens in a block; longer conversations are cut, never the end of an answer."""
    replay: InputPath | None = None
    """A dataset that `yangtuo prepare` wrote with --max-length as its block size, as PATH[:WEIGHT]: so many blocks of
    text are read with each block of conversations, one if not given, and its held-out documents are measured."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate, after 3 % of warm-up."""
    epochs: PositiveFloat = 3.0
    """Passes over the conversations."""
    dry_run: Annotated[bool, HOW] = False
    """Write nothing: show what became of the rows, samples of the blocks as the model sees them, and the plan."""
