"""Causal attention for training on a CPU: slices of queries against the keys before them, in plain matrix products.

PyTorch's fused kernel spends two fifths of a small model's step in attention, on keys after the query too, and its
backward computes the scores again. Here the probabilities of each slice are kept (in the arithmetic's own dtype), and
one batched product serves all query heads of a key head. Registered under `NAME` for transformers' models, with the
masks of its SDPA attention, so packed documents stay apart. Longer sequences and other devices fall back to SDPA.
This module does not depend on models beyond that interface.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "yangtuo_sliced"
_SLICE = 64  # queries at a time; the fastest of 64, 128 and 256 at 256 and at 512 tokens
LONGEST = 1024  # beyond it the kept probabilities outgrow the rest of a layer


class _SlicedAttention(torch.autograd.Function):
    """`query` (B, H, T, D) scaled, `key` and `value` (B, K, T, D), `mask` (B or 1, 1, T, T), True to attend."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, size = query.shape
        pairs, group = batch * key.shape[1], heads // key.shape[1]
        query = query.reshape(pairs, group, length, size)
        key, value = key.reshape(pairs, length, size), value.reshape(pairs, length, size)
        output = torch.empty_like(query)
        kept: list[Tensor] = []
        for start, end in _spans(length):
            rows = query[:, :, start:end].reshape(pairs, -1, size)
            scores = torch.bmm(rows, key[:, :end].transpose(1, 2)).view(batch, heads, end - start, end)
            if mask is None:
                scores[..., start:].masked_fill_(_after(end - start), -torch.inf)
            else:
                scores.masked_fill_(~mask[:, :, start:end, :end], -torch.inf)
            kept.append(torch.softmax(scores, dim=-1).view(pairs, -1, end))
            output[:, :, start:end] = torch.bmm(kept[-1], value[:, :end]).view(pairs, group, -1, size)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.shape = (batch, heads, length, size)
        return output.view(batch, heads, length, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, *kept = ctx.saved_tensors
        batch, heads, length, size = ctx.shape
        pairs, group = query.shape[:2]
        gradient = gradients[0].reshape(pairs, group, length, size)
        inner = (gradient * output).sum(-1, keepdim=True)  # softmax's own backward term, from the output alone
        query_gradient = torch.empty_like(query)
        key_gradient = torch.zeros(pairs, length, size)
        value_gradient = torch.zeros(pairs, length, size)
        for (start, end), weights in zip(_spans(length), kept, strict=True):
            rows = gradient[:, :, start:end].reshape(pairs, -1, size)
            value_gradient[:, :end] += torch.bmm(weights.transpose(1, 2), rows)
            scores = torch.bmm(rows, value[:, :end].transpose(1, 2))
            scores.sub_(inner[:, :, start:end].reshape(pairs, -1, 1)).mul_(weights)
            query_gradient[:, :, start:end] = torch.bmm(scores, key[:, :end]).view(pairs, group, -1, size)
            key_gradient[:, :end] += torch.bmm(scores.transpose(1, 2), query[:, :, start:end].reshape(pairs, -1, size))
        narrow = (batch, heads // group, length, size)
        return (
            query_gradient.view(batch, heads, length, size),
            key_gradient.to(key.dtype).view(narrow),
            value_gradient.to(value.dtype).view(narrow),
            None,
        )


def keep_documents_apart(model: PreTrainedModel) -> None:
    """Makes documents whose position ids restart in a row blind to each other, whatever the caller says of the cache.

    transformers builds the mask that separates them only where no cache is made; with one, which is its default even
    in training, they see each other and nothing says so. Steps that continue a cache pass unchanged.
    """

    def without_new_cache(_module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        is_new = inputs.get("position_ids") is not None and inputs.get("past_key_values") is None
        return args, {**inputs, "use_cache": False} if is_new else inputs

    getattr(model, model.base_model_prefix).register_forward_pre_hook(without_new_cache, with_kwargs=True)


def sliced_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Causal attention; shapes as in `_SlicedAttention`, returns (B, H, T, D). `mask` None: all earlier positions."""
    output: Tensor = _SlicedAttention.apply(query * scaling, key, value, mask)  # type: ignore[no-untyped-call]
    return output


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    length = query.shape[2]
    special = options.get("dropout") or options.get("softcap") or options.get("position_bias") is not None
    causal = getattr(module, "is_causal", True)
    if query.device.type != "cpu" or length != key.shape[2] or length > LONGEST or special or not causal:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    scaling = options.get("scaling") or query.shape[3] ** -0.5
    with torch.autocast("cpu", enabled=False):
        output = sliced_attention(query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, scaling)
    return output.transpose(1, 2), None


def _spans(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _SLICE, length)) for start in range(0, length, _SLICE)]


def _after(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
