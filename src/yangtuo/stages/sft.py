"""`yangtuo sft`: fine-tunes a model on conversations, the loss counting answers only; writes an adapter or a model.

Reads like its summary: open the model, write its conversations into blocks, mix in the replay, attach, train,
finish with the template.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import Draft, refuse_existing, refuse_other_work
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.options import split_source, split_sources
from yangtuo.config.sft import SftConfig
from yangtuo.data.blocks import BlockDataset, held_out
from yangtuo.data.conversations import HELD_OUT, Building, account_lines, build_blocks
from yangtuo.data.preview import DryRun, take_samples
from yangtuo.data.shapes import read_columns
from yangtuo.data.template import Template, get_template, own_template, require_template
from yangtuo.errors import ConfigError, UserError, raise_all
from yangtuo.files import read_json
from yangtuo.hub import locate
from yangtuo.training import base, loop, preflight, processes
from yangtuo.training.held_out import Blocks
from yangtuo.training.order import Replayed
from yangtuo.training.plan import Plan, plan_run
from yangtuo.vocab.encoding import Encoder, load_encoder

_BLOCKS = "blocks"
_ACCOUNT = "account.json"
_NUM_SAMPLES = 2


def run(config: SftConfig) -> Artifact | DryRun:
    """Writes the directory `config.output`; run again after a kill, it goes on from the last checkpoint.

    A dry run writes nothing, and returns the account of the rows, samples of the blocks and the plan.
    """
    processes.start()
    refuse_existing(config.output)
    options = config.resolved()
    raise_all(preflight.check(options) + _check_options(config))
    refuse_other_work(config)
    model = open_artifact(config.model, Kind.MODEL)
    earlier = open_artifact(config.adapter, Kind.ADAPTER) if config.adapter else None
    encoder = load_encoder(model.path)
    read_columns(config.columns)
    split_sources("--data", [reference for reference in config.data if split_source(reference).is_named])
    template = get_template(config.template, model.path)
    console.detail(f"template: {template.name}" + ("" if config.template else ", as none was given"))
    if own_template(model.path) not in (None, template.jinja):
        console.warn(
            f"{template.name} replaces the model's own template, in which it was asked so far; to keep that "
            "one, leave --template out"
        )
    require_template(template, encoder)
    replayed = split_source(config.replay) if config.replay else None
    replay = open_artifact(replayed.path, Kind.DATASET) if replayed else None
    refused = _check_replay(config, model, encoder, replay) if replay else base.check_rows(model, encoder)
    raise_all([*refused, *base.check_earlier(model, earlier)])
    raise_all(base.check_kl_coef(model, earlier, template.stop_ids(encoder), options))
    if replay:
        BlockDataset(replay.path).require_ids(encoder.vocabulary_size)
        held_out(replay.path, encoder.vocabulary_size)
    if config.dry_run:
        empty = base.meta_model(model, earlier, template.stop_ids(encoder), options)
        planned = partial(plan_run, empty, base.settings(model, earlier, options))
        return _dry_run(config, template, encoder, planned, BlockDataset(replay.path) if replay else None)
    parents = {"model": model, "replay": replay, "adapter": earlier}
    with processes.shared_draft(
        config,
        Kind.ADAPTER if config.rank else Kind.MODEL,
        {name: parent for name, parent in parents.items() if parent},
    ) as made:
        made.scratch |= {_BLOCKS, *loop.SCRATCH}
        account = processes.main_process_first(lambda: _write_blocks(config, made, template, encoder))
        dataset: Any = BlockDataset(made.path / _BLOCKS)
        if replay and replayed:
            dataset = Replayed(dataset, BlockDataset(replay.path), replayed.weight, config.seed)
        trained = base.load_trained(model, earlier, template.stop_ids(encoder), options)
        apart = _held_out(made.path, account, replay)
        settings = base.settings(model, earlier, options)
        outcome = loop.train(trained, dataset, apart, settings, made.path, encoder.decode)
        stop_ids, jinja = template.stop_ids(encoder), template.render_jinja()
        details = processes.main_process_first(lambda: base.finish(made.path, model, stop_ids, jinja))
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            template=template.fingerprint,
            details={**outcome.details(), **details, "data": account},
        )
    return made.artifact


def _check_options(config: SftConfig) -> list[UserError]:
    if not config.kl_coef or config.replay:
        return []
    return [
        ConfigError(
            "--kl-coef counts in replayed text alone",
            found="no --replay",
            expected="a dataset with text of the old language",
            run="the same command with --replay DATA, or without --kl-coef",
        )
    ]


def _check_replay(config: SftConfig, model: Artifact, encoder: Encoder, replay: Artifact) -> list[UserError]:
    """What speaks against reading the dataset `replay` along."""
    errors = base.check_running_text(model, "replayed text") + base.check_tokenizer(model, encoder, replay)
    size = BlockDataset(replay.path).block_size
    if size != config.max_length:
        errors.append(
            ConfigError(
                "conversations and replay must come in blocks of one size",
                found=f"--max-length {config.max_length}, blocks of {size} tokens in {replay.path}",
                expected="the same number for both",
                run=f"the same command with --max-length {size}",
            )
        )
    return errors


def _dry_run(
    config: SftConfig, template: Template, encoder: Encoder, planned: Callable[[int, int], Plan], replay: Any
) -> DryRun:
    """The blocks in a directory that is removed, and what a run over them would be."""
    with tempfile.TemporaryDirectory() as directory:
        account = _build(config, Path(directory), template, encoder)
        blocks = BlockDataset(directory)
        samples = take_samples(blocks, encoder, _NUM_SAMPLES)
    num_replayed = round(len(blocks) * split_source(config.replay or "").weight) if replay else 0
    made = planned(len(blocks) + num_replayed, config.max_length)
    plan = made.to_dict() | {"blocks": len(blocks), "replayed_blocks": num_replayed, "template": template.name}
    for line in made.lines():
        console.note(line)
    return DryRun({"data": account, "plan": plan}, samples)


def _write_blocks(config: SftConfig, made: Draft, template: Template, encoder: Encoder) -> dict[str, Any]:
    """The conversations as blocks inside the draft; those of an interrupted run are used again."""
    directory = made.path / _BLOCKS
    account_file = directory / _ACCOUNT
    if account_file.is_file():
        return read_json(account_file)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    account = _build(config, directory, template, encoder)
    for line in account_lines(account):
        console.detail(line)
    account_file.write_text(json.dumps(account, ensure_ascii=False), encoding="utf-8")
    return account


def _build(config: SftConfig, directory: Path, template: Template, encoder: Encoder) -> dict[str, Any]:
    sources = [(locate(source.path, is_data=True), source.weight) for source in map(split_source, config.data)]
    how = Building(
        max_length=config.max_length,
        too_long=config.too_long,
        columns=read_columns(config.columns),
        held_out=config.held_out,
        seed=config.seed,
    )
    return build_blocks(directory, sources, template, encoder, how)


def _held_out(directory: Path, account: dict[str, Any], replay: Artifact | None) -> list[Any]:
    """What is measured while training runs: the answers of conversations kept apart, and the replay's documents."""
    sources: list[Any] = list(held_out(replay.path)) if replay else []
    if account["held_out"]:
        blocks = BlockDataset(directory / _BLOCKS / HELD_OUT)
        sources.append(Blocks("conversations", blocks, account["held_out_bytes"]))
    return sources
