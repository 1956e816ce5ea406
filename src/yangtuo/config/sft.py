"""The options of `yangtuo sft`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import COMMAND, HOW, DataPaths, InputPath, Positive, PositiveFloat, Share
from yangtuo.config.training import TrainingConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainingConfig):
    """Fine-tunes on conversations; the loss counts answers only.

    Example: `yangtuo sft --model models/llama-7b-zh --data alpaca_zh.json --template alpaca --output adapters/sft`
    """

    verb: ClassVar[str] = "sft"
    following: ClassVar[str] = "yangtuo merge --base {model} --adapter {output} --output {output}-merged"
    usual_rate: ClassVar[float] = 1e-4
    data: DataPaths
    """Conversations as PATH[:WEIGHT] (json, jsonl, csv, parquet, gz, zst), shaped as Alpaca, Dolly, prompt/completion,
    question/answer, PromptCBLUE, ShareGPT or messages, with tools too; a weight of 0.5 takes half of the usable rows,
    2 takes them twice; repeatable."""
    columns: str | None = None
    """For rows of any other shape: question=COLUMN,answer=COLUMN, and system=, input=, history= where there are any."""
    template: str | None = None
    """How prompts are written: alpaca, alpaca-2, chatml, llama-3, chatglm, chatglm-rounds, or model for the model's
    own. When not given, the model's own where it has one, else alpaca."""
    max_length: Positive = 512
    """Tokens in a block, and the most of a conversation."""
    too_long: Literal["cut", "drop"] = "cut"
    """What becomes of longer conversations: cut at the end, where the answer then has no EOS, or dropped."""
    held_out: Share | None = None
    """Share of the conversations whose answers are measured and not learned. When not given, 2 % of a thousand or
    more."""
    replay: InputPath | None = None
    """A dataset that `yangtuo prepare` wrote with --max-length as its block size, as PATH[:WEIGHT]: so many blocks of
    text are read with each block of conversations, one if not given, and its held-out documents are measured."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate, after the warm-up. When not given, 1e-4, or 2e-5 for a whole model."""
    epochs: PositiveFloat = 3.0
    """Passes over the conversations."""
    dry_run: Annotated[bool, HOW, COMMAND] = False
    """Write nothing: show what became of the rows, samples of the blocks as the model sees them, and the plan."""
