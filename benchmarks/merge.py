"""Two adapters into a 7B model: ours, PEFT's `merge_and_unload`, and a plain copy of the output, in one run.

    python benchmarks/merge.py --directory /tmp/merge            # 32 layers, 4096, 11008, 13.5 GB; 55 GB of disk
    python benchmarks/merge.py --directory /tmp/merge --small    # seconds

The adapters are Chinese-LLaMA's: rank 8 with embedding and head of 49,953 rows, then rank 64 with 49,954.
Each contestant runs in its own process, after the page cache was dropped where that is allowed; what is not file-backed
is its memory. Prints the targets beside the figures and exits with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from yangtuo.vocab.directory import write_sentencepiece
from yangtuo.weights.reader import open_tensors
from yangtuo.weights.writer import ShardedWriter, TensorSpec

LINEAR = {
    "self_attn.q_proj": ("width", "width"),
    "self_attn.k_proj": ("width", "width"),
    "self_attn.v_proj": ("width", "width"),
    "self_attn.o_proj": ("width", "width"),
    "mlp.gate_proj": ("inside", "width"),
    "mlp.up_proj": ("inside", "width"),
    "mlp.down_proj": ("width", "inside"),
}

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, output, *adapters = sys.argv[1:]
rows = {rows}
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
for adapter, size in zip(adapters, rows):
    model.resize_token_embeddings(size, mean_resizing=False)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(output, max_shard_size="2GB")
"""
OURS = """
import sys
from pathlib import Path
from yangtuo.config.merge import MergeConfig
from yangtuo.stages import merge
base, output, *adapters = sys.argv[1:]
merge.run(MergeConfig(base=base, adapter=tuple(adapters), output=Path(output)))
"""
COPY = """
import shutil, sys
shutil.copytree(sys.argv[1], sys.argv[2])
"""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and its adapters."""

    layers: int
    width: int
    inside: int
    rows: tuple[int, int, int]

    def size(self, name: str) -> int:
        """A size by its name in `LINEAR`."""
        return self.width if name == "width" else self.inside


@dataclass(frozen=True)
class Measurement:
    """Seconds until the process ended, until its files were on disk, of processors; peak memory in bytes."""

    seconds: float
    seconds_to_disk: float
    seconds_of_processors: float
    anonymous: int
    resident: int


def noise(num_elements: int) -> torch.Tensor:
    """Normal numbers, generated once and repeated: what they are does not matter here."""
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    return block.repeat(num_elements // block.numel() + 1)[:num_elements]


def write_model(directory: Path, shape: Shape) -> None:
    directory.mkdir(parents=True)
    plan = {"model.embed_tokens.weight": (shape.rows[0], shape.width)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        plan |= {f"{prefix}.{n}.weight": (shape.size(o), shape.size(i)) for n, (o, i) in LINEAR.items()}
        plan |= {f"{prefix}.{n}.weight": (shape.width,) for n in ("input_layernorm", "post_attention_layernorm")}
    plan |= {"model.norm.weight": (shape.width,), "lm_head.weight": (shape.rows[0], shape.width)}
    specs = {name: TensorSpec(sizes, torch.float16) for name, sizes in plan.items()}
    with ShardedWriter(directory, plan=specs) as writer:
        for name, spec in specs.items():
            writer.add(name, noise(spec.num_bytes // 2).view(spec.shape))
        writer.close()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.rows[0],
        "hidden_size": shape.width,
        "intermediate_size": shape.inside,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory, shape.rows[0])


def write_tokenizer(directory: Path, size: int) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=text, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    for index in range(size - 259):  # single characters, which need no merges
        code = 0x3400 + index
        proto.pieces.add(piece=chr(code if code < 0xD800 else code + 0x800), score=-float(index), type=1)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, size
    proto.normalizer_spec.name = "identity"
    write_sentencepiece(directory, proto.SerializeToString())


def write_adapter(directory: Path, shape: Shape, rank: int, rows: int) -> None:
    directory.mkdir(parents=True)
    prefix = "base_model.model"
    plan = {f"{prefix}.{n}.weight": (rows, shape.width) for n in ("model.embed_tokens", "lm_head")}
    for layer in range(shape.layers):
        for name, (outputs, inputs) in LINEAR.items():
            module = f"{prefix}.model.layers.{layer}.{name}"
            plan[f"{module}.lora_A.weight"] = (rank, shape.size(inputs))
            plan[f"{module}.lora_B.weight"] = (shape.size(outputs), rank)
    specs = {name: TensorSpec(sizes, torch.float16) for name, sizes in plan.items()}
    with ShardedWriter(directory, 1 << 62, plan=specs) as writer:
        for name, spec in specs.items():
            writer.add(name, noise(spec.num_bytes // 2).view(spec.shape))
        writer.close()
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[1] for name in LINEAR],
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    write_tokenizer(directory, rows)


def memory(pid: int) -> tuple[int, int]:
    """Bytes of anonymous and of all resident memory of a process, or zeros where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmHWM"))}
    return int(values.get("RssAnon", 0)) * 1024, int(values.get("VmHWM", 0)) * 1024


def measure(script: str, *arguments: Path) -> Measurement:
    os.sync()
    drop = Path("/proc/sys/vm/drop_caches")
    if os.access(drop, os.W_OK):
        drop.write_text("3")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stderr=subprocess.PIPE)
    peaks = [0, 0]

    def watch() -> None:
        while process.poll() is None:
            for index, value in enumerate(memory(process.pid)):
                peaks[index] = max(peaks[index], value)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, stderr = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        sys.exit(stderr.decode()[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    os.sync()
    return Measurement(seconds, time.perf_counter() - start, processors, *peaks)


def difference(ours: Path, theirs: Path) -> tuple[int, float]:
    """Greatest difference of two models in units in the last place of float16, and the share of differing elements."""
    worst, different, total = 0, 0, 0
    with open_tensors(ours) as one, open_tensors(theirs) as other:
        assert set(one.names()) == set(other.names())
        for name in one.names():
            for left, right in zip(one.get(name).split(1024), other.get(name).split(1024), strict=True):
                codes = [part.contiguous().view(torch.int16).int() for part in (left, right)]
                lines = [torch.where(code < 0, -32768 - code, code) for code in codes]  # a number line without a gap
                distance = (lines[0] - lines[1]).abs()
                worst = max(worst, int(distance.max()))
                different += int(distance.count_nonzero())
                total += distance.numel()
    return worst, different / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the models are made; emptied at the end")
    parser.add_argument("--small", action="store_true", help="a model of 60 MB")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    options = parser.parse_args()
    shape = Shape(4, 512, 1376, (3200, 4995, 4996)) if options.small else Shape(32, 4096, 11008, (32000, 49953, 49954))
    shape = Shape(options.layers or shape.layers, shape.width, shape.inside, shape.rows)
    work: Path = options.directory
    work.mkdir(parents=True)
    try:
        base, first, second = work / "base", work / "first", work / "second"
        write_model(base, shape)
        write_adapter(first, shape, 8, shape.rows[1])
        write_adapter(second, shape, 64, shape.rows[2])
        ours = measure(OURS, base, work / "ours", first, second)
        size = sum(file.stat().st_size for file in (work / "ours").iterdir())
        copy = measure(COPY, work / "ours", work / "copy")
        shutil.rmtree(work / "copy")
        shutil.rmtree(work / "ours")
        peft = measure(PEFT.format(rows=shape.rows[1:]), base, work / "peft", first, second)
        # PEFT rounds after each adapter and we once at the end: only one merge an adapter has the same arithmetic.
        measure(OURS, base, work / "middle", first)
        measure(OURS, work / "middle", work / "steps", second)
        units, share = difference(work / "steps", work / "peft")
    finally:
        shutil.rmtree(work)
    print(f"output {size / 1e9:.2f} GB, {os.cpu_count()} cores, {share:.2e} of the elements differ from PEFT's\n")
    missed = report(ours, peft, copy, units)
    if missed and not options.small:  # a small run is all imports: its times say nothing
        sys.exit(1)


def report(ours: Measurement, peft: Measurement, copy: Measurement, units: int) -> bool:
    """Prints figures and targets; returns whether a target was missed."""
    print("| | seconds | to disk | of processors | peak anonymous GiB | peak resident GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, m in (("yangtuo merge", ours), ("PEFT merge_and_unload", peft), ("plain copy", copy)):
        figures = (m.seconds, m.seconds_to_disk, m.seconds_of_processors, m.anonymous / 2**30, m.resident / 2**30)
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in figures)} |")
    targets = (
        ("peak anonymous memory, GiB", ours.anonymous / 2**30, 2.0),
        ("wall time over the copy's", ours.seconds / copy.seconds, 2.0),
        ("wall time over PEFT's", ours.seconds / peft.seconds, 0.5),
        ("greatest difference from PEFT, units in the last place", units, 1.0),
    )
    print("\n| target | found | at most |\n| --- | --- | --- |")
    for name, found, limit in targets:
        print(f"| {name} | {found:.2f} | {limit:.2f} |")
    return any(found > limit for _, found, limit in targets)


if __name__ == "__main__":
    main()
