"""`yangtuo merge` end to end: whole models come out, lineage decides, and what cannot be right does not happen."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from yangtuo.artifacts.manifest import Artifact
from yangtuo.config.merge import MergeConfig
from yangtuo.errors import ConfigError, FileError, LineageError, OutputError, UserError, WeightsError
from yangtuo.stages import merge
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights.merging import MergedTensors


def run(base: Path, adapters: list[Path], output: Path, **options: Any) -> Artifact:
    return merge.run(MergeConfig(base=str(base), adapter=tuple(map(str, adapters)), output=output, **options))


def logits(path: Path, *adapters: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT calls what transformers has deprecated
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        result: torch.Tensor = model.eval()(torch.arange(5, 45).reshape(2, 20)).logits
    return result


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        state |= load_file(file)
    return state


def test_a_merged_model_is_whole_and_computes_the_same(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    adapter = train_adapter(tmp_path / "adapter", pico_model, modules_to_save=["embed_tokens", "lm_head"])
    made = run(pico_model, [adapter], tmp_path / "merged")
    assert {path.name for path in made.path.iterdir()} >= {"config.json", "model.safetensors", "yangtuo.json"}
    assert not [path for path in made.path.iterdir() if path.name.startswith(".")], "scratch was left behind"
    torch.testing.assert_close(logits(made.path), logits(pico_model, adapter))
    assert (logits(made.path) - logits(pico_model)).abs().max() > 1e-2
    text = "Once upon a time"
    both = (AutoTokenizer.from_pretrained(path)(text).input_ids for path in (made.path, pico_model))
    assert next(both) == next(both)
    manifest = made.manifest
    assert manifest is not None
    assert manifest.tokenizer == load_encoder(pico_model).fingerprint
    assert manifest.details["rows"] == manifest.vocabulary_size == 400


@pytest.mark.parametrize("enough_memory", [True, False], ids=["logits", "tensors"])
def test_the_proof_passes_for_a_right_merge_and_fails_for_a_wrong_one(
    pico_model: Path,
    tmp_path: Path,
    train_adapter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    enough_memory: bool,
) -> None:
    if not enough_memory:
        monkeypatch.setattr("os.sysconf", lambda _: 1)
    adapter = train_adapter(tmp_path / "adapter", pico_model, modules_to_save=["embed_tokens", "lm_head"])
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 99, encoding="utf-8")
    made = run(pico_model, [adapter], tmp_path / "merged", prove=str(tmp_path / "text.txt"))
    assert f"the first 2,000 characters of the file {tmp_path / 'text.txt'}" in capsys.readouterr().err
    assert made.manifest is not None
    proof = made.manifest.details["proof"]
    assert proof["compared"] == ("logits" if enough_memory else "tensors")
    assert proof["same_next_token"] == 1.0 if enough_memory else proof["sample"] > 3
    right = MergedTensors.get

    def wrong(self: MergedTensors, name: str) -> torch.Tensor:
        return right(self, name) * (1.5 if name.endswith("down_proj.weight") else 1)

    monkeypatch.setattr(MergedTensors, "get", wrong)
    with pytest.raises(WeightsError, match=r"does not say what|is not the sum"):
        run(pico_model, [adapter], tmp_path / "wrong", prove="Once upon a time there was a little girl.")
    assert "the text itself, 41 characters; there is no file of that name" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_small_shards_have_an_index_and_hashes_that_hold(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    from yangtuo.config.inspect import InspectConfig
    from yangtuo.stages import inspect

    adapter = train_adapter(tmp_path / "adapter", pico_model)
    made = run(pico_model, [adapter], tmp_path / "merged", shard_size="20KB")
    assert len(list(made.path.glob("model-*-of-*.safetensors"))) > 3
    assert "verified" in inspect.run(InspectConfig(str(made.path), verify=True))
    torch.testing.assert_close(logits(made.path), logits(pico_model, adapter))


def test_dtype_is_cast_once(pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]) -> None:
    adapter = train_adapter(tmp_path / "adapter", pico_model)
    wide = tensors(run(pico_model, [adapter], tmp_path / "wide").path)
    narrow = tensors(run(pico_model, [adapter], tmp_path / "narrow", dtype="bfloat16").path)
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").dtype == torch.bfloat16


def test_half_an_adapter_is_half_its_lora_and_all_its_rows(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    adapter = train_adapter(tmp_path / "adapter", pico_model, modules_to_save=["embed_tokens", "lm_head"])
    start = tensors(pico_model)
    half, whole = (
        tensors(run(pico_model, [adapter], tmp_path / f"{share}", lora_scale=share).path) for share in (0.5, 1.0)
    )
    for name, before in start.items():
        share = 1.0 if "embed_tokens" in name or "lm_head" in name else 0.5
        torch.testing.assert_close(half[name], before + share * (whole[name] - before))
    assert any(not torch.equal(whole[name], half[name]) for name in start)


def test_half_of_what_must_be_whole_is_refused(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    dora = train_adapter(tmp_path / "dora", pico_model, use_dora=True)
    with pytest.raises(WeightsError, match="cannot be merged in part"):
        run(pico_model, [dora], tmp_path / "half", lora_scale=0.5)
    with pytest.raises(ConfigError, match="whole adapters alone"):
        run(pico_model, [dora], tmp_path / "half", lora_scale=0.5, prove="text")
    assert not (tmp_path / "half").exists()


def test_chains_may_be_merged_at_once_or_one_by_one(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    first = train_adapter(tmp_path / "first", pico_model, seed=1)
    middle = run(pico_model, [first], tmp_path / "middle")
    second = train_adapter(tmp_path / "second", middle.path, seed=2)
    stepwise = run(middle.path, [second], tmp_path / "stepwise")
    at_once = run(pico_model, [first, second], tmp_path / "at-once")
    assert stepwise.lineage == at_once.lineage
    one, other = tensors(stepwise.path), tensors(at_once.path)
    assert all(torch.equal(one[name], other[name]) for name in one), "float32 in between loses nothing"
    third = train_adapter(tmp_path / "third", at_once.path, seed=3)
    run(stepwise.path, [third], tmp_path / "either-way")


def test_reversed_adapters_are_refused_with_the_right_command(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    first = train_adapter(tmp_path / "first", pico_model, seed=1)
    second = train_adapter(tmp_path / "second", run(pico_model, [first], tmp_path / "middle").path, seed=2)
    with pytest.raises(LineageError, match="wrong order") as caught:
        run(pico_model, [second, first], tmp_path / "merged")
    assert f"--adapter {first} --adapter {second}" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_all_strangers_are_named_at_once_with_their_models(
    pico_model: Path, pico_tied_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(pico_model, base)
    other = run(pico_tied_model, [train_adapter(tmp_path / "a", pico_tied_model)], tmp_path / "other")
    strangers = [
        train_adapter(tmp_path / name, other.path, seed=seed, tokenizer="f00") for seed, name in enumerate("xy")
    ]
    home = run(base, [train_adapter(tmp_path / "b", base)], tmp_path / "home")
    with pytest.raises(LineageError) as caught:
        run(home.path, strangers, tmp_path / "merged")
    message = str(caught.value)
    assert message.startswith("4 problems")
    assert message.count("was trained on another model") == message.count("another tokenizer") == 2
    assert f"yangtuo merge --base {other.path} --adapter {strangers[0]}" in message


def test_an_adapter_dropped_from_the_chain_is_noticed(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path]
) -> None:
    first = train_adapter(tmp_path / "first", pico_model)
    second = train_adapter(tmp_path / "second", run(pico_model, [first], tmp_path / "middle").path)
    with pytest.raises(LineageError, match="was trained on another model"):
        run(pico_model, [second], tmp_path / "merged")


def test_foreign_adapters_are_accepted_as_directory_and_as_zip(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    with zipfile.ZipFile(tmp_path / "adapter.zip", "w") as archive:
        for file in adapter.iterdir():
            archive.write(file, f"chinese-adapter/{file.name}")
    before = (tmp_path / "adapter.zip").read_bytes()
    one = run(pico_model, [adapter], tmp_path / "one").path
    other = run(pico_model, [tmp_path / "adapter.zip"], tmp_path / "other").path
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert (tmp_path / "adapter.zip").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["../escaped.txt", "/tmp/yangtuo-escaped.txt", "a/../../escaped.txt", "..\\escaped.txt"]
)
def test_a_zip_that_climbs_is_refused(pico_model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_config.json", "{}")
        archive.writestr(name, "gotcha")
    with pytest.raises(FileError, match=r"bad\.zip would write outside"):
        run(pico_model, [path], tmp_path / "out" / "merged")
    assert not list(tmp_path.rglob("escaped*")) and not list((tmp_path / "out").iterdir())


def test_a_zip_with_a_symbolic_link_is_refused(pico_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    link = zipfile.ZipInfo("adapter_model.bin")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(FileError, match="would write outside"):
        run(pico_model, [path], tmp_path / "merged")


def test_foreign_vocabularies_that_shrink_are_refused(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3, modules_to_save=["embed_tokens", "lm_head"])
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    state = {name: value[:399].clone() if value.shape[0] == 400 else value for name, value in load_file(file).items()}
    save_file(state, file)
    with pytest.raises(UserError, match="would shrink from 400 to 399 rows"):
        run(pico_model, [adapter], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_foreign_tokenizer_that_moves_ids_is_refused(
    pico_model: Path, pico_byte_level: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    (adapter / "tokenizer.model").unlink()
    copy_tokenizer(pico_byte_level, adapter)
    with pytest.raises(LineageError, match="does not continue"):
        run(pico_model, [adapter], tmp_path / "merged")


def test_template_and_stop_ids_of_the_last_adapter_go_along(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    merged = run(pico_model, [adapter], tmp_path / "merged").path
    assert (merged / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


def test_not_a_number_is_refused_before_anything_is_written(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    from safetensors.torch import load_file, save_file

    state = load_file(adapter / "adapter_model.safetensors")
    name = sorted(state)[0]
    state[name][0, 0] = float("nan")
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds NaN or infinity") as caught:
        run(pico_model, [adapter], tmp_path / "merged")
    assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_trained_tensors_of_whole_numbers_are_refused(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    """Of a matrix cast by mistake little is left, and the merged model would be the base."""
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    from safetensors.torch import load_file, save_file

    state = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor.int() for name, tensor in state.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="whole numbers"):
        run(pico_model, [adapter], tmp_path / "merged")


def test_a_disk_that_is_too_small_is_noticed_first(
    pico_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_adapter: Callable[..., Path]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="no room for it") as caught:
        run(pico_model, [adapter], tmp_path / "merged")
    assert "free" in str(caught.value)


def test_a_base_without_tokenizer_is_no_base(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(pico_model / name, base / name)
    adapter = write_adapter(tmp_path / "adapter", pico_model, 3)
    with pytest.raises(FileError, match="not a whole model directory"):
        run(base, [adapter], tmp_path / "merged")


def test_something_that_is_no_adapter_is_refused(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"adapter_config\.json"):
        run(pico_model, [pico_model], tmp_path / "merged")


def test_an_existing_output_is_refused(pico_model: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(OutputError, match="exists"):
        run(pico_model, [tmp_path], tmp_path / "merged")


KILLED = """
import os, signal, sys
from pathlib import Path
from yangtuo.config.merge import MergeConfig
from yangtuo.stages import merge
from yangtuo.weights.writer import ShardedWriter
add, count = ShardedWriter.add, 0
def fatal(self, name, tensor):
    global count
    count += 1
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, name, tensor)
ShardedWriter.add = fatal
merge.run(MergeConfig(base=sys.argv[1], adapter=(sys.argv[2],), output=Path(sys.argv[3])))
"""


@pytest.mark.parametrize("tensor", [1, 12])
def test_killed_anywhere_nothing_stands_and_a_second_run_succeeds(
    pico_model: Path, tmp_path: Path, train_adapter: Callable[..., Path], tensor: int
) -> None:
    adapter, output = train_adapter(tmp_path / "adapter", pico_model), tmp_path / "merged"
    command = [sys.executable, "-c", KILLED, str(pico_model), str(adapter), str(output), str(tensor)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not output.exists()
    torch.testing.assert_close(logits(run(pico_model, [adapter], output).path), logits(pico_model, adapter))
    assert not list(tmp_path.glob(".*.partial"))
