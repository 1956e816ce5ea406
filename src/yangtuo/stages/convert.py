"""`yangtuo convert`: published weights become a model directory in Hugging Face's layout.

Reads like its summary: which layout, which config, tensors one by one, the tokenizer, the manifest. It refuses to
know any layout; `yangtuo.weights` does.
"""

from __future__ import annotations

from pathlib import Path

import torch

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, grown_rows, open_artifact
from yangtuo.config.convert import ConvertConfig
from yangtuo.errors import WeightsError
from yangtuo.vocab.directory import GENERATION_FILE
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights.checkpoint import CONFIG_FILE, Checkpoint, mended_ids, write_json, write_weights
from yangtuo.weights.layouts import open_checkpoint, summarize


def run(config: ConvertConfig) -> Artifact:
    """Writes the model directory `config.output` from the weights at `config.source`."""
    refuse_existing(config.output)
    source = open_artifact(config.source, Kind.MODEL, Kind.EXPORT)
    checkpoint = open_checkpoint(source.path)
    tokenizer = checkpoint.tokenizer
    dtype = None if config.dtype == "keep" else getattr(torch, config.dtype)
    console.detail(f"{source.path}: {checkpoint.layout}, {len(checkpoint.tensors.names())} tensors")
    lossy = {} if checkpoint.quantization is None else {"source_quantization": checkpoint.quantization}
    if lossy:
        console.warn(
            f"{config.source} holds {checkpoint.quantization}: its weights were rounded when it was made, and what was "
            "lost does not come back; to train, take the makers' own weights (float16, bfloat16) where there are any"
        )
    with draft(config, Kind.MODEL, {"source": source}) as made:
        made.hashes.update(write_weights(made.path, checkpoint.tensors, dtype=dtype))
        tokenizer.write(made.path)
        encoder = load_encoder(made.path)
        _write_config(made.path, checkpoint, dtype, encoder)
        summary = summarize(open_checkpoint(made.path))
        _check_rows(summary["rows"], encoder)
        made.describe(
            tokenizer=encoder.fingerprint,
            vocabulary_size=encoder.vocabulary_size,
            details={"source_layout": checkpoint.layout, **lossy, **summary, **grown_rows(source)},
        )
    return made.artifact


def _write_config(directory: Path, checkpoint: Checkpoint, dtype: torch.dtype | None, encoder: Encoder) -> None:
    """Writes config.json and generation_config.json; where the source names no BOS and EOS, the tokenizer does."""
    control = {"bos_token_id": encoder.bos_id, "eos_token_id": encoder.eos_id}
    values = {**control, **mended_ids(checkpoint.config, encoder)}
    values.pop("auto_map", None)
    if dtype is not None:
        values.pop("dtype", None)
        values["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_json(directory / CONFIG_FILE, values)
    generation = mended_ids(checkpoint.generation, encoder)
    stops = {"bos_token_id": values["bos_token_id"], "eos_token_id": values["eos_token_id"]}
    write_json(directory / GENERATION_FILE, generation or stops)


def _check_rows(rows: int, encoder: Encoder) -> None:
    if rows < encoder.vocabulary_size:
        raise WeightsError(
            "the tokenizer has more pieces than the embedding has rows",
            found=f"{encoder.vocabulary_size:,} pieces, {rows:,} rows",
            expected="the tokenizer that belongs to these weights",
        )
    if rows > encoder.vocabulary_size:
        console.warn(f"the embedding has {rows:,} rows for {encoder.vocabulary_size:,} pieces; the rest stays unused")
