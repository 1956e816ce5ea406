"""`yangtuo merge`: adapters are folded into their base, in order, and a whole model is written.

Everything that can be wrong is checked first: lineage by fingerprint, for foreign adapters vocabularies, names, shapes
and finite numbers, and room on the disk. It refuses to know the arithmetic; `yangtuo.weights.merging` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.lineage import check_chain, merged_lineage
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.merge import MergeConfig
from yangtuo.config.options import parse_size
from yangtuo.data.template import own_template
from yangtuo.errors import ConfigError, FileError, LineageError, UserError, raise_all
from yangtuo.growing.task_vectors import open_model, split_difference, task_vector
from yangtuo.vocab.directory import copy_tokenizer
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights.adapter import Adapter, non_finite, open_adapter
from yangtuo.weights.checkpoint import CONFIG_FILE, GENERATION_FILE, read_json, write_json, write_weights
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.merging import MergedTensors
from yangtuo.weights.proof import prove

_SCRATCH = ".adapters"


def run(config: MergeConfig) -> Artifact:
    """Writes the model directory `config.output`: `config.base` with every adapter folded in."""
    refuse_existing(config.output)
    shard_size = parse_size(config.shard_size)
    if config.prove is not None and not config.prove.strip():
        raise ConfigError("--prove needs a text", found="an empty one", expected="a sentence in the model's language")
    if not (config.adapter or config.add):
        raise ConfigError("nothing is to be merged", expected="--adapter, --add TUNED-BASE, or both")
    if config.prove is not None and config.add:
        raise ConfigError("--prove compares with the adapters alone", found="--add", expected="one of the two")
    base = open_artifact(config.base, Kind.MODEL)
    pairs = [[open_artifact(path, Kind.MODEL) for path in split_difference(text)] for text in config.add]
    sources = [open_artifact(reference, Kind.ADAPTER) for reference in config.adapter]
    raise_all(check_chain(base, sources))
    checkpoint = open_checkpoint(base.path)
    if checkpoint.layout != "Hugging Face" or checkpoint.tokenizer is None:
        raise FileError(
            f"{base.path} is not a whole model directory",
            found=f"{checkpoint.layout} layout, {'a' if checkpoint.tokenizer else 'no'} tokenizer",
            expected="config.json, safetensors and a tokenizer",
            run=f"yangtuo convert --source {config.base} --output NAME",
        )
    roles = {f"adapter-{number}" if number > 1 else "adapter": source for number, source in enumerate(sources, 1)}
    roles |= {
        f"{role} {number}": model
        for number, pair in enumerate(pairs, 1)
        for role, model in zip(("tuned", "tuned from"), pair, strict=True)
    }
    with draft(config, Kind.MODEL, {"base": base, **roles}) as made:
        adapters = _open_adapters(sources, made.path / _SCRATCH)
        raise_all([error for adapter in adapters for error in non_finite(adapter)])
        vectors = [task_vector(*map(open_model, pair), open_model(base), config.scale) for pair in pairs]
        tensors = MergedTensors(
            checkpoint.tensors,
            bool(checkpoint.config.get("tie_word_embeddings")),
            [*adapters, *vectors],
            None if config.dtype == "keep" else getattr(torch, config.dtype),
        )
        encoder = _tokenizer_of_result(base, adapters, tensors)
        made.hashes.update(write_weights(made.path, tensors, shard_size=shard_size, description="merging"))
        _write_files(made.path, base, adapters, checkpoint.config, tensors)
        for tuned, _ in pairs:
            _take_manner(made.path, tuned.path, encoder)
        proof = {}
        if config.prove is not None:
            ids = encoder.encode(config.prove)
            proof = {"proof": prove(made.path, base.path, checkpoint.tensors, adapters, ids)}
        shutil.rmtree(made.path / _SCRATCH, ignore_errors=True)
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            template=next(
                (m.template for m in _manifests(base, [*sources, *(p[0] for p in pairs)]) if m.template), None
            ),
            details={
                "lineage": merged_lineage(base, sources),
                "adapters": len(adapters),
                "task_vectors": [vector.name for vector in vectors],
                "merged_tensors": tensors.num_changed,
                **summarize(open_checkpoint(made.path)),
                **proof,
            },
        )
    return made.artifact


def _manifests(base: Artifact, sources: Sequence[Artifact]) -> list[Any]:
    return [artifact.manifest for artifact in (*reversed(sources), base) if artifact.manifest]


def _open_adapters(sources: Sequence[Artifact], scratch: Path) -> list[Adapter]:
    """Opens all adapters; all that cannot be opened are reported at once."""
    adapters, errors = [], list[UserError]()
    for number, source in enumerate(sources):
        try:
            adapters.append(open_adapter(source.path, str(source.path), scratch / str(number)))
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    return adapters


def _tokenizer_of_result(base: Artifact, adapters: Sequence[Adapter], tensors: MergedTensors) -> Encoder:
    """The last adapter's tokenizer; raises `LineageError` where ids move or pieces and rows do not match."""
    encoder, owner = load_encoder(base.path), str(base.path)
    errors: list[UserError] = []
    for adapter in adapters:
        if adapter.tokenizer is None:
            continue
        theirs = load_encoder(adapter.tokenizer)
        moved = [piece for piece, other in zip(encoder.pieces, theirs.pieces, strict=False) if piece != other]
        if moved or theirs.vocabulary_size < encoder.vocabulary_size:
            errors.append(
                LineageError(
                    f"the tokenizer of {adapter.name} does not continue that of {owner}",
                    found=f"{theirs.vocabulary_size:,} pieces after {encoder.vocabulary_size:,}, {len(moved):,} moved",
                    expected="the same ids for all earlier pieces: adapters in the order of their training",
                )
            )
        encoder, owner = theirs, adapter.name
    rows = tensors.num_rows
    if rows < encoder.vocabulary_size:
        errors.append(
            LineageError(
                f"the tokenizer of {owner} has more pieces than the merged embedding has rows",
                found=f"{encoder.vocabulary_size:,} pieces, {rows:,} rows",
                expected="an adapter that trained rows for all its pieces, or an expanded base",
                run=f"yangtuo expand --model {base.path} --tokenizer {owner} --output NAME",
            )
        )
    raise_all(errors)
    if rows > encoder.vocabulary_size:
        console.warn(f"the embedding has {rows:,} rows for {encoder.vocabulary_size:,} pieces")
    return encoder


def _write_files(
    directory: Path, base: Artifact, adapters: Sequence[Adapter], config: Mapping[str, Any], tensors: MergedTensors
) -> None:
    """The base's config with what the merge changed; tokenizer, template and stop ids of the last that brings them."""
    values = {**config, "vocab_size": tensors.num_rows, "tie_word_embeddings": tensors.tied}
    values.pop("dtype", None)
    values["torch_dtype"] = str(tensors.dtype(tensors.names()[0])).removeprefix("torch.")
    write_json(directory / CONFIG_FILE, values)
    if (base.path / GENERATION_FILE).is_file():
        shutil.copyfile(base.path / GENERATION_FILE, directory / GENERATION_FILE)
    copy_tokenizer(base.path, directory)
    for adapter in adapters:
        if adapter.tokenizer is not None:
            copy_tokenizer(adapter.path, directory)


def _take_manner(directory: Path, tuned: Path, encoder: Encoder) -> None:
    """How a tuned model speaks: its chat template, and its stop ids, which are looked up by piece."""
    template = own_template(tuned)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    file = tuned / GENERATION_FILE
    stops = (read_json(file) if file.is_file() else {}).get("eos_token_id")
    if stops is None:
        return
    pieces, ids = load_encoder(tuned).pieces, {piece: index for index, piece in enumerate(encoder.pieces)}
    names = [pieces[stop] for stop in (stops if isinstance(stops, list) else [stops])]
    own = directory / GENERATION_FILE
    generation = read_json(own) if own.is_file() else {}
    write_json(own, {**generation, "eos_token_id": [ids[name] for name in names if name in ids]})
