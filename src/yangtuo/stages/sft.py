"""`yangtuo sft`: fine-tunes a model on conversations, the loss counting answers only, and writes an adapter.

Reads like its summary: open the model, write its conversations into blocks, attach, train, finish with the template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from yangtuo.artifacts import Artifact, Draft, Kind, open_artifact, refuse_existing
from yangtuo.config import SftConfig
from yangtuo.data.blocks import BlockDataset
from yangtuo.data.conversations import build_blocks
from yangtuo.data.template import Template, get_template, require_template
from yangtuo.errors import raise_all
from yangtuo.hub import locate
from yangtuo.options import split_source
from yangtuo.training import adapter, base, loop, processes
from yangtuo.vocab.encoding import Encoder, load_encoder

_BLOCKS = "blocks"
_ACCOUNT = "account.json"


def run(config: SftConfig) -> Artifact:
    """Writes the adapter directory `config.output`; run again after a kill, it goes on from the last checkpoint."""
    processes.start()
    refuse_existing(config.output)
    base.refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    earlier = open_artifact(config.adapter, Kind.ADAPTER) if config.adapter else None
    encoder = load_encoder(model.path)
    template = get_template(config.template, model.path)
    require_template(template, encoder)
    raise_all([*base.check_rows(model, encoder), *base.check_earlier(model, earlier)])
    parents = {"model": model, **({"adapter": earlier} if earlier else {})}
    with processes.shared_draft(config, Kind.ADAPTER, parents) as made:
        account = processes.first_does(lambda: _write_blocks(config, made, template, encoder))
        dataset = BlockDataset(made.path / _BLOCKS)
        adapted = _adapted(config, model, earlier, template.stop_ids(encoder))
        outcome = loop.train(adapted, dataset, [], _settings(config), made.path, encoder.decode)
        processes.first_does(lambda: shutil.rmtree(made.path / _BLOCKS))
        stop_ids, jinja = template.stop_ids(encoder), template.render_jinja()
        processes.first_does(lambda: base.finish_adapter(made.path, model.path, stop_ids, jinja))
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            template=template.fingerprint,
            details={**outcome.details(), "data": account},
        )
    return made.artifact


def _write_blocks(config: SftConfig, made: Draft, template: Template, encoder: Encoder) -> dict[str, Any]:
    """The conversations as blocks inside the draft; those of an interrupted run are used again."""
    directory = made.path / _BLOCKS
    account_file = directory / _ACCOUNT
    if account_file.is_file():
        kept: dict[str, Any] = json.loads(account_file.read_text(encoding="utf-8"))
        return kept
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    sources = [(locate(source.path), source.weight) for source in map(split_source, config.data)]
    account = build_blocks(
        directory, [(Path(path), weight) for path, weight in sources], template, encoder, config.max_length, config.seed
    )
    account_file.write_text(json.dumps(account, ensure_ascii=False), encoding="utf-8")
    return account


def _adapted(config: SftConfig, model: Artifact, earlier: Artifact | None, stop_ids: Sequence[int]) -> PeftModel:
    torch.manual_seed(config.seed)
    loaded = base.load_base(model.path, loop.compute_dtype(config.dtype), quantized=config.dtype == "nf4")
    if earlier is not None:
        return adapter.continue_from(loaded, earlier.path)
    shape = adapter.AdapterShape(
        rank=config.rank,
        alpha=config.alpha,
        embeddings=config.embeddings,
        new_rows=base.new_rows(model, stop_ids),
        variant=config.variant,
    )
    return adapter.attach(loaded, shape)


def _settings(config: SftConfig) -> loop.Settings:
    return loop.Settings(
        learning_rate=config.learning_rate,
        embedding_learning_rate=config.embedding_learning_rate,
        epochs=config.epochs,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        sharding=config.sharding,
        save_every=config.save_every,
        seed=config.seed,
        tensorboard=config.tensorboard,
    )
