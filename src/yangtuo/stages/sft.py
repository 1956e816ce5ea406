"""`yangtuo sft`: fine-tunes a model on conversations, the loss counting answers only, and writes an adapter.

Reads like its summary: open the model, write its conversations into blocks, attach, train, finish with the template.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from yangtuo.artifacts import Artifact, Draft, Kind, draft, open_artifact, refuse_existing
from yangtuo.config import SftConfig, split_source
from yangtuo.data.blocks import BlockDataset
from yangtuo.data.conversations import build_blocks
from yangtuo.data.template import Template, get_template, require_template
from yangtuo.errors import raise_all
from yangtuo.hub import locate
from yangtuo.training import adapter, base, loop
from yangtuo.vocab.encoding import Encoder, load_encoder

_BLOCKS = "blocks"
_ACCOUNT = "account.json"


def run(config: SftConfig) -> Artifact:
    """Writes the adapter directory `config.output`; run again after a kill, it goes on from the last checkpoint."""
    refuse_existing(config.output)
    base.refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    encoder = load_encoder(model.path)
    template = get_template(config.template, model.path)
    require_template(template, encoder)
    raise_all(base.check_rows(model, encoder))
    with draft(config, Kind.ADAPTER, {"model": model}, resumable=True) as made:
        account = _write_blocks(config, made, template, encoder)
        adapted = _adapted(config, model)
        settings = loop.Settings(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            micro_batch=config.micro_batch,
            dtype=config.dtype,
            save_every=config.save_every,
            seed=config.seed,
        )
        outcome = loop.train(adapted, BlockDataset(made.path / _BLOCKS), [], settings, made.path)
        shutil.rmtree(made.path / _BLOCKS)
        base.finish_adapter(made.path, model.path, template.stop_ids(encoder), template.render_jinja())
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


def _adapted(config: SftConfig, model: Artifact) -> PeftModel:
    torch.manual_seed(config.seed)
    shape = adapter.AdapterShape(
        rank=config.rank, alpha=config.alpha, embeddings=config.embeddings, new_rows=base.new_rows(model)
    )
    return adapter.attach(base.load_base(model.path, loop.compute_dtype(config.dtype)), shape)
