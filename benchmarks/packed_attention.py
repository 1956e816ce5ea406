"""Packed documents beside documents alone: the largest difference of logits, for every attention offered.

    python benchmarks/packed_attention.py [--small] [--device cpu|cuda]

A random Llama of 8 layers (2 with `--small`) reads blocks of several documents and each document alone. The peer is
transformers as it comes (position ids given, cache as by default), with every implementation of its own that this
machine has. Ours is the same model after `keep_documents_apart`, with the implementations that training uses: our own
on a CPU, SDPA on a GPU and behind ours for long blocks; with the cache by default and asked for, in training and in
evaluation. Target: no more than rounding, 1e-4 in float32 where logits are about 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from yangtuo.training.attention import NAME, keep_documents_apart

LENGTHS = (400, 300, 200, 100, 20, 4)  # one block of 1,024 tokens


def build(num_layers: int, implementation: str, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        attn_implementation=implementation,
        initializer_range=0.06,  # logits of about 1, as trained models have
    )
    return LlamaForCausalLM(config).to(device)


def blocks(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of ids and position ids, their documents in opposite orders."""
    ids = torch.randint(0, 8000, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    rows = [torch.cat([torch.arange(length) for length in order]) for order in (LENGTHS, LENGTHS[::-1])]
    return ids.to(device), torch.stack(rows).to(device)


@torch.no_grad()
def largest_difference(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, **options: bool) -> float:
    together = model(ids, position_ids=positions, **options).logits
    largest = 0.0
    for row in range(len(ids)):
        starts = [*(positions[row] == 0).nonzero().flatten().tolist(), ids.shape[1]]
        for begin, end in pairwise(starts):
            alone = model(ids[row : row + 1, begin:end], use_cache=False).logits[0]
            largest = max(largest, float((together[row, begin:end] - alone).abs().max()))
    return largest


def measured(num_layers: int, device: str) -> Iterator[tuple[str, str, str, float]]:
    """Whose, which implementation, how it was called, and the largest difference."""
    ids, positions = blocks(device)
    for whose, implementations in (("transformers", ("sdpa", "eager")), ("yangtuo", (NAME, "sdpa", "eager"))):
        for implementation in implementations:
            model = build(num_layers, implementation, device)
            if whose == "yangtuo":
                keep_documents_apart(model)
            for mode in ("train", "eval"):
                model.train(mode == "train")
                for called, options in (
                    ("default", {}),
                    ("cache", {"use_cache": True}),
                    ("no cache", {"use_cache": False}),
                ):
                    yield (
                        whose,
                        implementation,
                        f"{mode}, {called}",
                        largest_difference(model, ids, positions, **options),
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    print("| whose | attention | called | largest difference |")
    print("| --- | --- | --- | ---: |")
    worst = {"transformers": 0.0, "yangtuo": 0.0}
    for whose, implementation, called, difference in measured(2 if arguments.small else 8, arguments.device):
        print(f"| {whose} | {implementation} | {called} | {difference:.1e} |", flush=True)
        worst[whose] = max(worst[whose], difference)
    print(f"\nworst: transformers {worst['transformers']:.1e}, yangtuo {worst['yangtuo']:.1e} (target 1e-4)")


if __name__ == "__main__":
    main()
