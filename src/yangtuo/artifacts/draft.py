"""How an artifact is made: in a hidden sibling directory `.NAME.partial` that is renamed at the end.

Whatever stands under an output's name is complete; nothing is ever overwritten.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yangtuo import console
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.artifacts.manifest import (
    MANIFEST,
    STEP_FILE,
    Artifact,
    Kind,
    Manifest,
    Parent,
    list_files,
    read_manifest,
    step_fingerprint,
)
from yangtuo.config.options import StageConfig
from yangtuo.errors import OutputError, TrainingError, UserError

_CANNOT_WRITE = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EEXIST", "ENOTDIR", "ENAMETOOLONG")
}


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
def draft(
    config: StageConfig,
    kind: Kind,
    parents: Mapping[str, Artifact],
    resumable: bool = False,
    reusable: str | None = None,
) -> Iterator[Draft]:
    """Makes the artifact `config.output`: yields a `Draft`, and renames it into place when the block ends well.

    Where the block fails, the working directory is removed, unless `resumable`: then it stays, and the next run with
    an equal step finds it with `Draft.resumed` true. `reusable` names a directory within it whose entries are known by
    their own fingerprints: what is finished there survives a mistake in the inputs and other steps too.
    Raises `OutputError` where the output exists, another process is writing it, or the disk is full.
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
                _clear(work, reusable)
                work.mkdir(exist_ok=True)
                (work / STEP_FILE).write_text(step, encoding="utf-8")
            made = Draft(work, resumed)
            try:
                yield made
                made._artifact = _finish(made, config, kind, parents, step)
            except BaseException as error:
                # Inputs that cannot be used will not be of use the next time; a stopped training run will.
                useless = isinstance(error, UserError) and not isinstance(error, TrainingError | OutputError)
                kept = reusable is not None and any((work / reusable).glob("[!.]*"))
                if resumable and (resumed or not useless or kept):
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


def _clear(work: Path, reusable: str | None) -> None:
    """Removes the working directory, or all of it but the entry `reusable`."""
    if reusable is None or not (work / reusable).is_dir():
        shutil.rmtree(work, ignore_errors=True)
        return
    for entry in work.iterdir():
        if entry.name != reusable:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


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
