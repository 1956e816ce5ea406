"""A rate that is wrong by a factor wastes a run without a word: rows stand still, or English is forgotten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from yangtuo.training import rates
from yangtuo.training.adapter import AdapterShape, attach


@pytest.mark.parametrize("tied", [False, True])
def test_fresh_rows_learn_by_the_size_of_their_matrix(pico_model: Path, pico_tied_model: Path, tied: bool) -> None:
    """A rate that suits one base would stand still or explode on another; trained rows and given rates stay."""
    loaded = AutoModelForCausalLM.from_pretrained(pico_tied_model if tied else pico_model, dtype=torch.bfloat16)
    with torch.no_grad():
        loaded.get_input_embeddings().weight.mul_(3)
    model = attach(loaded, AdapterShape(rank=4, alpha=8, embeddings="new", new_rows=range(390, 400)))

    def found_rates(**changed: Any) -> dict[str, float]:
        groups = rates.parameter_groups(model, 1e-3, **changed)
        found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        named = {name: one for name, one in model.named_parameters() if one.requires_grad}
        assert len(found) == len(named)
        return {
            part: found[id(one)]
            for name, one in named.items()
            for part in ("embed_tokens", "lm_head", "q_proj")
            if part in name
        }

    size = {
        "embed_tokens": loaded.get_input_embeddings().weight.float().std(dim=0).mean().item(),
        "lm_head": loaded.get_output_embeddings().weight.float().std(dim=0).mean().item(),
    }
    expected = {"embed_tokens": (0.04 if tied else 0.15) * size["embed_tokens"], "q_proj": 1e-3}
    if not tied:
        expected["lm_head"] = 0.04 * size["lm_head"]
        assert size["embed_tokens"] > 2 * size["lm_head"]
    assert found_rates(fresh=1.0) == pytest.approx(expected)
    halved = {part: rate if part == "q_proj" else rate / 2 for part, rate in expected.items()}
    assert found_rates(fresh=0.5) == pytest.approx(halved)
    assert set(found_rates().values()) == {1e-3, rates.NEW_ROWS_RATE * 1e-3}
    assert set(found_rates(fresh=1.0, embedding_learning_rate=5e-4).values()) == {1e-3, 5e-4}


def test_distilled_rows_learn_faster_in_longer_runs() -> None:
    shares = [rates.share_of_fresh(rates.DISTILLED, steps) for steps in (1, 24, 96, 244, 100_000)]
    assert shares == pytest.approx([0.03, 0.03, 0.06, 0.0957, 0.1], abs=1e-4)
    assert [rates.share_of_fresh(share, 10_000) for share in (0.0, 1.0)] == [0.0, 1.0]


def test_learning_rates_decay_as_asked() -> None:
    """100 steps: 3 of warm-up, then a line or a cosine to zero."""
    for schedule, quarter in (("linear", 0.75), ("cosine", 0.5 * (1 + math.cos(math.pi / 4)))):
        shares = [rates.share_of_peak(step, 103, schedule=schedule) for step in range(103)]
        assert shares[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, shares[4]]) and shares[4] == 1.0
        assert shares[4 + 99 // 4] == pytest.approx(quarter, abs=0.02)
        assert 0 < shares[-1] < 0.02
