"""`yangtuo prepare`: text becomes blocks of tokens on disk, with a share of its documents kept apart.

Reads like its summary: read each source, hold out, repeat by weight, pack, describe. It refuses to know how files are
read and how blocks lie on disk; `yangtuo.data` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import PrepareConfig, Source, split_source
from yangtuo.data.blocks import BlockWriter, HeldOutWriter
from yangtuo.data.readers import read_documents
from yangtuo.data.sampling import choose, num_held_out
from yangtuo.errors import DataError, VocabularyError
from yangtuo.vocab.encoding import Encoder, load_encoder


def run(config: PrepareConfig) -> Artifact:
    """Writes the dataset directory `config.output`."""
    refuse_existing(config.output)
    tokenizer = open_artifact(config.tokenizer, Kind.TOKENIZER, Kind.MODEL)
    encoder = load_encoder(tokenizer.path)
    if encoder.bos_id is None or encoder.eos_id is None:
        raise VocabularyError(
            f"{config.tokenizer} cannot mark where documents begin and end",
            found=f"BOS {encoder.bos_id}, EOS {encoder.eos_id}",
            expected="a tokenizer with both tokens",
        )
    with draft(config, Kind.DATASET, {"tokenizer": tokenizer}) as made:
        size = encoder.vocabulary_size
        writer = BlockWriter(made.path, block_size=config.block_size, vocabulary_size=size, padding_id=encoder.eos_id)
        apart = HeldOutWriter(made.path, size)
        sources = {}
        for source in map(split_source, config.source):
            sources[source.name] = _add_source(config, source, encoder, writer, apart)
        writer.close()
        apart.close()
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=size,
            details={
                "blocks": writer.num_blocks,
                "tokens": writer.num_tokens,
                "documents": writer.num_documents,
                "sources": sources,
            },
        )
    console.note(f"{writer.num_tokens:,} tokens in {writer.num_blocks:,} blocks of {config.block_size}")
    return made.artifact


def _add_source(
    config: PrepareConfig, source: Source, encoder: Encoder, writer: BlockWriter, apart: HeldOutWriter
) -> dict[str, Any]:
    texts = [document.text for document in read_documents(Path(source.path))]
    if not texts:
        raise DataError(f"{source.path} holds no text", expected="at least one document that is not blank")
    tokens = [np.asarray(ids, dtype=np.uint32) for ids in encoder.encode_batch(texts)]
    num_apart = num_held_out(len(texts), config.held_out)
    kept_apart = list(choose(len(texts), num_apart, f"{config.seed}/held-out/{source.name}"))
    for text, ids, is_apart in zip(texts, tokens, kept_apart, strict=True):
        if is_apart:
            apart.add(source.name, np.concatenate([[encoder.bos_id], ids]), len(text.encode()))
    trained = [ids for ids, is_apart in zip(tokens, kept_apart, strict=True) if not is_apart]
    before = writer.num_tokens
    for copy in range(int(source.weight) + 1):
        share = 1.0 if copy < int(source.weight) else source.weight % 1
        taken = choose(len(trained), round(share * len(trained)), f"{config.seed}/weight/{source.name}")
        for ids, take in zip(trained, taken, strict=True):
            if take:
                writer.add(np.concatenate([[encoder.bos_id], ids, [encoder.eos_id]]))
    return {
        "documents": len(texts),
        "held_out": num_apart,
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode()) for text in texts),
        "text_tokens": sum(map(len, tokens)),
        "weight": source.weight,
        "tokens": writer.num_tokens - before,
    }
