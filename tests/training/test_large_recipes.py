"""The 7B recipes must run as they stand before a cluster is rented: every step and key, at a pico model's sizes."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import yangtuo
from yangtuo import pipeline
from yangtuo.config.export import ExportConfig
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.errors import ConfigError, raise_all
from yangtuo.stages import export
from yangtuo.training import preflight, sharding

RECIPES = Path(__file__).parents[2] / "recipes"
TEXTS = Path(yangtuo.__file__).parent / "quickstart" / "texts"


@pytest.fixture
def inputs(pico_model: Path, tmp_path: Path) -> dict[str, str]:
    """What the recipes ask for, in their own formats: Meta's layout, texts, and Alpaca's JSON."""
    export.run(ExportConfig(model=str(pico_model), format="meta", shards=2, output=tmp_path / "llama"))
    (tmp_path / "llama" / "yangtuo.json").unlink()
    rows = json.loads((TEXTS / "questions" / "town.json").read_text(encoding="utf-8"))[:24]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    for name in ("zh", "en"):
        (tmp_path / name).mkdir()
        for path in sorted((TEXTS / name).iterdir())[:3]:
            (tmp_path / name / path.name).write_text(path.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return {name: str(tmp_path / name) for name in ("llama", "zh", "en", "rows.json")}


@pytest.mark.parametrize(
    ("name", "sources", "own"),
    [
        ("llama-7b-zh.yaml", ["zh={zh}"], []),
        ("llama-7b-zh-yangtuo.yaml", ["zh={zh}", "en={en}:0.2"], ["pretrain.bound=[en=9]", "expand.text=[{zh},{en}]"]),
    ],
)
def test_a_7b_recipe_runs_from_end_to_end(name: str, sources, own, inputs: dict[str, str], tmp_path: Path) -> None:
    training = ("batch_size=4", "micro_batch=2", "epochs=0.1", "dtype=float32", "sharding=none")
    overrides = [
        f"convert.source={inputs['llama']}",
        "convert.dtype=float32",
        f"tokenizer-train.corpus=[{inputs['zh']}]",
        "tokenizer-train.size=200",
        "prepare.source=" + json.dumps([source.format(**inputs) for source in sources]),
        "prepare.block_size=32",
        "prepare.held_out=0.2",
        f"sft.data=[{inputs['rows.json']}]",
        "sft.max_length=160",
        *[f"{step}.{option}" for step in ("pretrain", "sft") for option in training],
        *[option.format(**inputs) for option in own],
    ]
    plan = pipeline.load(RECIPES / name, overrides, tmp_path / "out")
    made = pipeline.execute(plan, lambda verb: import_module(f"yangtuo.stages.{verb.replace(' ', '_')}").run)
    assert list(made) == [step.name for step in plan.steps]
    assert made["merge"].manifest.vocabulary_size > made["convert"].manifest.vocabulary_size
    assert made["pretrain"].manifest.details["steps"] >= 1


def test_the_papers_settings_stand_in_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 8, alpha 32, embedding and head in full, 2e-4, 512 tokens, float16, ZeRO-2; and what ZeRO-2 then means."""
    steps = yaml.safe_load((RECIPES / "llama-7b-zh.yaml").read_text(encoding="utf-8"))["steps"]
    expected = {
        "rank": 8,
        "alpha": 32,
        "embeddings": "full",
        "learning_rate": 2e-4,
        "trainer": ["lr_scheduler_type=cosine"],
        "dtype": "float16",
        "sharding": "zero2",
    }
    assert {key: steps["pretrain"][key] for key in expected} == expected
    assert steps["prepare"]["block_size"] == 512
    monkeypatch.setattr(preflight, "world_size", lambda: 8)
    given = {**expected, "dtype": "bfloat16", "batch_size": steps["pretrain"]["batch_size"]}
    options = vars(PretrainConfig(model="m", data="d", output=Path("o"), **given))
    monkeypatch.setattr(preflight, "find_spec", lambda _name: object())
    assert preflight.check(options) == []
    assert sharding.trainer_options("zero2")["deepspeed"]["zero_optimization"]["stage"] == 2
    monkeypatch.setattr(preflight, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"(?s)needs DeepSpeed.*pip install deepspeed"):
        raise_all(preflight.check(options))
