"""The one training loop: Hugging Face's Trainer over blocks of tokens, for pretraining and fine-tuning alike.

It drives, saves, resumes and measures; it does not depend on text, templates, artifacts or our config classes. Batches
are a pure function of the seed (see `order`), so a run that was killed goes on with the very next batch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from yangtuo import console
from yangtuo.errors import TrainingError
from yangtuo.training import adapter, checkpoints, guards, held_out, old_language, plan, processes, rates, sharding
from yangtuo.training.adapter import Trained
from yangtuo.training.callback import BEST, ProgressCallback, Run
from yangtuo.training.metrics_log import MetricsLog, damaged_after
from yangtuo.training.order import OrderedBlocks
from yangtuo.training.settings import Outcome, Settings, compute_dtype

CHECKPOINTS = "checkpoints"
SCRATCH = {CHECKPOINTS, BEST}
"""What stands in a run's directory until its adapter is finished, and is no part of it."""
_MEASURED_TOKENS = 1 << 17  # tokens a source that pass through the model in a measurement while training runs
_NAMED_BLOCKS = 8
_APART = ("conversations", "replay")


def train(
    model: Trained,
    blocks: Any,
    sources: Sequence[held_out.Source],
    settings: Settings,
    directory: Path,
    decode: Callable[[list[int]], str] = str,
) -> Outcome:
    """Trains the adapter of `model`, or all of it, on `blocks` and leaves what was trained, whole, in `directory`.

    `blocks` is a map-style dataset of `input_ids`, `labels` (-100 where nothing is learned; shifted by the loss) and
    `position_ids` (restarting at each document), all of one length; `decode` makes text of ids where a guard must name
    documents. Checkpoints stand in `directory/checkpoints`; where some are there already, the run goes on from the
    last whole one. Raises `TrainingError` for a run that trains nothing or diverges.
    """
    if len(blocks) == 0:
        raise TrainingError("there is nothing to train on", found="0 blocks", expected="at least one block of tokens")
    guards.require_learned(blocks)
    bounds = guards.parse_bounds(settings.bound)
    guards.require_measured(bounds, [source.name for source in sources])
    num_steps = settings.num_steps(len(blocks))
    ordered = OrderedBlocks(blocks, num_steps * settings.batch_size, settings.seed)
    block_size = len(blocks[0]["input_ids"])
    resumed = processes.main_process_first(
        lambda: checkpoints.latest_complete(directory / CHECKPOINTS, damaged_after(directory))
    )
    if settings.gradient_checkpointing:
        _compute_layers_again(model)
    with _quiet_transformers(), _own_environment(settings):
        arguments = _arguments(settings, num_steps, directory / CHECKPOINTS)
        micro_batch = arguments.per_device_train_batch_size
        trainer = _Trainer(model, arguments, ordered, settings)
        measures = [held_out.pack(source, block_size, micro_batch, _MEASURED_TOKENS) for source in sources]
        tokens_a_step = settings.batch_size * block_size
        run = Run(
            model=model,
            metrics=MetricsLog(directory, checkpoints.step_of(resumed) if resumed else 0, writes=processes.rank() == 0),
            measure=lambda show: held_out.bits_per_byte(
                trainer.model_wrapped, measures, trainer.accelerator.autocast, arguments.device, show
            ),
            losses_apart=trainer.losses_apart,
            report=trainer.report,
            batch_name=partial(_batch_name, ordered, settings.batch_size, decode),
            save_adapter=trainer.save_adapter,
            directory=directory,
            num_steps=num_steps,
            eval_every=settings.eval_every or settings.save_every,
            patience=settings.patience,
            tokens_a_step=tokens_a_step,
            bounds=bounds,
            finite=guards.Finite(model.config.vocab_size, scaled=arguments.fp16),
        )
        made = plan.plan_run(model, settings, len(blocks), block_size)
        for line in (*made.lines(), *plan.measuring(measures, run.eval_every, num_steps)):
            console.detail(line)
        callback = _drive(trainer, run, resumed)
        return _finish(trainer, run, settings, callback)


class _Trainer(Trainer):
    """Hugging Face's Trainer with our parameter groups and schedule, which it takes by overriding only."""

    def __init__(
        self, model: Trained, arguments: TrainingArguments, dataset: OrderedBlocks, settings: Settings
    ) -> None:
        kind, options = _optimizer(model, arguments, settings)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=dataset,
            optimizer_cls_and_kwargs=(kind, options),
        )
        self.remove_callback(PrinterCallback)
        self._settings = settings
        self._adapted = model
        self._sums: torch.Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        is_replayed, labels = inputs.pop("is_replayed", None), inputs["labels"]
        settings = self._settings
        if settings.kl_coef and settings.first_new_row is not None:
            kept = old_language.reference(self._adapted, inputs, settings.first_new_row, settings.kl_coef, is_replayed)
            inputs = {**inputs, "reference": kept}
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        except RuntimeError as error:
            if "leaf Variable" not in str(error):
                raise
            raise guards.no_graph(is_declared=True) from error  # the Trainer scales the loss in place
        guards.require_graph(loss)
        if is_replayed is not None and outputs.get("nats_by_row") is not None:
            counts = (labels[:, 1:] != -100).sum(1)
            rows = torch.stack([outputs["nats_by_row"].double(), counts.double()], 1)
            sums = rows.new_zeros(2, 2).index_add(0, is_replayed.long(), rows)
            self._sums = sums if self._sums is None else self._sums + sums
        return (loss, outputs) if return_outputs else loss

    def losses_apart(self) -> dict[str, float]:
        """The losses of conversations and of replayed text since the last call, in nats a token over all processes."""
        if self._sums is None:
            return {}
        sums = self.accelerator.reduce(self._sums, "sum").tolist()
        self._sums = None
        return {name: nats / count for name, (nats, count) in zip(_APART, sums, strict=True) if count}

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            share = partial(
                rates.share_of_peak,
                num_steps=num_training_steps,
                schedule=self._settings.schedule,
                warmup=self._settings.warmup,
            )
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
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

    def report(self, values: dict[str, float]) -> None:
        """Tells the trackers of `report_to` what was measured; the step's own loss is still to be logged."""
        is_due = self.control.should_log
        self.log(values)
        self.control.should_log = is_due

    def save_adapter(self, directory: Path) -> None:
        """Writes what was trained, gathered from all processes in float32, into `directory`."""
        state = sharding.gather_trained(self._adapted)
        if self.args.should_save:
            adapter.write(self._adapted, state, directory, self._settings.stored_dtype)


def _drive(trainer: _Trainer, run: Run, resumed: Path | None) -> ProgressCallback:
    """Runs the steps; raises `SystemExit` after a SIGTERM and `KeyboardInterrupt` after Ctrl-C, with a checkpoint."""
    with console.progress("training", run.num_steps, "steps") as bar:
        callback = ProgressCallback(run, bar)
        trainer.add_callback(callback)
        if resumed:
            console.note(f"resuming after step {checkpoints.step_of(resumed)} of {run.num_steps}")
            bar.advance(checkpoints.step_of(resumed))
        with callback.signals_save():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if callback.signal is not None:
        console.warn(f"told to end at step {trainer.state.global_step}; a checkpoint is written")
        raise KeyboardInterrupt if callback.signal == signal.SIGINT else SystemExit(143)
    return callback


def _finish(trainer: _Trainer, run: Run, settings: Settings, callback: ProgressCallback) -> Outcome:
    """Leaves the adapter to be kept in the run's directory, and its checkpoints until the artifact is described."""
    best, num_steps = run.directory / BEST, trainer.state.global_step
    measured: list[tuple[int, dict[str, float]]] = run.metrics.series("bits_per_byte")
    kept, after = measured[-1] if measured else (num_steps, {})
    trainer.save_adapter(run.directory)
    if processes.broadcast((settings.keep == "best" or callback.bound_is_broken) and best.is_dir()):
        kept, after = run.best(measured)
        if processes.rank() == 0:  # a copy: a run killed now ends in the same way
            shutil.copytree(best, run.directory, dirs_exist_ok=True)
    if callback.ended:
        why = f", the best {run.among}" if kept != num_steps else ""
        console.warn(f"{callback.ended}; the adapter of step {kept} is kept{why}")
    losses = [loss for _, loss in run.metrics.series("loss")]
    span = min(20, max(1, len(losses) // 10))
    return Outcome(
        steps=num_steps,
        tokens=num_steps * run.tokens_a_step,
        first_loss=sum(losses[:span]) / span,
        last_loss=sum(losses[-span:]) / span,
        bits_per_byte_before=measured[0][1] if measured else {},
        bits_per_byte_after=after,
        kept_step=kept if measured else num_steps,
        ended=callback.ended,
    )


def _arguments(settings: Settings, num_steps: int, directory: Path) -> TrainingArguments:
    dtype = compute_dtype(settings.dtype)
    on_cpu = torch.cuda.device_count() == 0
    share = settings.batch_size // processes.world_size()
    micro_batch = settings.blocks_a_pass()
    owned: dict[str, Any] = dict(
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
        report_to=list(settings.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **sharding.trainer_options(settings.sharding),
    )
    arguments = TrainingArguments(**{"max_grad_norm": 1.0, **settings.trainer, **owned})
    if arguments.n_gpu > 1:
        # The Trainer would wrap the model in DataParallel, which splits the batch and gathers the logits on one card.
        console.note(
            f"{arguments.n_gpu} GPUs are visible and one is used; all of them: "
            f"torchrun --nproc_per_node {arguments.n_gpu} -m yangtuo …"
        )
        arguments._n_gpu = 1
    return arguments


def _optimizer(model: Trained, arguments: TrainingArguments, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The optimizer's class and arguments: AdamW, or what `--trainer optim` names, with rates by group."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if kind is torch.optim.AdamW:
        # A fused step hides from accelerate that float16 overflowed and nothing was done.
        options["fused"] = settings.sharding != "fsdp2" and compute_dtype(settings.dtype) is not torch.float16
    groups = rates.parameter_groups(
        model,
        settings.learning_rate,
        settings.embedding_learning_rate,
        fresh=settings.fresh_rows,
        num_steps=arguments.max_steps,
    )
    for group in groups:
        group["weight_decay"] = arguments.weight_decay
    return kind, {**options, "params": groups, "lr": settings.learning_rate}


def _compute_layers_again(model: Trained) -> None:
    """Switches gradient checkpointing on, never the reentrant kind, which trains nothing behind frozen inputs."""
    base = adapter.inner(model)
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the newer name, or that of transformers before 5.20


def _batch_name(ordered: OrderedBlocks, batch_size: int, decode: Callable[[list[int]], str], step: int) -> str:
    """The blocks of a step by number, with the beginning of the text of each."""
    numbers = [ordered.block_number(index) for index in range((step - 1) * batch_size, step * batch_size)]
    texts = [decode(ordered.block(number)["input_ids"][:24].tolist()) for number in numbers[:_NAMED_BLOCKS]]
    named = [f"{number} ({text[:40]!r})" for number, text in zip(numbers, texts, strict=False)]
    return "blocks " + ", ".join([*named, *map(str, numbers[_NAMED_BLOCKS:])])


@contextlib.contextmanager
def _own_environment(settings: Settings) -> Iterator[None]:
    """Takes back what the Trainer and its callbacks leave in the environment: a later stage would shard as this one."""
    before = dict(os.environ)
    if settings.board is not None:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(settings.board))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """The Trainer's own messages are about its interface, which our users never see."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
