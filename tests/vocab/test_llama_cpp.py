"""Merged tokenizers in llama.cpp, from the file that we export: whoever serves a GGUF must get the ids it learned."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from yangtuo.config.export import ExportConfig
from yangtuo.stages import export
from yangtuo.vocab.base import open_base
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import compile_scripts

from .texts import AWKWARD, random_texts

xllamacpp = pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
pytest.importorskip("gguf", reason="needs the extra `export`")

TEXTS = ["小河流过小镇，小镇的人爱小河。", "小镇的人说：小河流过小镇。", "abc 人爱小镇，小镇爱人。123"] * 4


@pytest.mark.parametrize("family", ["pico_tokenizer", "pico_byte_level"])
def test_llama_cpp_gives_the_ids_of_our_encoder(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base, scripts = open_base(request.getfixturevalue(family)), compile_scripts(["Han"])
    (tmp_path / "pieces").mkdir()
    base.learn(TEXTS, 18, scripts, tmp_path / "pieces")
    base.merge(tmp_path / "pieces", "faithful", scripts, ("<|extra|>",), tmp_path / "merged")
    encoder = load_encoder(tmp_path / "merged")
    config = LlamaConfig(
        vocab_size=encoder.vocabulary_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    copy_tokenizer(tmp_path / "merged", tmp_path / "model")
    made = export.run(ExportConfig(model=str(tmp_path / "model"), output=tmp_path / "gguf", format="gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(made.path / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.port = 64, 1, 0, 0
    parameters.warmup = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    for text in [*TEXTS[:3], "<|extra|> </s> 小镇 12  x", *AWKWARD, *random_texts(7, 150)]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        with urllib.request.urlopen(urllib.request.Request(server.listening_address + "/tokenize", body)) as reply:
            assert json.load(reply)["tokens"] == encoder.encode(text), repr(text)
