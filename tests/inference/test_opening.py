"""Models and adapters by what a user names: unmerged where the engine can, else merged once, and why is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from yangtuo.config import ConvertConfig, InspectConfig
from yangtuo.errors import ConfigError, FileError, UserError
from yangtuo.inference import cache, opening
from yangtuo.inference.adapters import reasons_to_merge
from yangtuo.inference.engine import Sampling, generate
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.transformers_engine import TransformersEngine, load_model
from yangtuo.stages import convert, inspect
from yangtuo.training.adapter import quiet_peft

PROMPT = [1, 40, 41, 42]


def adapter_of(model: Path, directory: Path, seed: int, **options: object) -> Path:
    torch.manual_seed(seed)
    shape = LoraConfig(r=4, **{"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **options})  # type: ignore[arg-type]
    with quiet_peft():
        adapted = get_peft_model(load_model(model), shape)
        for name, tensor in adapted.named_parameters():
            if "modules_to_save" in name:
                tensor.data += torch.randn_like(tensor) / 4
        adapted.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def adapters(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters, the second with a trained embedding and head."""
    root = tmp_path_factory.mktemp("adapters")
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    return [adapter_of(pico_model, root / "one", 1), adapter_of(pico_model, root / "two", 2, **saved)]


def reply(model: Path, adapter: Path | None = None) -> list[int]:
    return generate(TransformersEngine(load_model(model, adapter)), [PROMPT], Sampling(max_tokens=10))[0]


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_one_adapter_gives_its_own_reply(
    pico_model: Path, adapters: list[Path], engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for adapter in adapters:
        opened = open_conversations(str(pico_model), [str(adapter)], engine, "alpaca")
        (conversation,) = opened.conversations.values()
        got = generate(conversation.engine, [PROMPT], Sampling(max_tokens=10), conversation.adapter)
        assert got == [reply(pico_model, adapter)]
        opened.close()
        is_merged = engine == "llama.cpp" and adapter.name == "two"
        assert ("no trained copies" in capfd.readouterr().err) is is_merged


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
@pytest.mark.parametrize("count", [1, 2])
def test_named_adapters_are_models_of_their_own(
    pico_model: Path, adapters: list[Path], engine: str, count: int
) -> None:
    """Beside one adapter, the base stays the base: that is what a comparison of the two is for."""
    names = [f"{path.name}={path}" for path in adapters[:count]]
    opened = open_conversations(str(pico_model), names, engine, "alpaca")
    assert list(opened.conversations) == ["model", "one", "two"][: count + 1]
    assert len(opened.engines) == (2 if engine == "llama.cpp" and count == 2 else 1)
    expected = [reply(pico_model), *(reply(pico_model, path) for path in adapters[:count])]
    got = [
        generate(one.engine, [PROMPT], Sampling(max_tokens=10), one.adapter)[0] for one in opened.conversations.values()
    ]
    assert got == expected
    opened.close()


def test_adapters_in_order_are_merged_once(
    pico_model: Path, adapters: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        before = set(cache.directory().iterdir())
        opened = open_conversations(str(pico_model), [str(path) for path in adapters], "transformers", "alpaca")
        made = {path for path in set(cache.directory().iterdir()) - before if not path.name.startswith(".")}
        (conversation,) = opened.conversations.values()
        assert generate(conversation.engine, [PROMPT], Sampling(max_tokens=10))
        opened.close()
    assert made == set(), "the second start finds what the first has made"
    assert "adapters in order make one model" in capfd.readouterr().err


def test_why_an_engine_cannot_load_an_adapter(pico_model: Path, adapters: list[Path], tmp_path: Path) -> None:
    plain, saved = (reasons_to_merge(path, pico_model) for path in adapters)
    assert set(plain.values()) == {None}
    assert saved["transformers"] is None and "embed_tokens" in str(saved["vllm"])
    rows = adapter_of(pico_model, tmp_path / "rows", 3, trainable_token_indices=[5, 6])
    assert "rows of the vocabulary" in str(reasons_to_merge(rows)["vllm"])
    dora = adapter_of(pico_model, tmp_path / "dora", 3, use_dora=True)
    assert "DoRA" in str(reasons_to_merge(dora)["vllm"]) and "DoRA" in str(reasons_to_merge(dora)["llama.cpp"])
    said = inspect.run(InspectConfig(path=str(dora)))["unmerged"]
    assert said["transformers"] == "yes" and "DoRA" in said["vllm"]  # type: ignore[index]


@pytest.mark.parametrize("values", [{"modules_to_save": 1}, {"trainable_token_indices": "((("}, {"use_dora": []}])
def test_settings_of_other_types_are_named(adapters: list[Path], tmp_path: Path, values: dict[str, object]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapters[0], copy)
    config = copy / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(FileError, match="adapter_config"):
        reasons_to_merge(copy)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YANGTUO_CACHE", str(tmp_path))
    monkeypatch.setenv("YANGTUO_CACHE_SIZE", "2500B")
    for number in range(4):
        cache.cached(f"entry-{number}", lambda path: path.write_bytes(b"x" * 1000) and None)
    assert sorted(path.name for path in tmp_path.glob("entry-*")) == ["entry-2", "entry-3"]


def test_a_gguf_file_is_a_model(pico_model: Path, tmp_path: Path) -> None:
    from yangtuo.weights.gguf import write_gguf
    from yangtuo.weights.layouts import open_checkpoint

    write_gguf(tmp_path / "pico.gguf", open_checkpoint(pico_model), "f32")
    opened = open_conversations(str(tmp_path / "pico.gguf"), template="alpaca")
    assert list(opened.conversations) == ["pico"]
    conversation = opened.conversations["pico"]
    assert generate(conversation.engine, [PROMPT], Sampling(max_tokens=10)) == [reply(pico_model)]
    assert conversation.encoder.encode("the cat") == open_conversations(
        str(pico_model), engine="transformers", template="alpaca"
    ).conversations["model"].encoder.encode("the cat")
    opened.close()
    with pytest.raises(ConfigError, match="GGUF"):
        open_conversations(str(tmp_path / "pico.gguf"), engine="transformers")
    with pytest.raises(ConfigError, match="number format"):
        open_conversations(str(tmp_path / "pico.gguf"), dtype="bfloat16")


def test_the_arithmetic_may_be_in_another_number_format(
    pico_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YANGTUO_CACHE", str(tmp_path))
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        opened = open_conversations(str(pico_model), (), "transformers", "alpaca", dtype)
        (engine,) = opened.engines
        assert isinstance(engine, TransformersEngine)
        assert {parameter.dtype for parameter in engine._model.parameters()} == {expected}
        assert len(generate(engine, [PROMPT], Sampling(max_tokens=10))[0]) == 10
        opened.close()
    sizes = [opening._ids_only_gguf(pico_model, dtype).stat().st_size for dtype in ("auto", "bfloat16")]
    assert sizes[1] < 0.8 * sizes[0]


def test_weights_changed_in_place_are_not_answered_from_the_cache(pico_model: Path, tmp_path: Path) -> None:
    """The manifest still says what was written; what stands there now is what must speak, or be refused."""
    artifact = convert.run(ConvertConfig(source=str(pico_model), output=tmp_path / "model"))
    first = open_conversations(str(artifact.path), (), "llama.cpp", "alpaca")
    first.close()
    weights = artifact.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        open_conversations(str(artifact.path), (), "llama.cpp", "alpaca")
