"""The options of `yangtuo merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import HOW, InputPath, InputPaths, NonNegativeFloat, StageConfig, Words


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeConfig(StageConfig):
    """Folds adapters, and task vectors of other models, into their base, in order, and writes a whole model.

    Example: `yangtuo merge --base models/llama-7b-zh --adapter adapters/pretrain --output models/llama-7b-zh-merged`
    """

    verb: ClassVar[str] = "merge"
    following: ClassVar[str] = "yangtuo chat --model {output}"
    base: InputPath
    """The model that the first adapter was trained on: a directory or a hub id."""
    adapter: InputPaths = ()
    """Adapters in the order of their training: PEFT directories, .zip files or hub ids; repeatable."""
    add: Words = ()
    """A task vector, TUNED-BASE: what an instruct model learned beyond the base that --base grew from is added to it,
    in all old rows too; repeatable. Where names hold hyphens, put spaces around the minus."""
    scale: NonNegativeFloat = 1.0
    """How much of the task vectors is added."""
    lora_scale: NonNegativeFloat = 1.0
    """How much of what adapters add by LoRA is merged; rows that they trained go in whole. Less than 1 gives some of
    the base's own language back: docs/design/011-expansion.md has the line between the two."""
    output: Path
    """The model directory to write."""
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Number format of the written weights; keep writes that of the base."""
    shard_size: Annotated[str, HOW] = "2GB"
    """Largest size of one weight file, such as 500MB or 2GB."""
    prove: Annotated[str | None, HOW] = None
    """A text, or a file whose first 2,000 characters are taken, on which merged and unmerged logits are compared (or,
    where memory lacks, a sample of tensors)."""
