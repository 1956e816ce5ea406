"""The one training loop: Hugging Face's Trainer over blocks of tokens, for pretraining and fine-tuning alike.

It drives, saves, resumes and measures; it does not depend on text, templates, artifacts or our config classes. Batches
are a pure function of the seed (see `order`), so a run that was killed goes on with the very next batch.
"""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from yangtuo import console
from yangtuo.errors import TrainingError
from yangtuo.training import adapter, checkpoints, guards, held_out, plan, processes, rates
from yangtuo.training.callback import BEST, ProgressCallback, Run
from yangtuo.training.metrics_log import MetricsLog
from yangtuo.training.order import OrderedBlocks
from yangtuo.training.sharding import Sharding, trainer_options

CHECKPOINTS = "checkpoints"
SCRATCH = {CHECKPOINTS, BEST}
"""What stands in a run's directory until its adapter is finished, and is no part of it."""
_MEASURED_TOKENS = 1 << 17  # held-out tokens a source that are measured while training runs
_WEIGHTS = "adapter_model.safetensors"
_NAMED_BLOCKS = 8

Dtype = Literal["auto", "float32", "bfloat16", "float16", "nf4"]
Keep = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes; `batch_size` counts blocks in an optimizer step over all processes."""

    learning_rate: float
    embedding_learning_rate: float | None = None
    fresh_rows: bool = False
    """Whether the new rows stand as `expand` placed them: without a rate of their own they then learn by their size."""
    schedule: rates.Schedule = "linear"
    rows_first: float = 0.0
    """Share of the steps, at the beginning, in which embedding and head learn alone."""
    epochs: float = 1.0
    batch_size: int = 8
    micro_batch: int | None = None
    """Blocks in one forward pass of one process; its whole share of the batch when None."""
    dtype: Dtype = "auto"
    gradient_checkpointing: bool = False
    sharding: Sharding = "none"
    bound: tuple[str, ...] = ()
    """`NAME=SHARE`: training stops where held-out bits per byte of a source are worse by more than its share."""
    keep: Keep = "last"
    save_every: int = 500
    seed: int = 0
    tensorboard: Path | None = None

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> Settings:
        """The settings that stand under their names among `options`; the rest keep their defaults."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def num_steps(self, num_blocks: int) -> int:
        """Optimizer steps over a dataset of `num_blocks` blocks."""
        return max(1, math.ceil(self.epochs * num_blocks / self.batch_size))

    def blocks_a_pass(self) -> int:
        """Blocks in one forward pass of one of the processes that take part."""
        share = self.batch_size // processes.world_size()
        return math.gcd(share, self.micro_batch) if self.micro_batch else share


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
    kept_step: int
    """The step whose adapter was kept."""

    def details(self) -> dict[str, Any]:
        """The figures as the manifest keeps them, rounded."""
        return {
            "steps": self.steps,
            "kept_step": self.kept_step,
            "tokens": self.tokens,
            "first_loss": round(self.first_loss, 4),
            "last_loss": round(self.last_loss, 4),
            "bits_per_byte_before": {name: round(value, 4) for name, value in self.bits_per_byte_before.items()},
            "bits_per_byte_after": {name: round(value, 4) for name, value in self.bits_per_byte_after.items()},
        }


def compute_dtype(name: Dtype) -> torch.dtype:
    """The arithmetic of the forward pass: "auto" takes bfloat16 where the device computes in it, else float32.

    Raises `TrainingError` for float16 on a CPU: there accelerate scales no loss, and says nothing.
    """
    if name == "float16" and not torch.cuda.is_available():
        raise TrainingError(
            "float16 needs a GPU, whose loss is scaled",
            found="no GPU",
            expected="bfloat16 or float32, which hold small gradients without scaling",
            run="the same command with --dtype auto",
        )
    if name not in ("auto", "nf4"):
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
    decode: Callable[[list[int]], str] = str,
) -> Outcome:
    """Trains the adapter of `model` on `blocks` and leaves it, whole, in `directory`.

    `blocks` is a map-style dataset of `input_ids`, `labels` (-100 where nothing is learned; shifted by the loss) and
    `position_ids` (restarting at each document), all of one length; `decode` makes text of ids where a guard must name
    documents. Checkpoints stand in `directory/checkpoints`; where some are there already, the run goes on from the
    last whole one. Raises `TrainingError` for a run that trains nothing, diverges, forgets, or is told to end.
    """
    if len(blocks) == 0:
        raise TrainingError("there is nothing to train on", found="0 blocks", expected="at least one block of tokens")
    guards.require_learned(blocks)
    num_steps = settings.num_steps(len(blocks))
    ordered = OrderedBlocks(blocks, num_steps * settings.batch_size, settings.seed)
    block_size = len(blocks[0]["input_ids"])
    resumed = processes.main_process_first(lambda: checkpoints.latest_complete(directory / CHECKPOINTS))
    step = checkpoints.step_of(resumed) if resumed else 0
    metrics = MetricsLog(directory, step, writes=processes.rank() == 0, tensorboard=settings.tensorboard)
    if settings.gradient_checkpointing:
        _compute_layers_again(model)
    with _quiet_transformers():
        arguments = _arguments(settings, num_steps, directory / CHECKPOINTS)
        micro_batch = arguments.per_device_train_batch_size
        trainer = _Trainer(model, arguments, ordered, settings)
        measures = [held_out.pack(source, block_size, micro_batch, _MEASURED_TOKENS) for source in sources]
        tokens_a_step = settings.batch_size * block_size
        made = plan.make_plan(
            model,
            model.config,
            num_steps,
            num_steps * tokens_a_step,
            micro_batch * block_size,
            block_size=block_size,
            layers_again=settings.gradient_checkpointing,
        )
        run = Run(
            model=model,
            metrics=metrics,
            measure=lambda: held_out.bits_per_byte(trainer.model_wrapped, measures, trainer.accelerator.autocast),
            batch_name=partial(_batch_name, ordered, settings.batch_size, decode),
            save_adapter=trainer.save_adapter,
            directory=directory,
            num_steps=num_steps,
            tokens_a_step=tokens_a_step,
            bounds=guards.parse_bounds(settings.bound, [measure.name for measure in measures]),
            finite=guards.Finite(model.config.vocab_size, scaled=arguments.fp16),
            rows_first_steps=_rows_first_steps(settings, num_steps),
        )
        for line in (*made.lines(), trainer.rates_line):
            console.note(line)
        _drive(trainer, run, resumed)
    return _finish(trainer, run, settings)


class _Trainer(Trainer):
    """Hugging Face's Trainer with our parameter groups and schedule, which it takes by overriding only."""

    def __init__(
        self, model: PeftModel, arguments: TrainingArguments, dataset: OrderedBlocks, settings: Settings
    ) -> None:
        options = _optimizer_options(model, settings)
        self.rates_line = rates.describe(options["params"])
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=dataset,
            optimizer_cls_and_kwargs=(torch.optim.AdamW, options),
        )
        self.remove_callback(PrinterCallback)
        self._settings = settings
        self._adapted = model

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        try:
            result: Any = super().compute_loss(model, inputs, *arguments, **options)
        except RuntimeError as error:
            if "leaf Variable" not in str(error):
                raise
            raise guards.no_graph(is_declared=True) from error  # the Trainer scales the loss in place
        guards.require_graph(result[0] if isinstance(result, tuple) else result)
        return result

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            first = _rows_first_steps(self._settings, num_training_steps)
            shares = [
                partial(
                    rates.share_of_peak,
                    num_steps=num_training_steps,
                    first_step=0 if group["rows"] else first,
                    schedule=self._settings.schedule,
                )
                for group in optimizer.param_groups
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shares)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        path = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(path, ignore_errors=True)
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or "write" not in str(error).lower():
                raise
            raise OSError(errno.ENOSPC, "No space left on device") from error  # torch and safetensors hide the number

    def save_adapter(self, directory: Path) -> None:
        """Writes the adapter, gathered from all processes, into `directory`, and reads it back to compare."""
        state = None
        if processes.world_size() > 1:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.args.should_save:
            return
        with adapter.quiet_peft():
            self._adapted.save_pretrained(str(directory), state_dict=state, save_embedding_layers=False)
            expected = get_peft_model_state_dict(self._adapted, state_dict=state, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # an empty form that PEFT leaves
        adapter.require_written(directory / _WEIGHTS, expected)


def _drive(trainer: _Trainer, run: Run, resumed: Path | None) -> None:
    """Runs the steps; where SIGTERM came, raises `SystemExit` once a checkpoint is written."""
    with console.progress("training", run.num_steps, "steps") as bar:
        callback = ProgressCallback(run, bar)
        trainer.add_callback(callback)
        if resumed:
            console.note(f"resuming after step {checkpoints.step_of(resumed)} of {run.num_steps}")
            bar.advance(checkpoints.step_of(resumed))
        elif before := run.measure():
            run.metrics.write(0, {"bits_per_byte": before})
        with callback.sigterm_saves():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if callback.terminated:
        console.warn(f"told to end at step {trainer.state.global_step}; a checkpoint is written")
        raise SystemExit(143)


def _finish(trainer: _Trainer, run: Run, settings: Settings) -> Outcome:
    """Leaves the adapter to be kept in the run's directory, and its checkpoints until the artifact is described."""
    best = run.directory / BEST
    measured: list[tuple[int, dict[str, float]]] = run.metrics.series("bits_per_byte")
    after, kept = measured[-1][1] if measured else {}, run.num_steps
    trainer.save_adapter(run.directory)
    if processes.broadcast(settings.keep == "best" and best.is_dir()):
        after, kept = _best_measure(measured), _best_step(measured)
        if processes.rank() == 0:
            shutil.copyfile(best / _WEIGHTS, run.directory / _WEIGHTS)  # a copy: a run killed now ends in the same way
    losses = [loss for _, loss in run.metrics.series("loss")]
    span = min(20, max(1, len(losses) // 10))
    return Outcome(
        steps=run.num_steps,
        tokens=run.num_steps * run.tokens_a_step,
        first_loss=sum(losses[:span]) / span,
        last_loss=sum(losses[-span:]) / span,
        bits_per_byte_before=measured[0][1] if measured else {},
        bits_per_byte_after=after,
        kept_step=kept,
    )


def _best_step(measured: Sequence[tuple[int, dict[str, float]]]) -> int:
    return min(measured[1:], key=lambda item: sum(item[1].values()))[0]


def _best_measure(measured: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    return min(measured[1:], key=lambda item: sum(item[1].values()))[1]


def _arguments(settings: Settings, num_steps: int, directory: Path) -> TrainingArguments:
    dtype = compute_dtype(settings.dtype)
    on_cpu = not torch.cuda.is_available()
    share, rest = divmod(settings.batch_size, processes.world_size())
    if rest:
        raise TrainingError(
            "the batch cannot be shared evenly among the processes",
            found=f"batch size {settings.batch_size}, {processes.world_size()} processes",
            expected=f"a --batch-size that is a multiple of {processes.world_size()}",
        )
    micro_batch = settings.blocks_a_pass()
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=num_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=share // micro_batch,
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
        ddp_find_unused_parameters=False,
        **trainer_options(settings.sharding),
    )


def _optimizer_options(model: PeftModel, settings: Settings) -> dict[str, Any]:
    groups = rates.parameter_groups(
        model, settings.learning_rate, settings.embedding_learning_rate, fresh=settings.fresh_rows
    )
    return {
        "params": groups,
        "lr": settings.learning_rate,
        "weight_decay": 0.0,
        # A fused step hides from accelerate that float16 overflowed and nothing was done.
        "fused": settings.sharding != "fsdp2" and compute_dtype(settings.dtype) is not torch.float16,
    }


def _compute_layers_again(model: PeftModel) -> None:
    """Switches gradient checkpointing on, never the reentrant kind, which trains nothing behind frozen inputs."""
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the newer name, or that of transformers before 5.20


def _rows_first_steps(settings: Settings, num_steps: int) -> int:
    return math.floor(settings.rows_first * num_steps)


def _batch_name(ordered: OrderedBlocks, batch_size: int, decode: Callable[[list[int]], str], step: int) -> str:
    """The blocks of a step by number, with the beginning of the text of each."""
    numbers = [ordered.block_number(index) for index in range((step - 1) * batch_size, step * batch_size)]
    texts = [decode(ordered.block(number)["input_ids"][:24].tolist()) for number in numbers[:_NAMED_BLOCKS]]
    named = [f"{number} ({text[:40]!r})" for number, text in zip(numbers, texts, strict=False)]
    return "blocks " + ", ".join([*named, *map(str, numbers[_NAMED_BLOCKS:])])


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """The Trainer's own messages are about its interface, which our users never see."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
