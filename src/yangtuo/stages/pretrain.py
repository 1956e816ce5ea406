"""`yangtuo pretrain`: continues the pre-training of a model on blocks of tokens, and writes an adapter.

Reads like its summary: open model and dataset, see that they belong together, attach, train, finish.
"""

from __future__ import annotations

from yangtuo import console
from yangtuo.artifacts.draft import refuse_existing, refuse_other_work
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.data import blocks
from yangtuo.errors import raise_all
from yangtuo.training import base, loop, processes
from yangtuo.vocab.encoding import load_encoder


def run(config: PretrainConfig) -> Artifact:
    """Writes the adapter directory `config.output`; run again after a kill, it goes on from the last checkpoint."""
    processes.start()
    refuse_existing(config.output)
    refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    data = open_artifact(config.data, Kind.DATASET)
    earlier = open_artifact(config.adapter, Kind.ADAPTER) if config.adapter else None
    encoder = load_encoder(model.path)
    refused = base.check_running_text(model, "pre-training")
    raise_all(refused or [*base.check_tokenizer(model, encoder, data), *base.check_earlier(model, earlier)])
    parents = {"model": model, "data": data, **({"adapter": earlier} if earlier else {})}
    with processes.shared_draft(config, Kind.ADAPTER, parents) as made:
        made.scratch |= loop.SCRATCH
        adapted = base.load_adapted(model, earlier, base.end_ids(encoder), vars(config))
        settings = base.settings(model, earlier, vars(config))
        dataset, apart = blocks.BlockDataset(data.path), blocks.held_out(data.path)
        outcome = loop.train(adapted, dataset, apart, settings, made.path, encoder.decode)
        processes.main_process_first(lambda: base.finish_adapter(made.path, model.path))
        made.describe(tokenizer=encoder.fingerprint, vocabulary_size=encoder.vocabulary_size, details=outcome.details())
    for name, before in outcome.bits_per_byte_before.items():
        console.note(f"{name}: {before:.3f} -> {outcome.bits_per_byte_after[name]:.3f} bits per byte, held out")
    return made.artifact
