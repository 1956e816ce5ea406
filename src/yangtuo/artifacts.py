"""Artifacts: the directories that travel between stages, and the manifest that says what each one is.

An artifact is a directory in the ecosystem's own layout plus `yangtuo.json`. A stage reads some and writes exactly
one, through `draft`: the work happens in a hidden sibling directory `.NAME.partial` that is renamed at the end, so
whatever stands under an output's name is complete. A directory without a manifest is a foreign artifact: accepted,
and fingerprinted by its files. This module knows no tensor, no token and no stage.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yangtuo
from yangtuo import console, hub
from yangtuo.errors import FileError, LineageError, OutputError, TrainingError, UserError
from yangtuo.options import StageConfig, split_source

MANIFEST = "yangtuo.json"
STEP_FILE = ".step"
_SAMPLED_ABOVE = 64 << 20  # foreign weight files larger than this are fingerprinted by samples, in bytes
_CHUNK = 1 << 20
_CANNOT_WRITE = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EEXIST", "ENOTDIR", "ENAMETOOLONG")
}


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
    """What determined a merged parent before it was made, see `yangtuo.weights.lineage`."""


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
        """Identity of the artifact: its kind and the content of its files."""
        return _digest([self.kind.value, self.files])

    def to_json(self) -> str:
        """The manifest as it stands on disk."""
        return json.dumps(
            {**dataclasses.asdict(self), "fingerprint": self.fingerprint}, indent=2, ensure_ascii=False, default=str
        )

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Reads a manifest; raises `FileError` where it is damaged."""
        try:
            values = json.loads(text)
            values.pop("fingerprint", None)
            values["kind"] = Kind(values["kind"])
            values["parents"] = {role: Parent(**parent) for role, parent in values["parents"].items()}
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileError(
                f"{path} is not a manifest that this version can read",
                found=str(error),
                expected=f"a file written by yangtuo {yangtuo.__version__} or earlier",
            ) from error


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
    def lineage(self) -> str | None:
        """Base and adapters that a merged model was made of, as one fingerprint; None for all other artifacts."""
        return self.manifest.details.get("lineage") if self.manifest else None

    def result(self) -> dict[str, Any]:
        """What `--json` prints: path, kind, fingerprint and the stage's details."""
        assert self.manifest is not None
        return {
            "path": str(self.path),
            "kind": self.manifest.kind.value,
            "stage": self.manifest.stage,
            "fingerprint": self.manifest.fingerprint,
            **self.manifest.details,
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


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the directory `path`, or None where it has none."""
    file = path / MANIFEST
    return Manifest.from_json(file.read_text(encoding="utf-8"), file) if file.is_file() else None


def content_fingerprint(path: Path) -> str:
    """Fingerprint of a file, a directory or an artifact by content; names below a directory count, its own does not."""
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest:
            return manifest.fingerprint
        names = [name for name in list_files(path) if not name.startswith(".")]
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(lambda name: hash_file(path / name, sample=True), names)
            return _digest([names, list(hashes)])
    return hash_file(path, sample=True)


def hash_file(path: Path, *, sample: bool = False) -> str:
    """SHA-256 of a file; `sample` takes size and 256 spread chunks of a weight file above 64 MiB instead of all."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if sample and size > _SAMPLED_ABOVE and path.suffix in {".safetensors", ".bin", ".pth", ".pt", ".gguf"}:
            digest.update(str(size).encode())
            for index in range(256):
                file.seek(index * (size - 4096) // 255)
                digest.update(file.read(4096))
        else:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def list_files(directory: Path) -> list[str]:
    """Relative names of all files below `directory`, sorted, without the manifest."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
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
    return _digest([config.verb, inputs, shaping])


def _input_identity(reference: str, *, is_data: bool) -> list[Any]:
    source = split_source(reference)
    path = hub.locate(source.path, is_data=is_data)
    if not path.exists():
        raise FileError(f"{source.path} does not exist", expected="an existing file, directory or hub id")
    return [source.name, source.weight, content_fingerprint(path)]


class Draft:
    """An artifact in the making: write into `path`, say what it is with `describe`."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self.hashes: dict[str, str] = {}
        """SHA-256 of files that the stage hashed while it wrote them, by relative name."""
        self._described: dict[str, Any] = {}
        self._artifact: Artifact | None = None

    def describe(
        self,
        *,
        tokenizer: str | None = None,
        vocabulary_size: int | None = None,
        template: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Sets what the manifest says beyond the stage's config and parents."""
        self._described = {
            "tokenizer": tokenizer,
            "vocabulary_size": vocabulary_size,
            "template": template,
            "details": dict(details or {}),
        }

    @property
    def artifact(self) -> Artifact:
        """The finished artifact; only after the `draft` block has ended."""
        assert self._artifact is not None, "the draft is not finished"
        return self._artifact


@contextmanager
def draft(config: StageConfig, kind: Kind, parents: Mapping[str, Artifact], resumable: bool = False) -> Iterator[Draft]:
    """Makes the artifact `config.output`: yields a `Draft`, and renames it into place when the block ends well.

    Where the block fails, the working directory is removed, unless `resumable`: then it stays, and the next run with
    an equal step finds it with `Draft.resumed` true. Raises `OutputError` where the output exists, another process
    is writing it, or the disk is full.
    """
    output = config.output_path()
    refuse_existing(output)
    step = step_fingerprint(config)
    work = output.parent / f".{output.name}.partial"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output):
            resumed = resumable and _read_step(work) == step
            if not resumed:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                (work / STEP_FILE).write_text(step, encoding="utf-8")
            made = Draft(work, resumed)
            try:
                yield made
                made._artifact = _finish(made, config, kind, parents, step)
            except BaseException as error:
                # Inputs that cannot be used will not be of use the next time; a stopped training run will.
                useless = isinstance(error, UserError) and not isinstance(error, TrainingError | OutputError)
                if resumable and (resumed or not useless):
                    console.note(f"unfinished work is kept in {work}; the same command goes on from there")
                else:
                    shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        free = shutil.disk_usage(_existing_parent(output)).free
        raise OutputError(
            f"cannot write {output}: {error.strerror}",
            found=f"{free / 1e9:.2f} GB free",
            run=f"df -h {_existing_parent(output)}",
        ) from error


def refuse_existing(output: Path) -> None:
    """Raises `OutputError` where something stands under the output's name."""
    if output.exists() or output.is_symlink():
        manifest = read_manifest(output) if output.is_dir() else None
        raise OutputError(
            f"the output {output} exists and is never overwritten",
            found=f"{manifest.kind}, made by yangtuo {manifest.stage}" if manifest else "a foreign file or directory",
            expected="a name that is free",
            run=f"yangtuo inspect {output}, then choose another --output or remove it",
        )


def _finish(made: Draft, config: StageConfig, kind: Kind, parents: Mapping[str, Artifact], step: str) -> Artifact:
    names = list_files(made.path)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: made.hashes.get(name) or hash_file(made.path / name), names)
        files = dict(zip(names, hashes, strict=True))
    manifest = Manifest(
        kind=kind,
        stage=config.verb,
        step=step,
        config=config.to_dict(),
        parents={role: Parent(str(p.path), p.fingerprint, p.lineage) for role, p in parents.items()},
        files=files,
        **made._described,
    )
    (made.path / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
    (made.path / STEP_FILE).unlink()
    output = config.output_path()
    refuse_existing(output)
    made.path.rename(output)
    return Artifact(output, manifest)


def _read_step(work: Path) -> str | None:
    file = work / STEP_FILE
    return file.read_text(encoding="utf-8") if file.is_file() else None


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    lock = output.parent / f".{output.name}.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is writing {output}", expected="one writer at a time", run="wait until it has ended"
            ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _digest(value: Sequence[Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
