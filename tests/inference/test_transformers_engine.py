"""The transformers engine: batches equal single prompts, streams equal batches, stopping stops."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from yangtuo.errors import WeightsError
from yangtuo.inference.engine import Sampling
from yangtuo.inference.transformers_engine import TransformersEngine, load_model

PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 90, 91, 92, 93, 94, 95]]


@pytest.fixture(scope="module")
def engine(pico_model: Path) -> TransformersEngine:
    return TransformersEngine(load_model(pico_model))


def greedy(model: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy ids by full forward passes, without a cache."""
    network, ids = load_model(model), list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_padded_batch_gives_what_each_prompt_gives_alone(engine: TransformersEngine, pico_model: Path) -> None:
    replies = engine.generate(PROMPTS, Sampling(max_new_tokens=6))
    assert replies == [greedy(pico_model, prompt, 6) for prompt in PROMPTS]


def test_a_stream_gives_what_the_batch_gives(engine: TransformersEngine) -> None:
    sampling = Sampling(max_new_tokens=6)
    assert list(engine.stream(PROMPTS[0], sampling)) == engine.generate(PROMPTS[:1], sampling)[0]


def test_a_stop_id_ends_the_reply_and_is_no_part_of_it(engine: TransformersEngine) -> None:
    reply = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=6))[0]
    sampling = Sampling(max_new_tokens=6, stop_ids=(reply[3],))
    expected = reply[: reply.index(reply[3])]
    assert engine.generate(PROMPTS[:1], sampling) == [expected]
    assert list(engine.stream(PROMPTS[0], sampling)) == expected


def test_a_closed_stream_leaves_no_thread(engine: TransformersEngine) -> None:
    """Ctrl-C in a chat must not leave a model computing a reply that nobody reads."""
    before = threading.active_count()
    stream = engine.stream(PROMPTS[0], Sampling(max_new_tokens=200))
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_sampling_follows_its_seed(engine: TransformersEngine) -> None:
    def draw(seed: int) -> list[list[int]]:
        return engine.generate(PROMPTS[:1], Sampling(max_new_tokens=12, temperature=1.5, seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(tmp_path)
