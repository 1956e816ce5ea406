"""A 7B-shaped model on one accelerator: tokens a second, share of peak FLOP/s, peak memory, beside plain HF + PEFT.

    python benchmarks/training_gpu.py                    LLaMA-7B's shape, 49,954 pieces, 512 and 2,048 tokens
    python benchmarks/training_gpu.py --small            a small shape, to test the script where there is no accelerator

Random weights and blocks; LoRA of rank 64 on all linear layers, embedding and head in full. Both sides compute in
bfloat16 with gradient checkpointing where asked. FLOP/s count what a step must compute (6 for each trained and 4 for
each frozen weight of a matrix product a token, and attention), recomputation not counted; the peak is the card's
in dense bfloat16. Aims: 45 % of peak, 1.5 times the peer. It needs torch, transformers and peft, and no other package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from training_step import Blocks, build
from yangtuo.training import adapter, attention, loop, loss, metrics_log

SHAPES = {
    "7b": {"hidden": 4096, "inner": 11008, "layers": 32, "heads": 32, "kv": 32, "rows": 49_954},
    "small": {"hidden": 128, "inner": 256, "layers": 2, "heads": 4, "kv": 2, "rows": 5_000},
}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
RANK = 64


def flops_a_token(shape: dict[str, int]) -> float:
    """What forward and backward must compute for one token; attention counts half the square, for it is causal."""
    hidden, narrow = shape["hidden"], shape["hidden"] * shape["kv"] // shape["heads"]
    pairs = [(hidden, hidden), (hidden, narrow), (hidden, narrow), (hidden, hidden)]
    pairs += [(hidden, shape["inner"])] * 3
    frozen = sum(one * other for one, other in pairs)
    lora = sum(RANK * (one + other) for one, other in pairs)
    attended = 6 * hidden * shape["block"]
    return shape["layers"] * (4 * frozen + 6 * lora + attended) + 6 * hidden * shape["rows"]


def run_case(case: str, shape: dict[str, int], batch: int, steps: int, again: bool) -> dict[str, float]:
    on_cpu = not torch.cuda.is_available()
    with torch.device("cpu" if on_cpu else "cuda"):
        model = build(shape, torch.bfloat16)
    times: list[float] = []

    def clock() -> None:
        if not on_cpu:
            torch.cuda.synchronize()
        times.append(time.monotonic())

    with tempfile.TemporaryDirectory() as directory:
        if case == "yangtuo":
            if on_cpu:
                model.set_attn_implementation(attention.NAME)
            loss.use_sliced_loss(model)
            adapted = adapter.attach(model, adapter.AdapterShape(rank=RANK, alpha=2 * RANK))
            write = metrics_log.MetricsLog.write

            def clocked(self: metrics_log.MetricsLog, step: int, values: dict[str, float]) -> None:
                write(self, step, values)
                clock()

            metrics_log.MetricsLog.write = clocked
            settings = loop.Settings(
                learning_rate=1e-4,
                batch_size=batch,
                dtype="bfloat16",
                gradient_checkpointing=again,
                save_every=10**6,
            )
            loop.train(adapted, Blocks(shape, steps * batch, documents=True), [], settings, Path(directory))
        else:
            run_peer(model, Blocks(shape, steps * batch, documents=False), batch, steps, again, clock, directory)
    tokens_a_second = (len(times) - 1) * batch * shape["block"] / (times[-1] - times[0])
    memory = 0.0 if on_cpu else torch.cuda.max_memory_allocated() / 1e9
    return {"speed": tokens_a_second, "flops": tokens_a_second * flops_a_token(shape), "memory": memory}


def run_peer(model, data, batch: int, steps: int, again: bool, clock, directory: str) -> None:
    modules = ["embed_tokens", "lm_head"]
    adapted = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", modules_to_save=modules)
    )
    if again:
        adapted.enable_input_require_grads()

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:  # noqa: ARG002
            clock()

    arguments = TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=batch,
        max_steps=steps,
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        gradient_checkpointing=again,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(model=adapted, args=arguments, train_dataset=data, callbacks=[Clock()]).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens in a step")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--case", choices=("peer", "yangtuo"), help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    name = "small" if arguments.small else "7b"
    tokens = 512 if arguments.small else arguments.tokens
    if arguments.case:
        shape = {**SHAPES[name], "block": arguments.block}
        batch = max(1, tokens // arguments.block)
        again = arguments.gradient_checkpointing
        print(json.dumps(run_case(arguments.case, shape, batch, arguments.steps, again)))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU (only a test of this script)"
    peak = next((value for part, value in PEAKS.items() if part in device), None)
    print(f"{name} shape on {device}, {tokens} tokens a step, torch {torch.__version__}\n")
    print("| block | case | tokens/s | share of peak | peak GB |\n| ---: | --- | ---: | ---: | ---: |")
    for block in (64, 128) if arguments.small else (512, 2048):
        speeds = {}
        for case in ("peer", "yangtuo"):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--block", str(block)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
            if done.returncode:
                print(f"| {block} | {case} | failed | | |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            speeds[case] = found["speed"]
            share = f"{found['flops'] / peak:.1%}" if peak else "unknown"
            print(f"| {block} | {case} | {found['speed']:,.0f} | {share} | {found['memory']:.1f} |", flush=True)
        if len(speeds) == 2:
            print(f"\n{block} tokens: {speeds['yangtuo'] / speeds['peer']:.2f} times the peer (aim 1.5)\n")


if __name__ == "__main__":
    main()
