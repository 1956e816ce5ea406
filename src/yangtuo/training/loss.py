"""The loss of a causal language model without its logits ever standing in memory whole.

With 50,000 pieces the logits of 8 x 512 tokens are 820 MB in float32, and their gradient as much again. Here head and
cross-entropy run over slices of the learned positions, and each slice's gradient is taken at once, so that backward
has nothing left to recompute (the idea of Liger's fused linear cross-entropy, in plain PyTorch, on any device).
This module knows one thing of a model: a backbone under `base_model_prefix` and a linear head over its states.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORED = -100
_SLICE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}  # logits held at once; on a CPU they should stay in the cache
_SMALLEST_SLICE = 160  # positions; fewer would pass over the weight's gradient too often
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class _SlicedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `states` (N, H) @ `weight` (V, H)ᵀ against `labels` (N,)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        cast_weight = weight.to(dtype)
        states_gradient = torch.empty_like(states) if needs_states else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for rows in _slices(len(labels), len(weight), states.device.type):
            part, targets = states[rows].to(dtype), labels[rows, None]
            logits = (part @ cast_weight.T).float()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += (normaliser - logits.gather(1, targets)).sum()
            if not (needs_states or needs_weight):
                continue
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, -1.0))
            gradient = gradient.to(dtype)
            if states_gradient is not None:
                states_gradient[rows] = gradient @ cast_weight
            if weight_gradient is not None:
                weight_gradient += gradient.T @ part
        ctx.save_for_backward(states_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (scale,) = gradients
        states_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if states_gradient is None else states_gradient * scale,
            None if weight_gradient is None else (weight_gradient * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def summed_cross_entropy(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum, in nats and float32, of the cross-entropies of a linear head without bias.

    `states` (N, H), `weight` (V, H), `labels` (N,) without ignored ones; under autocast the products take its dtype.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        total: Tensor = _SlicedCrossEntropy.apply(states, weight, labels, dtype)  # type: ignore[no-untyped-call]
        return total


def use_sliced_loss(model: PreTrainedModel) -> bool:
    """Replaces the loss that `model` computes from `labels` by the sliced one; False where its logits are special.

    The forward pass then returns a loss and no logits, never uses the cache (packed documents would see each other),
    and divides the sum by `num_items_in_batch`, or by the number of learned positions where that is not given.
    """
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return False
    if getattr(output_head(model), "bias", None) is not None:
        return False
    original = model.forward

    def forward(self: PreTrainedModel, *args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return original(*args, **inputs)
        return CausalLMOutputWithPast(loss=_causal_loss(self, labels, **inputs))

    model.forward = MethodType(forward, model)
    return True


def _causal_loss(
    model: PreTrainedModel, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any
) -> Tensor:
    targets = labels[:, 1:].reshape(-1)
    learned = (targets != IGNORED).nonzero().squeeze(1)
    inputs["use_cache"] = False
    backbone = getattr(model, model.base_model_prefix)
    states = backbone(**inputs).last_hidden_state[:, :-1].flatten(0, 1).index_select(0, learned)
    head = output_head(model)
    weight = _whole_weight(head)
    targets = targets[learned]
    total = (
        _sum_through_module(head, states, targets, labels.numel())
        if weight is None
        else summed_cross_entropy(states, weight, targets)
    )
    return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


def output_head(model: PreTrainedModel) -> Any:
    """The module that turns hidden states into logits, with whatever PEFT has put around it."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def _whole_weight(head: Any) -> Tensor | None:
    """The weight that `head` multiplies with, adapters included; None where it stands in shards elsewhere."""
    adapters = [] if getattr(head, "disable_adapters", False) else getattr(head, "active_adapters", [])
    if hasattr(head, "token_adapter"):
        weight: Tensor = head.token_adapter.base_layer.weight
        if adapters and _is_whole(weight):
            weight = head.token_adapter.get_merged_weights(adapters)
    elif hasattr(head, "modules_to_save"):
        weight = (head.modules_to_save[adapters[0]] if adapters else head.original_module).weight
    else:
        weight = head.weight
    return weight if _is_whole(weight) else None


def _is_whole(weight: Tensor) -> bool:
    return not hasattr(weight, "ds_id") and not hasattr(weight, "device_mesh") and weight.is_floating_point()


def _sum_through_module(head: nn.Module, states: Tensor, targets: Tensor, num_positions: int) -> Tensor:
    """The same sum by calls of the module, whose hooks gather what is sharded; backward computes each slice again.

    All processes must call it equally often, so the number of slices comes from the positions of the batch.
    """

    def slice_sum(part: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), labels, reduction="sum")

    total = states.new_zeros((), dtype=torch.float32)
    parts = max(1, num_positions // 1024)
    for part, labels in zip(states.tensor_split(parts), targets.tensor_split(parts), strict=True):
        total = total + checkpoint(slice_sum, part, labels, use_reentrant=False)
    return total


def _slices(num_states: int, num_rows: int, device: str) -> list[slice]:
    size = max(_SMALLEST_SLICE, _SLICE_ELEMENTS.get(device, _SLICE_ELEMENTS["cuda"]) // num_rows)
    return [slice(start, start + size) for start in range(0, num_states, size)]
