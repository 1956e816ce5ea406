"""An artifact as it is given away: its files and manifest without the paths, names and keys of this machine.

What the files compute stays as it is, and so does the fingerprint, but where a setting names the base by a path: there
the manifest keeps the old fingerprint as `published_from`, by which lineage goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from yangtuo import files
from yangtuo.artifacts.checksums import check_manifest
from yangtuo.artifacts.manifest import MANIFEST, Artifact, Manifest, find_parent, open_artifact
from yangtuo.errors import FileError, UserError, raise_all

CARD = "README.md"
_NAMES_OF_BASE = {
    "adapter_config.json": "base_model_name_or_path",
    "config.json": "_name_or_path",
    "tokenizer_config.json": "name_or_path",
}
# Beginning at the root, at home, or at the working directory or above it; none of a URL's slashes.
_PATH = re.compile(
    r"(?<![\w:/.<>=-])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?=[\w.~-])[^\s\"'`,;=|]*|(?<==)(?:~|\.{1,2})?/[^\s\"'`,;|]*"
)
_CACHED = re.compile(r"models--(.+?)--(.+?)/snapshots/([^/]+)")
_CACHED_MODELSCOPE = re.compile(r"modelscope/.*?models/([^/]+/[^/]+)")
_KEY = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b|\bms-[0-9a-f]{8}-[0-9a-f-]{27}\b")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf", ".npy", ".model")
_HEADER = 1 << 20  # bytes of one of them that may name something


def portable_name(reference: str) -> str:
    """A reference without its place on this machine: a hub id, that of a cached snapshot too, or the last name."""
    if match := _CACHED.search(reference):
        return f"{match[1]}/{match[2]}@{match[3]}"
    if match := _CACHED_MODELSCOPE.search(reference):
        return f"modelscope:{match[1].replace('___', '.')}"
    if re.fullmatch(r"(modelscope:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?", reference):
        return reference
    return PurePosixPath(reference.replace("\\", "/")).name or reference


def without_paths(value: Any) -> Any:
    """A JSON value in which every path of this machine is its last name only, keys included."""
    if isinstance(value, str):
        return _PATH.sub(lambda match: portable_name(match[0]), value)
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def history(artifact: Artifact) -> list[Artifact]:
    """The artifacts that this one was made from, those first that came first, itself last; as far as they are there."""
    ancestors: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for role in artifact.manifest.parents if artifact.manifest else ():
            place = find_parent(artifact, role)
            if place is not None and str(place) not in ancestors:
                visit(open_artifact(place))
        ancestors[str(artifact.path)] = artifact

    visit(artifact)
    return list(ancestors.values())


def stage_files(artifact: Artifact, directory: Path, card: str, base: str | None) -> Manifest:
    """Lays out what is to be uploaded in `directory`: the artifact's own files, the card and a portable manifest.

    Large files are linked, not copied. `base` is the hub id of an adapter's base. Raises `FileError`, before anything
    is written, where a file is not what the manifest says, lies outside of the artifact or names this machine or a key.
    """
    manifest = artifact.manifest
    assert manifest is not None
    check_manifest(artifact, added=False)
    outside = [name for name in manifest.files if name.startswith("/") or ".." in Path(name).parts]
    raise_all([FileError(f"the manifest of {artifact.path} names {name}, which lies outside") for name in outside])
    rewritten = dict(_rewritten(artifact, base))
    written = {name: hashlib.sha256(data).hexdigest() for name, data in rewritten.items()}
    sums = {name: manifest.files[name] for name in manifest.files if name != CARD} | written
    portable = dataclasses.replace(
        manifest,
        config=without_paths({key: _typed(value) for key, value in manifest.config.items()}),
        parents={
            role: dataclasses.replace(parent, path=portable_name(parent.path), relative=None)
            for role, parent in manifest.parents.items()
        },
        files=sums | {CARD: hashlib.sha256(card.encode()).hexdigest()},
        details=without_paths(_without_examples(manifest.details))
        | ({"published_from": artifact.identity} if written else {}),
    )
    texts = {**rewritten, CARD: card.encode(), MANIFEST: (portable.to_json() + "\n").encode()}
    raise_all(list(_telling(artifact, sums, texts)))
    _lay_out(artifact, directory, sums, texts)
    return portable


def _without_examples(value: Any) -> Any:
    """Details without rows of the data, which are kept to be looked at here."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_examples(item) for key, item in value.items() if key != "examples"}


def _typed(value: Any) -> Any:
    """A config's value with references of more than two parts shortened: they are places, and no hub ids."""
    if isinstance(value, list | tuple):
        return [_typed(item) for item in value]
    if isinstance(value, str) and value.count("/") > 1 and " " not in value:
        name, equals, rest = value.rpartition("=")
        return f"{name}{equals}{portable_name(rest)}"
    return value


def _rewritten(artifact: Artifact, base: str | None) -> Iterator[tuple[str, bytes]]:
    """The settings that name the base by a path, with its hub id or its name instead."""
    assert artifact.manifest is not None
    for name, key in _NAMES_OF_BASE.items():
        if name not in artifact.manifest.files:
            continue
        values = files.read_json(artifact.path / name)
        given = values.get(key)
        if isinstance(given, str) and (Path(given).is_absolute() or Path(given).exists() or given.startswith("~")):
            values[key] = base if base and name == "adapter_config.json" else portable_name(given)
            yield name, (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _telling(artifact: Artifact, names: Mapping[str, str], texts: Mapping[str, bytes]) -> Iterator[UserError]:
    """What would tell others of this machine: paths of its directories, and keys of a hub."""
    assert artifact.manifest is not None
    known = [Path.cwd(), artifact.path.resolve().parent]
    known += [Path(parent.path).parent for parent in artifact.manifest.parents.values()]
    places = {f"{place}/".encode() for place in known if place.is_absolute() and len(place.parts) > 2}
    places.add(f"{Path.home()}/".encode())
    for name in sorted({*names, *texts}):
        if name in texts:
            data = texts[name]
        else:
            with files.open_input(artifact.path / name) as file:
                data = file.read(_HEADER if name.endswith(_WEIGHTS) else files.LARGE)
        if _KEY.search(data):
            yield FileError(f"{name} holds what looks like a key of a hub, and is not uploaded")
        if place := next((place for place in places if place in data), None):
            yield FileError(
                f"{name} names a directory of this machine, and is not uploaded",
                found=place.decode(),
                expected="files that tell nothing of where they were made",
            )


def _lay_out(artifact: Artifact, directory: Path, names: Mapping[str, str], texts: Mapping[str, bytes]) -> None:
    """Writes the texts and links to all other files; what an earlier try laid out there is brought up to date."""
    for name in {*names, *texts}:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            path.write_bytes(texts[name])
        elif not path.is_symlink():
            path.symlink_to((artifact.path / name).resolve())
