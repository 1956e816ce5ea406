"""`yangtuo prepare`: text becomes blocks of tokens on disk, with a share of its documents kept apart.

Reads like its summary: divide the corpus into parts, make those that are missing, join them, describe. It refuses to
know how files are read and how blocks lie on disk; `yangtuo.data` does.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.options import Source, parse_shard, split_sources
from yangtuo.config.prepare import PrepareConfig
from yangtuo.data import joining
from yangtuo.data.blocks import BlockDataset, BlockWriter, HeldOutWriter
from yangtuo.data.clean import Filters
from yangtuo.data.decontaminate import read_exam, read_passages
from yangtuo.data.parts import Part, Treatment, find_shards, make_part, make_parts, plan_parts
from yangtuo.data.preview import DryRun, take_samples
from yangtuo.data.statistics import write_page
from yangtuo.errors import DataError, VocabularyError
from yangtuo.hub import locate
from yangtuo.vocab.encoding import Encoder, load_encoder

_PARTS = "parts"
_SCRATCH = "scratch"
_NUM_SAMPLES = 2
_SAMPLED = 1 << 20  # characters of each source that a dry run reads


def run(config: PrepareConfig) -> Artifact | DryRun:
    """Writes the dataset directory `config.output`, or one shard of it; a dry run writes nothing.

    Run again after a kill, it goes on with the part at which it was, and the result is the same to the byte.
    """
    output = config.output_path()
    refuse_existing(output)
    tokenizer = open_artifact(config.tokenizer, Kind.TOKENIZER, Kind.MODEL)
    encoder = _load(config, tokenizer)
    sources = _sources(config)
    parts = plan_parts([locate(source.path, is_data=True) for source in sources])
    treatment = _treatment(config, tokenizer, encoder)
    if config.dry_run:
        return _dry_run(config, sources, parts, treatment, encoder)
    if config.shard:
        number, count = parse_shard(config.shard)
        parts = parts[number - 1 :: count]
    finished = None if config.shard else find_shards(output, parts, treatment)
    with draft(config, Kind.DATASET, {"tokenizer": tokenizer}, resumable=True, reusable=_PARTS) as made:
        directories = finished or _make(parts, made.path / _PARTS, treatment, encoder)
        if config.shard:
            details: dict[str, Any] = {"shard": config.shard, "parts": len(parts)}
        else:
            details, hashes = _join(config, sources, parts, directories, encoder, made.path)
            made.hashes.update(hashes)
            made.scratch |= {_PARTS, _SCRATCH}
        made.describe(tokenizer=encoder.fingerprint, vocabulary_size=encoder.vocabulary_size, details=details)
    if not config.shard:
        console.note(f"{details['tokens']:,} tokens in {details['blocks']:,} blocks of {config.block_size}")
    return made.artifact


def _sources(config: PrepareConfig) -> list[Source]:
    return split_sources("--source", config.source)


def _load(config: PrepareConfig, tokenizer: Artifact) -> Encoder:
    encoder = load_encoder(tokenizer.path)
    if encoder.eos_id is None:  # without BOS (Qwen, GLM-4) documents begin bare, as their makers trained them
        raise VocabularyError(
            f"{config.tokenizer} cannot mark where documents end",
            found="no EOS",
            expected="a tokenizer whose tokenizer_config.json names an eos_token",
        )
    return encoder


def _treatment(config: PrepareConfig, tokenizer: Artifact, encoder: Encoder) -> Treatment:
    passages = (passage for path in config.decontaminate for passage in read_passages(locate(path, is_data=True)))
    filters = Filters(config.clean, read_exam(passages) if config.decontaminate else None)
    return Treatment(tokenizer.path, encoder.fingerprint, config.documents, filters, config.dedup == "near")


def _make(parts: list[Part], directory: Path, treatment: Treatment, encoder: Encoder) -> list[Path]:
    with console.progress("text to tokens", sum(part.num_bytes for part in parts), "bytes") as bar:
        return make_parts(parts, directory, treatment, encoder, bar.advance)


def _join(
    config: PrepareConfig,
    sources: list[Source],
    parts: list[Part],
    directories: list[Path],
    encoder: Encoder,
    output: Path,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Writes the dataset's files from finished parts; returns the manifest's details and hashes of large files."""
    scratch = output / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    gathered = [
        joining.SourceParts(
            source.name,
            source.weight,
            [directory for part, directory in zip(parts, directories, strict=True) if part.source == number],
        )
        for number, source in enumerate(sources)
    ]
    with (
        BlockWriter(
            output,
            block_size=config.block_size,
            vocabulary_size=encoder.vocabulary_size,
            padding_id=encoder.eos_id or 0,
        ) as writer,
        HeldOutWriter(output, encoder.vocabulary_size) as apart,
    ):
        repeated = joining.find_repeated(gathered, config.dedup, encoder, scratch)
        figures = [
            joining.join_source(source, mask, config.held_out, config.seed, encoder, (writer, apart))
            for source, mask in zip(gathered, repeated, strict=True)
        ]
        for source, counts in zip(sources, figures, strict=True):
            _report(config, source, counts)
        named = {source.name: counts for source, counts in zip(sources, figures, strict=True)}
        if writer.num_documents == 0:
            raise DataError("no text is left to train on", found=str(list(named)), expected="weights above 0")
        writer.close()
        apart.close()
    shutil.rmtree(scratch)
    totals = {"blocks": writer.num_blocks, "tokens": writer.num_tokens, "documents": writer.num_documents}
    write_page(output, totals, named)
    return {**totals, "sources": named}, writer.hashes


def _report(config: PrepareConfig, source: Source, counts: dict[str, Any]) -> None:
    """Says what a user should know of a source; raises `DataError` where nothing of it is left."""
    for encoding, number in counts["encodings"].items():
        if encoding != "utf-8":
            console.detail(f"{source.path}: {number} documents read as {encoding.upper()}")
    if not counts["documents"] and not counts["encodings"]:
        raise DataError(
            f"{source.path} holds no text",
            found=f"no document left: {counts['removed']}" if counts["removed"] else "no document",
            expected="at least one document that is not blank",
        )
    if not counts["documents"]:
        console.warn(f"{source.path} adds nothing: all its documents stand in sources before it")
        return
    if source.weight and not counts["taken_weight"]:
        raise DataError(
            f"{source.path}: a share of {source.weight:g} of its text cannot be taken",
            found=f"{counts['documents']} documents of {counts['text_tokens']:,} tokens, without a paragraph to cut at",
            expected="a weight of 1, or text in smaller documents",
            run="the same command with --documents line",
        )
    asked, real = config.held_out, counts["held_out_share"]
    console.detail(
        f"{source.name}: {counts['text_tokens']:,} tokens of text in {counts['documents']:,} documents; "
        f"{counts['held_out_tokens']:,} held out ({real:.1%}), {counts['tokens']:,} to train on"
    )
    if asked and not real:
        console.warn(f"{source.path}: nothing is held out of a single document that cannot be cut at a sentence")
    elif not asked / 2 <= real <= 2 * asked:
        console.warn(
            f"{source.path}: {real:.1%} of the text is held out instead of {asked:.1%}: documents are long beside it"
        )
    if abs(counts["taken_weight"] - source.weight) > source.weight / 10:
        console.warn(f"{source.path} is taken {counts['taken_weight']:.2f} times instead of {source.weight:g}")


def _dry_run(
    config: PrepareConfig, sources: list[Source], parts: list[Part], treatment: Treatment, encoder: Encoder
) -> DryRun:
    """What the beginning of each source becomes, in a directory that is removed."""
    first = [next(part for part in parts if part.source == number) for number in range(len(sources))]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = [make_part(part, directory / _PARTS, treatment, encoder, None, _SAMPLED) for part in first]
        details, _ = _join(config, sources, first, made, encoder, directory)
        samples = take_samples(BlockDataset(directory), encoder, _NUM_SAMPLES)
    plan = {"parts": len(parts), "bytes": sum(part.num_bytes for part in parts)}
    return DryRun({**plan, f"of the first {_SAMPLED:,} characters of each source": details}, samples)
