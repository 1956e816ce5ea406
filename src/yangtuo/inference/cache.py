"""What engines need and was made on the fly: merged models and GGUF files, kept by fingerprint and bounded.

The directory is that of YANGTUO_CACHE, ~/.cache/yangtuo if not set; at most YANGTUO_CACHE_SIZE (50GB) stay in it, those
that were used last. Nothing in it is needed: it can be removed at any time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from yangtuo.config.options import parse_size


def directory() -> Path:
    """Where the cache lies."""
    return Path(os.environ.get("YANGTUO_CACHE") or Path.home() / ".cache" / "yangtuo").expanduser()


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file or directory called `name`, made by `make` at the path that it is given where it is not there yet.

    Several processes may ask at a time: one makes it. The entries used longest ago go where all are too large.
    """
    root = directory()
    root.mkdir(parents=True, exist_ok=True)
    path, draft = root / name, root / f".{name}.partial"
    with FileLock(root / f".{name}.lock"):
        if not path.exists():
            _remove(draft)
            make(draft)
            draft.rename(path)
        os.utime(path)
    _shrink(root, keep=path)
    return path


def _shrink(root: Path, keep: Path) -> None:
    """Removes what was used longest ago; a process that has an entry open keeps it until it ends."""
    entries = [path for path in root.iterdir() if not path.name.startswith(".")]
    sizes = {path: _size(path) for path in entries}
    excess = sum(sizes.values()) - parse_size(os.environ.get("YANGTUO_CACHE_SIZE", "50GB"))
    for path in sorted(entries, key=lambda path: path.stat().st_mtime):
        if excess > 0 and path != keep:
            _remove(path)
            excess -= sizes[path]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
