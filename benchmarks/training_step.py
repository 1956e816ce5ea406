"""A training step beside plain Hugging Face Trainer + PEFT: tokens a second, and peak memory at 50,000 pieces.

    python benchmarks/training_step.py [--small] [--shape quickstart|50k|135m] [--rounds 3]

Each case runs in a process of its own, the same random blocks, LoRA rank and trained embeddings in all. The peer is
the Trainer as it comes: `get_peft_model`, documents run together, the model's own loss; in float32, and under bfloat16
autocast. A fourth case, ours with a third of the rows learning alone, has no peer and no target. The cases take turns,
round after round, and medians are printed; CPU seconds are given beside wall seconds, because they hold on a busy
machine too. `--small` takes the quickstart's shape alone, one round of few steps. The 135m shape needs 8 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

_TINY = {"hidden": 192, "inner": 512, "layers": 6, "heads": 6, "kv": 3}
_SMOLLM2 = {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv": 3, "tied": True}
SHAPES = {
    "quickstart": {**_TINY, "rows": 6_400, "block": 256, "batch": 8, "steps": 12},
    "50k": {**_TINY, "rows": 50_000, "block": 512, "batch": 8, "steps": 4},
    "135m": {**_SMOLLM2, "rows": 50_000, "block": 512, "batch": 4, "steps": 3},
}
CASES = ("peer-float32", "peer-bfloat16", "yangtuo", "yangtuo-new-rows")
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
            tie_word_embeddings=bool(shape.get("tied")),
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


def run_peer(shape: dict[str, int], bfloat16: bool) -> list[tuple[float, float]]:
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
            per_device_train_batch_size=shape["batch"],
            max_steps=shape["steps"],
            use_cpu=True,
            bf16=bfloat16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = Blocks(shape, shape["steps"] * shape["batch"], documents=False)
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return times


def run_ours(shape: dict[str, int], embeddings: str) -> list[tuple[float, float]]:
    from yangtuo.training import adapter, attention, loop, loss, metrics_log

    model = build(shape, loop.compute_dtype("auto"))
    model.set_attn_implementation(attention.NAME)
    loss.use_sliced_loss(model)
    new_rows = range(shape["rows"] * 2 // 3, shape["rows"])
    adapted = adapter.attach(
        model, adapter.AdapterShape(rank=RANK, alpha=2 * RANK, embeddings=embeddings, new_rows=new_rows)
    )
    times: list[tuple[float, float]] = []
    write = metrics_log.MetricsLog.write

    def clocked(self, step, values):
        write(self, step, values)
        times.append((time.monotonic(), time.process_time()))

    metrics_log.MetricsLog.write = clocked
    with tempfile.TemporaryDirectory() as directory:
        settings = loop.Settings(learning_rate=1e-4, batch_size=shape["batch"], save_every=10**6)
        data = Blocks(shape, shape["steps"] * shape["batch"], documents=True)
        loop.train(adapted, data, [], settings, Path(directory))
    return times


def run_case(case: str, shape: dict[str, int]) -> dict[str, float]:
    warnings.simplefilter("ignore")
    if case.startswith("yangtuo"):
        times = run_ours(shape, "new" if case == "yangtuo-new-rows" else "full")
    else:
        times = run_peer(shape, case == "peer-bfloat16")
    tokens = (len(times) - 1) * shape["batch"] * shape["block"]
    return {
        "wall": tokens / (times[-1][0] - times[0][0]),
        "cpu": tokens / (times[-1][1] - times[0][1]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def measure(flags: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, shape: dict[str, int], rounds: int, flags: list[str]) -> None:
    print(f"\n## {name}: {shape}, {rounds} rounds\n")
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            runs[case].append(measure(["--shape", name, "--case", case, *flags]))
    found = {
        case: {key: statistics.median(run[key] for run in taken) for key in taken[0]} for case, taken in runs.items()
    }
    print("| case | tokens/s | tokens/CPU s | peak GB |\n| --- | ---: | ---: | ---: |")
    for case, row in found.items():
        print(f"| {case} | {row['wall']:,.0f} | {row['cpu']:,.0f} | {row['memory']:.2f} |")
    for peer, target in (("peer-float32", 2.0), ("peer-bfloat16", 1.2)):
        ours, theirs = found["yangtuo"], found[peer]
        print(
            f"\nyangtuo / {peer}: {ours['wall'] / theirs['wall']:.2f} times the speed (CPU time: "
            f"{ours['cpu'] / theirs['cpu']:.2f}; target {target}), {ours['memory'] / theirs['memory']:.0%} of the "
            "peak memory (target 60 % at 50,000 pieces)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few steps, and the quickstart's shape alone")
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="blocks a step, where memory is short")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    changed = {"steps": 4} if arguments.small else {}
    if arguments.batch:
        changed["batch"] = arguments.batch
    flags = ["--small"] if arguments.small else []
    flags += ["--batch", str(arguments.batch)] if arguments.batch else []
    for name in arguments.shape or (["quickstart"] if arguments.small else SHAPES):
        shape = {**SHAPES[name], **changed}
        if arguments.case:
            print(json.dumps(run_case(arguments.case, shape)))
        else:
            compare(name, shape, 1 if arguments.small else arguments.rounds, flags)


if __name__ == "__main__":
    main()
