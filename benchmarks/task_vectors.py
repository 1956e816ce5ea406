"""What a tuned model learned beyond its base, added to a grown model: `merge --add` beside mergekit, in one run.

    python benchmarks/task_vectors.py --base BASE --tuned TUNED --grown GROWN [--mergekit DIRECTORY]
    python benchmarks/task_vectors.py --layers 4

Three model directories with one body: a base, one tuned from it, one grown from it by `yangtuo expand`. mergekit (from
`pip install --target DIRECTORY --no-deps mergekit immutables`, not among our requirements) merges by task_arithmetic,
base + (tuned - base) + (grown - base), with its default tokenizer handling and with a union of tokenizers. What is
expected can be written down: layers and old rows of the grown model take the difference, and its new rows stay. Prints
for each how many rows come out, the largest deviation in layers, old and new rows, seconds of processors and memory.
With `--layers`, the memory of ours alone on models of LLaMA-7B's widths with so many of its 32 layers, grown from
32,000 rows to 49,317; at most 1 GiB, files not counted, is the target, whatever the number of layers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import expand_memory
from merge import measure
from yangtuo.config.expand import ExpandConfig
from yangtuo.stages import expand
from yangtuo.vocab.base import open_base
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.weights.layouts import open_checkpoint
from yangtuo.weights.reader import open_tensors

MERGEKIT = """
base_model: {base}
merge_method: task_arithmetic
models:
  - model: {tuned}
    parameters: {{weight: 1.0}}
  - model: {grown}
    parameters: {{weight: 1.0}}
dtype: float32
{tokenizer}
"""
WITHOUT_TOKENIZER, UNION = "", "tokenizer: {source: union}"
TOP = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stderr.write(done.stderr[-400:] if done.returncode else "")
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.returncode)
"""


def run(command: list[str], **environment: str) -> tuple[float, float, bool]:
    """Runs a command in a process of its own: seconds of processors, MiB at its peak, and whether it ended well."""
    done = subprocess.run(
        [sys.executable, "-c", TOP, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    seconds, memory, code = done.stdout.split()
    return float(seconds), float(memory), code == "0"


def deviations(output: Path, base: Path, tuned: Path, grown: Path) -> str:
    """Cells of the table: rows, and the largest deviations from what is expected."""
    shape = open_checkpoint(grown).shape
    before, after, start, merged = (open_tensors(path) for path in (base, tuned, grown, output))
    farthest = {"layers": 0.0, "old rows": 0.0, "new rows": 0.0}
    num_rows = merged.shape(shape.embedding)[0]
    for name in start.names():
        if name not in merged.names():
            continue
        own = name if name in before.names() else shape.embedding
        difference = after.get(own).float() - before.get(own).float()
        expected, actual = start.get(name).float(), merged.get(name).float()
        expected[: len(difference)] += difference
        if name in (shape.embedding, shape.head):
            kept = min(len(actual), len(expected))
            parts = {"old rows": slice(len(difference)), "new rows": slice(len(difference), kept)}
        else:
            parts = {"layers": slice(None)}
        for part, rows in parts.items():
            if expected[rows].numel():
                farthest[part] = max(farthest[part], float((expected[rows] - actual[rows]).abs().max()))
    lost = start.shape(shape.embedding)[0] - num_rows
    cells = [
        f"{farthest['layers']:.1e}",
        f"{farthest['old rows']:.1e}",
        "gone" if lost > 0 else f"{farthest['new rows']:.1e}",
    ]
    return f"{num_rows:,} | " + " | ".join(cells)


def measure_memory(work: Path, num_layers: int) -> None:
    """Prints what `merge --add` takes at LLaMA-7B's widths, and the size of what it writes."""
    for name in ("base", "tuned"):
        expand_memory.write_model(work / name, num_layers)
    vocabularies = expand_memory.DATA / "tokenizers"
    pieces, scripts = vocabularies / "chinese_sp.model", compile_scripts(["Han"])
    open_base(vocabularies / "llama").merge(pieces, "faithful", scripts, (), work / "tokenizer")
    expand.run(ExpandConfig(model=str(work / "base"), tokenizer=str(work / "tokenizer"), output=work / "grown"))
    command = ["merge", "--base", str(work / "grown"), "--add", f"{work / 'tuned'} - {work / 'base'}"]
    taken = measure(f"from yangtuo.cli import invoke; invoke({[*command, '--output', str(work / 'merged')]!r})")
    size = sum(file.stat().st_size for file in (work / "merged").iterdir()) / 1e9
    print(
        f"{num_layers} layers, {size:.1f} GB written in {taken.seconds:.1f} s: "
        f"{taken.anonymous / 2**30:.2f} GiB of memory, {taken.resident / 2**30:.2f} with the files that are mapped"
    )


def main() -> None:
    """Merges by each and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "tuned", "grown", "mergekit"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--layers", type=int, help="measure memory on models of LLaMA-7B's widths instead")
    parser.add_argument("--small", action="store_true", help="nothing: it takes three models")
    arguments = parser.parse_args()
    if arguments.layers:
        with tempfile.TemporaryDirectory() as name:
            measure_memory(Path(name), arguments.layers)
        return
    if arguments.small or not (arguments.base and arguments.tuned and arguments.grown):
        print("task_vectors.py takes --base, --tuned and --grown")
        return
    base, tuned, grown = (path.resolve() for path in (arguments.base, arguments.tuned, arguments.grown))
    torch.set_num_threads(1)
    print("| by | rows | layers | old rows | new rows | seconds | MiB |\n| --- |" + " ---: |" * 6)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        merge = [sys.executable, "-m", "yangtuo", "merge", f"--base={grown}", f"--add={tuned} - {base}"]
        runs = {"yangtuo merge --add": ([*merge, f"--output={work / 'ours'}"], work / "ours", {})}
        for label, tokenizer in (
            (("mergekit", WITHOUT_TOKENIZER), ("mergekit, union", UNION)) if arguments.mergekit else ()
        ):
            recipe, output = work / f"{label}.yaml", work / label
            recipe.write_text(
                MERGEKIT.format(base=base, tuned=tuned, grown=grown, tokenizer=tokenizer), encoding="utf-8"
            )
            path = os.pathsep.join([str(arguments.mergekit), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(recipe), str(output)]
            runs[label] = (command, output, {"PYTHONPATH": path})
        for label, (command, output, environment) in runs.items():
            seconds, memory, well = run(command, **environment)
            cells = deviations(output, base, tuned, grown) if well else "- | - | - | -"
            print(f"| {label} | {cells} | {seconds:.1f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
