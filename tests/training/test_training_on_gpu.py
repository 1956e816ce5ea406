"""Training on a GPU: loss, gradients and documents as on a CPU, and the number formats that only a GPU has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.test_attention import largest_difference, packed_blocks
from tests.training.test_loss import adapted, batch

from yangtuo.config.pretrain import PretrainConfig
from yangtuo.stages import pretrain
from yangtuo.training import base, loss
from yangtuo.training.metrics_log import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("embeddings", ["full", "new", "frozen"])
def test_the_loss_and_its_gradients_are_those_of_a_cpu(pico_model: Path, embeddings: str) -> None:
    values = []
    for device in ("cpu", "cuda"):
        model = adapted(pico_model, embeddings, sliced=True).to(device)
        inputs = {name: value.to(device) for name, value in batch().items()}
        model.zero_grad()
        result = model(**inputs).loss
        result.backward()
        learned = {name: each.grad.cpu() for name, each in model.named_parameters() if each.grad is not None}
        values.append((result.detach().cpu(), learned))
    (expected, gradients), (actual, others) = values
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert gradients and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5)


def test_packed_documents_do_not_see_each_other(pico_model: Path, tmp_path: Path) -> None:
    model = base.load_base(pico_model, torch.float32).to("cuda")
    assert model.config._attn_implementation == "sdpa"
    blocks = [{name: value.to("cuda") for name, value in block.items()} for block in packed_blocks(tmp_path)]
    with torch.inference_mode():
        assert largest_difference(model, blocks) < 1e-4


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_it_learns_in_every_number_format(
    grown: dict, tmp_path: Path, dtype: str, gradient_checkpointing: bool
) -> None:
    options = {"dtype": dtype, "gradient_checkpointing": gradient_checkpointing, "epochs": 4.0, "kl_coef": 1.0}
    made = pretrain.run(PretrainConfig(**{**grown, **options, "output": tmp_path / "adapter"}))
    losses = [row["loss"] for row in read_metrics(made.path) if "loss" in row]
    assert losses[-1] < 0.95 * losses[0], losses


def test_two_runs_are_equal_but_for_the_order_of_sums(values: dict, tmp_path: Path) -> None:
    """Kernels that add in whatever order their threads end are not given up for it."""
    runs = []
    for name in ("one", "other"):
        made = pretrain.run(PretrainConfig(**{**values, "dtype": "auto", "output": tmp_path / name}))
        runs.append([row["loss"] for row in read_metrics(made.path) if "loss" in row])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_memory_of_the_loss_is_bounded() -> None:
    """The logits of all positions would take ten times as much."""
    weight = torch.randn(50_000, 64, device="cuda", requires_grad=True)
    read = torch.randn(40_000, 64, device="cuda", requires_grad=True)
    labels = torch.randint(50_000, (40_000,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total, _ = loss.summed_cross_entropy(read, loss.HeadWeight(weight, weight), labels)
    total.backward()
    assert torch.cuda.max_memory_allocated() - before < 1.2e9
