"""`yangtuo pretrain`: continues the pre-training of a model on blocks of tokens, and writes an adapter.

Reads like its summary: open model and dataset, see that they belong together, attach, train, finish.
"""

from __future__ import annotations

import torch
from peft import PeftModel

from yangtuo import console
from yangtuo.artifacts import Artifact, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import PretrainConfig
from yangtuo.data import blocks
from yangtuo.errors import raise_all
from yangtuo.training import adapter, base, loop
from yangtuo.vocab.encoding import load_encoder


def run(config: PretrainConfig) -> Artifact:
    """Writes the adapter directory `config.output`; run again after a kill, it goes on from the last checkpoint."""
    refuse_existing(config.output)
    base.refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    data = open_artifact(config.data, Kind.DATASET)
    encoder = load_encoder(model.path)
    raise_all(base.check_tokenizer(model, encoder, data))
    with draft(config, Kind.ADAPTER, {"model": model, "data": data}, resumable=True) as made:
        adapted = _adapted(config, model)
        outcome = loop.train(
            adapted,
            blocks.BlockDataset(data.path),
            blocks.held_out(data.path),
            loop.Settings(
                learning_rate=config.learning_rate,
                embedding_learning_rate=config.embedding_learning_rate,
                epochs=config.epochs,
                batch_size=config.batch_size,
                micro_batch=config.micro_batch,
                dtype=config.dtype,
                save_every=config.save_every,
                seed=config.seed,
            ),
            made.path,
        )
        base.finish_adapter(made.path, model.path)
        made.describe(tokenizer=encoder.fingerprint, vocabulary_size=encoder.vocabulary_size, details=outcome.details())
    for name, before in outcome.bits_per_byte_before.items():
        console.note(f"{name}: {before:.3f} -> {outcome.bits_per_byte_after[name]:.3f} bits per byte, held out")
    return made.artifact


def _adapted(config: PretrainConfig, model: Artifact) -> PeftModel:
    torch.manual_seed(config.seed)
    shape = adapter.AdapterShape(
        rank=config.rank, alpha=config.alpha, embeddings=config.embeddings, new_rows=base.new_rows(model)
    )
    return adapter.attach(base.load_base(model.path, loop.compute_dtype(config.dtype)), shape)
