"""What the plan says before the first step must be near what the run will take, or users rent the wrong machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yangtuo.training import base, loss
from yangtuo.training.adapter import AdapterShape, attach
from yangtuo.training.plan import make_plan


def adapted(path: Path):
    torch.manual_seed(0)
    return attach(base.load_base(path, torch.bfloat16), AdapterShape(rank=4, alpha=8))


@pytest.mark.parametrize("block_size", [48, 192])
def test_the_estimate_counts_what_backward_keeps(pico_model: Path, block_size: int) -> None:
    """Every tensor that autograd saves is weighed; the estimate adds what the loss holds, and a factor."""
    model = adapted(pico_model).train()
    ids = torch.randint(3, 400, (4, block_size))
    inputs = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(block_size).expand_as(ids)}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    kept = sum(size for size, _ in saved.values()) + 2 * 400 * ids.numel()
    made = make_plan(model, model.config, 1, 1, ids.numel(), block_size=block_size, layers_again=False)
    assert made.activations / 1.35 == pytest.approx(kept, rel=0.25)
    again = make_plan(model, model.config, 1, 1, ids.numel(), block_size=block_size, layers_again=True)
    assert again.activations < made.activations * 0.75
    assert f"{made.steps:,} steps" in made.lines()[1]


def test_gradients_and_moments_are_counted_to_the_byte(pico_model: Path) -> None:
    model = adapted(pico_model)
    made = make_plan(model, model.config, 1, 1, 64, block_size=64, layers_again=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert made.learning == sum(3 * parameter.numel() * 4 for parameter in learning)
    assert made.weights == sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def test_the_logits_of_a_large_vocabulary_are_counted_once_a_slice() -> None:
    assert loss.positions_at_once(8 * 512, 50_000) == 1342
    assert loss.positions_at_once(100, 50_000) == 100
