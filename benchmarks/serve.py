"""Tokens a second of every engine, side by side in one run, and what our front costs over the bare engine.

    python benchmarks/serve.py --model models/smollm2-135m --requests 64 --tokens 64 --at-a-time 16

One-by-one `generate` and transformers' continuous batching are the peers; vLLM joins where YANGTUO_VLLM_PYTHON names a
Python that has it. Prompts are random ids; no reply may end before its length. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from transformers import GenerationConfig

from yangtuo.data.template import get_template
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Engine, Generation, Sampling
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.transformers_engine import load_model
from yangtuo.inference.vllm_engine import find_python
from yangtuo.serving.app import Front
from yangtuo.serving.server import in_background, listen
from yangtuo.vocab.encoding import load_encoder

Prompts = Sequence[list[int]]
Result = tuple[float, list[float]]
"""Tokens a second, and the seconds to the first token of each request."""


def one_by_one(model: Path, prompts: Prompts, num_tokens: int) -> Result:
    """What a script does that answers one request after the other."""
    network, firsts = load_model(model), []
    settings = GenerationConfig(max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    start = time.perf_counter()
    for ids in prompts:
        network.generate(torch.tensor([ids]), generation_config=settings)
        firsts.append(time.perf_counter() - start)
    return len(prompts) * num_tokens / (time.perf_counter() - start), firsts


def continuous_batching(model: Path, prompts: Prompts, num_tokens: int) -> Result:
    """transformers' own continuous batching, which `transformers serve` runs."""
    network = load_model(model)
    settings = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    start = time.perf_counter()
    replies = network.generate_batch([list(ids) for ids in prompts], generation_config=settings, progress_bar=False)
    count = sum(len(reply.generated_tokens) for reply in replies.values())
    return count / (time.perf_counter() - start), []


def loaded(ask: Callable[[list[int]], Iterator[object]], prompts: Prompts, at_a_time: int) -> Result:
    """Asks `at_a_time` requests at once."""

    def one(ids: list[int]) -> tuple[float, int]:
        start, first, count = time.perf_counter(), 0.0, 0
        for _ in ask(ids):
            first = first or time.perf_counter() - start
            count += 1
        return first, count

    start = time.perf_counter()
    with ThreadPoolExecutor(at_a_time) as pool:
        rows = list(pool.map(one, prompts))
    return sum(count for _, count in rows) / (time.perf_counter() - start), [first for first, _ in rows]


def engine_alone(engine: Engine, prompts: Prompts, num_tokens: int, at_a_time: int) -> Result:
    """The engine without a server."""
    sampling = Sampling(max_tokens=num_tokens)
    return loaded(lambda ids: iter(Generation(engine, ids, sampling)), prompts, at_a_time)


def served(conversation: Conversation, prompts: Prompts, num_tokens: int, at_a_time: int) -> Result:
    """The same engine behind our front, streaming over HTTP."""
    encoder = conversation.encoder
    no_end = {str(index): -100 for index in conversation.template.stop_ids(encoder)}
    opened = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{opened.getsockname()[1]}/v1/completions"

    def ask(ids: list[int]) -> Iterator[object]:
        body = {"prompt": ids, "max_tokens": num_tokens, "temperature": 0, "stream": True, "logprobs": 0}
        data = json.dumps({**body, "logit_bias": no_end}).encode()
        with urllib.request.urlopen(urllib.request.Request(address, data)) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    logprobs = json.loads(line[6:])["choices"][0]["logprobs"]
                    yield from logprobs["tokens"]

    with in_background(Front({"model": conversation}).app(), opened):
        return loaded(ask, prompts, at_a_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of a prompt, and of a reply")
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--peers", type=int, default=64, help="requests that one-by-one generate answers")
    options = parser.parse_args()
    encoder, rng = load_encoder(options.model), random.Random(0)
    ids = [[rng.randrange(encoder.vocabulary_size) for _ in range(options.tokens)] for _ in range(options.requests)]
    results: dict[str, Result] = {
        "generate, one by one": one_by_one(options.model, ids[: options.peers], options.tokens),
        "transformers, its continuous batching": continuous_batching(options.model, ids, options.tokens),
    }
    for name in ("transformers", "llama.cpp", *(["vllm"] if find_python() else [])):
        with closing(open_conversations(str(options.model), engine=name, template="alpaca")) as opened:
            (conversation,) = opened.conversations.values()
            conversation.template = get_template("alpaca", None)
            results[f"ours, {name}"] = engine_alone(conversation.engine, ids, options.tokens, options.at_a_time)
            results[f"ours, {name}, served"] = served(conversation, ids, options.tokens, options.at_a_time)
    base = results["generate, one by one"][0]
    print(f"{'':40} {'tokens/s':>9} {'times':>6} {'first token: median':>20} {'p99':>7}")
    for name, (rate, firsts) in results.items():
        median = f"{statistics.median(firsts):.2f} s" if firsts else ""
        last = f"{sorted(firsts)[int(len(firsts) * 0.99)]:.2f} s" if firsts else ""
        print(f"{name:40} {rate:9.1f} {rate / base:6.1f} {median:>20} {last:>7}")


if __name__ == "__main__":
    main()
