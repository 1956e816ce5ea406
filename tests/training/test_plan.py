"""What the plan says before the first step must be near what the run will take, or users rent the wrong machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from yangtuo.training import base, loss
from yangtuo.training.adapter import AdapterShape, attach
from yangtuo.training.plan import make_plan, plan_run
from yangtuo.training.settings import Settings


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
    assert any(f"in {made.steps:,} steps" in line for line in made.lines())


def test_gradients_and_moments_are_counted_to_the_byte(pico_model: Path) -> None:
    model = adapted(pico_model)
    made = make_plan(model, model.config, 1, 1, 64, block_size=64, layers_again=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert made.learning == sum(3 * parameter.numel() * 4 for parameter in learning)
    assert made.weights == sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def test_the_logits_of_a_large_vocabulary_are_counted_once_a_slice() -> None:
    assert loss.positions_at_once(8 * 512, 50_000) == 1342
    assert loss.positions_at_once(100, 50_000) == 100


@pytest.mark.parametrize(
    ("embeddings", "lora", "said"),
    [
        ("full", {}, "LoRA of rank 4; embedding and head: in full"),
        ("new", {"use_dora": True}, "DoRA of rank 4; embedding and head: new rows"),
        ("frozen", {"use_rslora": True}, "rsLoRA of rank 4; embedding and head: frozen"),
    ],
)
def test_what_is_chosen_is_said(pico_model: Path, embeddings: str, lora: dict, said: str) -> None:
    shape = AdapterShape(rank=4, alpha=8, embeddings=embeddings, new_rows=range(390, 400), further=lora)
    model = attach(base.load_base(pico_model, torch.float32), shape)
    settings = Settings(learning_rate=1e-3, dtype="float32", fresh_rows=True)
    lines = plan_run(model, settings, 10, 64).lines()
    assert lines[0] == f"trains: {said}; arithmetic in float32; attention: {model.config._attn_implementation}"
    assert lines[1].startswith("peak rates: 0.001") and ("embedding and head" in lines[1]) == (embeddings != "frozen")


def test_experts_that_lora_does_not_reach_are_named() -> None:
    """transformers keeps the experts of a layer in one tensor, no linear layer: most of such a model is frozen."""
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = attach(AutoModelForCausalLM.from_config(config), AdapterShape(rank=4, alpha=8, embeddings="frozen"))
    made = plan_run(model, Settings(learning_rate=1e-3, dtype="float32"), 10, 64)
    experts = {name: size for name, size in made.unreached.items() if "experts" in name}
    assert sum(experts.values()) == 2 * 4 * 3 * 32 * 48
    (line,) = [line for line in made.lines() if "LoRA does not reach" in line]
    assert all(name in line for name in experts)
    dense = plan_run(adapted_dense(), Settings(learning_rate=1e-3, dtype="float32"), 10, 64)
    assert dense.unreached == {}


def adapted_dense():
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return attach(AutoModelForCausalLM.from_config(config), AdapterShape(rank=4, alpha=8))
