"""How the weights of a run are shared among processes: not at all, or by DeepSpeed's ZeRO, or by PyTorch's FSDP2.

The Trainer's settings for each, and how what was trained is put together again, in float32. This module does not
depend on data.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Sharding = Literal["none", "zero2", "zero3", "fsdp2"]


def trainer_options(sharding: Sharding) -> dict[str, Any]:
    """The arguments by which the Trainer shards."""
    if sharding == "none":
        return {}
    if sharding == "fsdp2":
        # The main process alone reads the weights; they are spread from there (see `base.load_base`).
        return {
            "fsdp": "full_shard auto_wrap",
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "cpu_ram_efficient_loading": True,
            },
        }
    if not torch.cuda.is_available():
        _spare_compiling()
    return {"deepspeed": _zero(3 if sharding == "zero3" else 2)}


def gather_trained(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter of `model`, whole and in the precision that the optimizer keeps; all processes call it.

    Frozen weights stay where they are.
    """
    names = dict(model.named_parameters(remove_duplicate=False))  # tied matrices have two
    trained = {id(parameter): parameter for parameter in names.values() if parameter.requires_grad}
    whole = {key: _whole(parameter).detach().cpu() for key, parameter in trained.items()}
    return {name: whole[id(parameter)] for name, parameter in names.items() if id(parameter) in whole}


def _whole(parameter: Any) -> Tensor:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        assert isinstance(whole, Tensor), "DeepSpeed keeps float32 of all that it trains"
        return whole.view(getattr(parameter, "ds_shape", parameter.shape))
    if hasattr(parameter, "full_tensor"):
        tensor: Tensor = parameter.full_tensor()
        return tensor
    plain: Tensor = parameter
    return plain


def _spare_compiling() -> None:
    """Without a GPU, DeepSpeed would compile an extension for shared memory, for minutes; gloo does."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _zero(stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 100_000_000,
    }
    if stage == 2:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": 100_000_000, "reduce_scatter": True}
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
