"""Checkpoints that can be trusted: a mark, written last, says which files a checkpoint has and what they hold.

A process killed while it writes a checkpoint leaves one without a mark, or whose mark does not fit; the newest whole
one is taken instead. This module does not care what the files mean.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from yangtuo import console, files
from yangtuo.artifacts.draft import to_disk
from yangtuo.artifacts.fingerprints import hash_file
from yangtuo.artifacts.manifest import list_files
from yangtuo.errors import FileError

_MARK = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Writes the mark of a checkpoint whose files are all there, in one step (rename)."""
    sums = {name: hash_file(checkpoint / name) for name in list_files(checkpoint) if name != _MARK}
    draft = checkpoint / f".{_MARK}"
    draft.write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for name in (*sums, draft.name):
        to_disk(checkpoint / name)
    draft.replace(checkpoint / _MARK)
    to_disk(checkpoint)


def latest_complete(directory: Path, last_step: int | None = None) -> Path | None:
    """The newest whole checkpoint in `directory`, none after `last_step`.

    Newer ones that are damaged are named in a warning and removed.
    """
    for checkpoint in sorted(directory.glob("checkpoint-*"), key=step_of, reverse=True):
        damage = _damage(checkpoint)
        if damage is None and last_step is not None and step_of(checkpoint) > last_step:
            damage = f"the log of the run is damaged after step {last_step}"
        if damage is None:
            return checkpoint
        console.warn(f"{checkpoint.name} cannot be used: {damage}; an earlier one is taken")
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _damage(checkpoint: Path) -> str | None:
    mark = checkpoint / _MARK
    if not mark.is_file():
        return "it was not finished"
    try:
        sums = files.read_json(mark, dict[str, str])
    except FileError:  # a power cut leaves names without content
        return f"{_MARK} is damaged"
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if hash_file(path) != expected:
            return f"{name} is not what was written"
    return None
