"""`yangtuo tokenizer train`: learns new pieces for a base tokenizer from a corpus.

Reads like its summary: the base, an even sample of the text, the pieces, the file that `tokenizer merge` takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import TokenizerTrainConfig
from yangtuo.data.readers import read_documents
from yangtuo.data.records import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    decode,
    is_compressed,
    list_files,
    open_bytes,
    suffix,
)
from yangtuo.vocab.advice import advise
from yangtuo.vocab.base import Base, open_base
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import Scripts, compile_scripts

_EXPANSION = 4  # bytes of text that a byte of gzip or zstd is taken to hold
_LEAST_PART = 1 << 20  # no smaller part of a file is read, unless the file is smaller


def run(config: TokenizerTrainConfig) -> Artifact | dict[str, Any]:
    """Writes the learned pieces into the directory `config.output`; a dry run only returns what would come of it."""
    refuse_existing(config.output)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    corpora = [open_artifact(source) for source in config.corpus]
    scripts = compile_scripts(config.script)
    tokenizer = open_base(base.path)
    texts = _sampled_texts([corpus.path for corpus in corpora], config.sample_bytes)
    if config.dry_run:
        return _measure(tokenizer, base.path, list(texts), config)
    parents = {"base": base} | {f"corpus {number}": corpus for number, corpus in enumerate(corpora, 1)}
    with draft(config, Kind.TOKENIZER, parents) as made:
        learned = tokenizer.learn(texts, config.size, scripts, made.path)
        details = {"pieces": learned.num_pieces, "characters": learned.num_characters, "script": list(config.script)}
        made.describe(details=details)
    console.note(f"{learned.num_pieces:,} new pieces, {learned.num_characters:,} of them single characters")
    return made.artifact


def _measure(tokenizer: Base, base: Path, texts: list[str], config: TokenizerTrainConfig) -> dict[str, Any]:
    """Learns and joins pieces in a temporary directory, and compares tokens on lines that were not learned from."""
    scripts = compile_scripts(config.script)
    learned, kept = _hold_out(texts, scripts)
    with tempfile.TemporaryDirectory() as directory:
        pieces, merged = Path(directory) / "pieces", Path(directory) / "merged"
        pieces.mkdir()
        tokenizer.learn(learned, config.size, scripts, pieces)
        tokenizer.merge(pieces, "faithful", scripts, (), merged)
        before, after = load_encoder(base), load_encoder(merged)
        spent = [sum(map(len, encoder.encode_batch(kept))) for encoder in (before, after)]
    figures = [sum(map(len, kept)) / max(tokens, 1) for tokens in spent]
    advice = advise(figures[0], figures[1], config.size)
    console.note(advice.text)
    return {
        "base_vocabulary_size": tokenizer.size,
        "vocabulary_size": after.vocabulary_size,
        "characters_read": sum(map(len, texts)),
        "base_chars_per_token": round(figures[0], 4),
        "chars_per_token": round(figures[1], 4),
        "pays": advice.pays,
        "advice": advice.text,
    }


def _hold_out(texts: list[str], scripts: Scripts) -> tuple[list[str], list[str]]:
    """The lines in the wanted scripts, every tenth of them apart."""
    lines = [line for text in texts for line in text.split("\n") if scripts.own.search(line)]
    kept = lines[::10] if len(lines) >= 10 else lines
    return [line for number, line in enumerate(lines) if number % 10 or len(lines) < 10], kept


def _sampled_texts(paths: Sequence[Path], budget: int) -> Iterator[str]:
    """The texts of all files, or where they hold more than `budget` bytes, an even share of each."""
    files = [file for path in paths for file in list_files(path, (*TEXT_SUFFIXES, *RECORD_SUFFIXES))]
    sizes = [file.stat().st_size * (_EXPANSION if is_compressed(file) else 1) for file in files]
    share = min(budget / max(sum(sizes), 1), 1.0)
    if share < 1:
        console.note(f"{sum(sizes) / 1e9:.2f} GB of text: {share:.1%} of it, taken from every part, is read")
    with console.progress("reading", sum(sizes), "bytes") as bar:
        credit = 0.0
        for file, size in zip(files, sizes, strict=True):
            credit += share * size
            # Many small files: every so many-th is read whole. Few large ones: each gives its beginning.
            if share == 1 or credit >= min(size, _LEAST_PART):
                part = size if share == 1 else min(size, int(credit))
                credit -= part
                yield from _beginning(file, part, whole=part == size)
            bar.advance(size)


def _beginning(file: Path, num_bytes: int, whole: bool) -> Iterator[str]:
    if whole or suffix(file) not in TEXT_SUFFIXES:
        left = num_bytes
        for document in read_documents(file):
            yield document.text
            left -= len(document.text.encode("utf-8", errors="replace"))
            if left <= 0 and not whole:
                return
        return
    with open_bytes(file) as stream:
        data = stream.read(num_bytes)
    complete = data.rpartition(b"\n")[0] or data
    yield decode(complete, str(file))[0]
