"""`yangtuo export`: other programs load what it writes, and say the same."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
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
    assert {path.name for path in made.path.iterdir()} == {"model.gguf", "Modelfile", "yangtuo.json"}
    returned = back(made.path, tmp_path / "back")
    assert_same(returned, model)
    both = [load_encoder(path) for path in (returned, model)]
    assert both[0].pieces == both[1].pieces
    text = "Once upon a time, 你好 1998"
    assert both[0].encode(text) == both[1].encode(text)


@pytest.fixture(scope="module")
def wide_model(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose rows divide into the 256 values of a K-quant's block, but for those of one matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from yangtuo.vocab.directory import copy_tokenizer

    directory = tmp_path_factory.mktemp("wide") / "model"
    torch.manual_seed(7)
    shape = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=256, **shape)).save_pretrained(directory)
    copy_tokenizer(pico_tokenizer, directory)
    return directory


@pytest.mark.parametrize(
    ("quantize", "formats", "error"),
    [
        ("q4_k_m", {"Q4_K": 23, "Q5_0": 2, "Q6_K": 3, "Q8_0": 2}, 0.1),
        ("q5_k_m", {"Q5_K": 23, "Q5_1": 2, "Q6_K": 3, "Q8_0": 2}, 0.05),
        ("q6_k", {"Q6_K": 26, "Q8_0": 4}, 0.03),
    ],
)
def test_k_quants_are_llama_cpps(
    wide_model: Path, tmp_path: Path, quantize: str, formats: dict[str, int], error: float
) -> None:
    pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
    made = run(wide_model, tmp_path / "gguf", format="gguf", quantize=quantize)
    reader = gguf.GGUFReader(made.path / "model.gguf")
    types = [tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2]
    assert {name: types.count(name) for name in sorted(set(types))} == formats
    returned = back(made.path, tmp_path / "back")
    with open_tensors(returned) as ours, open_tensors(wide_model) as theirs:
        for name in theirs.names():
            expected = theirs.get(name)
            assert (ours.get(name).float() - expected).norm() <= error * expected.norm(), name


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


@pytest.mark.parametrize(
    "values", [{"rms_norm_eps": 1e308}, {"rope_parameters": {"rope_type": "linear", "factor": 1e300}}]
)
def test_numbers_beyond_float32_are_named(values: dict[str, Any]) -> None:
    from yangtuo.weights.shape import resolve_shape

    with pytest.raises(WeightsError, match="float32"):
        resolve_shape({"model_type": "llama", **values})


def test_an_adapter_gives_in_llama_cpp_what_it_gives_merged(
    pico_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    """Ranks and scales of their own for some layers, embedding and head: all that is low-rank."""
    pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
    from yangtuo.config.merge import MergeConfig
    from yangtuo.inference.engine import Sampling, generate
    from yangtuo.inference.llama_cpp_engine import LlamaCppEngine, write_ids_only
    from yangtuo.inference.transformers_engine import TransformersEngine, load_model
    from yangtuo.stages import merge

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"]
    options = {"target_modules": targets, "rank_pattern": {"k_proj": 4}, "alpha_pattern": {"o_proj": 3}}
    adapter = write_adapter(tmp_path / "adapter", pico_model, 5, lora_alpha=16, use_rslora=True, **options)
    made = run(pico_model, tmp_path / "lora", format="gguf", adapter=str(adapter))
    assert {path.name for path in made.path.iterdir()} == {"adapter.gguf", "yangtuo.json"}
    write_ids_only(run(pico_model, tmp_path / "base", format="gguf").path / "model.gguf", tmp_path / "ids.gguf")
    engine = LlamaCppEngine(tmp_path / "ids.gguf", adapters={"it": made.path / "adapter.gguf"})
    merged = merge.run(MergeConfig(base=str(pico_model), adapter=(str(adapter),), output=tmp_path / "merged")).path
    prompts, sampling = [[1, 40, 41, 42], [1, 77], [1, 90, 91, 92]], Sampling(max_tokens=20)
    expected = [generate(TransformersEngine(load_model(path)), prompts, sampling) for path in (pico_model, merged)]
    assert expected[0] != expected[1]
    assert [generate(engine, prompts, sampling, name) for name in (None, "it")] == expected
    engine.close()


def test_an_adapter_of_more_than_pairs_is_refused(
    pico_model: Path, pico_tied_model: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    saved = write_adapter(tmp_path / "saved", pico_model, 5, modules_to_save=["lm_head"])
    with pytest.raises(WeightsError, match=r"lm_head(.|\n)*yangtuo merge"):
        run(pico_model, tmp_path / "a", format="gguf", adapter=str(saved))
    tied = write_adapter(tmp_path / "tied", pico_tied_model, 5, target_modules=["embed_tokens"])
    with pytest.raises(WeightsError, match="embed_tokens"):
        run(pico_tied_model, tmp_path / "b", format="gguf", adapter=str(tied))
    with pytest.raises(UserError, match="float32"):
        run(pico_model, tmp_path / "c", format="gguf", adapter=str(saved), quantize="q8_0")


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
