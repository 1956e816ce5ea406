"""All engines over one model: the same greedy ids in float32, whatever vocabulary it has; and no failure is silent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from yangtuo import cli
from yangtuo.config import ExpandConfig, TokenizerMergeConfig, TokenizerTrainConfig
from yangtuo.data.template import Message
from yangtuo.inference.engine import Sampling, generate
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.vllm_engine import find_python
from yangtuo.stages import expand, tokenizer_merge, tokenizer_train
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder

pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")

NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_python() is None, reason="needs vLLM: set YANGTUO_VLLM_PYTHON"),
]
ENGINES = ["transformers", "llama.cpp", pytest.param("vllm", marks=NEEDS_VLLM)]
TEXT = "小河流过小镇，小镇的人爱小河。小镇的人说：小河流过小镇。"


def write_model(tokenizer: Path, directory: Path) -> Path:
    """A random Llama with heads of a size that vLLM's attention knows."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = load_encoder(tokenizer)
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=encoder.vocabulary_size,
        max_position_embeddings=256,
        bos_token_id=encoder.bos_id,
        eos_token_id=encoder.eos_id,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    return directory


def expanded(tokenizer: Path, directory: Path) -> Path:
    """The same, with Chinese pieces that were learned and expanded to."""
    base, merged, grown = write_model(tokenizer, directory / "base"), directory / "tokenizer", directory / "grown"
    (directory / "corpus.txt").write_text(TEXT * 12, encoding="utf-8")
    tokenizer_train.run(
        TokenizerTrainConfig(
            base=str(tokenizer), corpus=(str(directory / "corpus.txt"),), size=18, output=directory / "pieces"
        )
    )
    tokenizer_merge.run(TokenizerMergeConfig(base=str(tokenizer), pieces=str(directory / "pieces"), output=merged))
    expand.run(ExpandConfig(model=str(base), tokenizer=str(merged), output=grown))
    return grown


@pytest.fixture(scope="module", params=["untouched", "expanded SentencePiece", "expanded byte-level"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engines")
    if request.param == "untouched":
        return write_model(request.getfixturevalue("pico_tokenizer"), directory / "model")
    family = "pico_tokenizer" if request.param.endswith("SentencePiece") else "pico_byte_level"
    return expanded(request.getfixturevalue(family), directory)


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_ids_are_those_of_transformers_itself(model: Path, engine: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model)
    opened = open_conversations(str(model), engine=engine, template="alpaca")
    (conversation,) = opened.conversations.values()
    prompts = [conversation.prompt([Message("user", text)]) for text in (TEXT[:15], "the cat", f"a {TEXT[:6]} </s> b")]
    assert model.name != "grown" or all(any(token >= 400 for token in prompts[at]) for at in (0, 2))
    got = generate(conversation.engine, prompts, Sampling(max_tokens=24))
    opened.close()
    for prompt, ids in zip(prompts, got, strict=True):
        kept = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
        assert ids == kept[0, len(prompt) :].tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_compute_no_numbers_end_a_command(
    engine: str, pico_tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some engines take the first id then, and say nothing: an empty reply, or one of nonsense, and status 0."""
    model = AutoModelForCausalLM.from_pretrained(write_model(pico_tokenizer, tmp_path / "model"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    given = ["--model", str(tmp_path / "model"), "--engine", engine, "--max-new-tokens", "4"]
    assert cli.invoke(["chat", *given, "--once", "hello"]) == 1
    said = capfd.readouterr()
    assert said.out == "" and "error:" in said.err
    (tmp_path / "in.txt").write_text("hello\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert cli.invoke(["predict", *given, "--input", str(tmp_path / "in.txt"), "--output", str(output)]) == 1
    assert not output.exists()
