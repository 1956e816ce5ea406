"""`yangtuo pretrain` through its real entry point, on a pico model and a few real blocks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from yangtuo.artifacts.manifest import Artifact
from yangtuo.config.prepare import PrepareConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import LineageError
from yangtuo.stages import prepare, pretrain
from yangtuo.training.metrics_log import read_metrics

SENTENCES = (
    "Once upon a time there was a little girl named Lily, and she lived near the river.",
    "The cat sat on the mat and looked at the rain; the dog slept by the door.",
    "Every morning the old man walked to the market and bought three apples.",
    "To install the package, open a terminal, type the command and wait.",
    "What is the name of the river that runs through the town?",
    "In winter the mountains are white with snow, and in summer the fields are yellow.",
    "They say 你好 to greet, 谢谢 to thank and 再见 to part.",
)


@pytest.fixture(scope="session")
def dataset(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 32 tokens, with a held-out document of two sources."""
    directory = tmp_path_factory.mktemp("data")
    for name in ("one", "two"):
        (directory / name).mkdir()
        for number, sentence in enumerate(SENTENCES):
            (directory / name / f"{number}.txt").write_text(f"{sentence} {name}\n" * 4, encoding="utf-8")
    config = PrepareConfig(
        source=(f"one={directory / 'one'}", f"two={directory / 'two'}"),
        tokenizer=str(pico_tokenizer),
        output=directory / "data",
        block_size=32,
        held_out=0.1,
    )
    return prepare.run(config).path


def settings(model: Path, data: Path, output: Path, **changed) -> PretrainConfig:
    values = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "dtype": "float32", "epochs": 1.0, "save_every": 5}
    return PretrainConfig(model=str(model), data=str(data), output=output, **(values | changed))


@pytest.fixture(scope="session")
def trained(pico_model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pretrain.run(settings(pico_model, dataset, tmp_path_factory.mktemp("trained") / "adapter"))


def test_it_writes_an_adapter_that_has_learned(trained: Artifact, pico_model: Path) -> None:
    details = trained.manifest.details
    assert details["last_loss"] < details["first_loss"] - 0.5
    assert details["bits_per_byte_before"].keys() == {"one", "two"}
    for name, before in details["bits_per_byte_before"].items():
        assert details["bits_per_byte_after"][name] < before - 0.3
    assert {path.name for path in trained.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "yangtuo.json",
    }
    assert [row["step"] for row in read_metrics(trained.path) if "loss" in row] == list(range(1, details["steps"] + 1))
    model = AutoModelForCausalLM.from_pretrained(pico_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own
        adapted = PeftModel.from_pretrained(model, str(trained.path))
    assert adapted.peft_config["default"].base_model_name_or_path == str(pico_model)
    assert trained.manifest.parents.keys() == {"model", "data"}


def test_the_same_seed_gives_the_same_adapter(trained: Artifact, pico_model: Path, dataset: Path, tmp_path) -> None:
    again = pretrain.run(settings(pico_model, dataset, tmp_path / "again"))
    assert again.fingerprint == trained.fingerprint


def test_data_of_another_tokenizer_is_refused(pico_byte_level: Path, pico_model: Path, tmp_path) -> None:
    (tmp_path / "text.txt").write_text(SENTENCES[0], encoding="utf-8")
    config = PrepareConfig(
        source=(str(tmp_path / "text.txt"),), tokenizer=str(pico_byte_level), output=tmp_path / "other", block_size=32
    )
    other = prepare.run(config)
    with pytest.raises(LineageError, match="another tokenizer"):
        pretrain.run(settings(pico_model, other.path, tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists()


def test_the_adapters_config_is_in_sorted_order(trained: Artifact) -> None:
    """PEFT's sets come in the order of a process's hashes: equal runs had unequal fingerprints."""
    text = (trained.path / "adapter_config.json").read_text(encoding="utf-8")
    values = json.loads(text)
    assert values["target_modules"] == sorted(values["target_modules"])
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
