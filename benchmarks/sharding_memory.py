"""Peak memory of each process under every sharding, two processes over gloo, beside the whole model in one.

    python benchmarks/sharding_memory.py [--small]

A random Llama of 300 MB in float32 takes two steps of LoRA in processes of their own. Anonymous memory is sampled
every few milliseconds from the first import on: pages of the mapped file are left out, which the system takes back at
will. A model of a few hundred thousand parameters gives what libraries and DeepSpeed's buffers take by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES = {
    "nothing": {"hidden": 64, "layers": 2, "rows": 400},
    "small": {"hidden": 512, "layers": 6, "rows": 400},
    "large": {"hidden": 1024, "layers": 6, "rows": 400},
}
WATCHED = """
import os, sys, threading, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
peak = 0
def watch():
    global peak
    while True:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.004)
threading.Thread(target=watch, daemon=True).start()
from yangtuo import cli
status = cli.invoke(sys.argv[2:])
Path(sys.argv[1], os.environ.get("RANK", "0")).write_text(str(peak))
sys.stdout.flush(); sys.stderr.flush()
os._exit(status)
"""


def write_model(directory: Path, shape: dict[str, int], tokenizer: Path) -> None:
    """A random Llama whose layers hold nearly all of it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from yangtuo.vocab.directory import copy_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["rows"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["hidden"] * 8 // 3,
        num_hidden_layers=shape["layers"],
        num_attention_heads=8,
        num_key_value_heads=8,
        dtype=torch.float32,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)


def prepare(work: Path) -> None:
    """A tokenizer of 400 pieces, and a few blocks of text written with it."""
    import io

    import sentencepiece

    from yangtuo import cli
    from yangtuo.vocab.directory import write_sentencepiece

    lines = [
        f"The dog number {n} slept by door {n * 7 % 13} until the evening came, and it rained." for n in range(400)
    ]
    (work / "text.txt").write_text("\n\n".join(lines))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    write_sentencepiece(work / "tokenizer", model.getvalue())
    text = ["--source", f"en={work / 'text.txt'}", "--documents", "paragraph", "--held-out", "0", "--block-size", "64"]
    assert cli.invoke(["prepare", *text, "--tokenizer", str(work / "tokenizer"), "--output", str(work / "data")]) == 0


def peaks(work: Path, model: Path, sharding: str, num_processes: int) -> list[float]:
    """Peak anonymous memory of each process, in MB."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        script, output = Path(name, "run.py"), Path(name, "out")
        script.write_text(WATCHED)
        options = {"model": model, "data": work / "data", "output": output, "sharding": sharding}
        options |= {"dtype": "float32", "embeddings": "frozen", "rank": 4, "batch-size": 2, "max-steps": 2}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        subprocess.run(
            [sys.executable, *(launcher if num_processes > 1 else []), str(script), name, "pretrain"]
            + [text for key, value in options.items() for text in (f"--{key}", str(value))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        return [int(Path(name, str(rank)).read_text()) / 1e3 for rank in range(num_processes)]


def main() -> None:
    """Runs every sharding and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a model of 76 MB")
    shape = SHAPES["small" if parser.parse_args().small else "large"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work)
        models = {"nothing": work / "nothing", "model": work / "model"}
        for key, directory in models.items():
            write_model(directory, SHAPES["nothing"] if key == "nothing" else shape, work / "tokenizer")
        size = sum(file.stat().st_size for file in models["model"].glob("*.safetensors")) / 1e6
        print(f"the model: {size:.0f} MB in float32\n")
        print("| sharding | processes | peak by process, MB | above a tiny model, MB | in models |")
        print("| --- | ---: | --- | --- | --- |")
        found = {}
        for sharding, count in (("none", 1), ("none", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2)):
            tiny, own = (peaks(work, models[key], sharding, count) for key in ("nothing", "model"))
            more = [mine - none for mine, none in zip(own, tiny, strict=True)]
            found[f"{sharding}-{count}"] = {"peak": own, "tiny": tiny}
            cells = [", ".join(f"{value:.0f}" for value in values) for values in (own, more)]
            shares = ", ".join(f"{value / size:.2f}" for value in more)
            print(f"| {sharding} | {count} | {cells[0]} | {cells[1]} | {shares} |", flush=True)
        print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    main()
