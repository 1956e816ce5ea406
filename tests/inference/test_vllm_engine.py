"""vLLM: the same greedy ids as transformers in float32, adapters by name, supervised. Needs a Python that has vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from yangtuo.errors import EngineError, ServingError
from yangtuo.inference.engine import Generation, Sampling, generate
from yangtuo.inference.transformers_engine import TransformersEngine, load_adapted, load_model
from yangtuo.inference.vllm_engine import VllmEngine, find_python
from yangtuo.training.adapter import quiet_peft
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_python() is None, reason="needs vLLM: set YANGTUO_VLLM_PYTHON"),
]

PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 90, 91, 92, 93, 94, 95]]


@pytest.fixture(scope="module")
def model(pico_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads of a size that vLLM's attention knows, and rows beyond the base's 400 pieces."""
    directory = tmp_path_factory.mktemp("vllm") / "model"
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(11)
    rows = load_encoder(pico_tokenizer).vocabulary_size + 112
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=256, **shape)).save_pretrained(directory)
    copy_tokenizer(pico_tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    torch.manual_seed(3)
    with quiet_peft():
        shape = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, r=8)
        get_peft_model(load_model(model), shape).save_pretrained(str(model.parent / "adapter"))
    return model.parent / "adapter"


@pytest.fixture(scope="module")
def engine(model: Path, adapter: Path) -> Iterator[VllmEngine]:
    made = VllmEngine(model, {"one": adapter, "two": adapter}, on_gpu=torch.cuda.is_available())
    yield made
    made.close()


@pytest.mark.parametrize("name", [None, "one"])
def test_greedy_ids_are_those_of_transformers(engine: VllmEngine, model: Path, adapter: Path, name: str | None) -> None:
    reference = TransformersEngine(load_adapted(model, {"one": adapter, "two": adapter}))
    expected = generate(reference, PROMPTS, Sampling(max_tokens=16), name)
    assert generate(engine, PROMPTS, Sampling(max_tokens=16), name) == expected
    generation = Generation(engine, PROMPTS[0], Sampling(max_tokens=16, stop_ids=(expected[0][5],), logprobs=2), name)
    tokens = list(generation)
    assert [token.id for token in tokens] == expected[0][: expected[0].index(expected[0][5])]
    assert generation.finish == "stop"
    assert all(token.logprob is not None and len(token.top) >= 2 for token in tokens)


def test_prompts_are_scored_as_transformers_scores_them(engine: VllmEngine, model: Path) -> None:
    expected = TransformersEngine(load_model(model)).score(PROMPTS[2], 2)
    scored = engine.score(PROMPTS[2], 2)
    assert [token.logprob for token in scored[1:]] == pytest.approx([t.logprob for t in expected[1:]], abs=1e-3)


def test_a_server_that_is_killed_in_mid_reply_is_an_error(engine: VllmEngine) -> None:
    """The last test of this engine: it is no more."""
    tokens = iter(Generation(engine, PROMPTS[0], Sampling(max_tokens=200)))
    next(tokens)
    engine._process.kill()
    with pytest.raises(EngineError):
        list(tokens)
    engine._process.wait()
    with pytest.raises(ServingError, match="ended"):
        engine.check()


def test_a_server_that_has_died_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())  # and no weights
    with pytest.raises(ServingError, match="vLLM"):
        VllmEngine(tmp_path, {}, on_gpu=False)
