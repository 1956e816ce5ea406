"""The loss of a causal language model without its logits ever standing in memory whole.

With 50,000 pieces the logits of 8 x 512 tokens are 820 MB in float32, and their gradient as much again. Here head and
cross-entropy run over slices of the learned positions, and each slice's gradient is taken at once, so that backward
has nothing left to recompute (the idea of Liger's fused linear cross-entropy, in plain PyTorch, on any device).
This module knows one thing of a model: a backbone under `base_model_prefix` and a linear head over its states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

IGNORED = -100
_SLICE_ELEMENTS = 1 << 26  # logits held at once
_WIDE_ELEMENTS = {"cpu": 1 << 19}  # of them in float32 at once; on a CPU they should stay in the cache
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class HeadWeight:
    """What a head multiplies with: `whole` (V, H), of which `learned` is a part: itself, or the `rows` of it."""

    whole: Tensor
    learned: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Reference:
    """A model that stands still, from which the one that learns is not to depart, by its states and its head."""

    states: Tensor
    """(N, H); where `shares` are 0 they may be anything."""
    weight: Tensor
    """(V, H)."""
    shares: Tensor
    """What the divergence from it weighs against the cross-entropy, at each position (N,)."""

    def at(self, places: Tensor | slice) -> Reference:
        """That of some positions."""
        return Reference(self.states[places], self.weight, self.shares[places])

    def add_gradient(self, probabilities: Tensor) -> None:
        """Adds the gradient of the Kullback-Leibler divergence to `probabilities` (N, V), in place: they become that of
        the logits.
        """
        counted = self.shares.nonzero().squeeze(1)
        if len(counted):
            expected = (self.states[counted].to(self.weight.dtype) @ self.weight.T).float().softmax(dim=1)
            probabilities[counted] += self.shares[counted, None] * (probabilities[counted] - expected)


class _SlicedCrossEntropy(torch.autograd.Function):
    """The cross-entropies of `states` (N, H) @ `weight` (V, H)ᵀ against `labels` (N,): their sum, and each (N,).

    Only the sum has a gradient, to which that of the divergence from a reference is added; see `HeadWeight`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        learned: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        labels: Tensor,
        reference: Reference | None,
    ) -> tuple[Tensor, Tensor]:
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        states_gradient = torch.empty_like(states) if needs_states else None
        learned_gradient: Tensor | None = None
        nats = torch.empty(len(labels), dtype=torch.float32, device=states.device)
        for place in _slices(len(labels), len(weight), _SLICE_ELEMENTS):
            part = states[place].to(weight.dtype)
            logits = part @ weight.T
            _to_gradient(logits, labels[place, None], nats[place], reference and reference.at(place))
            if states_gradient is not None:
                states_gradient[place] = logits @ weight
            if needs_weight:
                product = (logits if rows is None else logits.index_select(1, rows)).T @ part
                learned_gradient = product.float() if learned_gradient is None else learned_gradient.add_(product)
        ctx.save_for_backward(states_gradient, learned_gradient)
        ctx.learned_dtype = learned.dtype
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        scale = gradients[0]
        states_gradient, learned_gradient = ctx.saved_tensors
        return (
            None if states_gradient is None else states_gradient.mul_(scale),
            None if learned_gradient is None else learned_gradient.mul_(scale).to(ctx.learned_dtype),
            None,
            None,
            None,
            None,
        )


def _to_gradient(logits: Tensor, targets: Tensor, nats: Tensor, reference: Reference | None) -> None:
    """Turns `logits` (N, V) into their gradient, in place, and fills `nats` (N,) with the cross-entropies."""
    at_once = _WIDE_ELEMENTS.get(logits.device.type, _SLICE_ELEMENTS)
    for place in _slices(len(logits), logits.shape[1], at_once):
        wide, target = logits[place].float(), targets[place]
        probabilities = wide.softmax(dim=1)
        # The likeliest piece has at least 1/V, so its logarithm is safe where the target's may not be.
        normaliser = wide.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()
        nats[place] = (normaliser - wide.gather(1, target)).squeeze(1)
        if reference is not None:
            reference.at(place).add_gradient(probabilities)
        probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
        logits[place] = probabilities


def summed_cross_entropy(
    states: Tensor, head: HeadWeight, labels: Tensor, reference: Reference | None = None
) -> tuple[Tensor, Tensor]:
    """The cross-entropies of a linear head without bias, in nats and float32: their sum, and each of them (N,).

    `states` (N, H), `labels` (N,) without ignored ones; under autocast the products take its dtype. Only the sum has
    a gradient, to which that of the divergence from a `reference` (N positions) is added.
    """
    weight = _in_arithmetic(head.whole)
    with torch.autocast(states.device.type, enabled=False):
        if not torch.is_grad_enabled():
            nats = _nats(states, weight, labels)
            return nats.sum(), nats
        result: tuple[Tensor, Tensor] = _SlicedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states, head.learned, weight, head.rows, labels, reference
        )
        return result


def _in_arithmetic(weight: Tensor) -> Tensor:
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return weight.detach().to(dtype)


def _nats(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy (N,) of each of `states` (N, H), from which nothing learns: no gradient is computed."""
    nats = torch.empty(len(labels), dtype=torch.float32, device=states.device)
    for place in _slices(len(labels), len(weight), _SLICE_ELEMENTS):
        logits = states[place].to(weight.dtype) @ weight.T
        for rows in _slices(len(logits), len(weight), _WIDE_ELEMENTS.get(logits.device.type, _SLICE_ELEMENTS)):
            nats[place][rows] = cross_entropy(logits[rows].float(), labels[place][rows], reduction="none")
    return nats


@dataclass
class LossOutput(ModelOutput):
    """What a forward pass returns that never made logits."""

    loss: Tensor | None = None
    nats_by_row: Tensor | None = None
    """The summed cross-entropy (B,) of each row of the batch, in nats and float32, without a gradient."""


def use_sliced_loss(model: PreTrainedModel) -> bool:
    """Replaces the loss that `model` computes from `labels` by the sliced one; False where its logits are special.

    The forward pass then returns a `LossOutput` and no logits, never uses the cache (packed documents would see each
    other), and divides the sum by `num_items_in_batch`, or by the number of learned positions where that is not given.
    A `reference` has B * (T - 1) positions.
    With `by_row` the loss of every model is what `nats_by_row` gives.
    """
    original, sliced = model.forward, has_plain_head(model)

    def forward(
        self: PreTrainedModel, *args: Any, labels: Tensor | None = None, by_row: bool = False, **inputs: Any
    ) -> Any:
        if labels is None:
            return original(*args, **inputs)
        if by_row:
            return LossOutput(loss=nats_by_row(self, labels, sliced, **inputs))
        if not sliced:
            return original(*args, labels=labels, **inputs)
        return _causal_loss(self, labels, **inputs)

    model.forward = MethodType(forward, model)
    return sliced


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits of `model` are the product of its states and its head, and nothing more, by its config."""
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return False
    return getattr(output_head(model), "bias", None) is None


@torch.no_grad()
def nats_by_row(model: PreTrainedModel, labels: Tensor, sliced: bool, **inputs: Tensor) -> Tensor:
    """The summed cross-entropy (B,), in nats and float32, of the `labels` (B, T) in each row of the `inputs`.

    `sliced`: from the states, without logits ever standing whole; else by the model's own logits, a row at a time.
    Under sharding all processes call it with inputs of one shape.
    """
    if sliced:
        states, targets, learned = _learned_states(model, labels, inputs)
        head = output_head(model)
        weight = _whole_weight(head)
        nats = (
            torch.cat([_nats_through(head, *part) for part in _parts(states, targets, labels.numel())])
            if weight is None
            else _nats(states, _in_arithmetic(weight.whole), targets)
        )
        return _by_row(nats, learned, labels)
    sums = torch.zeros(len(labels), device=labels.device)
    for index, targets in enumerate(labels[:, 1:]):
        row = {name: None if value is None else value[index, None] for name, value in inputs.items()}
        logits = model.forward(**row, use_cache=False).logits[0, :-1]
        for part in _slices(len(logits), logits.shape[1], _SLICE_ELEMENTS):
            sums[index] += cross_entropy(logits[part].float(), targets[part], ignore_index=IGNORED, reduction="sum")
    return sums


def _learned_states(model: PreTrainedModel, labels: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The states (N, H) from which the labels that count are predicted, these labels (N,), and their places."""
    targets = labels[:, 1:].reshape(-1)
    learned = (targets != IGNORED).nonzero().squeeze(1)
    backbone = getattr(model, model.base_model_prefix)
    states = backbone(**{**inputs, "use_cache": False}).last_hidden_state[:, :-1].flatten(0, 1)
    return states.index_select(0, learned), targets[learned], learned


def _causal_loss(
    model: PreTrainedModel,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    reference: Reference | None = None,
    **inputs: Any,
) -> LossOutput:
    states, targets, learned = _learned_states(model, labels, inputs)
    head = output_head(model)
    weight = _whole_weight(head)
    assert reference is None or weight is not None
    total, nats = (
        _sum_through_module(head, states, targets, labels.numel())
        if weight is None
        else summed_cross_entropy(states, weight, targets, reference and reference.at(learned))
    )
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return LossOutput(loss=total / count, nats_by_row=_by_row(nats, learned, labels))


def _by_row(nats: Tensor, learned: Tensor, labels: Tensor) -> Tensor:
    """The sums (B,) of the `nats` (N,) whose places among the targets of `labels` (B, T) are `learned` (N,)."""
    return nats.new_zeros(len(labels)).index_add(0, learned // (labels.shape[1] - 1), nats)


def can_refer(model: PreTrainedModel) -> bool:
    """Whether `refer_to` knows the logits of `model`: products of its states and of a head that is whole here."""
    return has_plain_head(model) and _whole_weight(output_head(model)) is not None


@torch.no_grad()
def refer_to(model: PreTrainedModel, inputs: Mapping[str, Any], shares: Tensor) -> Reference:
    """The model as it stands, for `inputs` (B, T), of which only rows with any `shares` (B, T) are read."""
    rows, shares = shares.any(dim=1), shares[:, :-1]
    backbone = getattr(model, model.base_model_prefix)
    read = backbone(**{name: inputs[name][rows] for name in ("input_ids", "position_ids")}, use_cache=False)
    last = read.last_hidden_state[:, :-1]
    states = last.new_zeros(*shares.shape, last.shape[-1])
    states[rows] = last
    head = _whole_weight(output_head(model))
    assert head is not None  # see `can_refer`
    return Reference(states.flatten(0, 1), _in_arithmetic(head.whole), shares.flatten())


def output_head(model: PreTrainedModel) -> Any:
    """The module that turns hidden states into logits, with whatever PEFT has put around it."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def _whole_weight(head: Any) -> HeadWeight | None:
    """The weight that `head` multiplies with, adapters included; None where only the module itself can multiply."""
    adapters = [] if getattr(head, "disable_adapters", False) else getattr(head, "active_adapters", [])
    if hasattr(head, "token_adapter"):
        tokens = head.token_adapter
        weight: Tensor = tokens.base_layer.weight
        if adapters and _is_whole(weight):
            with torch.no_grad():
                merged = tokens.get_merged_weights(adapters)
            rows = torch.tensor(tokens.token_indices[adapters[0]], device=weight.device)
            return HeadWeight(merged, tokens.trainable_tokens_delta[adapters[0]], rows)
    elif hasattr(head, "modules_to_save"):
        weight = (head.modules_to_save[adapters[0]] if adapters else head.original_module).weight
    elif hasattr(head, "base_layer"):
        return None  # LoRA on the head
    else:
        weight = head.weight
    return HeadWeight(weight, weight) if _is_whole(weight) else None


def _is_whole(weight: Tensor) -> bool:
    return not hasattr(weight, "ds_id") and not hasattr(weight, "device_mesh") and weight.is_floating_point()


def _sum_through_module(head: nn.Module, states: Tensor, targets: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """The same by calls of the module, whose hooks gather what is sharded; backward computes each slice again.

    All processes must call it equally often, so the number of slices comes from the positions of the batch.
    """
    parts = _parts(states, targets, num_positions)
    nats = torch.cat([checkpoint(_nats_through, head, *part, use_reentrant=False) for part in parts])
    return nats.sum(), nats.detach()


def _nats_through(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(states).float(), targets, reduction="none")


def _parts(states: Tensor, targets: Tensor, num_positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    count = max(1, num_positions // 1024)
    return zip(states.tensor_split(count), targets.tensor_split(count), strict=True)


def positions_at_once(num_positions: int, num_rows: int) -> int:
    """Of how many positions the logits over `num_rows` pieces stand in memory at once."""
    return min(num_positions, max(1, _SLICE_ELEMENTS // num_rows))


def _slices(num_states: int, num_rows: int, elements: int) -> list[slice]:
    size = max(1, elements // num_rows)
    return [slice(start, start + size) for start in range(0, max(1, num_states), size)]
