"""Tensors on disk: what is written is what is read, and damage is named."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from yangtuo.errors import FileError, WeightsError
from yangtuo.weights.reader import open_tensors
from yangtuo.weights.writer import ShardedWriter, TensorSpec


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {f"layer.{index}": torch.randn(3, index + 1, generator=generator) for index in range(5)}
    return {
        **made,
        "half": torch.randn(4, 4, generator=generator).half(),
        "bfloat": torch.randn(4, 4, generator=generator).bfloat16(),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "integers": torch.arange(7),
    }


def write(directory: Path, shard_size: int, planned: bool) -> dict[str, str]:
    directory.mkdir(exist_ok=True)
    values = tensors()
    plan = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in values.items()} if planned else None
    with ShardedWriter(directory, shard_size, plan=plan) as writer:
        for name, value in values.items():
            writer.add(name, value)
        return writer.close()


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("shard_size", [1, 100, 10**9])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, planned: bool, shard_size: int) -> None:
    hashes = write(tmp_path, shard_size, planned)
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}, (
        "a manifest would hold wrong sums, or a file was left behind"
    )
    with open_tensors(tmp_path) as reader:
        assert set(reader.names()) == set(tensors())
        for name, value in tensors().items():
            assert (reader.shape(name), reader.dtype(name)) == (tuple(value.shape), value.dtype)
            assert torch.equal(reader.get(name), value)


def test_one_shard_needs_no_index_and_several_have_a_right_one(tmp_path: Path) -> None:
    assert set(write(tmp_path / "one", 10**9, True)) == {"model.safetensors"}
    names = set(write(tmp_path / "many", 200, True))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert names == {*index["weight_map"].values(), "model.safetensors.index.json"}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors().values())
    count = len(names) - 1
    assert {f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)} < names


def test_planned_and_gathered_files_are_the_same(tmp_path: Path) -> None:
    assert write(tmp_path / "planned", 200, True) == write(tmp_path / "gathered", 200, False)


def test_transformers_can_read_the_shards(tmp_path: Path, pico_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    with open_tensors(pico_model) as reader, ShardedWriter(tmp_path, 20_000) as writer:
        for name in reader.names():
            writer.add(name, reader.get(name))
        assert len(writer.close()) > 3
    (tmp_path / "config.json").write_bytes((pico_model / "config.json").read_bytes())
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path, pico_model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, 200, True)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileError, match=lost.name):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileError, match=lost.name):
        open_tensors(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10**9, True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or incomplete"):
        open_tensors(tmp_path)


def test_an_index_that_lies_or_climbs_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 200, True)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = index["weight_map"]["layer.0"]
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "ghost": first}}))
    with pytest.raises(WeightsError, match="ghost"):
        open_tensors(tmp_path)
    path.write_text(json.dumps({"weight_map": {"layer.0": "../elsewhere.safetensors"}}))
    with pytest.raises(FileError, match="points outside"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("nested", [False, True])
def test_archives_are_read(tmp_path: Path, legacy: bool, nested: bool) -> None:
    values = {name: value for name, value in tensors().items() if name != "empty"}
    state = {"state_dict": values} if nested else values
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with open_tensors(tmp_path) as reader:
        assert all(torch.equal(reader.get(name), value) for name, value in values.items())


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "bare pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    file, trace = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    if form == "zip":
        torch.save({"weight": torch.ones(2), "bomb": Bomb(trace)}, file)
    else:
        file.write_bytes(pickle.dumps({"bomb": Bomb(trace)}, protocol=2))
    with pytest.raises(WeightsError, match="would run code") as caught:
        open_tensors(tmp_path)
    assert str(file) in str(caught.value)
    assert not trace.exists()


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    file = tmp_path / "consolidated.00.pth"
    torch.save({"weight": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(WeightsError, match=r"consolidated\.00\.pth is damaged or incomplete"):
        open_tensors(file)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no weights"):
        open_tensors(tmp_path)
