"""How the weights of a run are shared among processes: not at all, or by DeepSpeed's ZeRO, or by PyTorch's FSDP2.

Settings only, in the words of the Trainer; this module does not depend on models or data.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from yangtuo.errors import ConfigError
from yangtuo.training import processes

Sharding = Literal["none", "zero2", "zero3", "fsdp2"]


def trainer_options(sharding: Sharding) -> dict[str, Any]:
    """The arguments by which the Trainer shards; raises `ConfigError` where that cannot work."""
    if sharding == "none":
        return {}
    if processes.world_size() == 1:
        raise ConfigError(
            f"--sharding {sharding} needs several processes",
            found="one process",
            run="torchrun --nproc_per_node 8 -m yangtuo …, or the same command without --sharding",
        )
    if sharding == "fsdp2":
        return {
            "fsdp": "full_shard auto_wrap",
            "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
        }
    if find_spec("deepspeed") is None:
        raise ConfigError(f"--sharding {sharding} needs DeepSpeed", run="pip install deepspeed")
    return {"deepspeed": _zero(3 if sharding == "zero3" else 2)}


def _zero(stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 100_000_000,
    }
    if stage == 2:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": 100_000_000, "reduce_scatter": True}
    else:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 1_000_000_000,
    }
