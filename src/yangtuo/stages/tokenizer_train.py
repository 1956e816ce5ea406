"""`yangtuo tokenizer train`: learns new pieces for a base tokenizer from a corpus.

Reads like its summary: the base, an even sample of the text, the pieces, the file that `tokenizer merge` takes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.tokenizer_train import TokenizerTrainConfig
from yangtuo.data.readers import sampled_texts
from yangtuo.errors import ConfigError
from yangtuo.vocab.advice import advise
from yangtuo.vocab.base import Base, open_base
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.learn import divide_texts
from yangtuo.vocab.scripts import DEFAULT_SCRIPTS, Scripts, compile_scripts, scripts_of_language

_LOW_CEILING = 4.0  # characters a word: scripts whose words are kept whole have more
_WORTH_WIDENING = 1.2


def run(config: TokenizerTrainConfig) -> Artifact | dict[str, Any]:
    """Writes the learned pieces into the directory `config.output`; a dry run only returns what would come of it."""
    refuse_existing(config.output)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    corpora = [open_artifact(source) for source in config.corpus]
    scripts = _scripts(config)
    tokenizer = open_base(base.path)
    texts = sampled_texts([corpus.path for corpus in corpora], config.sample_bytes)
    learned, select, report = divide_texts(texts)
    lines = [line for text in report for line in text.split("\n") if scripts.own.search(line)]
    tokenizer = _widened(tokenizer, lines, scripts, config.widen)
    task = _Task(config, base.path, tokenizer, scripts)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as name:
            return {
                **task.learn(learned, select, lines, Path(name)),
                "characters_read": sum(map(len, learned + select)),
            }
    parents = {"base": base} | {f"corpus {number}": corpus for number, corpus in enumerate(corpora, 1)}
    with draft(config, Kind.TOKENIZER, parents) as made:
        made.describe(details=task.learn(learned, select, lines, made.path))
    return made.artifact


def _scripts(config: TokenizerTrainConfig) -> Scripts:
    if config.language and config.script:
        raise ConfigError("a language says its scripts", expected="--language or --script, not both")
    return compile_scripts(
        scripts_of_language(config.language) if config.language else config.script or DEFAULT_SCRIPTS
    )


def _widened(tokenizer: Base, lines: list[str], scripts: Scripts, widen: bool) -> Base:
    """The base to learn for; says how far its pre-tokenizer lets pieces go, before anything is learned."""
    ceiling = tokenizer.ceiling(lines) if lines else None
    if ceiling is None and not widen:
        return tokenizer
    wider = tokenizer.widened(scripts) if widen or (ceiling and ceiling < _LOW_CEILING) else tokenizer
    beyond = wider.ceiling(lines) or 0.0
    console.detail(
        f"the base's pre-tokenizer parts this text every {ceiling:.2f} characters, and no piece goes beyond that"
        + (f"; words kept whole (--widen): {beyond:.2f}" if beyond > _WORTH_WIDENING * (ceiling or 0) else "")
    )
    return wider if widen else tokenizer


@dataclass(frozen=True)
class _Task:
    """What learning and measuring need to know."""

    config: TokenizerTrainConfig
    base: Path
    tokenizer: Base
    scripts: Scripts

    def learn(self, texts: list[str], select: list[str], lines: list[str], output: Path) -> dict[str, Any]:
        """Learns pieces into `output`, and joins them for a trial on `lines` that were not learned from; figures."""
        config = self.config
        learned = self.tokenizer.learn(texts, config.size, self.scripts, output, select)
        with tempfile.TemporaryDirectory() as name:
            self.tokenizer.merge(output, "faithful", self.scripts, (), Path(name))
            before, after = load_encoder(self.base), load_encoder(Path(name))
            old, new = before.encode_batch(lines), after.encode_batch(lines)
        used = {index for ids in new for index in ids if index >= before.vocabulary_size}
        rows = after.vocabulary_size - before.vocabulary_size
        figures = [sum(map(len, lines)) / max(sum(map(len, ids)), 1) for ids in (old, new)]
        advice = advise(figures[0], figures[1], rows, config.training_tokens)
        console.note(f"{learned.num_pieces:,} new pieces, {learned.num_characters:,} of them single characters")
        console.detail(f"held-out text uses {len(used):,} of {rows:,} new rows ({len(used) / max(rows, 1):.0%})")
        console.detail(advice.text)
        ceiling = self.tokenizer.ceiling(lines) if lines else None
        return {
            "pieces": learned.num_pieces,
            "characters": learned.num_characters,
            "script": list(self.scripts.names),
            "widened": config.widen,
            "base_vocabulary_size": before.vocabulary_size,
            "vocabulary_size": after.vocabulary_size,
            "base_chars_per_token": round(figures[0], 4),
            "chars_per_token": round(figures[1], 4),
            "ceiling": None if ceiling is None else round(ceiling, 4),
            "rows_used": len(used),
            "pays": advice.pays,
            "advice": advice.text,
        }
