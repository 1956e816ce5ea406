"""Tokens a second of every engine, side by side in one run, and what our front costs over the bare engine.

    python benchmarks/serve.py --model models/smollm2-135m --requests 64 --tokens 64 --at-a-time 16
    python benchmarks/serve.py --model models/smollm2-135m --expanded models/smollm2-zh --text held-out.txt

One-by-one `generate` in float32 and transformers' continuous batching are the peers; vLLM joins where
YANGTUO_VLLM_PYTHON names a Python that has it. Prompts are random ids; no reply may end before its length. With
`--expanded` and `--text` also: characters of that text a second, before and after its vocabulary was grown, which is
tokens a second times characters a token. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig

from yangtuo.config.export import ExportConfig
from yangtuo.inference.conversation import Conversation
from yangtuo.inference.engine import Engine, Generation, Sampling
from yangtuo.inference.opening import open_conversations
from yangtuo.inference.transformers_engine import load_model
from yangtuo.inference.vllm_engine import find_python
from yangtuo.serving.app import Front
from yangtuo.serving.server import in_background, listen
from yangtuo.stages import export
from yangtuo.vocab.encoding import load_encoder

T = TypeVar("T")
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


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` gives in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def loaded(ask: Callable[[list[int]], Iterator[int]], prompts: Prompts, at_a_time: int) -> Result:
    """Asks `at_a_time` requests at once; `ask` gives the numbers of tokens that have come, from the first one on."""

    def one(ids: list[int]) -> tuple[float, int]:
        start, first, count = time.perf_counter(), 0.0, 0
        for number in ask(ids):
            first = first or time.perf_counter() - start
            count += number
        return first, count

    start = time.perf_counter()
    with ThreadPoolExecutor(at_a_time) as pool:
        rows = list(pool.map(one, prompts))
    return sum(count for _, count in rows) / (time.perf_counter() - start), [first for first, _ in rows]


def engine_alone(
    engine: Engine, prompts: Prompts, num_tokens: int, at_a_time: int, never: Sequence[int] = ()
) -> Result:
    """The engine without a server; the tokens `never` are made impossible, as the server is asked to."""
    sampling = Sampling(max_tokens=num_tokens, logit_bias=tuple((token, -100.0) for token in never))

    def ask(ids: list[int]) -> Iterator[int]:
        for _ in Generation(engine, ids, sampling):
            yield 1

    return loaded(ask, prompts, at_a_time)


def served(
    conversation: Conversation, prompts: Prompts, num_tokens: int, at_a_time: int, never: Sequence[int]
) -> Result:
    """The same engine behind our front, streaming over HTTP to clients in a process of their own."""
    opened = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{opened.getsockname()[1]}/v1/completions"
    settings = {"max_tokens": num_tokens, "temperature": 0, "logit_bias": {str(token): -100 for token in never}}
    with in_background(Front({"model": conversation}).app(), opened):
        return alone(clients, address, settings, prompts, at_a_time)


def clients(address: str, settings: dict[str, Any], prompts: Prompts, at_a_time: int) -> Result:
    """Asks the server at `address`, each client on a thread."""

    def ask(ids: list[int]) -> Iterator[int]:
        body = {**settings, "prompt": ids, "stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(address, json.dumps(body).encode())
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    usage = json.loads(line[6:]).get("usage")
                    yield usage["completion_tokens"] if usage else 0

    return loaded(ask, prompts, at_a_time)


def quantized(model: Path, directory: Path, kind: str) -> Path:
    """The model as a GGUF file of fewer bits."""
    config = ExportConfig(model=str(model), format="gguf", quantize=kind, output=directory / kind)
    return export.run(config).path / "model.gguf"


def characters(options: argparse.Namespace, model: Path, dtype: str) -> tuple[float, float]:
    """Tokens a second of our engine on `model`, and how many characters of the text a token holds."""
    encoder, text = load_encoder(model), options.text.read_text(encoding="utf-8")
    ids = encoder.encode(text)
    starts = [index * len(ids) // options.requests for index in range(options.requests)]
    prompts = [(ids[start:] + ids)[: options.tokens] for start in starts]
    with closing(open_conversations(str(model), (), "transformers", "alpaca", dtype)) as opened:
        (engine,) = opened.engines
        rate, _ = engine_alone(engine, prompts, options.tokens, options.at_a_time)
    return rate, len(text) / len(ids)


def compare_vocabularies(options: argparse.Namespace) -> None:
    """Prints characters a second of the base and of the expanded model."""
    print(f"{'':40} {'tokens/s':>9} {'characters/token':>17} {'characters/s':>13}")
    for dtype in ("float32", "bfloat16"):
        for name, model in (("base", options.model), ("expanded", options.expanded)):
            rate, size = characters(options, model, dtype)
            print(f"{f'{name}, {dtype}':40} {rate:9.1f} {size:17.3f} {rate * size:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of a prompt, and of a reply")
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--peers", type=int, default=64, help="requests that one-by-one generate answers")
    parser.add_argument("--expanded", type=Path, help="the model with a grown vocabulary")
    parser.add_argument("--text", type=Path, help="text of the new language, for --expanded")
    options = parser.parse_args()
    if options.expanded:
        compare_vocabularies(options)
    else:
        compare_engines(options)


def compare_engines(options: argparse.Namespace) -> None:
    """Prints tokens a second of the peers and of our engines."""
    encoder, rng = load_encoder(options.model), random.Random(0)
    # Two sets: an engine that keeps prompts would answer the second time from memory.
    ids, others = (
        [[rng.randrange(encoder.vocabulary_size) for _ in range(options.tokens)] for _ in range(options.requests)]
        for _ in range(2)
    )
    print(f"{'':40} {'tokens/s':>9} {'times':>6} {'first token: median':>20} {'p99':>7}")
    rates: list[float] = []

    def show(name: str, result: Result) -> None:
        rate, firsts = result
        rates.append(rate)
        median = f"{statistics.median(firsts):.2f} s" if firsts else ""
        last = f"{sorted(firsts)[int(len(firsts) * 0.99)]:.2f} s" if firsts else ""
        print(f"{name:40} {rate:9.1f} {rate / rates[0]:6.1f} {median:>20} {last:>7}", flush=True)

    # Each in a process of its own: a thread that has computed keeps OpenMP's workers, and slows down those after it.
    peers = {"generate, one by one": one_by_one, "transformers, its continuous batching": continuous_batching}
    for name, peer in peers.items():
        asked = ids[: options.peers] if peer is one_by_one else ids
        show(name, alone(peer, options.model, asked, options.tokens))
    with tempfile.TemporaryDirectory() as directory:
        files = {kind: alone(quantized, options.model, Path(directory), kind) for kind in ("q8_0", "q4_0")}
        for name, engine, model, dtype in (
            ("transformers", "transformers", options.model, "auto"),
            ("transformers, bfloat16", "transformers", options.model, "bfloat16"),
            ("llama.cpp", "llama.cpp", options.model, "float32"),
            *((f"llama.cpp, {kind}", "llama.cpp", file, "auto") for kind, file in files.items()),
            *([("vllm", "vllm", options.model, "auto")] if find_python() else []),
        ):
            with closing(open_conversations(str(model), (), engine, "alpaca", dtype)) as opened:
                (conversation,) = opened.conversations.values()
                never = sorted(conversation.template.stop_ids(conversation.encoder))
                how = (options.tokens, options.at_a_time, never)
                show(f"ours, {name}", engine_alone(conversation.engine, ids, *how))
                show(f"ours, {name}, served", served(conversation, others, *how))


if __name__ == "__main__":
    main()
