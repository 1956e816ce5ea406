"""A training step beside plain Hugging Face Trainer + PEFT: tokens a second, and peak memory at 50,000 pieces.

    python benchmarks/training_step.py [--small] [--shape quickstart|50k|135m]

Each case runs in a process of its own, the same random blocks, LoRA rank and trained embeddings in all. The peer is
the Trainer as it comes: `get_peft_model`, documents run together, the model's own loss; in float32, and under bfloat16
autocast. CPU seconds are given beside wall seconds, because they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

SHAPES = {
    "quickstart": {"hidden": 192, "inner": 512, "layers": 6, "heads": 6, "kv": 3, "rows": 6_400, "block": 256},
    "50k": {"hidden": 192, "inner": 512, "layers": 6, "heads": 6, "kv": 3, "rows": 50_000, "block": 512},
    "135m": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv": 3, "rows": 50_000, "block": 512},
}
CASES = ("peer-float32", "peer-bfloat16", "yangtuo")
BATCH = 8
RANK = 64


def build(shape: dict[str, int], dtype):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["rows"],
            hidden_size=shape["hidden"],
            intermediate_size=shape["inner"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv"],
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    )
    return model.to(dtype)


class Blocks:
    """Random blocks of three documents each."""

    def __init__(self, shape: dict[str, int], num_blocks: int, documents: bool) -> None:
        import torch

        generator = torch.Generator().manual_seed(1)
        self._ids = torch.randint(3, shape["rows"], (num_blocks, shape["block"]), generator=generator)
        self._documents = documents

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int):
        import torch

        ids = self._ids[index]
        block = {"input_ids": ids, "labels": ids.clone()}
        if self._documents:
            place = torch.arange(len(ids))
            third = len(ids) // 3 + 1
            block["position_ids"] = place % third
            block["labels"][place % third == 0] = -100
        return block


def run_peer(shape: dict[str, int], steps: int, bfloat16: bool) -> list[tuple[float, float]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = get_peft_model(
        build(shape, torch.float32),
        LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"]
        ),
    )
    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:  # noqa: ARG002
            times.append((time.monotonic(), time.process_time()))

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            use_cpu=True,
            bf16=bfloat16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = Blocks(shape, steps * BATCH, documents=False)
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return times


def run_ours(shape: dict[str, int], steps: int) -> list[tuple[float, float]]:
    from yangtuo.training import adapter, attention, journal, loop, loss

    model = build(shape, loop.compute_dtype("auto"))
    model.set_attn_implementation(attention.NAME)
    loss.use_sliced_loss(model)
    adapted = adapter.attach(model, adapter.AdapterShape(rank=RANK, alpha=2 * RANK))
    times: list[tuple[float, float]] = []
    write = journal.Journal.write

    def clocked(self, step, values):
        write(self, step, values)
        times.append((time.monotonic(), time.process_time()))

    journal.Journal.write = clocked
    with tempfile.TemporaryDirectory() as directory:
        settings = loop.Settings(learning_rate=1e-4, batch_size=BATCH, save_every=10**6)
        data = Blocks(shape, steps * BATCH, documents=True)
        loop.train(adapted, data, [], settings, Path(directory))
    return times


def run_case(case: str, shape: dict[str, int], steps: int) -> dict[str, float]:
    warnings.simplefilter("ignore")
    times = run_ours(shape, steps) if case == "yangtuo" else run_peer(shape, steps, case == "peer-bfloat16")
    tokens = (len(times) - 1) * BATCH * shape["block"]
    return {
        "wall": tokens / (times[-1][0] - times[0][0]),
        "cpu": tokens / (times[-1][1] - times[0][1]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few steps, and the quickstart's shape alone")
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.shape or (["quickstart"] if arguments.small else list(SHAPES))
    for name in names:
        steps = 4 if arguments.small else {"quickstart": 16, "50k": 4, "135m": 3}[name]
        if arguments.case:
            print(json.dumps(run_case(arguments.case, SHAPES[name], steps)))
            continue
        print(f"\n## {name}: {SHAPES[name]}, {BATCH} blocks a step\n")
        print("| case | tokens/s | tokens/CPU s | peak GB |\n| --- | ---: | ---: | ---: |")
        found = {}
        for case in CASES:
            flags = ["--shape", name, "--case", case, *(["--small"] if arguments.small else [])]
            done = subprocess.run(
                [sys.executable, __file__, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
            found[case] = json.loads(done.stdout.splitlines()[-1])
            row = found[case]
            print(f"| {case} | {row['wall']:,.0f} | {row['cpu']:,.0f} | {row['memory']:.2f} |", flush=True)
        for peer, target in (("peer-float32", 2.0), ("peer-bfloat16", 1.2)):
            ours, theirs = found["yangtuo"], found[peer]
            print(
                f"\nyangtuo / {peer}: {ours['wall'] / theirs['wall']:.2f} times the speed (CPU time: "
                f"{ours['cpu'] / theirs['cpu']:.2f}; target {target}), {ours['memory'] / theirs['memory']:.0%} of the "
                "peak memory (target 60 % at 50,000 pieces)"
            )


if __name__ == "__main__":
    main()
