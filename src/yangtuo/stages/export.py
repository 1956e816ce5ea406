"""`yangtuo export`: a model directory in the layout of other programs, GGUF for llama.cpp or Meta's own.

It refuses to know either layout; `yangtuo.weights` does.
"""

from __future__ import annotations

from pathlib import Path

from yangtuo import console
from yangtuo.artifacts.draft import draft, refuse_existing
from yangtuo.artifacts.lineage import check_chain
from yangtuo.artifacts.manifest import Artifact, Kind, open_artifact
from yangtuo.config.export import ExportConfig
from yangtuo.data.modelfile import write_modelfile
from yangtuo.data.template import Template
from yangtuo.errors import ConfigError, UserError, raise_all
from yangtuo.vocab.directory import MODEL_FILE, TokenizerDirectory
from yangtuo.vocab.encoding import Encoder, Family, make_encoder
from yangtuo.weights.adapter import open_adapter
from yangtuo.weights.checkpoint import Checkpoint
from yangtuo.weights.gguf import write_gguf
from yangtuo.weights.gguf_adapter import write_gguf_adapter
from yangtuo.weights.layouts import open_checkpoint, summarize
from yangtuo.weights.meta_writer import write_meta

GGUF_FILE, ADAPTER_FILE, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"
_BY_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_SCRATCH = ".adapter"


def run(config: ExportConfig) -> Artifact:
    """Writes `config.output`: `model.gguf` and a Modelfile, or `adapter.gguf`, or Meta's files and the tokenizer."""
    refuse_existing(config.output)
    raise_all(_contradictions(config))
    model = open_artifact(config.model, Kind.MODEL)
    checkpoint = open_checkpoint(model.path)
    if config.adapter is not None:
        return _export_adapter(config, config.adapter, model, checkpoint)
    encoder = make_encoder(checkpoint.tokenizer)
    summary = summarize(checkpoint)
    with draft(config, Kind.EXPORT, {"model": model}) as made:
        details = {"format": config.format, **summary}
        if config.format == "gguf":
            details["quantization"] = _BY_DTYPE[summary["dtype"]] if config.quantize == "keep" else config.quantize
            write_gguf(made.path / GGUF_FILE, checkpoint, details["quantization"])
            _write_modelfile(made.path / MODELFILE, checkpoint.tokenizer, encoder)
            details["file"] = GGUF_FILE
        else:
            write_meta(made.path, checkpoint, config.shards)
            _write_tokenizer(made.path, checkpoint.tokenizer, encoder.family)
            details["shards"] = config.shards
        made.describe(tokenizer=encoder.fingerprint, vocabulary_size=encoder.vocabulary_size, details=details)
    return made.artifact


def _export_adapter(config: ExportConfig, reference: str, model: Artifact, checkpoint: Checkpoint) -> Artifact:
    adapter = open_artifact(reference, Kind.ADAPTER)
    raise_all(check_chain(model, [adapter]))
    with draft(config, Kind.EXPORT, {"model": model, "adapter": adapter}) as made:
        made.scratch.add(_SCRATCH)
        opened = open_adapter(adapter.path, str(adapter.path), made.path / _SCRATCH)
        count = write_gguf_adapter(made.path / ADAPTER_FILE, checkpoint, opened)
        made.describe(details={"format": config.format, "file": ADAPTER_FILE, "pairs": count})
    return made.artifact


def _write_modelfile(path: Path, tokenizer: TokenizerDirectory, encoder: Encoder) -> None:
    template = Template("model", tokenizer.template) if tokenizer.template is not None else None
    text, problem = write_modelfile(GGUF_FILE, template, encoder, adds_bos=tokenizer.adds_bos)
    path.write_text(text, encoding="utf-8")
    if problem:
        console.warn(f"{path.name}: {problem}")


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
    if config.adapter is not None and (config.format != "gguf" or config.quantize not in ("keep", "f32")):
        errors.append(ConfigError("an adapter is written as GGUF in float32", expected="--format gguf, no --quantize"))
    return errors
