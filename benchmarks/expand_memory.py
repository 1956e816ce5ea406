"""Claim: a 7B-shaped model grows in under 2 GB of memory, whatever its number of layers.

Writes a model of LLaMA-7B's widths in float16 (`--layers` of its 32), joins 17,000 Chinese pieces to its tokenizer,
and grows it in a process of its own; the peer is transformers' `resize_token_embeddings` and `save_pretrained`, in
another. A third run, beyond the claim, places rows by text and fits the head to it.
Prints the peak memory and the seconds of each.

    python benchmarks/expand_memory.py [--layers 4]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
OURS = (
    "from yangtuo.cli import invoke; "
    "invoke(['expand', '--model', {model!r}, '--tokenizer', {tokenizer!r}, '--output', {output!r}, *{text!r}])"
)
PEER = (
    "import torch; from transformers import AutoModelForCausalLM; "
    "model = AutoModelForCausalLM.from_pretrained({model!r}, dtype=torch.float16); "
    "model.resize_token_embeddings({rows}); model.save_pretrained({output!r})"
)


def write_model(directory: Path, layers: int) -> None:
    """A model of LLaMA-7B's widths, filled with small numbers, with LLaMA's tokenizer."""
    import torch
    from transformers import LlamaConfig

    from yangtuo.vocab.directory import copy_tokenizer
    from yangtuo.weights.writer import ShardedWriter

    copy_tokenizer(DATA / "tokenizers/llama/tokenizer.model", directory)
    LlamaConfig(num_hidden_layers=layers, vocab_size=32_000, dtype="float16").save_pretrained(directory)
    with ShardedWriter(directory) as writer:
        writer.add("model.embed_tokens.weight", torch.full((32_000, 4096), 0.01, dtype=torch.float16))
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                tensor = torch.full((4096, 4096), 0.01, dtype=torch.float16)
                writer.add(f"{prefix}self_attn.{name}.weight", tensor)
            for name, shape in (("gate_proj", (11008, 4096)), ("up_proj", (11008, 4096)), ("down_proj", (4096, 11008))):
                writer.add(f"{prefix}mlp.{name}.weight", torch.full(shape, 0.01, dtype=torch.float16))
            for name in ("input_layernorm", "post_attention_layernorm"):
                writer.add(f"{prefix}{name}.weight", torch.ones(4096, dtype=torch.float16))
        writer.add("model.norm.weight", torch.ones(4096, dtype=torch.float16))
        writer.add("lm_head.weight", torch.full((32_000, 4096), 0.01, dtype=torch.float16))
        writer.close()


def run(code: str) -> tuple[float, float]:
    """Peak memory in GB and seconds of a Python process that runs `code`."""
    # Not getrusage: its peak includes this process's, from between fork and exec.
    report = "; import sys; sys.stderr.write('PEAK ' + open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, env=os.environ)
    assert "PEAK" in done.stderr, done.stderr
    return int(done.stderr.rsplit("PEAK ", 1)[1]) * 1024 / 1e9, time.perf_counter() - start


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    layers = parser.parse_args().layers
    from yangtuo.vocab.base import open_base
    from yangtuo.vocab.encoding import load_encoder
    from yangtuo.vocab.scripts import compile_scripts

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        write_model(home / "model", layers)
        pieces = DATA / "tokenizers/chinese_sp.model"
        open_base(DATA / "tokenizers/llama").merge(pieces, "faithful", compile_scripts(["Han"]), (), home / "tokenizer")
        rows = load_encoder(home / "tokenizer").vocabulary_size
        size = sum(file.stat().st_size for file in (home / "model").iterdir()) / 1e9
        print(f"{layers} layers of LLaMA-7B's widths, {size:.1f} GB in float16, 32,000 -> {rows:,} rows")
        values = {"model": str(home / "model"), "tokenizer": str(home / "tokenizer"), "rows": rows}
        text = [word for language in ("zh", "en") for word in ("--text", str(DATA / "corpora" / language))]
        for number, (who, code, options) in enumerate(
            (("yangtuo expand", OURS, []), ("transformers", PEER, []), ("yangtuo expand --text", OURS, text))
        ):
            peak, seconds = run(code.format(**values, text=options, output=str(home / str(number))))
            shutil.rmtree(home / str(number))
            print(f"{who:<22} peak {peak:.2f} GB, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
