"""`yangtuo tokenizer train`: learns new pieces for a base tokenizer from a corpus.

Reads like its summary: the base, the text, the pieces, the file that `tokenizer merge` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import TokenizerTrainConfig
from yangtuo.vocab.directory import MODEL_FILE
from yangtuo.vocab.learn import learn_pieces
from yangtuo.vocab.merge import read_base
from yangtuo.vocab.pieces import sentencepiece_pieces
from yangtuo.vocab.scripts import compile_scripts


def run(config: TokenizerTrainConfig) -> Artifact:
    """Writes the learned pieces into the directory `config.output`."""
    refuse_existing(config.output)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    corpora = [open_artifact(source) for source in config.corpus]
    scripts = compile_scripts(config.script)
    proto = read_base(base.path)
    texts = (text for corpus in corpora for text in _texts(corpus.path))
    learned = learn_pieces(proto, texts, config.size, scripts)
    parents = {"base": base} | {f"corpus {number}": corpus for number, corpus in enumerate(corpora, 1)}
    with draft(config, Kind.TOKENIZER, parents) as made:
        (made.path / MODEL_FILE).write_bytes(sentencepiece_pieces(learned.pieces))
        made.describe(details={"pieces": len(learned.pieces), "characters": learned.num_characters})
    console.note(f"{len(learned.pieces):,} new pieces, {learned.num_characters:,} of them single characters")
    return made.artifact


def _texts(path: Path) -> Iterator[str]:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    for file in files:
        yield file.read_text(encoding="utf-8")
