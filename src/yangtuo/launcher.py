"""What a launcher (`torchrun`, `accelerate launch`) tells each of its processes, and how they report one error once.

The launcher's own key-value store is used for that: it is there before any process group, and when one has broken.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import Any

_FAILED, _SHOWN = "yangtuo/failed", "yangtuo/shown"
_PATIENCE = timedelta(seconds=10)


def rank() -> int:
    """This process's rank, 0 for the main or only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_to_fail() -> bool:
    """Whether this process has to show its error, being the first of all to fail.

    The others return when the error has been shown: a launcher kills all processes as soon as one has ended.
    """
    store = _store()
    if store is None or store.add(_key(_FAILED), 1) == 1:
        return True
    with contextlib.suppress(RuntimeError):  # the first was killed before it could speak
        store.wait([_key(_SHOWN)], _PATIENCE)
    return False


def error_is_shown() -> None:
    """Lets the other processes end."""
    store = _store()
    if store is not None:
        store.set(_key(_SHOWN), "1")


def another_has_failed() -> bool:
    """Whether some process has failed: what follows from that in the others is noise."""
    store = _store()
    return store is not None and bool(store.add(_key(_FAILED), 0) > 0)


def _key(name: str) -> str:
    return f"{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> Any:
    if world_size() == 1:
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return None
    try:
        return TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=_PATIENCE)
    except (RuntimeError, ValueError):
        return None  # the store is gone with the launcher
