"""The CPU attention must be SDPA's to the last digits, or training on a CPU quietly trains another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from yangtuo.training import attention


def packed_mask(length: int) -> torch.Tensor:
    document = (torch.arange(length) // 37)[None].expand(2, length)
    return ((document[:, :, None] == document[:, None]) & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_values_and_gradients_equal_sdpa(packed: bool, length: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, length, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 3, 3)]
    mask = packed_mask(length) if packed else None
    query, key, value = tensors
    ours = attention.sliced_attention(query, key, value, mask, scaling=0.25)
    wide = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    theirs = scaled_dot_product_attention(query, *wide, attn_mask=mask, is_causal=not packed, scale=0.25)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), tensors),
        torch.autograd.grad((theirs * weights).sum(), tensors),
        strict=True,
    ):
        # Sums over slices are kept in float32.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", [attention.NAME, "sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(pico_model: Path, implementation: str) -> None:
    """Each document's logits, packed with another before it, are those of the document alone."""
    model = AutoModelForCausalLM.from_pretrained(pico_model, attn_implementation=implementation)
    first, second = torch.arange(3, 90)[None], torch.arange(200, 280)[None]
    positions = torch.cat([torch.arange(87), torch.arange(80)])[None]
    model.train()
    packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, 87:], model(second, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, :87], model(first, use_cache=False).logits, rtol=1e-4, atol=1e-5)
