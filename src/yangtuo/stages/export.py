"""`yangtuo export`: a model directory in the layout of other programs, GGUF for llama.cpp or Meta's own.

It refuses to know either layout; `yangtuo.weights` does.
"""

from __future__ import annotations

from pathlib import Path

from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.export import ExportConfig
from yangtuo.errors import ConfigError, UserError, raise_all
from yangtuo.vocab.directory import MODEL_FILE, TokenizerDirectory
from yangtuo.vocab.encoding import Family, make_encoder
from yangtuo.weights.gguf import write_gguf
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.meta_writer import write_meta

GGUF_FILE = "model.gguf"
_BY_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def run(config: ExportConfig) -> Artifact:
    """Writes `config.output`: `model.gguf`, or `consolidated.*.pth`, `params.json` and the tokenizer."""
    refuse_existing(config.output)
    raise_all(_contradictions(config))
    model = open_artifact(config.model, Kind.MODEL)
    checkpoint = open_checkpoint(model.path)
    encoder = make_encoder(checkpoint.tokenizer)
    summary = summarize(checkpoint)
    with draft(config, Kind.EXPORT, {"model": model}) as made:
        details = {"format": config.format, **summary}
        if config.format == "gguf":
            details["quantization"] = _BY_DTYPE[summary["dtype"]] if config.quantize == "keep" else config.quantize
            write_gguf(made.path / GGUF_FILE, checkpoint, details["quantization"])
            details["file"] = GGUF_FILE
        else:
            write_meta(made.path, checkpoint, config.shards)
            _write_tokenizer(made.path, checkpoint.tokenizer, encoder.family)
            details["shards"] = config.shards
        made.describe(tokenizer=encoder.fingerprint, vocabulary_size=encoder.vocabulary_size, details=details)
    return made.artifact


def _write_tokenizer(directory: Path, tokenizer: TokenizerDirectory, family: Family) -> None:
    """tokenizer.model alone, with all tokens, as Meta's code reads it; Hugging Face's files for other families."""
    if family is Family.SENTENCEPIECE:
        (directory / MODEL_FILE).write_bytes(tokenizer.whole_proto().SerializeToString())
    else:
        tokenizer.write(directory)


def _contradictions(config: ExportConfig) -> list[UserError]:
    errors: list[UserError] = []
    if config.format == "meta" and config.quantize != "keep":
        errors.append(ConfigError("Meta's layout is never quantised", found=f"--quantize {config.quantize}"))
    if config.format == "gguf" and config.shards != 1:
        errors.append(ConfigError("GGUF is written as one file", found=f"--shards {config.shards}"))
    return errors
