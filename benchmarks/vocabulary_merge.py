"""Claim: a faithful merge of LLaMA and published Chinese pieces changes nothing old and misses nothing new.

The peer is the published recipe (Chinese-LLaMA-Alpaca: append with score 0), read by SentencePiece and by the fast
tokenizer that transformers converts from the same file, over all texts of ../shared/data/corpora. Prints a table.

    python benchmarks/vocabulary_merge.py [--small]
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

from yangtuo.vocab.audit import audit
from yangtuo.vocab.base import open_base
from yangtuo.vocab.scripts import compile_scripts

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
PUBLISHED_SHA256 = "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
ROWS = (
    "num_lines",
    "new_pieces",
    "changed_lines",
    "dead_pieces",
    "lost_pieces",
    "engine_mismatch_lines",
    "round_trip_failures",
    "leading_blank_pieces",
)


def read_texts(small: bool) -> dict[str, list[str]]:
    """Every file of the corpora, or with `small` the beginning of the first few."""
    files = sorted(file for file in (DATA / "corpora").rglob("*") if file.suffix in (".txt", ".md"))
    if small:
        return {str(file): [file.read_text(encoding="utf-8")[:20_000]] for file in files[::8]}
    return {str(file): [file.read_text(encoding="utf-8")] for file in files}


def main() -> None:
    """Merges both ways, audits both, prints figures side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    texts = read_texts(parser.parse_args().small)
    llama, pieces = DATA / "tokenizers/llama", DATA / "tokenizers/chinese_sp.model"
    scripts, results = compile_scripts(["Han"]), {}
    with tempfile.TemporaryDirectory() as directory:
        for style in ("faithful", "published"):
            output = Path(directory) / style
            start = time.perf_counter()
            open_base(llama).merge(pieces, style, scripts, (), output)  # type: ignore[arg-type]
            seconds = time.perf_counter() - start
            model = output / "tokenizer.model"
            # The peer is what people have: the bare file, converted by transformers.
            target = output if style == "faithful" else model
            results[style] = audit(target, llama, texts, scripts.names).to_dict() | {"seconds": seconds}
            if style == "published":
                assert hashlib.sha256(model.read_bytes()).hexdigest() == PUBLISHED_SHA256
    print(f"{'':<24}{'faithful':>12}{'published':>12}")
    for row in ROWS:
        print(f"{row:<24}{results['faithful'][row]:>12,}{results['published'][row]:>12,}")
    han = [results[style]["by_script"]["Han"]["chars_per_token"] for style in ("faithful", "published")]
    base = results["faithful"]["by_script"]["Han"]["base_chars_per_token"]
    print(f"{'chars/token, Chinese':<24}{han[0]:>12.4f}{han[1]:>12.4f}   ratio {han[0] / han[1]:.4f}; LLaMA {base:.4f}")
    print(f"{'seconds to merge':<24}{results['faithful']['seconds']:>12.2f}{results['published']['seconds']:>12.2f}")


if __name__ == "__main__":
    main()
