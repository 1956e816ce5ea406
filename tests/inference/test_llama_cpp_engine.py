"""llama.cpp: the same greedy ids as transformers in float32, and none lost at half characters."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from yangtuo.errors import EngineError, ServingError
from yangtuo.inference.engine import Generation, Sampling, Step, UnsupportedError, generate
from yangtuo.inference.transformers_engine import TransformersEngine, load_model
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import load_encoder
from yangtuo.weights.gguf import write_gguf
from yangtuo.weights.layouts import open_checkpoint

pytest.importorskip("xllamacpp", reason="needs the wheel xllamacpp: llama.cpp")
pytest.importorskip("gguf", reason="needs the extra `export`")

from yangtuo.inference.llama_cpp_engine import LlamaCppEngine, write_ids_only

PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 90, 91, 92, 93, 94, 95], [1, 5], [1, 60, 61]]


def model_with(tokenizer: Path, directory: Path, extra_rows: int = 0) -> Path:
    """A random Llama with a row for each of the tokenizer's pieces, and some more."""
    rows = load_encoder(tokenizer).vocabulary_size + extra_rows
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **shape)).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    return directory


def engine_of(model: Path, directory: Path, **options: int) -> LlamaCppEngine:
    write_gguf(directory / "whole.gguf", open_checkpoint(model), "f32")
    write_ids_only(directory / "whole.gguf", directory / "ids.gguf")
    return LlamaCppEngine(directory / "ids.gguf", **options)


@pytest.mark.parametrize(
    ("family", "extra_rows"), [("pico_tokenizer", 0), ("pico_byte_level", 0), ("pico_tokenizer", 64)]
)
def test_greedy_ids_are_those_of_transformers(
    family: str, extra_rows: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A random model draws bytes that are no text: llama.cpp's own stream would hold them back, and lose them."""
    model = model_with(request.getfixturevalue(family), tmp_path / "model", extra_rows)
    expected = generate(TransformersEngine(load_model(model)), PROMPTS, Sampling(max_tokens=24))
    engine = engine_of(model, tmp_path)
    assert generate(engine, PROMPTS, Sampling(max_tokens=24)) == expected
    generation = Generation(engine, PROMPTS[0], Sampling(max_tokens=24, stop_ids=(expected[0][5],), logprobs=2))
    tokens = list(generation)
    assert [token.id for token in tokens] == expected[0][: expected[0].index(expected[0][5])]
    assert generation.finish == "stop"
    assert all(token.logprob is not None and len(token.top) == 2 for token in tokens)
    engine.close()


def test_requests_are_cancelled_and_failures_are_told(pico_model: Path, tmp_path: Path) -> None:
    engine = engine_of(pico_model, tmp_path, max_rows=2)
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    cancel = engine.submit(PROMPTS[0], Sampling(max_tokens=10_000), steps.put)
    assert steps.get(timeout=60).token is not None
    cancel()
    while not (step := steps.get(timeout=60)).is_last:
        pass
    assert step.finish == "cancelled"
    with pytest.raises(ServingError):
        list(Generation(engine, [10**6], Sampling()))
    assert len(generate(engine, PROMPTS, Sampling(max_tokens=4))) == len(PROMPTS)
    with pytest.raises(UnsupportedError, match="prompt"):
        engine.score(PROMPTS[0], 1)
    engine.close()


def test_an_engine_that_is_closed_in_mid_reply_is_an_error(pico_model: Path, tmp_path: Path) -> None:
    engine = engine_of(pico_model, tmp_path)
    tokens = iter(Generation(engine, PROMPTS[0], Sampling(max_tokens=200)))
    next(tokens)
    engine.close()
    with pytest.raises(EngineError):
        list(tokens)


def test_a_seed_gives_the_same_reply(pico_model: Path, tmp_path: Path) -> None:
    engine = engine_of(pico_model, tmp_path)

    def draw(seed: int) -> Sequence[int]:
        return generate(engine, PROMPTS[:1], Sampling(max_tokens=12, temperature=1.5, seed=seed))[0]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    engine.close()
