"""`prepare` beside `datasets.map` with the fast tokenizer and group_texts; its memory; what a kill leaves.

    python benchmarks/prepare.py [--small | --large [MEGABYTES]]

The Chinese corpus of ../shared/data, cut into documents of 4,000 characters, four times over with other cuts; LLaMA's
tokenizer. Both have the same cores, and times include reading, the start of processes and writing. Ids are compared.
--large: 2 GB of the corpus with noise (a tenth of the characters replaced), among it a book of 200 MB in one file;
peak memory of the process tree, and the same killed twice (SIGKILL) and compared byte by byte.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from yangtuo.data.blocks import BlockDataset
from yangtuo.data.readers import read_documents
from yangtuo.vocab.directory import write_sentencepiece

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
BLOCK = 512
LENGTH = 4000
EXAMS = [word for name in ("ceval", "cmmlu") for word in ("--decontaminate", str(SHARED / "eval" / name))]
PLAIN = ["--no-clean", "--dedup", "none"]
FULL = ["--dedup", "near", *EXAMS]
FILES = ("tokens.bin", "starts.bin", "held-out.bin", "held-out.json", "dataset.json", "statistics.json", "index.html")


def peer(corpus: Path, tokenizer_path: Path, cache: Path) -> tuple[float, Any]:
    """Tokens a second of the usual path, and its rows."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = list(chain(*batch["input_ids"]))
        blocks = [joined[i : i + BLOCK] for i in range(0, len(joined) // BLOCK * BLOCK, BLOCK)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    began = time.perf_counter()
    rows = load_dataset("json", data_files=str(corpus), cache_dir=str(cache), split="train")
    rows = rows.map(lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]}, batched=True,
                    remove_columns=["text"], num_proc=os.cpu_count())  # fmt: skip
    documents = rows
    rows = rows.map(group, batched=True, num_proc=os.cpu_count())
    return len(rows) * BLOCK / (time.perf_counter() - began), documents


def command(corpus: Path, tokenizer: Path, output: Path, *options: str) -> list[str]:
    """The command line that a user would type."""
    arguments = ["--source", f"zh={corpus}", "--tokenizer", str(tokenizer), "--output", str(output)]
    return [sys.executable, "-m", "yangtuo", "prepare", *arguments, "--block-size", str(BLOCK), *options]


def ours(corpus: Path, tokenizer: Path, output: Path, *options: str) -> float:
    """Tokens a second of the command."""
    began = time.perf_counter()
    subprocess.run(command(corpus, tokenizer, output, "--held-out", "0", *options), check=True, capture_output=True)
    return BlockDataset(output).num_tokens / (time.perf_counter() - began)


def compare(work: Path, num_files: int, num_rounds: int) -> None:
    """Speeds, and how many documents get the same ids."""
    write_sentencepiece(work / "tokenizer", (SHARED / "tokenizers/llama/tokenizer.model").read_bytes())
    texts = [d.text for file in sorted((SHARED / "corpora/zh").glob("*.txt"))[:num_files] for d in read_documents(file)]
    with (work / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for text in (text[97 * number :] for number in range(num_rounds) for text in texts):
            for begin in range(0, len(text), LENGTH):
                corpus.write(json.dumps({"text": text[begin : begin + LENGTH]}, ensure_ascii=False) + "\n")
    usual, documents = peer(work / "corpus.jsonl", work / "tokenizer", work / "cache")
    plain = ours(work / "corpus.jsonl", work / "tokenizer", work / "plain", *PLAIN)
    full = ours(work / "corpus.jsonl", work / "tokenizer", work / "full", *FULL)
    read = json.loads((work / "full" / "statistics.json").read_text("utf-8"))["sources"]["zh"]
    before = BlockDataset(work / "plain").num_tokens
    print(f"datasets.map and group_texts  {usual:12,.0f} tokens a second")
    print(f"prepare without filters       {plain:12,.0f}  {plain / usual:5.1f} times (target: 5)")
    # Removed text took its time too: what is counted are the tokens that were read.
    read_rate = full * before / BlockDataset(work / "full").num_tokens
    print(f"prepare with all filters      {read_rate:12,.0f}  {read_rate / usual:5.1f} times (target: 1)")
    print(f"  {read['removed']}")
    dataset = BlockDataset(work / "plain")
    starts = np.fromfile(work / "plain" / "starts.bin", "<u8")
    ids = np.fromfile(work / "plain" / "tokens.bin", "<u2")[: dataset.num_tokens]
    special = {1, 2}  # BOS and EOS, which the peer's tokenizer may or may not add
    same = sum(
        ids[begin + 1 : end - 1].tolist() == [one for one in row["input_ids"] if one not in special]
        for begin, end, row in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], documents, strict=False)
    )
    print(f"documents with the same ids   {same:12,} of {len(documents):,}")


def write_large(directory: Path, num_bytes: int) -> None:
    """The corpus over and over, a tenth of its characters replaced, as rows; and a book in one file."""
    generator = np.random.default_rng(0)
    files = sorted((SHARED / "corpora").rglob("*.txt"))
    whole = "\n".join(document.text for file in files for document in read_documents(file))
    codes = np.frombuffer(whole.encode("utf-16-le", "ignore"), dtype="<u2").copy()
    letters = np.flatnonzero(codes >= 0x4E00)
    written = number = 0
    while written < num_bytes:
        noisy = codes.copy()
        places = generator.choice(letters, len(letters) // 10, replace=False)
        noisy[places] = generator.permutation(codes[letters])[: len(places)]
        text = noisy.tobytes().decode("utf-16-le", "ignore")
        book = written < num_bytes // 10
        with (directory / ("a-book.txt" if book else f"{number:03}.jsonl")).open("a" if book else "w") as file:
            begin = int(generator.integers(LENGTH))
            pieces = (text[at : at + LENGTH] for at in range(begin, len(text), LENGTH))
            file.writelines(
                [text] if book else (json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in pieces)
            )
            written += file.tell() if not book else len(text.encode())
        number += 1


def resident(root: int) -> tuple[int, int]:
    """Bytes resident of a process and all below it, as they are and with shared pages counted once."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total = shared_once = 0
    waiting = [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
        total += sizes.get("Rss", 0)
        shared_once += sizes.get("Pss", 0)
    return total, shared_once


def watch(arguments: list[str], kill_after: float | None = None) -> tuple[float, int, int]:
    """Seconds, and both peaks of memory, of a command that may be killed on the way."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = peak_once = 0
    while process.poll() is None:
        total, once = resident(process.pid)
        peak, peak_once = max(peak, total), max(peak_once, once)
        if kill_after is not None and time.perf_counter() - began > kill_after:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    assert kill_after is not None or process.returncode == 0, "the command has failed"
    return time.perf_counter() - began, peak, peak_once


def large(work: Path, num_bytes: int) -> None:
    """Memory beside 1 GiB, and the bytes of a run that was killed twice."""
    (work / "corpus").mkdir()
    write_large(work / "corpus", num_bytes)
    size = sum(file.stat().st_size for file in (work / "corpus").iterdir())
    tokenizer = SHARED / "tokenizers/llama/tokenizer.model"
    print(f"corpus {size / 1e9:.2f} GB, {os.cpu_count()} cores")
    for name, options in (("plain", PLAIN), ("full", FULL)):
        seconds, peak, once = watch(command(work / "corpus", tokenizer, work / name, *options))
        print(f"{name:5}  {seconds:6.0f} s, {size / seconds / 1e6:5.1f} MB/s; peak of the process tree "
              f"{peak >> 20:,} MiB resident, {once >> 20:,} MiB with shared pages counted once (target: below 1,024)",
              flush=True)  # fmt: skip
    killed = command(work / "corpus", tokenizer, work / "killed", *FULL)
    spent = [watch(killed, kill_after=share * seconds)[0] for share in (0.3, 0.4)]
    last = watch(killed)[0]
    same = all(filecmp.cmp(work / "full" / file, work / "killed" / file, shallow=False) for file in FILES)
    print(f"killed after {spent[0]:.0f} and {spent[1]:.0f} s, done {last:.0f} s later; "
          f"{'byte-equal' if same else 'NOT EQUAL'}")  # fmt: skip


def main() -> None:
    """Prints the figures and ratios."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = Path(tempfile.mkdtemp())
    try:
        small = "--small" in sys.argv
        if "--large" in sys.argv:
            large(work, int((*sys.argv[sys.argv.index("--large") + 1 :], "2000")[0]) * 1_000_000)
        else:
            compare(work, 4 if small else 15, 1 if small else 4)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
