"""The transformers engine: what is computed beside a request changes nothing in it, and nobody waits for ever."""

from __future__ import annotations

import dataclasses
import gc
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

from yangtuo.errors import FileError, ServingError
from yangtuo.inference.engine import Generation, Sampling, Step, Token, generate
from yangtuo.inference.transformers_engine import TransformersEngine, load_adapted, load_model
from yangtuo.training.adapter import quiet_peft
from yangtuo.vocab.encoding import load_encoder

PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 90, 91, 92, 93, 94, 95], [1, 5], [1, 60, 61], [1, 40, 41, 42, 43]]


@pytest.fixture(scope="module")
def engine(pico_model: Path) -> Iterator[TransformersEngine]:
    made = TransformersEngine(load_model(pico_model), max_rows=4)
    yield made
    made.close()


def greedy(model: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy ids by full forward passes, without a cache."""
    network, ids = load_model(model), list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids], device=network.device)).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def one(engine: TransformersEngine, prompt: Sequence[int], sampling: Sampling) -> list[Token]:
    return list(Generation(engine, prompt, sampling))


def test_requests_that_join_and_leave_give_what_each_gives_alone(engine: TransformersEngine, pico_model: Path) -> None:
    """Six requests of different lengths share four rows: they end and begin between each other's tokens."""
    steps: queue.SimpleQueue[tuple[int, Step]] = queue.SimpleQueue()
    lengths = [3, 9, 5, 12, 4, 7]
    for index, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True)):
        engine.submit(prompt, Sampling(max_tokens=length), lambda step, at=index: steps.put((at, step)))  # type: ignore[misc]
    replies: list[list[int]] = [[] for _ in PROMPTS]
    finishes: dict[int, str | None] = {}
    while len(finishes) < len(PROMPTS):
        index, step = steps.get(timeout=60)
        if step.token is None:
            finishes[index] = step.finish
        else:
            replies[index].append(step.token.id)
    assert replies == [greedy(pico_model, p, n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert set(finishes.values()) == {"length"}


def test_glm_prompts_see_themselves_whole_in_a_batch(pico_glm: Path) -> None:
    """ChatGLM's mask and positions follow from all ids of a row, of which a step with a cache sees only the last."""
    glm = TransformersEngine(load_model(pico_glm), max_rows=2)
    encoder = load_encoder(pico_glm)
    end = [encoder.controls["[gMASK]"], encoder.controls["<sop>"]]
    prompts = [[40, 41, 42, *end], [77, *end], [90, 91, 92, 93, 94, 95, *end]]
    try:
        replies = generate(glm, prompts, Sampling(max_tokens=5))
    finally:
        glm.close()
    assert replies == [greedy(pico_glm, prompt, 5) for prompt in prompts]


def test_a_stop_id_ends_the_reply_and_is_no_part_of_it(engine: TransformersEngine) -> None:
    reply = generate(engine, PROMPTS[:1], Sampling(max_tokens=6))[0]
    generation = Generation(engine, PROMPTS[0], Sampling(max_tokens=6, stop_ids=(reply[3],)))
    assert [token.id for token in generation] == reply[: reply.index(reply[3])]
    assert generation.finish == "stop"


def test_a_request_left_early_frees_its_row(engine: TransformersEngine) -> None:
    """Ctrl-C in a chat must not leave a model computing a reply that nobody reads."""
    stream = iter(Generation(engine, PROMPTS[0], Sampling(max_tokens=200)))
    next(stream)
    stream.close()
    for thread in [thread for thread in threading.enumerate() if thread.name == "yangtuo-engine"]:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_request_cancelled_while_it_waits_is_told(engine: TransformersEngine) -> None:
    running = [iter(Generation(engine, prompt, Sampling(max_tokens=200))) for prompt in PROMPTS[:4]]
    for stream in running:
        next(stream)
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    engine.submit(PROMPTS[4], Sampling(), steps.put)()
    assert steps.get(timeout=60).finish == "cancelled"
    for stream in running:
        stream.close()


def test_a_seed_gives_the_same_reply_whatever_runs_beside_it(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.5, seed=1)
    alone = [token.id for token in one(engine, PROMPTS[0], sampling)]
    assert generate(engine, [*PROMPTS[1:4], PROMPTS[0]], sampling)[-1] == alone
    assert [token.id for token in one(engine, PROMPTS[0], dataclasses.replace(sampling, seed=2))] != alone


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_limits_that_leave_one_token_are_greedy(engine: TransformersEngine, limit: dict[str, float]) -> None:
    expected = [token.id for token in one(engine, PROMPTS[0], Sampling(max_tokens=8))]
    hot = Sampling(max_tokens=8, temperature=2.0, **limit)  # type: ignore[arg-type]
    assert [token.id for token in one(engine, PROMPTS[0], hot)] == expected


def test_penalties_keep_tokens_from_coming_again(engine: TransformersEngine) -> None:
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1e9}):
        ids = [token.id for token in one(engine, PROMPTS[0], Sampling(max_tokens=30, **penalty))]  # type: ignore[arg-type]
        plain = [token.id for token in one(engine, PROMPTS[0], Sampling(max_tokens=30))]
        assert len(set(ids)) > len(set(plain)), penalty


def test_log_probabilities_are_the_model_s(engine: TransformersEngine, pico_model: Path) -> None:
    tokens = one(engine, PROMPTS[0], Sampling(max_tokens=4, logprobs=3, temperature=0.7, seed=3))
    ids = [*PROMPTS[0], *(token.id for token in tokens)]
    with torch.no_grad():
        network = load_model(pico_model)
        expected = network(torch.tensor([ids], device=network.device)).logits[0].log_softmax(-1)
    for place, token in enumerate(tokens, len(PROMPTS[0]) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        assert [index for index, _ in token.top] == expected[place].topk(3).indices.tolist()
    scored = engine.score(ids, 3)
    assert scored[0].logprob is None
    assert [token.logprob for token in scored[len(PROMPTS[0]) :]] == pytest.approx(
        [t.logprob for t in tokens], abs=1e-4
    )


def test_numbers_that_are_none_are_an_error_and_the_engine_goes_on(pico_model: Path) -> None:
    """Weights broken by a cast give NaN: an empty reply and exit 0 would hide it."""
    model = load_model(pico_model)
    engine = TransformersEngine(model)
    head = model.get_output_embeddings().weight  # type: ignore[union-attr]
    whole = head.detach().clone()  # type: ignore[union-attr,operator]
    head.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(ServingError, match="no numbers"):
        one(engine, PROMPTS[0], Sampling())
    head.data.copy_(whole)  # type: ignore[union-attr,operator]
    assert len(one(engine, PROMPTS[0], Sampling(max_tokens=3))) == 3
    engine.close()


def test_a_closed_engine_tells_those_who_wait(pico_model: Path) -> None:
    engine = TransformersEngine(load_model(pico_model), max_rows=1)
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    for prompt in PROMPTS[:3]:
        engine.submit(prompt, Sampling(max_tokens=240), steps.put)
    engine.close()
    errors = 0
    while errors < 3:
        errors += steps.get(timeout=10).error is not None
    with pytest.raises(ServingError, match="stopped"):
        engine.submit(PROMPTS[0], Sampling(), steps.put)


def test_an_engine_that_nobody_holds_keeps_no_thread_and_no_weights(pico_model: Path) -> None:
    """Nobody closes an engine that evaluated one of many models; a thread would keep its weights in memory."""
    before = set(threading.enumerate())
    engine = TransformersEngine(load_model(pico_model))
    for _ in range(20):
        generate(engine, PROMPTS, Sampling(max_tokens=2))
        assert len(engine.score(PROMPTS[0], 1)) == len(PROMPTS[0])
    assert len(set(threading.enumerate()) - before) == 1
    weights = weakref.ref(engine._model)
    del engine
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert set(threading.enumerate()) <= before
    assert weights() is None


def test_a_model_with_another_memory_runs_one_request_at_a_time() -> None:
    """Linear attention keeps a state that rows of different lengths cannot share."""
    config = Qwen3NextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16, num_experts=0,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(config).eval()
    engine = TransformersEngine(model)
    replies = generate(engine, PROMPTS[:3], Sampling(max_tokens=5))
    for prompt, reply in zip(PROMPTS, replies, strict=False):
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].argmax()))
        assert reply == ids[len(prompt) :]
    engine.close()


def test_adapters_are_chosen_by_name_in_one_batch(pico_model: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        shape = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, r=4)
        with quiet_peft():
            get_peft_model(load_model(pico_model), shape).save_pretrained(str(tmp_path / name))
    engine = TransformersEngine(load_adapted(pico_model, {"one": tmp_path / "one", "two": tmp_path / "two"}))
    steps: queue.SimpleQueue[tuple[str | None, Step]] = queue.SimpleQueue()
    names: tuple[str | None, ...] = ("one", "two", None)
    replies: dict[str | None, list[int]] = {name: [] for name in names}
    for name in names:
        engine.submit(PROMPTS[0], Sampling(max_tokens=6), lambda step, at=name: steps.put((at, step)), name)  # type: ignore[misc]
    waiting = len(names)
    while waiting:
        key, step = steps.get(timeout=60)
        assert step.error is None
        if step.token is None:
            waiting -= 1
        else:
            replies[key].append(step.token.id)
    engine.close()
    assert replies[None] == greedy(pico_model, PROMPTS[0], 6)
    for name in ("one", "two"):
        alone = TransformersEngine(load_model(pico_model, tmp_path / name))
        assert generate(alone, PROMPTS[:1], Sampling(max_tokens=6)) == [replies[name]]
        alone.close()
    assert replies["one"] != replies["two"]


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"config\.json does not exist"):
        load_model(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_reply_on_a_gpu_is_that_of_a_cpu(pico_model: Path) -> None:
    plain = LlamaForCausalLM.from_pretrained(pico_model, dtype=torch.float32)
    engine = TransformersEngine(load_model(pico_model).float())
    try:
        assert engine._model.device.type == "cuda"
        for prompt in PROMPTS:
            reply = [token.id for token in one(engine, prompt, Sampling(max_tokens=8))]
            ids = torch.tensor([[*prompt, *reply]])
            with torch.inference_mode():
                expected = plain(ids).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
            assert reply == expected
    finally:
        engine.close()
