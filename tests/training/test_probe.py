"""Architectures that would be trained wrongly are refused by name before any weight is read; the others train on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from yangtuo.errors import TrainingError
from yangtuo.training import attention, probe

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "phi", "glm4", "gemma", "mixtral"])
def test_known_families_train_with_our_attention(kind: str) -> None:
    extra = {"head_dim": 16} if kind in ("glm4", "gemma") else {}
    expected = "sdpa" if torch.cuda.is_available() else attention.NAME
    assert probe.choose_attention(AutoConfig.for_model(kind, **SMALL, **extra)) == expected


def test_an_attention_that_ours_does_not_compute_is_left_to_transformers() -> None:
    """Gemma 2 squashes attention scores, which neither our attention nor SDPA does."""
    assert probe.choose_attention(AutoConfig.for_model("gemma2", **SMALL, head_dim=16)) == "eager"


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("lfm2", {"layer_types": ["conv", "full_attention"] * 2}), ("mamba", {}), ("gpt2", {"n_embd": 64, "n_head": 4})],
)
def test_architectures_in_which_packed_documents_see_each_other_are_refused(kind: str, extra: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"architecture {kind} cannot be trained right") as refused:
        probe.choose_attention(AutoConfig.for_model(kind, **{**SMALL, **extra}))
    assert refused.value.found is not None and "see each other" in refused.value.found


def test_what_cannot_be_tried_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    probe._chosen.cache_clear()
    monkeypatch.setattr(probe, "use_sliced_loss", lambda _: {}["no head"])
    with pytest.raises(TrainingError, match="qwen3") as refused:
        probe.choose_attention(AutoConfig.for_model("qwen3", **SMALL, head_dim=16))
    probe._chosen.cache_clear()
    assert refused.value.found is not None and "no head" in refused.value.found


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_the_attention_asked_for_is_taken(asked: str) -> None:
    assert probe.choose_attention(AutoConfig.for_model("llama", **SMALL), asked) == asked


def test_an_attention_that_an_architecture_does_not_have_is_refused() -> None:
    with pytest.raises(TrainingError, match="gemma2"):
        probe.choose_attention(AutoConfig.for_model("gemma2", **SMALL, head_dim=16), "sdpa")
