"""`yangtuo merge`: adapters are folded into their base, in order, and a whole model is written.

Everything that can be wrong is checked first: lineage by fingerprint, for foreign adapters vocabularies, names, shapes
and finite numbers, and room on the disk. It refuses to know the arithmetic; `yangtuo.weights.merging` does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.lineage import check_chain, merged_lineage
from yangtuo.artifacts.manifest import Artifact, Kind, grown_rows, open_artifact
from yangtuo.config.merge import MergeConfig
from yangtuo.config.options import parse_size
from yangtuo.data.readers import read_documents
from yangtuo.data.template import Message, get_template
from yangtuo.errors import ConfigError, FileError, LineageError, UserError, raise_all
from yangtuo.growing.task_vectors import open_model, split_difference, task_vector
from yangtuo.vocab.directory import GENERATION_FILE, TokenizerDirectory, read_directory
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights.adapter import Adapter, non_finite, open_adapter
from yangtuo.weights.checkpoint import CONFIG_FILE, Checkpoint, write_json, write_weights
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.merging import MergedTensors, scaled
from yangtuo.weights.proof import prove

_SCRATCH = ".adapters"
_PROVED = 2000  # characters of a file on which a merge is proved


def run(config: MergeConfig) -> Artifact:
    """Writes the model directory `config.output`: `config.base` with every adapter folded in."""
    refuse_existing(config.output)
    shard_size = parse_size(config.shard_size)
    proving_text = None if config.prove is None else _proving_text(config.prove)
    _check(config)
    base = open_artifact(config.base, Kind.MODEL)
    pairs = [[open_artifact(path, Kind.MODEL) for path in split_difference(text)] for text in config.add]
    sources = [open_artifact(reference, Kind.ADAPTER) for reference in config.adapter]
    raise_all(check_chain(base, sources))
    checkpoint = _open_whole(base, config.base)
    roles = {f"adapter-{number}" if number > 1 else "adapter": source for number, source in enumerate(sources, 1)}
    roles |= {
        f"{role} {number}": model
        for number, pair in enumerate(pairs, 1)
        for role, model in zip(("tuned", "tuned from"), pair, strict=True)
    }
    with draft(config, Kind.MODEL, {"base": base, **roles}) as made:
        adapters = [scaled(adapter, config.lora_scale) for adapter in _open_adapters(sources, made.path / _SCRATCH)]
        raise_all([error for adapter in adapters for error in non_finite(adapter)])
        vectors = [
            task_vector(open_model(pair[0]), open_model(pair[1]), open_model(base), config.scale) for pair in pairs
        ]
        tensors = MergedTensors(
            checkpoint.tensors,
            checkpoint.shape.tied,
            [*adapters, *vectors],
            None if config.dtype == "keep" else getattr(torch, config.dtype),
            checkpoint.shape.family,
        )
        tokenizer = _tokenizer_of_result(checkpoint, base, adapters, tensors)
        for tuned, _ in pairs:
            tokenizer = _in_the_manner_of(read_directory(tuned.path), tokenizer)
        if checkpoint.tokenizer.templates.get("default") not in (None, tokenizer.templates.get("default")):
            console.note("the chat template is the one that came with what is merged; it replaces the base's own")
        made.hashes.update(write_weights(made.path, tensors, shard_size=shard_size, description="merging"))
        _write_files(made.path, checkpoint, tokenizer, tensors)
        encoder = load_encoder(made.path)
        proof = {}
        if proving_text is not None:
            ids = _proving_ids(proving_text, base.path, encoder, checkpoint.shape.family.prompts_only)
            proof = {"proof": prove(made.path, base.path, tensors, adapters, ids)}
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
                **grown_rows(base),
                **summarize(open_checkpoint(made.path)),
                **proof,
            },
        )
    return made.artifact


def _check(config: MergeConfig) -> None:
    if not (config.adapter or config.add):
        raise ConfigError("nothing is to be merged", expected="--adapter, --add TUNED-BASE, or both")
    if config.prove is not None and (config.add or config.lora_scale != 1):
        found = "--add" if config.add else "--lora-scale"
        raise ConfigError("--prove compares with whole adapters alone", found=found, expected="one of the two")


def _open_whole(base: Artifact, reference: str) -> Checkpoint:
    checkpoint = open_checkpoint(base.path)
    if checkpoint.layout != "Hugging Face" or checkpoint.read_tokenizer is None:
        raise FileError(
            f"{base.path} is not a whole model directory",
            found=f"{checkpoint.layout} layout, {'a' if checkpoint.read_tokenizer else 'no'} tokenizer",
            expected="config.json, safetensors and a tokenizer",
            run=f"yangtuo convert --source {reference} --output NAME",
        )
    return checkpoint


def _proving_text(given: str) -> str:
    """What `--prove` names: the beginning of a file, or the text itself; says which."""
    is_file = os.path.isfile(os.path.expanduser(given))  # noqa: PTH111, PTH113  a text makes no path that can be asked
    if is_file:
        documents = read_documents(Path(given).expanduser())
        text = next((document.text for document in documents if document.text.strip()), "")[:_PROVED]
        console.detail(f"--prove: the first {len(text):,} characters of the file {given}")
    else:
        text = given
        console.detail(f"--prove: the text itself, {len(text):,} characters; there is no file of that name")
    if not text.strip():
        raise ConfigError("--prove needs a text", found="an empty one", expected="a sentence in the model's language")
    return text


def _proving_ids(text: str, model: Path, encoder: Encoder, as_prompt: bool) -> list[int]:
    """The ids of a text, as a prompt for models that read nothing else."""
    if as_prompt:
        return get_template("model", model).encode_prompt(encoder, [Message("user", text)])
    return encoder.encode(text)


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


def _tokenizer_of_result(
    checkpoint: Checkpoint, base: Artifact, adapters: Sequence[Adapter], tensors: MergedTensors
) -> TokenizerDirectory:
    """The last adapter's tokenizer; raises `LineageError` where ids move or pieces and rows do not match."""
    tokenizer, owner = checkpoint.tokenizer, str(base.path)
    errors: list[UserError] = []
    for adapter in adapters:
        if not adapter.brings_tokenizer:
            continue
        following = read_directory(adapter.path)
        moved = [piece for piece, new in zip(tokenizer.pieces, following.pieces, strict=False) if piece != new]
        if moved or len(following.pieces) < len(tokenizer.pieces):
            errors.append(
                LineageError(
                    f"the tokenizer of {adapter.name} does not continue that of {owner}",
                    found=f"{len(following.pieces):,} pieces after {len(tokenizer.pieces):,}, {len(moved):,} moved",
                    expected="the same ids for all earlier pieces: adapters in the order of their training",
                )
            )
        tokenizer, owner = following.with_defaults_of(tokenizer), adapter.name
    rows = tensors.num_rows
    if rows < len(tokenizer.pieces):
        errors.append(
            LineageError(
                f"the tokenizer of {owner} has more pieces than the merged embedding has rows",
                found=f"{len(tokenizer.pieces):,} pieces, {rows:,} rows",
                expected="an adapter that trained rows for all its pieces, or an expanded base",
                run=f"yangtuo expand --model {base.path} --tokenizer {owner} --output NAME",
            )
        )
    raise_all(errors)
    if rows > len(tokenizer.pieces):
        console.warn(f"the embedding has {rows:,} rows for {len(tokenizer.pieces):,} pieces")
    return tokenizer


def _in_the_manner_of(tuned: TokenizerDirectory, own: TokenizerDirectory) -> TokenizerDirectory:
    """How a tuned model speaks: its chat templates, and its stop ids, which are looked up by piece."""
    stops = tuned.generation.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    names = [tuned.pieces[stop] for stop in stops]
    ids = {piece: index for index, piece in enumerate(own.pieces)}
    ends = {"eos_token_id": [ids[name] for name in names if name in ids]} if names else {}
    return replace(own, templates=tuned.templates or own.templates, generation={**own.generation, **ends})


def _write_files(
    directory: Path, checkpoint: Checkpoint, tokenizer: TokenizerDirectory, tensors: MergedTensors
) -> None:
    """The base's config with what the merge changed, and the tokenizer with its template and stop ids."""
    values = {**checkpoint.config, "vocab_size": tensors.num_rows, "tie_word_embeddings": tensors.tied}
    values.pop("dtype", None)
    values["torch_dtype"] = str(tensors.dtype(tensors.names()[0])).removeprefix("torch.")
    write_json(directory / CONFIG_FILE, values)
    tokenizer.write(directory)
    if tokenizer.generation:
        write_json(directory / GENERATION_FILE, tokenizer.generation)
