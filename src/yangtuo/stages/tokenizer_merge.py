"""`yangtuo tokenizer merge`: joins learned pieces to a base tokenizer.

Reads like its summary: base and pieces, the join in the wanted style, a directory that every tool can read.
"""

from __future__ import annotations

from typing import Any

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import TokenizerMergeConfig
from yangtuo.errors import VocabularyError
from yangtuo.vocab.directory import read_settings, write_sentencepiece
from yangtuo.vocab.encoding import load_encoder
from yangtuo.vocab.merge import Merged, merge_faithful, merge_published, ordered_pieces, read_base, read_pieces
from yangtuo.vocab.scripts import compile_scripts

_PADS = ("[PAD]", "<pad>", "<|pad|>")


def run(config: TokenizerMergeConfig) -> Artifact:
    """Writes the tokenizer directory `config.output`."""
    refuse_existing(config.output)
    base = open_artifact(config.base, Kind.TOKENIZER, Kind.MODEL)
    pieces = open_artifact(config.pieces, Kind.TOKENIZER, Kind.MODEL)
    base_model, pieces_model = read_base(base.path), read_pieces(pieces.path)
    merged = _merge(config, base_model, pieces_model)
    settings = read_settings(base.path) if base.path.is_dir() else {}
    pad = next((token for token in config.add_token if token in _PADS), None)
    with draft(config, Kind.TOKENIZER, {"base": base, "pieces": pieces}) as made:
        write_sentencepiece(made.path, merged.model, settings=settings, pad_token=pad, controls=config.add_token)
        encoder = load_encoder(made.path)
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            details={
                "vocabulary_size": encoder.vocabulary_size,
                "base_vocabulary_size": len(base_model.pieces),
                "added": len(merged.added),
                "added_tokens": list(config.add_token),
                "closed": merged.closed,
                "out_of_script": merged.out_of_script,
                "unreachable": merged.unreachable,
            },
        )
    _report(config, merged, len(base_model.pieces), encoder.vocabulary_size)
    return made.artifact


def _merge(config: TokenizerMergeConfig, base: Any, pieces: Any) -> Merged:
    if config.style == "published":
        return merge_published(base, pieces, config.add_token)
    merged = merge_faithful(base, ordered_pieces(pieces), compile_scripts(config.script), config.add_token)
    if not merged.added:
        raise VocabularyError(
            f"{config.pieces} holds no new piece in {' or '.join(config.script)}",
            found=f"{len(merged.out_of_script):,} pieces of other characters",
            expected="pieces of the wanted script that the base lacks; see --script",
        )
    return merged


def _report(config: TokenizerMergeConfig, merged: Merged, base_size: int, size: int) -> None:
    console.note(f"{base_size:,} + {len(merged.added):,} pieces = {size:,} with added tokens")
    if config.style == "published":
        console.warn(
            "the published style gives all new pieces one score: SentencePiece and fast tokenizers will cut most "
            "Chinese lines differently, and English and digits that the pieces contain change"
        )
    if merged.closed:
        console.note(f"{len(merged.closed):,} of them are intermediates without which others could not be reached")
    if merged.out_of_script:
        console.note(f"{len(merged.out_of_script):,} pieces of other characters were left out (see --script)")
    if merged.unreachable:
        console.warn(f"{len(merged.unreachable):,} pieces that merges cannot reach were left out")
