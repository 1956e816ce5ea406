"""Tokens a second of `prepare` without and with filters, beside `datasets.map` with the fast tokenizer and group_texts.

    python benchmarks/prepare.py [--small]

The Chinese corpus of ../shared/data, cut into documents of 4,000 characters, LLaMA's tokenizer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, load_dataset
from transformers import AutoTokenizer

from yangtuo.config import PrepareConfig
from yangtuo.data.blocks import BlockDataset
from yangtuo.data.readers import read_documents
from yangtuo.stages import prepare
from yangtuo.vocab.directory import write_sentencepiece

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
BLOCK = 512


def peer(corpus: Path, tokenizer_path: Path, cache: Path) -> float:
    """Tokens a second of the usual path."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = list(chain(*batch["input_ids"]))
        blocks = [joined[i : i + BLOCK] for i in range(0, len(joined) // BLOCK * BLOCK, BLOCK)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    began = time.perf_counter()
    rows = load_dataset("json", data_files=str(corpus), cache_dir=str(cache), split="train")
    rows = rows.map(lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]}, batched=True,
                    remove_columns=["text"], num_proc=os.cpu_count())  # fmt: skip
    rows = rows.map(group, batched=True, num_proc=os.cpu_count())
    return len(rows) * BLOCK / (time.perf_counter() - began)


def ours(corpus: Path, tokenizer: Path, output: Path, **options: Any) -> float:
    """Tokens a second of the stage, reading and writing included."""
    began = time.perf_counter()
    prepare.run(PrepareConfig(source=(str(corpus),), tokenizer=str(tokenizer), output=output, block_size=BLOCK,
                              held_out=0.0, **options))  # fmt: skip
    return BlockDataset(output).num_tokens / (time.perf_counter() - began)


def main() -> None:
    """Prints the figures and ratios."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_sentencepiece(work / "tokenizer", (SHARED / "tokenizers/llama/tokenizer.model").read_bytes())
        files = sorted((SHARED / "corpora/zh").glob("*.txt"))[: 4 if "--small" in sys.argv else 15]
        with (work / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
            for text in (document.text for file in files for document in read_documents(file)):
                for begin in range(0, len(text), 4000):
                    corpus.write(json.dumps({"text": text[begin : begin + 4000]}, ensure_ascii=False) + "\n")
        usual = peer(work / "corpus.jsonl", work / "tokenizer", work / "cache")
        plain = ours(work / "corpus.jsonl", work / "tokenizer", work / "plain", clean=False, dedup="none")
        exams = tuple(str(SHARED / "eval" / name) for name in ("ceval", "cmmlu"))
        full = ours(work / "corpus.jsonl", work / "tokenizer", work / "full", dedup="near", decontaminate=exams)
        print(f"datasets.map and group_texts  {usual:12,.0f} tokens a second")
        print(f"prepare without filters       {plain:12,.0f}  {plain / usual:5.1f} times")
        print(f"prepare with all filters      {full:12,.0f}  {full / usual:5.1f} times")


if __name__ == "__main__":
    main()
