"""What becomes of the rows of a real instruction file with dirt: the usual preprocessing beside ours.

    python benchmarks/conversations.py [--max-length 512] [--data FILE] [--tokenizer MODEL]

The peer is what fine-tuning scripts for Chinese Llamas do: prompt and answer are tokenised apart, joined with EOS, and
cut off at the block's length; every row is kept. Ours reads the same file with the same tokenizer and template. Counted
are rows that teach nothing (no label left), or an empty answer, or the same again, or never to stop (no EOS), and rows
that nobody accounts for. Targets for ours: none of these, and rows = kept + dropped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from yangtuo.data.blocks import IGNORED, BlockDataset
from yangtuo.data.conversations import Building, build_blocks
from yangtuo.data.template import get_template
from yangtuo.vocab.encoding import Encoder, load_encoder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response: "
)


def peer(rows: list[dict[str, str]], encoder: Encoder, max_length: int) -> Counter[str]:
    found: Counter[str] = Counter()
    seen = set()
    for row in rows:
        question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        prompt = [encoder.bos_id, *encoder.encode(PROMPT.format(question))]
        answer = [*encoder.encode(row["output"]), encoder.eos_id]
        ids = (prompt + answer)[:max_length]
        labels = ([IGNORED] * len(prompt) + answer)[:max_length]
        judge(found, ids, [label for label in labels if label != IGNORED], encoder, seen)
    return found


def ours(directory: Path, encoder: Encoder) -> Counter[str]:
    found: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    for block in BlockDataset(directory):
        ids, labels, positions = (block[name].tolist() for name in ("input_ids", "labels", "position_ids"))
        starts = [index for index, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if ids[start] == encoder.bos_id:  # all but padding
                learned = [label for label in labels[start:end] if label != IGNORED]
                judge(found, ids[start:end], learned, encoder, seen)
    return found


def judge(
    found: Counter[str], ids: list[int], learned: list[int], encoder: Encoder, seen: set[tuple[int, ...]]
) -> None:
    found["rows trained on"] += 1
    found["nothing learned"] += not learned
    found["empty answer"] += learned == [encoder.eos_id]
    found["EOS missing"] += bool(learned) and learned[-1] != encoder.eos_id
    found["seen before"] += tuple(ids) in seen
    seen.add(tuple(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--data", type=Path, default=SHARED / "instruct" / "alpaca_zh_10k.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "llama" / "tokenizer.model")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.tokenizer)
    rows = json.loads(arguments.data.read_text(encoding="utf-8"))
    begun = time.perf_counter()
    theirs = peer(rows, encoder, arguments.max_length)
    seconds = [time.perf_counter() - begun]
    with tempfile.TemporaryDirectory() as directory:
        begun = time.perf_counter()
        sources, template = [(arguments.data, 1.0)], get_template("alpaca", None)
        account = build_blocks(Path(directory), sources, template, encoder, Building(max_length=arguments.max_length))
        seconds.append(time.perf_counter() - begun)
        mine = ours(Path(directory), encoder)
    print(f"{len(rows):,} rows, blocks of {arguments.max_length} tokens\n")
    print("| | usual script | yangtuo |\n| --- | ---: | ---: |")
    for name in theirs:
        print(f"| {name} | {theirs[name]:,} | {mine[name]:,} |")
    dropped = sum(account["dropped"].values())
    unaccounted = account["rows"] - account["kept"] - dropped + abs(account["kept"] - mine["rows trained on"])
    print(f"| dropped, with a reason | 0 | {dropped:,} |\n| not accounted for | 0 | {unaccounted:,} |")
    print(f"\ndropped: {account['dropped']}; shortened: {account['cut']}")
    print(f"seconds: {seconds[0]:.1f} and {seconds[1]:.1f}, ours with its file of blocks")


if __name__ == "__main__":
    main()
