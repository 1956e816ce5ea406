"""What the options of an adapter promise must be in the file that other tools read, or a run bought something else."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from yangtuo.artifacts.manifest import Artifact
from yangtuo.config.merge import MergeConfig
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import LineageError
from yangtuo.stages import merge, prepare, pretrain

IDS = torch.arange(5, 45).reshape(2, 20)
LORA = {"lora": (), "rslora": ("use_rslora=true",), "dora": ("use_dora=true",)}


@pytest.fixture(scope="module")
def dataset(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("variants")
    for number in range(6):
        lines = [f"The bird number {number * 10 + line} flew over roof {line * 7 % 13}." for line in range(8)]
        (directory / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    config = PrepareConfig(
        source=(f"en={directory}",),
        tokenizer=str(pico_tokenizer),
        output=directory / "data",
        block_size=32,
        held_out=0.2,
    )
    return prepare.run(config).path


def train(model: Path, data: Path, output: Path, **changed) -> Artifact:
    values = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "dtype": "float32", "epochs": 0.5}
    return pretrain.run(PretrainConfig(model=str(model), data=str(data), output=output, **(values | changed)))


@torch.no_grad()
def logits(model: Path, adapter: Path | None = None) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's own
            loaded = PeftModel.from_pretrained(loaded, str(adapter))
    result: torch.Tensor = loaded.eval()(IDS).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_a_variant_that_learned_merges_into_the_same_model(
    pico_model: Path, pico_tied_model: Path, dataset: Path, tmp_path: Path, variant: str, tied: bool
) -> None:
    base = pico_tied_model if tied else pico_model
    made = train(base, dataset, tmp_path / "adapter", lora=LORA[variant])
    config = json.loads((made.path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["use_rslora"], config["use_dora"]) == (variant == "rslora", variant == "dora")
    tensors = load_file(made.path / "adapter_model.safetensors")
    assert any("magnitude" in name for name in tensors) == (variant == "dora")
    merged = merge.run(MergeConfig(base=str(base), adapter=(str(made.path),), output=tmp_path / "merged"))
    adapted = logits(base, made.path)
    torch.testing.assert_close(logits(merged.path), adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - logits(base)).abs().max() > 0.1, "it has learned"


def test_rslora_scales_by_the_root_of_the_rank(pico_model: Path, dataset: Path, tmp_path: Path) -> None:
    """At rank 4, half of plain LoRA's alpha scales alike, and the same seed then gives the same adapter."""
    plain, stable = (
        load_file(
            train(pico_model, dataset, tmp_path / variant, lora=LORA[variant], alpha=alpha).path
            / "adapter_model.safetensors"
        )
        for variant, alpha in (("lora", 8), ("rslora", 8 / math.sqrt(4)))
    )
    assert plain.keys() == stable.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(stable[name], tensor)


def test_pretraining_goes_on_from_an_earlier_adapter(pico_model: Path, dataset: Path, tmp_path: Path) -> None:
    """It begins where the earlier run ended, keeps that run's shape, and will not go on upon another model."""
    first = train(pico_model, dataset, tmp_path / "first", rank=3, epochs=1)
    second = train(pico_model, dataset, tmp_path / "second", adapter=str(first.path), rank=64, epochs=1)
    ended, began = first.manifest.details, second.manifest.details
    assert began["bits_per_byte_before"]["en"] == pytest.approx(ended["bits_per_byte_after"]["en"], abs=1e-4)
    assert began["bits_per_byte_after"]["en"] < began["bits_per_byte_before"]["en"]
    assert json.loads((second.path / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 3
    assert second.manifest.parents["adapter"].fingerprint == first.fingerprint
    merged = merge.run(MergeConfig(base=str(pico_model), adapter=(str(first.path),), output=tmp_path / "merged"))
    with pytest.raises(LineageError, match="trained on another model"):
        train(merged.path, dataset, tmp_path / "third", adapter=str(first.path))


def test_tensorboard_is_told_what_the_metrics_log_is(pico_model: Path, dataset: Path, tmp_path: Path) -> None:
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    made = train(pico_model, dataset, tmp_path / "adapter", report_to=("tensorboard",))
    (path,) = (tmp_path / "adapter.tensorboard").iterdir()
    shown: dict[str, dict[int, float]] = {}
    for event in event_file.LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            shown.setdefault(value.tag, {})[event.step] = value.simple_value
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("loss", "grad_norm", "learning_rate"):
        assert shown[f"train/{name}"] == pytest.approx(
            {row["step"]: row[name] for row in rows if name in row}, rel=1e-5
        )
    measured = {row["step"]: row["bits_per_byte"]["en"] for row in rows if "bits_per_byte" in row}
    assert shown["train/bits_per_byte/en"] == pytest.approx(measured, rel=1e-5)
    assert len(measured) == 2
