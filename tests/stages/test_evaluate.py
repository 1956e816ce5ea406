"""Evaluate: figures per model and data set, side by side, as an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yangtuo.config.evaluate import EvaluateConfig
from yangtuo.errors import ConfigError
from yangtuo.stages import evaluate


def test_models_are_compared_on_the_same_text(pico_model: Path, pico_tied_model: Path, tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("你好，羊驼。", encoding="utf-8")
    config = EvaluateConfig(
        model=(f"one={pico_model}", f"two={pico_tied_model}"),
        suite="bits-per-byte",
        data=(str(tmp_path / "zh.txt"),),
        output=tmp_path / "scores",
    )
    artifact = evaluate.run(config)
    results = json.loads((artifact.path / "results.json").read_text("utf-8"))
    assert results["one"]["zh"]["num_bytes"] == results["two"]["zh"]["num_bytes"] == 18
    assert results["one"]["zh"]["bits_per_byte"] != results["two"]["zh"]["bits_per_byte"]
    assert artifact.manifest is not None
    assert set(artifact.manifest.parents) == {"one", "two"}


def test_questions_keep_every_reply(pico_model: Path, tmp_path: Path) -> None:
    """A figure that cannot be looked into proves nothing."""
    questions = [
        {"instruction": "Who?", "answers": ["nobody would say this"]},
        {"instruction": "Why?", "answers": [""]},
    ]
    (tmp_path / "q.json").write_text(json.dumps([{**questions[0]}, {**questions[1], "answers": ["zzz"]}]))
    config = EvaluateConfig(
        model=(str(pico_model),),
        suite="questions",
        data=(str(tmp_path / "q.json"),),
        output=tmp_path / "s",
        max_new_tokens=3,
    )
    results = json.loads((evaluate.run(config).path / "results.json").read_text("utf-8"))
    (figures,) = results.values()
    assert figures["q"]["num_right"] == 0
    assert [row["question"] for row in figures["q"]["replies"]] == ["Who?", "Why?"]


def test_two_models_of_one_name_are_refused(pico_model: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        model=(str(pico_model), str(pico_model)), suite="bits-per-byte", data=("x",), output=tmp_path / "s"
    )
    with pytest.raises(ConfigError, match="same name"):
        evaluate.run(config)
