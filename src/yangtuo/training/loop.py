"""The one training loop: Hugging Face's Trainer over blocks of tokens, for pretraining and fine-tuning alike.

It drives, saves, resumes and measures; it knows nothing of text, templates, artifacts or our config classes. Batches
are a pure function of the seed (see `order`), so a run that was killed goes on with the very next batch.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from yangtuo import console
from yangtuo.errors import TrainingError
from yangtuo.training import adapter, checkpoints, held_out
from yangtuo.training.journal import Journal
from yangtuo.training.order import OrderedBlocks

WARMUP_SHARE = 0.03
CHECKPOINTS = "checkpoints"
_MEASURED_TOKENS = 1 << 17  # held-out tokens a source that are measured while training runs

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes; `batch_size` counts blocks in an optimizer step over all processes."""

    learning_rate: float
    embedding_learning_rate: float | None = None
    epochs: float = 1.0
    batch_size: int = 8
    micro_batch: int | None = None
    """Blocks in one forward pass of one process; its whole share of the batch when None."""
    dtype: Dtype = "auto"
    save_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a run came to; the figures do not depend on the clock."""

    steps: int
    tokens: int
    first_loss: float
    last_loss: float
    """Mean training loss of the first and of the last tenth of the steps, at most 20 steps each, in nats a token."""
    bits_per_byte_before: dict[str, float]
    bits_per_byte_after: dict[str, float]

    def details(self) -> dict[str, Any]:
        """The figures as the manifest keeps them, rounded."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "first_loss": round(self.first_loss, 4),
            "last_loss": round(self.last_loss, 4),
            "bits_per_byte_before": {name: round(value, 4) for name, value in self.bits_per_byte_before.items()},
            "bits_per_byte_after": {name: round(value, 4) for name, value in self.bits_per_byte_after.items()},
        }


def compute_dtype(name: Dtype) -> torch.dtype:
    """The arithmetic of the forward pass: "auto" takes bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def train(
    model: PeftModel,
    blocks: Any,
    sources: Sequence[held_out.Documents],
    settings: Settings,
    directory: Path,
) -> Outcome:
    """Trains the adapter of `model` on `blocks` and leaves it, whole, in `directory`.

    `blocks` is a map-style dataset of `input_ids`, `labels` (-100 where nothing is learned; shifted by the loss) and
    `position_ids` (restarting at each document), all of one length. Checkpoints stand in `directory/checkpoints` until
    the run ends; where some are there already, the run goes on from the last whole one.
    """
    if len(blocks) == 0:
        raise TrainingError("there is nothing to train on", found="0 blocks", expected="at least one block of tokens")
    num_steps = max(1, math.ceil(settings.epochs * len(blocks) / settings.batch_size))
    ordered = OrderedBlocks(blocks, num_steps * settings.batch_size, settings.seed)
    block_size = len(blocks[0]["input_ids"])
    resumed = checkpoints.latest_complete(directory / CHECKPOINTS)
    journal = Journal(directory, checkpoints.step_of(resumed) if resumed else 0)
    arguments = _arguments(settings, num_steps, directory / CHECKPOINTS)
    measures = [
        held_out.pack(source, block_size, arguments.per_device_train_batch_size, _MEASURED_TOKENS)
        for source in sources
        if source.documents
    ]
    with _quiet_transformers():
        trainer = _Trainer(model, arguments, ordered, settings)
        measure = partial(held_out.bits_per_byte, model, measures, trainer.accelerator.autocast)
        with console.progress("training", num_steps, "steps") as bar:
            watch = _Watch(journal, measure, bar, num_steps, settings.batch_size * block_size)
            trainer.add_callback(watch)
            if resumed:
                console.note(f"resuming after step {checkpoints.step_of(resumed)} of {num_steps}")
                bar.advance(checkpoints.step_of(resumed))
            elif measures:
                journal.write(0, {"bits_per_byte": measure()})
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        _save(trainer, model, directory)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return _outcome(journal, num_steps, num_steps * settings.batch_size * block_size)


def learning_rate_share(step: int, num_steps: int) -> float:
    """The share of the peak learning rate at optimizer step `step` (from 0): linear warm-up, cosine decay to zero."""
    warmup = max(1, math.ceil(WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup  # never 0: a first step that moves nothing would hide that nothing can move
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


class _Trainer(Trainer):
    """Hugging Face's Trainer with our parameter groups and schedule, which it takes by overriding only."""

    def __init__(
        self, model: PeftModel, arguments: TrainingArguments, dataset: OrderedBlocks, settings: Settings
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=dataset,
            optimizer_cls_and_kwargs=(torch.optim.AdamW, _optimizer_options(model, settings)),
        )
        self.remove_callback(PrinterCallback)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            share = partial(learning_rate_share, num_steps=num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler


class _Watch(TrainerCallback):
    """Writes the journal, moves the bar, and marks checkpoints once they are whole."""

    def __init__(
        self,
        journal: Journal,
        measure: Callable[[], dict[str, float]],
        bar: console.Progress,
        num_steps: int,
        tokens_a_step: int,
    ) -> None:
        self._journal = journal
        self._measure = measure
        self._bar = bar
        self._num_steps = num_steps
        self._tokens_a_step = tokens_a_step
        self._started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **values: Any) -> None:  # noqa: ARG002
        logs = values.get("logs")
        if logs is None or "loss" not in logs:
            return
        names = ("loss", "grad_norm", "learning_rate")
        self._journal.write(state.global_step, {name: logs[name] for name in names if name in logs})
        now = time.monotonic()
        speed = self._tokens_a_step / max(now - self._started, 1e-9)
        self._started = now
        self._bar.advance(1, f"training: loss {logs['loss']:.3f}, {speed:,.0f} tokens/s")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step % int(args.save_steps) == 0 or state.global_step == self._num_steps:
            self._journal.write(state.global_step, {"bits_per_byte": self._measure()})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if args.should_save:
            checkpoints.mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _arguments(settings: Settings, num_steps: int, directory: Path) -> TrainingArguments:
    dtype = compute_dtype(settings.dtype)
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=num_steps,
        train_sampling_strategy="sequential",
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=on_cpu,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        max_grad_norm=1.0,
    )
    share, rest = divmod(settings.batch_size, arguments.world_size)
    if rest:
        raise TrainingError(
            "the batch cannot be shared evenly among the processes",
            found=f"batch size {settings.batch_size}, {arguments.world_size} processes",
            expected=f"a --batch-size that is a multiple of {arguments.world_size}",
        )
    micro_batch = math.gcd(share, settings.micro_batch) if settings.micro_batch else share
    arguments.per_device_train_batch_size = micro_batch
    arguments.gradient_accumulation_steps = share // micro_batch
    return arguments


def _optimizer_options(model: PeftModel, settings: Settings) -> dict[str, Any]:
    """AdamW's options, with embedding and head in a group of their own."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = [parameter for name, parameter in named if adapter.is_embedding(name)]
    rest = [parameter for name, parameter in named if not adapter.is_embedding(name)]
    groups = [
        {"params": rest, "lr": settings.learning_rate},
        {"params": rows, "lr": settings.embedding_learning_rate or settings.learning_rate},
    ]
    return {
        "params": [group for group in groups if group["params"]],
        "lr": settings.learning_rate,
        "betas": (0.9, 0.95),
        "weight_decay": 0.0,
        "fused": True,
    }


def _save(trainer: _Trainer, model: PeftModel, directory: Path) -> None:
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.accelerator.num_processes > 1 else None
    if trainer.args.should_save:
        model.save_pretrained(str(directory), state_dict=state, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # an empty form that PEFT leaves


def _outcome(journal: Journal, num_steps: int, num_tokens: int) -> Outcome:
    losses = [loss for _, loss in journal.series("loss")]
    span = min(20, max(1, len(losses) // 10))
    measured: list[dict[str, float]] = [value for _, value in journal.series("bits_per_byte")] or [{}]
    return Outcome(
        steps=num_steps,
        tokens=num_tokens,
        first_loss=sum(losses[:span]) / span,
        last_loss=sum(losses[-span:]) / span,
        bits_per_byte_before=measured[0],
        bits_per_byte_after=measured[-1],
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """The Trainer's own messages are about its interface, which our users never see."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
