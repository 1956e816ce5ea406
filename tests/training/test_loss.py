"""The sliced loss must be the loss: another value, or a gradient that is off, would train another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from yangtuo.training import loss
from yangtuo.training.adapter import AdapterShape, attach


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 400, (3, 50), generator=generator)
    labels = ids.clone()
    labels[:, :20] = -100
    labels[1] = -100
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(50).expand(3, 50)}


def adapted(path: Path, embeddings: str, sliced: bool):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert not sliced or loss.use_sliced_loss(model)
    shape = AdapterShape(rank=4, alpha=8, embeddings=embeddings, new_rows=range(380, 400))
    model = attach(model, shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("embeddings", ["full", "new", "frozen"])
@pytest.mark.parametrize("tied", [False, True])
def test_value_and_every_gradient_equal_the_plain_loss(
    pico_model: Path, pico_tied_model: Path, embeddings: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_SLICE_ELEMENTS", 400 * 7)  # several slices, the last one short
    monkeypatch.setattr(loss, "_WIDE_ELEMENTS", {"cpu": 400 * 2})
    path = pico_tied_model if tied else pico_model
    results = {}
    for sliced in (False, True):
        model = adapted(path, embeddings, sliced)
        value = model(**batch(), num_items_in_batch=7, use_cache=False).loss
        value.backward()
        named = model.named_parameters()
        results[sliced] = (value, {name: p.grad for name, p in named if p.requires_grad})
    torch.testing.assert_close(results[True][0], results[False][0])
    for name, gradient in results[False][1].items():
        torch.testing.assert_close(results[True][1][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


def test_a_batch_without_labels_gives_zeros_not_nothing(pico_model: Path) -> None:
    """Other processes wait for every gradient, so none may be missing; and the sum of nothing is no NaN."""
    model = adapted(pico_model, "full", sliced=True)
    inputs = batch()
    value = model(**inputs | {"labels": torch.full_like(inputs["labels"], -100)}, num_items_in_batch=7).loss
    value.backward()
    assert float(value.detach()) == 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_a_sharded_head_is_called_as_a_module(pico_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weight stands in shards, the module's own hooks gather it; value and gradients stay the same."""
    whole = adapted(pico_model, "full", sliced=True)
    expected = whole(**batch()).loss
    expected.backward()
    monkeypatch.setattr(loss, "_is_whole", lambda _weight: False)
    sharded = adapted(pico_model, "full", sliced=True)
    value = sharded(**batch()).loss
    value.backward()
    torch.testing.assert_close(value, expected)
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_logits_that_are_not_plain_keep_their_own_loss(pico_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico_model)
    model.config.final_logit_softcapping = 30.0
    assert not loss.use_sliced_loss(model)
