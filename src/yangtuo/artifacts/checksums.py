"""Files against the SHA-256 sums that they should have: a manifest's, or a list as others publish it."""

from __future__ import annotations

import re
from pathlib import Path

from yangtuo import console
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.artifacts.manifest import Artifact, list_files
from yangtuo.errors import ConfigError, FileError, UserError, raise_all
from yangtuo.files import check_input, read_bytes


def check_manifest(artifact: Artifact, added: bool = True) -> str:
    """Hashes every file again and says how many; raises `FileError` for all that changed or are missing.

    `added`: for files that the manifest does not name, too. Hidden ones are a hub's or a system's own.
    """
    if artifact.manifest is None:
        raise ConfigError(
            f"{artifact.path} has no manifest to verify against",
            expected="an artifact of yangtuo, or published sums",
            run=f"yangtuo inspect {artifact.path} --sums SHA256SUMS",
        )
    expected = {name: {digest} for name, digest in artifact.manifest.files.items()}
    present = set(list_files(artifact.path))
    errors: list[UserError] = [FileError(f"{artifact.path / name} is missing") for name in set(expected) - present]
    others = sorted(name for name in present - set(expected) if added and not name.startswith("."))
    errors += [FileError(f"{artifact.path / name} has been added") for name in others]
    return _compare(artifact.path, {name: sums for name, sums in expected.items() if name in present}, errors)


def own_file(artifact: Artifact, name: str) -> Path | None:
    """The file `name` of an artifact, None where its manifest names none; raises `FileError` where it changed since."""
    if artifact.manifest is None or name not in artifact.manifest.files:
        return None
    _compare(artifact.path, {name: {artifact.manifest.files[name]}}, [])
    return artifact.path / name


def check_sums(path: Path, sums: Path) -> str:
    """Hashes the files of `path` that `sums` names, and says how many; raises `FileError` for all that differ.

    Any text counts that has a sum and a file's name in one line: sha256sum's, BSD's, a Markdown table. A name with
    several sums, as in a list of several models, may have any of them.
    """
    names = list_files(path) if path.is_dir() else [path.name]
    expected: dict[str, set[str]] = {}
    for line in read_bytes(sums).decode("utf-8", "replace").splitlines():
        for digest in re.findall(r"\b[0-9a-fA-F]{64}\b", line):
            words = {Path(word).name for word in re.split(r"[\s|()=*`]+", line)}
            for name in (name for name in names if Path(name).name in words):
                expected.setdefault(name, set()).add(digest.lower())
    if not expected:
        raise FileError(f"{sums} names no file of {path}", found=", ".join(names[:6]), expected="SUM  NAME in a line")
    return _compare(path if path.is_dir() else path.parent, expected, [])


def _compare(directory: Path, expected: dict[str, set[str]], errors: list[UserError]) -> str:
    total = sum(check_input(directory / name) for name in expected)
    with console.progress("hashing", total, "bytes") as bar:
        for name, sums in expected.items():
            digest = hash_file(directory / name)
            if digest not in sums:
                wanted = " or ".join(sorted(sums))
                errors.append(FileError(f"{directory / name} is not what it was", found=digest, expected=wanted))
            bar.advance((directory / name).stat().st_size)
    raise_all(errors)
    return f"{len(expected)} files"
