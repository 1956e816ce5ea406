"""`yangtuo prepare`: text becomes blocks of tokens on disk, with a share of its documents kept apart.

Reads like its summary: read each source, hold out, repeat by weight, pack, describe. It refuses to know how files are
read and how blocks lie on disk; `yangtuo.data` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import PrepareConfig
from yangtuo.data.blocks import BlockWriter, HeldOutWriter
from yangtuo.data.decontaminate import read_exam
from yangtuo.data.filters import Filters, filter_documents
from yangtuo.data.readers import read_documents, read_passages
from yangtuo.data.sampling import choose, num_held_out
from yangtuo.errors import DataError, VocabularyError
from yangtuo.options import Source, split_source
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
    passages = (text for path in config.decontaminate for text in read_passages(Path(path)))
    filters = Filters(config.clean, config.dedup, read_exam(passages) if config.decontaminate else None)
    with draft(config, Kind.DATASET, {"tokenizer": tokenizer}) as made:
        size = encoder.vocabulary_size
        with (
            BlockWriter(
                made.path, block_size=config.block_size, vocabulary_size=size, padding_id=encoder.eos_id
            ) as writer,
            HeldOutWriter(made.path, size) as apart,
        ):
            sources = {}
            for source in map(split_source, config.source):
                sources[source.name] = _add_source(config, source, encoder, filters, (writer, apart))
            if writer.num_documents == 0:
                raise DataError("no text is left to train on", found=str(sources), expected="weights above 0")
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
    config: PrepareConfig,
    source: Source,
    encoder: Encoder,
    filters: Filters,
    writers: tuple[BlockWriter, HeldOutWriter],
) -> dict[str, Any]:
    writer, apart = writers
    found = list(read_documents(Path(source.path), config.documents))
    for encoding in {document.encoding for document in found} - {"utf-8"}:
        number = sum(document.encoding == encoding for document in found)
        console.note(f"{source.path}: {number} documents read as {encoding.upper()}")
    texts, removed = filter_documents([document.text for document in found], filters)
    if not texts:
        raise DataError(
            f"{source.path} holds no text",
            found=f"{len(found)} documents, none left: {dict(removed.counts)}" if found else "no document",
            expected="at least one document that is not blank",
        )
    tokens = [np.asarray(ids, dtype=np.uint32) for ids in encoder.encode_batch(texts)]
    num_apart = num_held_out(len(texts), config.held_out)
    if config.held_out and not num_apart:
        console.warn(f"{source.path} is a single document: none is held out (--documents paragraph makes more)")
    kept_apart = list(choose(len(texts), num_apart, f"{config.seed}/held-out/{source.name}"))
    for text, ids, is_apart in zip(texts, tokens, kept_apart, strict=True):
        if is_apart:
            apart.add(source.name, np.concatenate([[encoder.bos_id], ids]), len(text.encode()))
    before = writer.num_tokens
    _add_by_weight(
        config, source, encoder, writer, [t for t, is_apart in zip(tokens, kept_apart, strict=True) if not is_apart]
    )
    return {
        "documents": len(texts),
        "held_out": num_apart,
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode()) for text in texts),
        "text_tokens": sum(map(len, tokens)),
        "weight": source.weight,
        "tokens": writer.num_tokens - before,
        "removed": dict(removed.counts),
        "examples": removed.examples,
    }


def _add_by_weight(
    config: PrepareConfig, source: Source, encoder: Encoder, writer: BlockWriter, tokens: list[npt.NDArray[np.uint32]]
) -> None:
    """Whole passes over the documents first, then the part of one that the weight's fraction asks for."""
    for copy in range(int(source.weight) + 1):
        share = 1.0 if copy < int(source.weight) else source.weight % 1
        taken = choose(len(tokens), round(share * len(tokens)), f"{config.seed}/weight/{source.name}")
        for ids, take in zip(tokens, taken, strict=True):
            if take:
                writer.add(np.concatenate([[encoder.bos_id], ids, [encoder.eos_id]]))
