"""Number formats other than the usual: half precision must scale its loss, or small gradients vanish without a word."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import TrainingError, raise_all
from yangtuo.training import base, loop, preflight
from yangtuo.training.adapter import AdapterShape, attach
from yangtuo.training.metrics_log import read_metrics


class Blocks:
    """Blocks of repeated tokens, easy to learn."""

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(24) * (index % 3 + 1)) % 50 + 300
        return {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(24)}


def train(path: Path, dtype: torch.dtype, directory: Path, **changed) -> list[dict]:
    torch.manual_seed(0)
    model = attach(base.load_base(path, dtype), AdapterShape(rank=4, alpha=8))
    settings = loop.Settings(**({"learning_rate": 1e-2, "dtype": str(dtype).removeprefix("torch.")} | changed))
    loop.train(model, Blocks(), [], settings, directory)
    return read_metrics(directory)


def test_float16_without_a_gpu_is_refused_in_words() -> None:
    """Accelerate would switch scaling off on a CPU, silently, and products of two formats would fail somewhere."""
    with pytest.raises(TrainingError, match="float16 needs a GPU"):
        raise_all(preflight.check(vars(PretrainConfig(model="m", data="d", output=Path("o"), dtype="float16"))))


@pytest.fixture
def scaled_float16(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """Lets a CPU train in float16 as a GPU does, through accelerate's own scaling; the scalers that were made."""
    scalers: list[torch.amp.GradScaler] = []
    create = loop._Trainer.create_accelerator_and_postprocess

    def create_scaled(self) -> None:
        create(self)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**24))
        self.accelerator.scaler, self.accelerator.native_amp = scalers[-1], True

    monkeypatch.setattr(loop._Trainer, "create_accelerator_and_postprocess", create_scaled)
    monkeypatch.setattr(loop, "compute_dtype", lambda _name: torch.float16)
    return scalers


def test_float16_finds_its_scale_and_learns(
    pico_model: Path, tmp_path: Path, scaled_float16: list[torch.amp.GradScaler]
) -> None:
    """The first steps overflow and move nothing, which no guard may take for a run that trains nothing."""
    half = train(pico_model, torch.float16, tmp_path, epochs=2)
    skipped = ["grad_norm" not in row for row in half]
    assert skipped[:3] == [True] * 3, "a scale of 2**24 overflows, and halves each time"
    assert sum(skipped) < 10
    assert scaled_float16[0].get_scale() == 2.0 ** (24 - sum(skipped))
    assert half[-1]["loss"] < half[0]["loss"] - 2
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_four_bits_without_bitsandbytes_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda _name: None)
    with pytest.raises(TrainingError, match=r"(?s)need bitsandbytes.*pip install bitsandbytes"):
        raise_all(preflight.check(vars(PretrainConfig(model="m", data="d", output=Path("o"), dtype="nf4"))))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed")
def test_four_bits_store_a_quarter_and_learn(pico_model: Path, tmp_path: Path) -> None:
    """QLoRA: the linear layers stand in 4 bits and stay as they are, the adapter beside them learns."""
    torch.manual_seed(0)
    loaded = base.load_base(pico_model, torch.bfloat16, quantized=True)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = dict(loaded.named_parameters())[name]
    assert stored.dtype is torch.uint8
    assert stored.numel() == 64 * 32 // 2
    before = stored.clone()
    model = attach(loaded, AdapterShape(rank=4, alpha=8))
    loop.train(
        model, Blocks(), [], loop.Settings(learning_rate=1e-2, dtype="nf4", gradient_checkpointing=True), tmp_path
    )
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert losses[-1] < losses[0] - 1
    assert torch.equal(stored, before)
    assert (tmp_path / "adapter_model.safetensors").is_file()
