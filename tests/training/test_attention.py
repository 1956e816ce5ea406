"""The CPU attention must be SDPA's to the last digits, or training on a CPU quietly trains another model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from yangtuo.data.blocks import BlockDataset, write_packed
from yangtuo.training import attention, base


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


def packed_blocks(directory: Path) -> list[dict[str, torch.Tensor]]:
    """Three blocks as training reads them: documents of 1 to 100 ids, several to a block, and padding."""
    generator = torch.Generator().manual_seed(0)
    documents = [
        torch.randint(3, 400, (length,), generator=generator).tolist() for length in (100, 87, 60, 37, 30, 2, 1)
    ]
    learned = ((document, [True] * len(document)) for document in documents)
    write_packed(directory, learned, block_size=128, vocabulary_size=400, padding_id=2)
    blocks = BlockDataset(directory)
    return [blocks[index] for index in range(len(blocks))]


def largest_difference(model: PreTrainedModel, blocks: list[dict[str, torch.Tensor]], **options: Any) -> float:
    """Between the logits of documents packed together and those of each alone."""
    ids, positions = (torch.stack([block[key] for block in blocks]) for key in ("input_ids", "position_ids"))
    together = model(ids, position_ids=positions, **options).logits
    largest = 0.0
    for row, starts in enumerate((positions == 0).int()):
        begins = [*starts.nonzero().flatten().tolist(), positions.shape[1]]
        for begin, end in pairwise(begins):
            alone = model(ids[row : row + 1, begin:end], use_cache=False).logits[0]
            largest = max(largest, float((together[row, begin:end] - alone).detach().abs().max()))
    return largest


@pytest.mark.parametrize("longest", [1024, 100], ids=["", "fallback"])
@pytest.mark.parametrize("cache", [None, True, False], ids=["default-cache", "cache", "no-cache"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("implementation", [attention.NAME, "sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(
    implementation: str,
    training: bool,
    cache: bool | None,
    longest: int,
    pico_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each document's logits, packed with others, are those of the document alone, or the loss is of another text."""
    monkeypatch.setattr(attention, "LONGEST", longest)
    model = base.load_base(pico_model, torch.float32)
    model.set_attn_implementation(implementation)
    model.train(training)
    options = {} if cache is None else {"use_cache": cache}
    assert largest_difference(model, packed_blocks(tmp_path), **options) < 1e-5


def test_plain_transformers_lets_them_see_each_other(pico_model: Path, tmp_path: Path) -> None:
    """The trap is there, and these tests would notice it; once this fails, `keep_documents_apart` may go."""
    model = AutoModelForCausalLM.from_pretrained(pico_model, attn_implementation="sdpa").train()
    assert largest_difference(model, packed_blocks(tmp_path)) > 1e-2


def test_a_cache_that_is_continued_still_works(pico_model: Path) -> None:
    """Answers are written token by token from a cache while a model trains; they must stay the same."""
    model = base.load_base(pico_model, torch.float32).eval()
    ids = torch.arange(3, 43)[None]
    plain = AutoModelForCausalLM.from_pretrained(pico_model).eval()
    written = [one.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=2) for one in (model, plain)]
    assert torch.equal(*written)
    with torch.no_grad():
        start = model(ids[:, :30])
        rest = model(ids[:, 30:], past_key_values=start.past_key_values, position_ids=torch.arange(30, 40)[None]).logits
        torch.testing.assert_close(rest, model(ids).logits[:, 30:], rtol=1e-4, atol=1e-5)
