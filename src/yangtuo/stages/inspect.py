"""`yangtuo inspect`: what a directory or file is, from its manifest and its headers; no tensor is read.

Foreign artifacts are recognised by their files. With `--verify` or `--sums` every file is hashed again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yangtuo import console
from yangtuo.artifacts.checksums import check_manifest, check_sums
from yangtuo.artifacts.manifest import Artifact, Kind, content_fingerprint, open_artifact
from yangtuo.config.inspect import InspectConfig
from yangtuo.errors import FileError
from yangtuo.vocab.encoding import Encoder, load_encoder
from yangtuo.weights import adapter, checkpoint, layouts, meta

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "ice_text.model")


def run(config: InspectConfig) -> dict[str, object]:
    """Returns what can be said of `config.path`, without changing anything; keys depend on its kind."""
    artifact = open_artifact(config.path)
    kind = artifact.manifest.kind if artifact.manifest else _recognise(artifact.path)
    facts: dict[str, object] = {"path": str(artifact.path), "kind": kind.value, "fingerprint": artifact.fingerprint}
    describe = _DESCRIBERS.get(kind)
    if artifact.manifest:
        facts["stage"] = artifact.manifest.stage
        facts |= artifact.manifest.details
    if describe:
        facts |= describe(artifact.path)
    if artifact.manifest:
        facts["parents"] = _parents(artifact)
    else:
        facts["foreign"] = True
    if config.sums is not None:
        facts["verified"] = check_sums(artifact.path, Path(config.sums))
    elif config.verify:
        facts["verified"] = check_manifest(artifact)
    return facts


def _recognise(path: Path) -> Kind:
    if path.is_file():
        known = {".gguf": Kind.MODEL, ".zip": Kind.ADAPTER, ".model": Kind.TOKENIZER, ".json": Kind.TOKENIZER}
        if path.suffix in known:
            return known[path.suffix]
    elif (path / adapter.CONFIG_FILE).is_file():
        return Kind.ADAPTER
    elif (path / checkpoint.CONFIG_FILE).is_file() or meta.is_meta(path):
        return Kind.MODEL
    elif any((path / name).is_file() for name in _TOKENIZER_FILES):
        return Kind.TOKENIZER
    raise FileError(
        f"{path} is nothing that yangtuo knows",
        found=", ".join(sorted(file.name for file in path.iterdir())[:8]) if path.is_dir() else path.name,
        expected="a model, an adapter or a tokenizer, or a directory that yangtuo wrote",
    )


def _describe_model(path: Path) -> dict[str, Any]:
    opened = layouts.open_checkpoint(path)
    facts: dict[str, Any] = {"layout": opened.layout, **layouts.summarize(opened)}
    encoder = _encoder(opened)
    if encoder is not None:
        facts |= {"pieces": encoder.vocabulary_size, "tokenizer": encoder.fingerprint}
        if facts["rows"] != encoder.vocabulary_size:
            console.warn(f"{facts['rows']:,} rows for {encoder.vocabulary_size:,} pieces")
    return {**facts, "lora_layers": layouts.linear_layers(opened.tensors)}


def _encoder(opened: checkpoint.Checkpoint) -> Encoder | None:
    """The model's tokenizer; one that is no file of its own is written out to be read."""
    if opened.tokenizer is not None:
        return load_encoder(opened.tokenizer)
    if opened.write_tokenizer is None:
        return None
    with TemporaryDirectory() as scratch:
        opened.write_tokenizer(Path(scratch))
        return load_encoder(scratch)


def _describe_adapter(path: Path) -> dict[str, Any]:
    if path.is_file():
        return {"layout": "a zip; unpack it to see inside"}
    values = checkpoint.read_json(path / adapter.CONFIG_FILE)
    opened = adapter.open_adapter(path, str(path), path)
    options = ("use_rslora", "use_dora", "fan_in_fan_out")
    replaced = [name for name, updates in opened.updates.items() if isinstance(updates[0], adapter.Replace)]
    facts: dict[str, Any] = {
        "method": str(values.get("peft_type")),
        "variants": [option for option in options if values.get(option)],
        "rank": values.get("r"),
        "alpha": values.get("lora_alpha"),
        "base_model": values.get("base_model_name_or_path"),
        "changes": len(opened.updates),
        "replaces": {name: list(opened.tensors.shape(_key(opened.updates[name][0]))) for name in replaced},
        "lora_layers": sorted({name.split(".")[-2] for name in opened.updates if name not in replaced}),
    }
    if opened.tokenizer is not None:
        encoder = load_encoder(opened.tokenizer)
        facts |= {"pieces": encoder.vocabulary_size, "tokenizer": encoder.fingerprint}
    return facts


def _key(update: adapter.Update) -> str:
    assert isinstance(update, adapter.Replace)
    return update.key


def _describe_tokenizer(path: Path) -> dict[str, Any]:
    encoder = load_encoder(path)
    return {"family": encoder.family.value, "pieces": encoder.vocabulary_size, "tokenizer": encoder.fingerprint}


_DESCRIBERS: dict[Kind, Callable[[Path], dict[str, Any]]] = {
    Kind.MODEL: _describe_model,
    Kind.ADAPTER: _describe_adapter,
    Kind.TOKENIZER: _describe_tokenizer,
}


def _parents(artifact: Artifact) -> dict[str, dict[str, str]]:
    assert artifact.manifest is not None
    return {
        role: {
            "path": parent.path,
            "fingerprint": parent.fingerprint,
            "state": _state(Path(parent.path), parent.fingerprint),
        }
        for role, parent in artifact.manifest.parents.items()
    }


def _state(path: Path, fingerprint: str) -> str:
    if not path.exists():
        return "no longer there"
    return "unchanged" if content_fingerprint(path) == fingerprint else "another now"
