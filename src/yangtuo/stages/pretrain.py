"""`yangtuo pretrain`: continues the pre-training of a model on blocks of tokens; writes an adapter, or the whole model.

Reads like its summary: open model and dataset, see that they belong together, attach, train, finish.
"""

from __future__ import annotations

from yangtuo import console
from yangtuo.artifacts.draft import refuse_existing, refuse_other_work
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.pretrain import PretrainConfig
from yangtuo.data import blocks
from yangtuo.data.preview import DryRun, take_samples
from yangtuo.errors import raise_all
from yangtuo.training import base, guards, loop, preflight, processes
from yangtuo.training.adapter import Trained
from yangtuo.training.plan import plan_run
from yangtuo.training.settings import Settings
from yangtuo.vocab.encoding import Encoder, load_encoder

_NUM_SAMPLES = 2


def run(config: PretrainConfig) -> Artifact | DryRun:
    """Writes the directory `config.output`; run again after a kill, it goes on from the last checkpoint.

    A dry run writes nothing, and returns samples of the blocks and the plan.
    """
    processes.start()
    refuse_existing(config.output)
    options = config.resolved()
    raise_all(preflight.check(options))
    refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    data = open_artifact(config.data, Kind.DATASET)
    earlier = open_artifact(config.adapter, Kind.ADAPTER) if config.adapter else None
    encoder = load_encoder(model.path)
    ends = base.end_ids(encoder)
    refused = base.check_running_text(model, "pre-training")
    refused += base.check_earlier(model, earlier)
    refused = refused or base.check_kl_coef(model, earlier, ends, options)
    raise_all(refused or base.check_tokenizer(model, encoder, data))
    dataset, apart = blocks.BlockDataset(data.path), blocks.held_out(data.path, encoder.vocabulary_size)
    dataset.require_ids(encoder.vocabulary_size)
    guards.require_measured(guards.parse_bounds(config.bound), [source.name for source in apart])
    if config.dry_run:
        empty = base.meta_model(model, earlier, ends, options)
        return _dry_run(empty, base.settings(model, earlier, options), dataset, encoder)
    parents = {"model": model, "data": data, **({"adapter": earlier} if earlier else {})}
    with processes.shared_draft(config, Kind.ADAPTER if config.rank else Kind.MODEL, parents) as made:
        made.scratch |= loop.SCRATCH
        trained = base.load_trained(model, earlier, ends, options)
        settings = base.settings(model, earlier, options)
        outcome = loop.train(trained, dataset, apart, settings, made.path, encoder.decode)
        details = processes.main_process_first(lambda: base.finish(made.path, model))
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            template=model.manifest.template if model.manifest and not config.rank else None,
            details={**outcome.details(), **details},
        )
    for name, before in outcome.bits_per_byte_before.items():
        console.note(
            f"{name}: {before:.3f} -> {outcome.bits_per_byte_after[name]:.3f} bits per byte, held out (lower is better)"
        )
    return made.artifact


def _dry_run(empty: Trained, settings: Settings, dataset: blocks.BlockDataset, encoder: Encoder) -> DryRun:
    made = plan_run(empty, settings, len(dataset), dataset.block_size)
    plan = made.to_dict() | {"blocks": len(dataset)}
    for line in made.lines():
        console.note(line)
    return DryRun({"plan": plan}, take_samples(dataset, encoder, _NUM_SAMPLES))
