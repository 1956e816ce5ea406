"""`yangtuo inspect`: users decide by what it says, so it must say what is there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yangtuo.artifacts.manifest import Artifact
from yangtuo.config.inspect import InspectConfig
from yangtuo.config.merge import MergeConfig
from yangtuo.errors import ConfigError, FileError, LineageError
from yangtuo.stages import inspect
from yangtuo.stages import merge as merging


def run(path: Path, **options: object) -> dict[str, object]:
    return inspect.run(InspectConfig(str(path), **options))  # type: ignore[arg-type]


def merge(base: Path, adapters: list[Path], output: Path) -> Artifact:
    return merging.run(MergeConfig(base=str(base), adapter=tuple(map(str, adapters)), output=output))


def test_a_foreign_model_is_recognised_and_described(pico_tied_model: Path) -> None:
    facts = run(pico_tied_model)
    expected = {
        "kind": "model",
        "architecture": "LlamaForCausalLM",
        "rows": 400,
        "pieces": 400,
        "tied": True,
        "dtype": "float32",
        "layers": 2,
        "foreign": True,
        "lora_layers": ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"],
    }
    facts["lora_layers"] = sorted(facts["lora_layers"])  # type: ignore[call-overload]
    expected["lora_layers"] = sorted(expected["lora_layers"])  # type: ignore[call-overload]
    assert {key: facts[key] for key in expected} == expected


def test_an_adapter_tells_what_it_changes(pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]) -> None:
    facts = run(write_adapter(tmp_path / "adapter", pico_model, 1, modules_to_save=["lm_head"]))
    assert facts["kind"] == "adapter" and facts["rank"] == 2 and facts["pieces"] == 400
    assert facts["replaces"] == {"lm_head.weight": [400, 32]}
    assert facts["lora_layers"] == ["down_proj", "q_proj"]


def test_tokenizers_and_archives_are_recognised(pico_tokenizer: Path, tmp_path: Path) -> None:
    assert run(pico_tokenizer)["pieces"] == run(pico_tokenizer / "tokenizer.model")["pieces"] == 400
    assert run(pico_tokenizer)["tokenizer"] == run(pico_tokenizer / "tokenizer.model")["tokenizer"]
    with pytest.raises(FileError, match="nothing that yangtuo knows"):
        run(tmp_path)


def test_parents_are_followed(pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]) -> None:
    base = tmp_path / "base"
    shutil.copytree(pico_model, base)
    adapter = train_adapter(tmp_path / "adapter", base)
    merged = merge(base, [adapter], tmp_path / "merged").path
    assert {role: parent["state"] for role, parent in run(merged)["parents"].items()} == {  # type: ignore[attr-defined]
        "base": "unchanged",
        "adapter": "unchanged",
    }
    shutil.rmtree(adapter)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert {role: parent["state"] for role, parent in run(merged)["parents"].items()} == {  # type: ignore[attr-defined]
        "base": "another now",
        "adapter": "no longer there",
    }


def test_verify_finds_what_has_changed_gone_or_come(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    merged = merge(pico_model, [train_adapter(tmp_path / "adapter", pico_model)], tmp_path / "merged").path
    assert run(merged, verify=True)["verified"] == f"{len(list(merged.iterdir())) - 1} files"
    weights = merged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (merged / "tokenizer.json").rename(merged / "tokenizer.txt")
    with pytest.raises(FileError) as caught:
        run(merged, verify=True)
    message = str(caught.value)
    assert message.startswith("3 problems")
    assert "tokenizer.json is missing" in message and "tokenizer.txt has been added" in message
    assert "model.safetensors is not what it was" in message


@pytest.mark.parametrize("form", ["{sum}  {name}", "{sum} *{name}", "SHA256 ({name}) = {sum}", "| `{name}` | {sum} |"])
def test_published_sums_of_every_form(pico_model: Path, tmp_path: Path, form: str) -> None:
    digest = hashlib.sha256((pico_model / "model.safetensors").read_bytes()).hexdigest()
    sums = tmp_path / "SHA256.md"
    sums.write_text("# sums\n" + form.format(sum=digest, name="model.safetensors") + "\n")
    assert run(pico_model, sums=str(sums))["verified"] == "1 files"
    sums.write_text(form.format(sum="0" * 64, name="model.safetensors"))
    with pytest.raises(FileError, match="is not what it was"):
        run(pico_model, sums=str(sums))


def test_verify_needs_something_to_verify_against(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no manifest"):
        run(pico_model, verify=True)
    (tmp_path / "sums").write_text("nothing here")
    with pytest.raises(FileError, match="names no file"):
        run(pico_model, sums=str(tmp_path / "sums"))


def test_a_step_that_wants_a_model_says_what_it_got(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    adapter = train_adapter(tmp_path / "adapter", pico_model)
    with pytest.raises(LineageError, match="wrong kind"):
        merge(adapter, [adapter], tmp_path / "merged")
