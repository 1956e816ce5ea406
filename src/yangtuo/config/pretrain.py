"""The options of `yangtuo pretrain`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cyclopts import Parameter

from yangtuo.config.options import COMMAND, HOW, InputPath
from yangtuo.config.training import TrainingConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Continues pre-training: LoRA on all linear layers, with embeddings and head trained.

    Example: `yangtuo pretrain --model models/llama-7b-zh --data data --output adapters/pretrain`
    """

    verb: ClassVar[str] = "pretrain"
    following: ClassVar[str] = "yangtuo merge --base {model} --adapter {output} --output {output}-merged"
    data: InputPath
    """The dataset that `yangtuo prepare` wrote with the model's tokenizer."""
    dry_run: Annotated[bool, HOW, COMMAND] = False
    """Write nothing: show samples of the blocks as the model sees them, and the plan."""
