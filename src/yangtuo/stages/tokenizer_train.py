"""`yangtuo tokenizer train`: learns new pieces for a base tokenizer from a corpus.

Reads like its summary: the base, an even sample of the text, the pieces, the file that `tokenizer merge` takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.vocab.advice import advise
from yangtuo.vocab.base import Base, open_base
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import Scripts, compile_scripts


def run(config: TokenizerTrainConfig) -> Artifact | dict[str, Any]:
    """Writes the learned pieces into the directory `config.output`; a dry run only returns what would come of it."""
    refuse_existing(config.output)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    corpora = [open_artifact(source) for source in config.corpus]
    scripts = compile_scripts(config.script)
    tokenizer = open_base(base.path)
    texts = sampled_texts([corpus.path for corpus in corpora], config.sample_bytes)
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
    advice = advise(figures[0], figures[1], config.size, config.training_tokens)
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
