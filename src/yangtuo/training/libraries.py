"""The two doors to the libraries: `--trainer KEY=VALUE` and `--lora KEY=VALUE`, typed by the libraries' dataclasses.

What Yangtuo decides itself is refused with the option to use instead, and so is what it could not keep its word with:
an adapter that `yangtuo merge` could not fold in, or an argument that our loss would ignore.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from peft import LoraConfig
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from yangtuo.errors import ConfigError

_ORDER = "--seed: the order of blocks follows from it alone"
_LOGGED = "metrics.jsonl, which has every step, and --report-to"
_LOSS = "nothing: the loss is computed in slices, which know no such change"
_OWN_TRAINER = {
    **dict.fromkeys(("output_dir", "run_name_prefix", "overwrite_output_dir"), "--output"),
    "max_steps": "--max-steps",
    "num_train_epochs": "--epochs",
    "learning_rate": "--learning-rate",
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "--warmup"),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), "--batch-size and --micro-batch"),
    **dict.fromkeys(("auto_find_batch_size", "dataloader_drop_last"), "--batch-size and --micro-batch"),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "use_cpu"), "--dtype"),
    **dict.fromkeys(("seed", "data_seed", "full_determinism"), "--seed"),
    **dict.fromkeys(("train_sampling_strategy", "group_by_length", "length_column_name", "ignore_data_skip"), _ORDER),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_on_each_node"), "--save-every"),
    **dict.fromkeys(("save_only_model", "restore_callback_states_from_checkpoint"), "--save-every"),
    **dict.fromkeys(("enable_jit_checkpoint", "push_to_hub"), "--save-every"),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"), _LOGGED),
    **dict.fromkeys(("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"), _LOGGED),
    "report_to": "--report-to",
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay"), "--eval-every"),
    **dict.fromkeys(("eval_on_start", "per_device_eval_batch_size", "eval_accumulation_steps"), "--eval-every"),
    **dict.fromkeys(("prediction_loss_only", "batch_eval_metrics", "eval_use_gather_object"), "--eval-every"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "--keep best"),
    **dict.fromkeys(("gradient_checkpointing", "gradient_checkpointing_kwargs"), "--gradient-checkpointing"),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "ddp_find_unused_parameters"), "--sharding"),
    **dict.fromkeys(("parallelism_config", "accelerator_config"), "--sharding"),
    **dict.fromkeys(("label_smoothing_factor", "use_liger_kernel", "liger_kernel_config", "label_names"), _LOSS),
    **dict.fromkeys(("average_tokens_across_devices", "include_for_metrics"), _LOSS),
    "remove_unused_columns": _LOSS,
    "dataloader_pin_memory": "nothing: memory is pinned where there is a GPU",
    "resume_from_checkpoint": "the same command again, which goes on from the last checkpoint",
}
_OWN_LORA = {
    "r": "--rank",
    "lora_alpha": "--alpha",
    **dict.fromkeys(("modules_to_save", "trainable_token_indices", "ensure_weight_tying"), "--embeddings"),
}
_LORA = ("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern")
_KNOWN_LORA = {*_LORA, "alpha_pattern", "init_lora_weights", "use_rslora", "use_dora"}
_SCHEDULES = ("linear", "cosine")
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal")


def read_trainer(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of `TrainingArguments` from `KEY=VALUE` texts; raises `ConfigError` for what cannot be passed on."""
    values = _read("--trainer", texts, TrainingArguments, _OWN_TRAINER)
    schedule = values.get("lr_scheduler_type", "linear")
    if schedule not in _SCHEDULES:
        raise ConfigError(
            "--trainer lr_scheduler_type cannot be given so",
            found=str(getattr(schedule, "value", schedule)),
            expected=" or ".join(_SCHEDULES),
        )
    return values


def read_lora(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of `LoraConfig` from `KEY=VALUE` texts; raises `ConfigError` for what cannot be passed on."""
    values = _read("--lora", texts, LoraConfig, _OWN_LORA)
    for key in values.keys() - _KNOWN_LORA:
        raise ConfigError(
            f"--lora {key} cannot be given",
            found="what merge could not fold in",
            expected=", ".join(sorted(_KNOWN_LORA)),
        )
    start = values.get("init_lora_weights", True)
    if not any(start is harmless or start == harmless for harmless in _HARMLESS_STARTS):
        raise ConfigError(
            f"--lora init_lora_weights={start} cannot be given",
            found="a start that also changes the base model, on which the adapter would then not fit",
            expected="true, false, gaussian or orthogonal",
        )
    return values


def _read(option: str, texts: Sequence[str], owner: type, own: Mapping[str, str]) -> dict[str, Any]:
    hints = typing.get_type_hints(owner)
    known = {field.name: hints[field.name] for field in dataclasses.fields(owner) if field.init}
    values: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        key = key.strip().removeprefix("--").replace("-", "_")
        if not separator:
            raise ConfigError(f"{option} {text!r} cannot be read", expected=f"{option} KEY=VALUE")
        if key in own:
            raise ConfigError(f"{option} {key} is Yangtuo's own to set", expected=own[key])
        if key not in known:
            near = get_close_matches(key, [*known, *own], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{option} {key}: {owner.__name__} has no such field{hint}")
        values[key] = _typed(option, key, value, known[key])
    return values


def _typed(option: str, key: str, text: str, hint: Any) -> Any:
    adapter = TypeAdapter(hint, config=None)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    errors = []
    for candidate in dict.fromkeys([str(value), text]) if isinstance(value, str) else [value, text]:
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            errors.append(error)
    raise ConfigError(
        f"{option} {key} cannot be {text!r}", found=errors[0].errors()[0]["msg"], expected=f"a value of type {hint}"
    )
