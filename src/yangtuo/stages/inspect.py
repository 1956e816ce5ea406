"""`yangtuo inspect`: what a directory or file is, from its manifest and its headers; no tensor is read.

Foreign artifacts are recognised by their files. Whatever cannot be read is described as a problem, not raised. With
`--verify` or `--sums` every file is hashed again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yangtuo import console
from yangtuo.artifacts.checksums import check_manifest, check_sums
from yangtuo.artifacts.manifest import Artifact, Kind, find_parent, open_artifact
from yangtuo.config.inspect import InspectConfig
from yangtuo.errors import FileError, UserError
from yangtuo.inference.adapters import reasons_to_merge
from yangtuo.vocab.directory import has_tokenizer
from yangtuo.vocab.encoding import load_encoder, make_encoder
from yangtuo.weights import adapter, checkpoint, layouts, meta

_OURS = ("path", "kind", "fingerprint", "stage", "parents", "foreign", "verified", "problems")


def run(config: InspectConfig) -> dict[str, object]:
    """Returns what can be said of `config.path`, without changing anything; keys depend on its kind."""
    artifact = open_artifact(config.path)
    kind = artifact.manifest.kind if artifact.manifest else _recognise(artifact.path)
    problems: list[UserError] = []
    facts: dict[str, object] = dict(artifact.manifest.details) if artifact.manifest else {}
    for name in _OURS:  # whatever a stranger's manifest says of them
        facts.pop(name, None)
    facts |= {"path": str(artifact.path), "kind": kind.value}
    _add(facts, problems, lambda: {"fingerprint": artifact.fingerprint})
    if artifact.manifest:
        facts["stage"] = artifact.manifest.stage
    describers = _DESCRIBERS.get(kind, ())
    for describe in describers:
        _add(facts, problems, lambda describe=describe: describe(artifact.path))  # type: ignore[misc]
    if describers and len(problems) >= len(describers):
        raise problems[-1]  # nothing could be said of it
    if artifact.manifest:
        facts["parents"] = _parents(artifact)
    else:
        facts["foreign"] = True
    if config.sums is not None:
        facts["verified"] = check_sums(artifact.path, Path(config.sums))
    elif config.verify:
        facts["verified"] = check_manifest(artifact)
    if problems:
        facts["problems"] = [str(problem) for problem in problems]
        for problem in problems:
            console.warn(str(problem))
    return facts


def _add(facts: dict[str, object], problems: list[UserError], describe: Callable[[], dict[str, Any]]) -> None:
    try:
        facts |= describe()
    except UserError as error:
        problems.append(error)


def _recognise(path: Path) -> Kind:
    if path.is_file():
        known = {".gguf": Kind.MODEL, ".zip": Kind.ADAPTER, ".model": Kind.TOKENIZER, ".json": Kind.TOKENIZER}
        if path.suffix in known:
            return known[path.suffix]
    elif (path / adapter.CONFIG_FILE).is_file():
        return Kind.ADAPTER
    elif (path / checkpoint.CONFIG_FILE).is_file() or meta.is_meta(path) or layouts.gguf_files(path):
        return Kind.MODEL
    elif has_tokenizer(path):
        return Kind.TOKENIZER
    raise FileError(
        f"{path} is nothing that yangtuo knows",
        found=", ".join(sorted(file.name for file in path.iterdir())[:8]) if path.is_dir() else path.name,
        expected="a model, an adapter or a tokenizer, or a directory that yangtuo wrote",
    )


def _describe_model(path: Path) -> dict[str, Any]:
    opened = layouts.open_checkpoint(path)
    return {
        "layout": opened.layout,
        **layouts.summarize(opened),
        "lora_layers": layouts.linear_layers(opened.tensors),
    }


def _describe_model_tokenizer(path: Path) -> dict[str, Any]:
    opened = layouts.open_checkpoint(path)
    if opened.read_tokenizer is None:
        return {}
    encoder = make_encoder(opened.tokenizer)
    rows = layouts.summarize(opened)["rows"]
    if rows != encoder.vocabulary_size:
        console.warn(f"{rows:,} rows for {encoder.vocabulary_size:,} pieces")
    return {"pieces": encoder.vocabulary_size, "tokenizer": encoder.fingerprint}


def _describe_adapter(path: Path) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        path = adapter.unpacked(path, Path(scratch))
        values = adapter.read_config(path / adapter.CONFIG_FILE)
        options = ("use_rslora", "use_dora", "fan_in_fan_out")
        facts: dict[str, Any] = {
            "method": str(values.get("peft_type")),
            "variants": [option for option in options if values.get(option)],
            "rank": values.get("r"),
            "alpha": values.get("lora_alpha"),
            "base_model": values.get("base_model_name_or_path"),
            "unmerged": {engine: reason or "yes" for engine, reason in reasons_to_merge(path).items()},
        }
        if values.get("init_lora_weights") not in (None, True, False):
            facts["initialised"] = str(values["init_lora_weights"])
        return facts


def _describe_updates(path: Path) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        opened = adapter.open_adapter(path, str(path), Path(scratch))
        replaced = [name for name, updates in opened.updates.items() if isinstance(updates[0], adapter.Replace)]
        facts: dict[str, Any] = {
            "changes": len(opened.updates),
            "replaces": {name: list(opened.tensors.shape(_key(opened.updates[name][0]))) for name in replaced},
            "lora_layers": sorted({name.split(".")[-2] for name in opened.updates if name not in replaced}),
        }
        if opened.brings_tokenizer:
            facts |= _describe_tokenizer(opened.path)
        return facts


def _key(update: adapter.Update) -> str:
    assert isinstance(update, adapter.Replace)
    return update.key


def _describe_tokenizer(path: Path) -> dict[str, Any]:
    encoder = load_encoder(path)
    return {"family": encoder.family.value, "pieces": encoder.vocabulary_size, "tokenizer": encoder.fingerprint}


_DESCRIBERS: dict[Kind, tuple[Callable[[Path], dict[str, Any]], ...]] = {
    Kind.MODEL: (_describe_model, _describe_model_tokenizer),
    Kind.ADAPTER: (_describe_adapter, _describe_updates),
    Kind.TOKENIZER: (_describe_tokenizer,),
}


def _parents(artifact: Artifact) -> dict[str, dict[str, str]]:
    assert artifact.manifest is not None
    parents = {}
    for role, parent in artifact.manifest.parents.items():
        place = find_parent(artifact, role)
        state = "unchanged" if place else "another now" if Path(parent.path).exists() else "no longer there"
        parents[role] = {"path": str(place or parent.path), "fingerprint": parent.fingerprint, "state": state}
    return parents
