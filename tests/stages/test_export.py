"""`yangtuo export`: other programs load what it writes, and say the same."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from yangtuo.artifacts.manifest import Artifact
from yangtuo.config.convert import ConvertConfig
from yangtuo.config.export import ExportConfig
from yangtuo.errors import UserError, WeightsError
from yangtuo.stages import convert, export
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights.reader import open_tensors

gguf = pytest.importorskip("gguf", reason="needs the extra `export`")


def run(model: Path, output: Path, **options: Any) -> Artifact:
    return export.run(ExportConfig(model=str(model), output=output, **options))


def back(source: Path, output: Path) -> Path:
    return convert.run(ConvertConfig(source=str(source), output=output)).path


def assert_same(left: Path, right: Path) -> None:
    with open_tensors(left) as one, open_tensors(right) as other:
        assert set(one.names()) == set(other.names())
        for name in one.names():
            assert one.dtype(name) == other.dtype(name) and torch.equal(one.get(name), other.get(name)), name


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_metas_layout_comes_back_bit_for_bit(
    pico_model: Path, pico_tied_model: Path, tmp_path: Path, tied: bool, shards: int
) -> None:
    model = pico_tied_model if tied else pico_model
    made = run(model, tmp_path / "meta", format="meta", shards=shards)
    files = {f"consolidated.{rank:02d}.pth" for rank in range(shards)}
    assert {path.name for path in made.path.iterdir()} == {*files, "params.json", "tokenizer.model", "yangtuo.json"}
    returned = back(made.path, tmp_path / "back")
    assert_same(returned, model)
    assert load_encoder(returned).fingerprint == load_encoder(model).fingerprint


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gguf_comes_back_bit_for_bit(pico_model: Path, pico_tied_model: Path, tmp_path: Path, tied: bool) -> None:
    model = pico_tied_model if tied else pico_model
    made = run(model, tmp_path / "gguf", format="gguf")
    assert {path.name for path in made.path.iterdir()} == {"model.gguf", "yangtuo.json"}
    returned = back(made.path, tmp_path / "back")
    assert_same(returned, model)
    both = [load_encoder(path) for path in (returned, model)]
    assert both[0].pieces == both[1].pieces
    text = "Once upon a time, 你好 1998"
    assert both[0].encode(text) == both[1].encode(text)


@pytest.mark.parametrize(("quantize", "bits"), [("f16", 11), ("bf16", 8), ("q8_0", 7), ("q4_0", 3)])
def test_quantised_weights_are_near_and_norms_exact(pico_model: Path, tmp_path: Path, quantize: str, bits: int) -> None:
    returned = back(run(pico_model, tmp_path / "gguf", format="gguf", quantize=quantize).path, tmp_path / "back")
    with open_tensors(returned) as ours, open_tensors(pico_model) as theirs:
        for name in theirs.names():
            found, expected = ours.get(name).float(), theirs.get(name)
            assert (found - expected).abs().max() <= expected.abs().max() * 2.0**-bits, name


def test_byte_level_tokenizers_survive(pico_byte_level: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from yangtuo.vocab.directory import copy_tokenizer

    encoder = load_encoder(pico_byte_level)
    model = tmp_path / "model"
    config = LlamaConfig(
        vocab_size=encoder.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=encoder.bos_id,
        eos_token_id=encoder.eos_id,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    copy_tokenizer(pico_byte_level, model)
    returned = back(run(model, tmp_path / "gguf", format="gguf").path, tmp_path / "back")
    assert_same(returned, model)
    text = "Numbers 365 and 羊驼 <|im_start|>"
    ids = [AutoTokenizer.from_pretrained(path)(text).input_ids for path in (returned, model)]
    assert ids[0] == ids[1]


def test_llama_3s_rope_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from yangtuo.weights.gguf import rope_factors
    from yangtuo.weights.shape import resolve_shape

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    factors = rope_factors(resolve_shape(config.to_dict()))
    assert factors is not None
    torch.testing.assert_close(torch.from_numpy(factors), (plain / scaled).float(), rtol=1e-5, atol=0)
    assert rope_factors(resolve_shape({"model_type": "llama"})) is None


def test_contradictions_and_strangers_are_refused(pico_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never quantised"):
        run(pico_model, tmp_path / "a", format="meta", quantize="q8_0")
    with pytest.raises(UserError, match="one file"):
        run(pico_model, tmp_path / "b", format="gguf", shards=2)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(run(pico_model, tmp_path / "c", format="gguf").path.joinpath("model.gguf").read_bytes()[:-5000])
    with pytest.raises(WeightsError, match=r"broken\.gguf"):
        back(broken, tmp_path / "d")
    (tmp_path / "text.gguf").write_text("this is no model" * 10)
    with pytest.raises(WeightsError, match="no GGUF file"):
        back(tmp_path / "text.gguf", tmp_path / "e")


def test_llama_cpp_says_what_the_authors_code_said(shared_data: Path, tmp_path: Path) -> None:
    """Greedy ids and tokens of a real model, through GGUF, in the program that GGUF is for."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
    golden = json.loads((shared_data / "models/stories260K/golden.json").read_text())
    model = back(shared_data / "models/stories260K", tmp_path / "model")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(run(model, tmp_path / "gguf", format="gguf").path / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.port = 256, 1, 0, 0
    parameters.warmup = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)

    def post(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    for text, ids in ((golden["prompt"], golden["prompt_ids"]), (golden["sentence"], golden["sentence_ids"])):
        assert post("/tokenize", {"content": text, "add_special": True})["tokens"] == ids
    options = {"n_predict": 100, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    assert post("/completion", {"prompt": golden["prompt_ids"], **options})["tokens"] == golden["greedy_ids"]
