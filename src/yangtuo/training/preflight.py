"""What speaks against a training run before anything is loaded: options that cannot go together, or not here.

It reads options and the machine alone, so that a recipe hears of it before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from yangtuo.errors import ConfigError, TrainingError, UserError
from yangtuo.launcher import world_size
from yangtuo.training import guards, libraries

_ALTERNATIVE = "torchrun --nproc_per_node 8 -m yangtuo …, or the same command with --sharding none"


def check(options: Mapping[str, Any]) -> list[UserError]:
    """All that can be known to fail of a run with these options of `pretrain` or `sft`."""
    errors: list[UserError] = []
    read: dict[str, Any] = {}
    readers = (guards.parse_bounds, "bound"), (libraries.read_trainer, "trainer"), (libraries.read_lora, "lora")
    for reader, name in readers:
        try:
            read[name] = reader(options[name])
        except (TrainingError, ConfigError) as error:
            errors.append(error)
    is_dora = read.get("lora", {}).get("use_dora", False)
    problems = [
        _check_processes(options),
        _check_whole(options),
        *_check_sharding(options, is_dora),
        _check_dtype(options),
    ]
    return [error for error in problems if error is not None] + errors + _check_trackers(options["report_to"])


def _check_whole(options: Mapping[str, Any]) -> UserError | None:
    """A whole model has no adapter, and no part of it learns apart."""
    given = {
        name: options[name] for name in ("adapter", "embeddings", "embedding_learning_rate", "lora") if options[name]
    }
    given |= {"kl_coef": options["kl_coef"]} if options["kl_coef"] else {}
    if options["dtype"] == "nf4":
        given["dtype"] = "nf4"
    if options["rank"] or not given or given == {"embeddings": "full"}:
        return None
    return ConfigError(
        "--rank 0 trains the whole model, which does not go with options of an adapter",
        found=", ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items()),
        expected="--rank 0 without them, or a rank of 1 and more",
    )


def _check_trackers(names: Sequence[str]) -> list[UserError]:
    missing = [name for name in names if find_spec(name) is None]
    return [ConfigError(f"--report-to {name}: it is not installed", run=f"pip install {name}") for name in missing]


def _check_processes(options: Mapping[str, Any]) -> UserError | None:
    batch_size = options["batch_size"]
    if batch_size % world_size() == 0:
        return None
    return TrainingError(
        "the batch cannot be shared evenly among the processes",
        found=f"batch size {batch_size}, {world_size()} processes",
        expected=f"a --batch-size that is a multiple of {world_size()}",
    )


def _check_sharding(options: Mapping[str, Any], is_dora: bool) -> list[UserError]:
    sharding, dtype = options["sharding"], options["dtype"]
    if sharding == "none":
        return []
    errors: list[UserError] = []
    if world_size() == 1:
        errors.append(
            ConfigError(f"--sharding {sharding} needs several processes", found="one process", run=_ALTERNATIVE)
        )
    if sharding != "fsdp2" and find_spec("deepspeed") is None:
        errors.append(ConfigError(f"--sharding {sharding} needs DeepSpeed", run="pip install deepspeed"))
    if options["kl_coef"] and sharding in ("zero3", "fsdp2"):
        errors.append(
            ConfigError(
                f"--kl-coef does not go with --sharding {sharding}",
                found="a head in parts, whose rows no process has all of",
                expected="--sharding none or zero2 with --kl-coef",
                run="the same command with --sharding zero2",
            )
        )
    if dtype == "nf4" and sharding in ("zero3", "fsdp2"):
        errors.append(
            ConfigError(
                f"--dtype nf4 does not go with --sharding {sharding}",
                found="weights in 4 bits, whose scales a shard would be torn from",
                expected="--sharding none or zero2 with nf4, or another --dtype",
                run="the same command with --sharding zero2",
            )
        )
    if is_dora and sharding != "fsdp2" and dtype != "float32":
        errors.append(
            ConfigError(
                f"--lora use_dora=true does not go with --sharding {sharding} in {dtype}",
                found="DeepSpeed rounds all weights to the arithmetic's dtype, DoRA's magnitudes too",
                expected="--sharding none or fsdp2, which keep them in float32, or --dtype float32",
                run="the same command with --sharding fsdp2",
            )
        )
    return errors


def _check_dtype(options: Mapping[str, Any]) -> UserError | None:
    dtype = options["dtype"]
    if dtype == "float16" and not torch.cuda.is_available():
        return TrainingError(
            "float16 needs a GPU, whose loss is scaled",
            found="no GPU",
            expected="bfloat16 or float32, which hold small gradients without scaling",
            run="the same command with --dtype auto",
        )
    if options["attention"] == "flash_attention_2" and not (torch.cuda.is_available() and find_spec("flash_attn")):
        return ConfigError(
            "--attention flash_attention_2 needs a GPU and its package",
            found="no GPU" if not torch.cuda.is_available() else "no package flash_attn",
            expected="another --attention, or both",
            run="pip install flash-attn --no-build-isolation",
        )
    if dtype == "nf4" and find_spec("bitsandbytes") is None:
        return TrainingError(
            "weights in 4 bits need bitsandbytes",
            found="no such package",
            expected="another --dtype, or the package",
            run="pip install bitsandbytes",
        )
    return None
