"""Structures that strangers could have made, mutated: every reader takes or refuses them.

Short here; `make fuzz` sets YANGTUO_FUZZ to thousands of examples each. A failing example is printed with its seed.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from yangtuo import files, pipeline
from yangtuo.artifacts.manifest import read_manifest
from yangtuo.errors import UserError
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights.adapter import open_adapter
from yangtuo.weights.gguf_header import check_header
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.reader import open_tensors

from .fuzz_verbs import places

FUZZ = settings(
    max_examples=int(os.environ.get("YANGTUO_FUZZ", "20")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 1 << 31, 1 << 62, 10**30, 1.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "x", "../../etc/passwd", "/dev/zero", "(.+)+!", "((", "\x1b[2J", "羊驼", "{{ 9**9**9 }}"]),
    st.just([]),
    st.just({}),
    st.just([[[[]]]]),
)


def mutated(draw: st.DataObject, value: Any) -> Any:
    """The value with one to three places replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw.draw(st.integers(1, 3))):
        spots = places(value)
        if not spots:
            return value
        *way, last = draw.draw(st.sampled_from(spots))
        holder = value
        for key in way:
            holder = holder[key]
        if draw.draw(st.booleans()):
            holder[last] = copy.deepcopy(draw.draw(ODD))
        elif isinstance(holder, dict):
            del holder[last]
        else:
            holder.append(holder[last])
    return value


def refused_or_taken(read: Callable[[], object]) -> None:
    try:
        read()
    except UserError as error:
        assert str(error).strip()


@FUZZ
@given(st.text() | st.binary())
def test_text_is_parsed_or_refused(data: str | bytes) -> None:
    refused_or_taken(lambda: files.parse_json(data, "x"))
    if isinstance(data, str):
        refused_or_taken(lambda: files.parse_yaml(data, "x"))


@FUZZ
@given(data=st.data())
def test_recipes(tmp_path: Path, data: st.DataObject) -> None:
    recipe = {
        "output": "out",
        "steps": {
            "convert": {"source": "x"},
            "prepare": {"source": ["a=x"], "tokenizer": "${convert}", "block_size": 64},
            "more": {"stage": "merge", "base": "${convert}", "adapter": ["y"]},
        },
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(mutated(data, recipe), allow_unicode=True), encoding="utf-8")
    refused_or_taken(lambda: pipeline.load(path))


@FUZZ
@given(data=st.data())
def test_manifests(tmp_path: Path, data: st.DataObject) -> None:
    parent = {"path": "p", "fingerprint": "0" * 64, "lineage": None}
    manifest = {"kind": "model", "stage": "expand", "step": "0", "config": {}, "parents": {"base": parent}, "files": {}}
    content = mutated(data, {**manifest, "details": {"lineage": "1", "new_rows": 3}, "fingerprint": "0" * 64})
    (tmp_path / "yangtuo.json").write_text(json.dumps(content), encoding="utf-8")
    refused_or_taken(lambda: read_manifest(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(pico_byte_level: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pico_byte_level, tmp_path / "t")
    original = json.loads((tmp_path / "t" / name).read_text(encoding="utf-8"))

    @FUZZ
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        (tmp_path / "t" / name).write_text(json.dumps(mutated(data, original)), encoding="utf-8")
        refused_or_taken(lambda: load_encoder(tmp_path / "t").encode("hello 中文"))

    attack()


def test_model_configs(pico_model: Path, tmp_path: Path) -> None:
    shutil.copytree(pico_model, tmp_path / "m")
    original = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))

    @FUZZ
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        (tmp_path / "m" / "config.json").write_text(json.dumps(mutated(data, original)), encoding="utf-8")
        refused_or_taken(lambda: summarize(open_checkpoint(tmp_path / "m")))

    attack()


def test_adapter_configs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{name}.lora_A.weight": torch.zeros(2, 8), f"{name}.lora_B.weight": torch.zeros(8, 2)}
    save_file(pair, tmp_path / "a" / "adapter_model.safetensors")
    original = {
        **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}},
        **{"alpha_pattern": {}, "use_dora": False, "use_rslora": False, "init_lora_weights": True, "bias": "none"},
        **{"trainable_token_indices": {"embed_tokens": [1, 2]}, "modules_to_save": None, "fan_in_fan_out": False},
    }

    @FUZZ
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(mutated(data, original)), encoding="utf-8")
        refused_or_taken(lambda: open_adapter(tmp_path / "a", "a", tmp_path / "scratch"))

    attack()


def test_safetensors_headers(pico_model: Path, tmp_path: Path) -> None:
    raw = (pico_model / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    original = json.loads(raw[8 : 8 + length])

    @FUZZ
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        header = json.dumps(mutated(data, original)).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
        refused_or_taken(lambda: open_tensors(path))

    attack()


@FUZZ
@given(counts=st.tuples(*[st.integers(0, 2**64 - 1) | st.integers(0, 4)] * 2), rest=st.binary(max_size=200))
def test_gguf_headers(tmp_path: Path, counts: tuple[int, int], rest: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + rest)
    refused_or_taken(lambda: check_header(path))


def test_every_verb_keeps_its_promises() -> None:
    """As users run them; the file says what is promised. The seeds are the same each time: a new fault is ours."""
    count = os.environ.get("YANGTUO_FUZZ", "60")
    command = [sys.executable, str(Path(__file__).with_name("fuzz_verbs.py")), "--count", count]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == int(count)
