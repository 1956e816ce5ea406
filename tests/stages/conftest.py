"""Fixtures of the stages' tests: adapters as other stages and other people leave them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def write_adapter() -> Callable[..., Path]:
    """Function that writes a foreign PEFT adapter with random values and the base's tokenizer."""
    return _write_adapter


@pytest.fixture(scope="session")
def train_adapter() -> Callable[..., Path]:
    """Function that writes an adapter with a manifest, as pretrain and sft do, without the hours."""
    return _train_adapter


def _write_adapter(directory: Path, base: Path, seed: int, **options: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from yangtuo.vocab.directory import copy_tokenizer

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", **{"r": 2, "target_modules": ["q_proj", "down_proj"], **options})
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(directory)
    copy_tokenizer(base, directory)
    return directory


def _train_adapter(output: Path, base: Path, seed: int = 1, tokenizer: str | None = None, **options: Any) -> Path:
    from yangtuo.artifacts.draft import draft
    from yangtuo.artifacts.manifest import Kind, open_artifact
    from yangtuo.config.pretrain import PretrainConfig
    from yangtuo.vocab.encoding import load_encoder

    config = PretrainConfig(model=str(base), data=str(base), output=output, seed=seed)
    with draft(config, Kind.ADAPTER, {"model": open_artifact(base)}) as made:
        _write_adapter(made.path, base, seed, **options)
        made.describe(tokenizer=tokenizer or load_encoder(base).fingerprint)
    return output
