"""The options that pretrain and sft share."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from yangtuo.config.options import (
    HOW,
    NO_OUTPUT,
    InputPath,
    NonNegative,
    NonNegativeFloat,
    OutputUnlessDry,
    Positive,
    PositiveFloat,
    Seed,
    Share,
    StageConfig,
    Words,
)

_WHOLE_RATE = 2e-5


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StageConfig):
    """What pretrain and sft share."""

    usual_rate: ClassVar[float] = 2e-4
    model: InputPath
    """The model to train: a directory or a hub id."""
    output: OutputUnlessDry = NO_OUTPUT
    """The adapter directory to write; a dry run needs none."""
    adapter: InputPath | None = None
    """An earlier adapter of the same model to go on from; its own shape then holds."""
    embeddings: Literal["full", "new", "frozen"] | None = None
    """Which rows of embedding and head are trained: all, those of new pieces only, or none. When not given, the new
    ones where `yangtuo expand` made some, else all."""
    rank: NonNegative = 64
    """Rank of the LoRA matrices; 0 trains the whole model instead, and writes a model in place of an adapter."""
    alpha: PositiveFloat = 128
    """LoRA's alpha: updates are scaled by alpha / rank, or by alpha / sqrt(rank) with --lora use_rslora=true."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate, after the warm-up. When not given, 2e-4, or 2e-5 for a whole model."""
    embedding_learning_rate: PositiveFloat | None = None
    """Peak learning rate of embedding and head. When not given: for rows as expand placed them 15 % (head 4 %) of the
    matrix's deviation, for new rows trained before 2.5 times the rest, for all rows the same as the rest."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the Kullback-Leibler divergence from the model as it was, beside the loss, in documents with hardly any
    new tokens (in sft, those of --replay): an expanded model keeps more of its old language. 1 is a good start."""
    warmup: Share = 0.03
    """Share of the steps in which learning rates rise to their peak."""
    epochs: PositiveFloat = 1.0
    """Passes over the data."""
    max_steps: Positive | None = None
    """Optimizer steps in all, whatever the passes."""
    batch_size: Positive = 8
    """Blocks in an optimizer step, over all processes: the result does not depend on how many there are."""
    micro_batch: Annotated[Positive | None, HOW] = None
    """Blocks in one forward pass of one process; fewer need less memory. Its whole share when not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    """Arithmetic of the forward pass; auto takes bfloat16 where the device has it, nf4 also stores the frozen weights
    in 4 bits (QLoRA, needs bitsandbytes), float16 needs a GPU. Trained tensors are float32."""
    attention: Annotated[Literal["auto", "sdpa", "eager", "flash_attention_2"], HOW] = "auto"
    """What computes attention; auto takes what is fastest here and equal to transformers' own, flash_attention_2 needs
    a GPU and the package flash-attn, and pays from 4,096 tokens a block."""
    gradient_checkpointing: Annotated[bool, HOW] = False
    """Compute each layer again in the backward pass: a third slower, a fraction of the memory."""
    sharding: Annotated[Literal["none", "zero2", "zero3", "fsdp2"], HOW] = "none"
    """Under torchrun or accelerate: what the processes share; none is plain data parallelism."""
    bound: Words = ()
    """NAME=SHARE: end where held-out bits per byte of source NAME are worse than before by more than SHARE, such as
    en=0.05, and keep the best adapter that was not; repeatable."""
    keep: Literal["last", "best"] = "last"
    """Which adapter is kept: that of the last step, or of the best held-out measurement."""
    patience: Positive | None = None
    """End after so many held-out measurements in a row that are no better than the best."""
    save_every: Positive = 500
    """Optimizer steps between checkpoints."""
    eval_every: Positive | None = None
    """Optimizer steps between held-out measurements; as many as between checkpoints when not given."""
    seed: Seed = 0
    """Seed of initialisation and of the order of blocks."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "swanlab"], ...], HOW, Parameter(negative="")] = ()
    """Trackers that are told loss, rates and measurements, beside metrics.jsonl; TensorBoard's files go to
    OUTPUT.tensorboard; repeatable."""
    trainer: Words = ()
    """KEY=VALUE for a field of HF's TrainingArguments, such as weight_decay=0.1, optim=adafactor or
    lr_scheduler_type=cosine (rates fall in a line when not given); repeatable."""
    lora: Words = ()
    """KEY=VALUE for a field of PEFT's LoraConfig, such as use_dora=true, lora_dropout=0.05 or
    target_modules=["q_proj","v_proj"]; repeatable."""

    def resolved(self) -> dict[str, Any]:
        """All options by name, with the learning rate that is taken where none was given."""
        usual = self.usual_rate if self.rank else _WHOLE_RATE
        return {**vars(self), "learning_rate": self.learning_rate or usual}

    def next_command(self, result: Mapping[str, Any]) -> str | None:
        """A whole model needs no merge."""
        is_whole = not self.rank and not getattr(self, "dry_run", False)
        return f"yangtuo chat --model {shlex.quote(str(self.output))}" if is_whole else super().next_command(result)
