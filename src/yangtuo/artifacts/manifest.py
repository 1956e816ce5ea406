"""The manifest `yangtuo.json`, the artifact that it describes, and how one is opened."""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

import yangtuo
from yangtuo import files, hub
from yangtuo.artifacts.fingerprints import SMALL_FILES, deciding_files, digest, hash_file
from yangtuo.config.options import StageConfig, is_address, split_source
from yangtuo.errors import FileError, LineageError

MANIFEST = "yangtuo.json"
STEP_FILE = ".step"


class Kind(StrEnum):
    """What an artifact directory holds."""

    MODEL = "model"
    TOKENIZER = "tokenizer"
    DATASET = "dataset"
    ADAPTER = "adapter"
    EVALUATION = "evaluation"
    EXPORT = "export"


@dataclass(frozen=True)
class Parent:
    """An artifact that another was made from."""

    path: str
    fingerprint: str
    lineage: str | None = None
    """What determined a merged parent before it was made, see `yangtuo.artifacts.lineage`."""
    relative: str | None = None
    """The path as seen from the directory that the artifact stood in when it was made."""


Count = Annotated[int, Field(ge=0, le=files.MAX_COUNT)]


class Amount(TypedDict, total=False):
    """How much text a source of a dataset has, or the lines of a script in an audit."""

    documents: Count
    tokens: Count
    text_tokens: Count
    characters: Count
    base_chars_per_token: float
    chars_per_token: float


class Comparison(TypedDict):
    """A figure of an adapted model beside its base's."""

    figure: str
    base: float
    adapted: float
    difference: float
    difference_interval: list[float] | None


class Details(TypedDict, total=False):
    """What other stages and pages read out of a manifest's details; a stage may write more, and none need be there."""

    lineage: str
    published_from: str
    first_new_row: Count
    new_rows: Count
    related_rows: list[Count]
    init: str
    format: str
    script: list[str]
    widened: bool
    added: Count
    base_vocabulary_size: Count
    vocabulary_size: Count
    sources: dict[str, Amount]
    by_script: dict[str, Amount]
    num_lines: Count
    compared_lines: Count
    changed_lines: Count | None
    dead_pieces: Count
    lost_pieces: Count
    engine_mismatch_lines: Count
    suite: str
    results: dict[str, dict[str, dict[str, Any]]]
    forgetting: dict[str, dict[str, Comparison]]


@dataclass(frozen=True)
class Manifest:
    """The content of `yangtuo.json`; all fingerprints are hexadecimal SHA-256."""

    kind: Kind
    stage: str
    step: str
    """Fingerprint of the stage, its config and the content of its inputs: equal step, equal artifact."""
    config: dict[str, Any]
    parents: dict[str, Parent]
    files: dict[str, str]
    """Relative file name -> SHA-256 of its content."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer inside, see `yangtuo.vocab.identity`."""
    vocabulary_size: int | None = None
    template: str | None = None
    """Fingerprint of the chat template inside."""
    details: dict[str, Any] = field(default_factory=dict)
    version: str = yangtuo.__version__

    @property
    def fingerprint(self) -> str:
        """Identity of the artifact: its kind, and the content of the files that decide what it computes."""
        deciding = deciding_files(self.files)
        return digest([self.kind.value, {name: self.files[name] for name in deciding}])

    def to_json(self) -> str:
        """The manifest as it stands on disk."""
        return json.dumps(
            {**dataclasses.asdict(self), "fingerprint": self.fingerprint}, indent=2, ensure_ascii=False, default=str
        )


@dataclass(frozen=True)
class Artifact:
    """A directory on disk and, unless it is foreign, its manifest."""

    path: Path
    manifest: Manifest | None

    @property
    def fingerprint(self) -> str:
        """The manifest's fingerprint, or one taken from the files of a foreign artifact."""
        return self.manifest.fingerprint if self.manifest else content_fingerprint(self.path)

    @property
    def identity(self) -> str:
        """The fingerprint by which those that were made from it know it, whatever of it `yangtuo publish` rewrote."""
        return (self.manifest and self.manifest.details.get("published_from")) or self.fingerprint

    @property
    def lineage(self) -> str | None:
        """Base and adapters that a merged model was made of, as one fingerprint; None for all other artifacts."""
        return self.manifest.details.get("lineage") if self.manifest else None

    def result(self) -> dict[str, Any]:
        """What `--json` prints: path, kind, fingerprint and the stage's details."""
        assert self.manifest is not None
        return {
            **self.manifest.details,  # first: whatever a stranger's manifest calls so, these four are ours to say
            "path": str(self.path),
            "kind": self.manifest.kind.value,
            "stage": self.manifest.stage,
            "fingerprint": self.manifest.fingerprint,
        }


def open_artifact(reference: str | Path, *kinds: Kind) -> Artifact:
    """Opens a directory, a bare file or a hub id as an artifact of one of `kinds` (none given: any kind).

    Raises `FileError` where nothing is there and `LineageError` where it is an artifact of another kind.
    """
    path = hub.locate(str(reference))
    if path.is_file():
        return Artifact(path, None)
    if not path.exists():
        raise FileError(
            f"{reference} does not exist",
            expected=f"a path to {' or '.join(kinds) or 'an artifact'}, or a hub id such as owner/name",
        )
    manifest = read_manifest(path)
    if manifest and kinds and manifest.kind not in kinds:
        raise LineageError(
            f"{reference} is of the wrong kind",
            found=f"{manifest.kind}, made by yangtuo {manifest.stage}",
            expected=" or ".join(kinds),
            run=f"yangtuo inspect {reference}",
        )
    return Artifact(path, manifest)


def grown_rows(artifact: Artifact) -> dict[str, Any]:
    """The details that say which rows `yangtuo expand` made, for the manifest of a model made from `artifact`."""
    details = artifact.manifest.details if artifact.manifest else {}
    return {key: details[key] for key in ("first_new_row", "new_rows", "related_rows") if key in details}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the directory `path`, or None where it has none."""
    file = path / MANIFEST
    if not os.path.lexists(file):
        return None
    try:
        manifest = files.read_json(file, Manifest)
        files.check(manifest.details, f"{file}, details", Details)
        return manifest
    except FileError as error:
        raise FileError(
            f"{file} is not a manifest that this version can read",
            found=error.found or error.problem,
            expected=f"a file written by yangtuo {yangtuo.__version__} or earlier",
        ) from error


def content_fingerprint(path: Path) -> str:
    """Fingerprint of a file, a directory or an artifact by content; names below a directory count, its own does not."""
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest:
            return manifest.fingerprint
        names = deciding_files(str(file.relative_to(path)) for file in list_inputs(path))
        return digest([names, _hashes(tuple((str(path.resolve() / name), *_stamp(path / name)) for name in names))])
    return _hashes(((str(path.resolve()), *_stamp(path)),))[0]


def state_key(*paths: Path) -> str:
    """Key of what files and directories hold now, for what is made of them: their fingerprints, sizes and times.

    A fingerprint of a manifest says what was written; files that were changed since then make another key.
    """
    states = []
    for path in paths:
        names = deciding_files(list_files(path)) if path.is_dir() else [""]
        states.append([content_fingerprint(path), [(name, *_stamp(path / name)) for name in names]])
    return digest(states)[:24]


@lru_cache(maxsize=64)
def _hashes(files: tuple[tuple[str, int, int], ...]) -> list[str]:
    """Sums of files, given with size and time of change: each state of a directory is read once a command."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda file: hash_file(Path(file[0]), sample=True), files))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    if path.name in SMALL_FILES:
        files.check_limit(path, status.st_size, files.LARGE)
    return status.st_size, status.st_mtime_ns


def parent_of(artifact: Artifact, output: Path) -> Parent:
    """How the manifest of `output` names `artifact`: found again from any working directory."""
    path = os.path.abspath(artifact.path)  # noqa: PTH100  links stay as the user knows them
    relative = os.path.relpath(path, os.path.abspath(output.parent))  # noqa: PTH100
    return Parent(path, artifact.fingerprint, artifact.lineage, relative)


def find_parent(artifact: Artifact, role: str) -> Path | None:
    """Where a parent stands now: under its path, or where it stood as seen from the artifact; None if it is gone."""
    parent = artifact.manifest.parents.get(role) if artifact.manifest else None
    if parent is None:
        return None
    places = [Path(parent.path)]
    if parent.relative is not None:
        places.append(Path(os.path.normpath(artifact.path.parent / parent.relative)))
    return next(
        (place for place in places if place.exists() and content_fingerprint(place) == parent.fingerprint), None
    )


def list_inputs(directory: Path) -> list[Path]:
    """The files of an input directory, sorted: no hidden ones, and no artifacts that were made inside it."""
    paths = files.walk(directory, without=MANIFEST)
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(directory).parts)]


def list_files(directory: Path) -> list[str]:
    """Relative names of all files below `directory`, sorted, without the manifest."""
    names = (str(path.relative_to(directory)) for path in files.walk(directory))
    return sorted(name for name in names if name not in (MANIFEST, STEP_FILE))


def step_fingerprint(config: StageConfig) -> str:
    """Fingerprint of what a step will make: its stage, the options that matter, the content of its inputs."""
    data = {option.name for option in config.options() if option.is_data}
    inputs = {
        name: [_input_identity(reference, is_data=name in data) for reference in references]
        for name, references in config.input_references().items()
    }
    shaping = {
        option.name: str(getattr(config, option.name))
        for option in config.options()
        if option.shapes_result and not option.is_input
    }
    return digest([config.verb, inputs, shaping])


def _input_identity(reference: str, *, is_data: bool) -> list[Any]:
    source = split_source(reference)
    if is_address(source.path):
        return [source.name, source.path]
    path = hub.locate(source.path, is_data=is_data)
    if not path.exists():
        raise FileError(f"{source.path} does not exist", expected="an existing file, directory or hub id")
    return [source.name, source.weight, content_fingerprint(path)]
