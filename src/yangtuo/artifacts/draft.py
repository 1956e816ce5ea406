"""How an artifact is made: in a hidden sibling directory `.NAME.partial` that is renamed at the end.

Whatever stands under an output's name is complete, and nothing is ever overwritten. The end is one chain: hash, write
the manifest, which makes the work a finished artifact, remove what it could have been resumed from, rename. Killed at
any link of it, the same command goes on from there (`finish_earlier`). A directory that is not this command's own is
never removed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yangtuo import console, files
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.artifacts.manifest import (
    MANIFEST,
    STEP_FILE,
    Artifact,
    Kind,
    Manifest,
    list_files,
    parent_of,
    read_manifest,
    step_fingerprint,
)
from yangtuo.config.options import NO_OUTPUT, StageConfig, split_source
from yangtuo.errors import OutputError, TrainingError, UserError

LOCK_FILE = ".lock"
_MARKS = {STEP_FILE, f"{STEP_FILE}.new", LOCK_FILE}
_WHOLE = (MANIFEST, "config.json", "adapter_config.json", "params.json", "tokenizer.json", "tokenizer.model")
_RESUMABLE = "resumable"
# Numbers by which libraries that hide an OSError still tell it, and what torch's archive writer says instead.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITE_FAILED = (*(f"os error {number}" for number in _FULL), *map(os.strerror, _FULL), "file write failed")


class Draft:
    """An artifact in the making: write into `path`, say what it is with `describe`."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self.hashes: dict[str, str] = {}
        """SHA-256 of files that the stage hashed while it wrote them, by relative name."""
        self.scratch: set[str] = set()
        """Names in `path` that are no part of the artifact; they stay until it is finished."""
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
    their own fingerprints: what is finished there survives a mistake in the inputs and other steps too. Raises
    `OutputError` where the output exists, another process or another command's work stands in the way, or the disk is
    full.
    """
    output = config.output_path()
    refuse_inside_inputs(config)
    with _explained(output), _working(output) as work:
        step = step_fingerprint(config)
        resumed = _take_over(work, step, config.verb, resumable, reusable)
        made = Draft(work, resumed)
        try:
            yield made
            _describe(made, config, kind, parents, step)
        except BaseException as error:
            # Inputs that cannot be used will not be of use the next time; a stopped training run will.
            useless = isinstance(error, UserError) and not isinstance(error, TrainingError | OutputError)
            kept = reusable is not None and any((work / reusable).glob("[!.]*"))
            if resumable and (resumed or not useless or kept):
                console.note(f"unfinished work is kept in {work}; the same command goes on from there")
            else:
                _clear(work)
            raise
        made._artifact = _put_in_place(work, output)


def finish_earlier(config: StageConfig) -> Artifact | None:
    """The artifact that an earlier run of the same command finished, but was kept from putting in place.

    None where there is none, or where it is not what its manifest says.
    """
    if getattr(config, "output", None) is None:
        return None
    output = config.output_path()
    work = _work_path(output)
    if work.is_symlink() or not (work / MANIFEST).is_file() or os.path.lexists(output):
        return None
    with _explained(output), _working(output) as work:
        manifest = read_manifest(work)
        if manifest is None or manifest.step != step_fingerprint(config):
            return None
        if any(not (work / name).is_file() or hash_file(work / name) != sum_ for name, sum_ in manifest.files.items()):
            console.warn(f"{work} is damaged, and is made again")
            (work / MANIFEST).unlink()
            if not (work / STEP_FILE).is_file():
                _clear(work)
            return None
        console.note(f"an earlier run had finished {output}; it is put in place")
        return _put_in_place(work, output)


def refuse_existing(output: Path) -> None:
    """Raises `OutputError` where something stands under the output's name."""
    if output != NO_OUTPUT and os.path.lexists(output):
        raise OutputError(
            f"the output {output} exists and is never overwritten",
            found="an artifact" if (output / MANIFEST).is_file() else "a foreign file or directory",
            expected="a name that is free",
            run=f"yangtuo inspect {output}, then choose another --output or remove it",
        )


def refuse_other_work(config: StageConfig) -> None:
    """Raises `OutputError` where the unfinished work of another command waits under the output's name."""
    work = _work_path(config.output_path())
    if work.is_symlink() or work.exists():
        _check_owner(work, step_fingerprint(config), config.verb)


def refuse_inside_inputs(config: StageConfig) -> None:
    """Raises `OutputError` where a command would write into a model or an artifact that it reads.

    A directory of texts may hold outputs: reading it leaves artifacts out.
    """
    references = (reference for given in config.input_references().values() for reference in given)
    inputs = [
        path for path in (Path(split_source(reference).path) for reference in references) if _holds_one_thing(path)
    ]
    for source in inputs:
        if config.output_path().resolve().is_relative_to(source.resolve()):
            raise OutputError(f"{config.output_path()} lies inside {source}", expected="a place outside of inputs")


def _holds_one_thing(path: Path) -> bool:
    return any((path / name).is_file() for name in _WHOLE)


def _work_path(output: Path) -> Path:
    return output.parent / f".{output.name}.partial"


@contextmanager
def _working(output: Path) -> Iterator[Path]:
    """The working directory of `output`, locked; an empty one is removed at the end.

    The lock lies inside, and so goes where the directory goes: no name beside it is touched.
    """
    refuse_existing(output)
    work = _work_path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if work.is_symlink() or (work.exists() and not work.is_dir()) or _is_foreign(work):
        raise _in_the_way(work)
    work.mkdir(exist_ok=True)
    lock = FileLock(work / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError) as error:
        raise OutputError(
            f"another process is writing {output}", expected="one writer at a time", run="wait until it has ended"
        ) from error
    try:
        refuse_existing(output)
        yield work
    finally:
        if work.is_dir() and {path.name for path in work.iterdir()} <= _MARKS:
            _remove_empty(work)
        lock.release()


def _is_foreign(work: Path) -> bool:
    """Whether a directory holds something, and no mark of ours."""
    if not work.is_dir() or (work / STEP_FILE).is_file():
        return False
    names = {path.name for path in work.iterdir()}
    return not names <= _MARKS and MANIFEST not in names


def _take_over(work: Path, step: str, verb: str, resumable: bool, reusable: str | None) -> bool:
    """Makes the locked directory ready for a step; whether unfinished work of the same step waits in it."""
    if _check_owner(work, step, verb) != step or not resumable:
        _clear(work, {reusable} if reusable else set())
        new = work / f"{STEP_FILE}.new"
        new.write_text("\n".join((step, verb, _RESUMABLE if resumable else "")), encoding="utf-8")
        new.replace(work / STEP_FILE)
        return False
    return True


def _check_owner(work: Path, step: str, verb: str) -> str | None:
    """The step whose work waits in a directory; raises `OutputError` where it is another's, and of use to them.

    That is what can be resumed, of another verb or with checkpoints.
    """
    if work.is_symlink() or not work.is_dir() or _is_foreign(work):
        raise _in_the_way(work)
    if (work / MANIFEST).is_file():
        raise _finished(work, work.parent / work.name.removeprefix(".").removesuffix(".partial"))
    mark = work / STEP_FILE
    if not mark.is_file():
        return None
    lines = files.read_bytes(mark).decode("utf-8", "replace").split("\n")
    owner, its_verb, state = lines if len(lines) == 3 else (lines[0], "", _RESUMABLE)  # of an earlier version
    checkpoints = sorted(path.name for path in work.glob("checkpoints/checkpoint-*"))
    waiting = checkpoints or sorted(path.name for path in work.iterdir() if path.name not in _MARKS)
    if state == _RESUMABLE and waiting and owner != step and (checkpoints or its_verb != verb):
        raise OutputError(
            f"unfinished work of another run stands in {work}: its command, its options or its data were others",
            found=", ".join(waiting[:8]),
            expected="the same options and data, to go on from there, or another --output",
            run=f"rm -r {work}, to give it up",
        )
    return owner


def _describe(made: Draft, config: StageConfig, kind: Kind, parents: Mapping[str, Artifact], step: str) -> None:
    """Hashes what was made and writes the manifest, in one step: from then on the artifact is finished."""
    names = [name for name in list_files(made.path) if Path(name).parts[0] not in made.scratch | _MARKS]
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: made.hashes.get(name) or hash_file(made.path / name), names)
        sums = dict(zip(names, hashes, strict=True))
    manifest = Manifest(
        kind=kind,
        stage=config.verb,
        step=step,
        config=config.to_dict(),
        parents={role: parent_of(p, config.output_path()) for role, p in parents.items()},
        files=sums,
        **made._described,
    )
    new = made.path / f"{STEP_FILE}.new"
    new.write_text(manifest.to_json() + "\n", encoding="utf-8")
    for name in (*names, new.name):
        to_disk(made.path / name)
    new.replace(made.path / MANIFEST)
    to_disk(made.path)


def _put_in_place(work: Path, output: Path) -> Artifact:
    """Renames finished work, less all that its manifest does not name; raises `OutputError` where the name is taken."""
    manifest = read_manifest(work)
    assert manifest is not None
    _clear(work, keep={MANIFEST, *(Path(name).parts[0] for name in manifest.files)})
    (work / LOCK_FILE).unlink(missing_ok=True)  # finished work needs none, wherever it goes
    try:
        refuse_existing(output)
        work.rename(output)
    except OSError as error:
        raise _finished(work, output, error.strerror) from error
    except OutputError as error:
        raise _finished(work, output, error.problem) from error
    to_disk(output.parent)
    return Artifact(output, manifest)


def to_disk(path: Path) -> None:
    """Has the system write a file or a directory's names to the disk, so that a power cut cannot take them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(work: Path, keep: Collection[str] = ()) -> None:
    """Removes what stands in a working directory of ours; the lock stays, for it is held."""
    for path in work.iterdir():
        if path.name in keep or path.name == LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_empty(work: Path) -> None:
    for name in _MARKS:
        (work / name).unlink(missing_ok=True)
    try:
        work.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the next writer is in it already
            raise


def _in_the_way(work: Path) -> OutputError:
    return OutputError(
        f"{work} stands where the artifact would be made, and is nothing of yangtuo's",
        expected="a free name; what is not ours is never removed",
        run=f"mv {work} ELSEWHERE, or choose another --output",
    )


def _finished(work: Path, output: Path, reason: str | None = None) -> OutputError:
    return OutputError(
        f"{output} is finished, but not under its name",
        found=f"{reason or 'an earlier run was kept from it'}; the whole artifact is {work}",
        expected="a free name",
        run=f"mv -T {work} {output}, once that name is free, or mv -T {work} ANOTHER",
    )


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    """Turns what the system says about writing into the one message for it; whatever else goes wrong goes through."""
    try:
        yield
    except Exception as error:
        told = _write_failure(error, output)
        if told is None:
            raise
        raise told from error


def _write_failure(error: Exception, output: Path) -> UserError | None:
    """What an error says about writing `output`, or None; torch and safetensors have errors of their own for it."""
    if isinstance(error, UserError):
        return None
    reason = files.explain(error) if isinstance(error, OSError) else None
    full = any(text in str(error) for text in _WRITE_FAILED)
    if not full and (reason is None or not _is_ours(error, output)):
        return reason
    place = _existing_parent(output)
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return OutputError(
        f"cannot write {output}: {said}",
        found=f"{shutil.disk_usage(place).free / 1e9:.2f} GB free",
        run=(reason and reason.run) or f"df -h {place}",
    )


def _is_ours(error: Exception, output: Path) -> bool:
    """Whether an error is about what a draft writes: without a name, or with one on the way to the output."""
    name = getattr(error, "filename", None)
    if name is None:
        return True
    path, place = Path(os.fsdecode(name)).absolute(), output.absolute()
    return place.is_relative_to(path) or path.is_relative_to(_work_path(place))


def _existing_parent(path: Path) -> Path:
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
