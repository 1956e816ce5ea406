"""Claim: learning pieces takes no longer than bare SentencePiece training on the same text, and cuts as well.

The peer is SentencePiece's own BPE trainer with LLaMA's settings and a normaliser that changes nothing, on the same
texts; its pieces are joined to the base by the same faithful merge. Compared on texts that neither has seen: a
newspaper and instructions. Prints seconds, characters per token and the ratios.

    python benchmarks/vocabulary_train.py [--small]
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import sentencepiece

from yangtuo.vocab.learn import learn_pieces
from yangtuo.vocab.merge import merge_faithful, ordered_pieces
from yangtuo.vocab.scripts import compile_scripts
from yangtuo.vocab.sentencepiece_model import load_processor, parse_model, read_model

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def read_held_out() -> dict[str, list[str]]:
    """Newspaper sentences and answers to instructions."""
    rows = (DATA / "instruct/msra_ner.jsonl").read_text(encoding="utf-8").splitlines()
    answers = json.loads((DATA / "instruct/alpaca_zh.json").read_text(encoding="utf-8"))
    return {"newspaper": [json.loads(row)["query"] for row in rows], "instructions": [row["output"] for row in answers]}


def train_sentencepiece(texts: list[str], size: int) -> Any:
    """SentencePiece's trainer alone, on lines."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=2,
    )
    return parse_model(model.getvalue(), "peer")


def main() -> None:
    """Trains both, joins both to LLaMA, prints the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    size = 4000 if small else 20_000
    files = sorted(file for file in (DATA / "corpora/zh").rglob("*") if file.suffix in (".txt", ".md"))
    texts = [file.read_text(encoding="utf-8")[: 20_000 if small else None] for file in files]
    print(f"{sum(len(text.encode()) for text in texts) / 1e6:.1f} MB, {size:,} pieces")
    base, scripts = read_model(DATA / "tokenizers/llama/tokenizer.model"), compile_scripts(["Han"])
    start = time.perf_counter()
    ours = learn_pieces(base, texts, size, scripts).pieces
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    peer = train_sentencepiece(texts, size)
    peer_seconds = time.perf_counter() - start
    print(f"seconds: {seconds:.1f}, spm_train {peer_seconds:.1f}, ratio {seconds / peer_seconds:.2f}")
    # The peer learns the base's pieces anew, Latin ones too: joined faithfully, only its new Chinese pieces count.
    merged = {
        "ours": merge_faithful(base, ours, scripts, []),
        "spm_train": merge_faithful(base, ordered_pieces(peer), scripts, []),
    }
    for name, lines in read_held_out().items():
        for who, one in merged.items():
            processor = load_processor(parse_model(one.model, who))
            tokens = sum(map(len, processor.encode(lines)))
            print(
                f"{name:<14}{who:<10}{len(one.added):>7,} new pieces  {sum(map(len, lines)) / tokens:.4f} chars/token"
            )


if __name__ == "__main__":
    main()
