"""`yangtuo tokenizer merge`: joins learned pieces to a base tokenizer.

Reads like its summary: base and pieces, the join in the wanted style, a directory that every tool can read.
"""

from __future__ import annotations

from collections import Counter

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.tokenizer_merge import TokenizerMergeConfig
from yangtuo.errors import ConfigError, VocabularyError
from yangtuo.vocab.base import Outcome, open_base
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.scripts import DEFAULT_SCRIPTS, Scripts, compile_scripts


def run(config: TokenizerMergeConfig) -> Artifact:
    """Writes the tokenizer directory `config.output`."""
    refuse_existing(config.output)
    twice = sorted(token for token, number in Counter(config.add_token).items() if number > 1)
    if twice:
        raise ConfigError("--add-token names a token twice", found=", ".join(twice), expected="each token once")
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    pieces = open_artifact(config.pieces, Kind.TOKENIZER, Kind.MODEL)
    told = pieces.manifest.details if pieces.manifest else {}
    scripts = compile_scripts(config.script or told.get("script") or DEFAULT_SCRIPTS)
    tokenizer = open_base(base.path)
    if told.get("widened"):
        tokenizer = tokenizer.widened(scripts)
    with draft(config, Kind.TOKENIZER, {"base": base, "pieces": pieces}) as made:
        outcome = tokenizer.merge(pieces.path, config.style, scripts, config.add_token, made.path)
        _require_new(config, scripts, outcome)
        encoder = load_encoder(made.path)
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            details={
                "vocabulary_size": encoder.vocabulary_size,
                "base_vocabulary_size": tokenizer.size,
                "added": len(outcome.added),
                "script": list(scripts.names),
                "added_tokens": list(config.add_token),
                "closed": outcome.closed,
                "out_of_script": outcome.out_of_script,
                "unreachable": outcome.unreachable,
            },
        )
    console.detail(
        f"{tokenizer.size:,} + {len(outcome.added):,} + {len(config.add_token)} = {encoder.vocabulary_size:,} ids"
    )
    _report(config, outcome)
    return made.artifact


def _require_new(config: TokenizerMergeConfig, scripts: Scripts, outcome: Outcome) -> None:
    if not outcome.added:
        raise VocabularyError(
            f"{config.pieces} holds no new piece in {' or '.join(scripts.names)}",
            found=f"{len(outcome.out_of_script):,} pieces of other characters, and pieces that the base has",
            expected="pieces of the wanted script that the base lacks; see --script",
        )


def _report(config: TokenizerMergeConfig, outcome: Outcome) -> None:
    if config.style == "published":
        console.warn(
            "the published style gives all new pieces one score: SentencePiece and fast tokenizers will cut most "
            "Chinese lines differently, and English and digits that the pieces contain change"
        )
    if outcome.closed:
        console.detail(f"{len(outcome.closed):,} of them are intermediates without which others could not be reached")
    if outcome.out_of_script:
        console.detail(f"{len(outcome.out_of_script):,} pieces of other characters were left out (see --script)")
    if outcome.unreachable:
        console.warn(f"{len(outcome.unreachable):,} pieces that merges cannot reach were left out")
