"""The processes of a run: one on a desk, many under `torchrun` or `accelerate launch`.

The main process alone writes, speaks and decides; the others follow. They need one file system. This module does not
depend on models.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from yangtuo import console
from yangtuo.artifacts.draft import Draft, draft
from yangtuo.artifacts.manifest import Artifact, Kind
from yangtuo.config.options import StageConfig
from yangtuo.launcher import rank, world_size

_PATIENCE = timedelta(days=30)
_groups: list[Any] = []

__all__ = ["any_rank", "broadcast", "main_process_first", "rank", "shared_draft", "start", "world_size"]


def start() -> None:
    """Joins the group, if there is one; from then on all processes but the main one are silent."""
    if world_size() == 1:
        return
    PartialState(cpu=not torch.cuda.is_available())
    console.stderr.quiet = console.stdout.quiet = rank() > 0
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if _control_group() is None:
        # Objects and waiting go through a group of their own, on the CPU: the main process may work for hours, at
        # text or at a merge, while the others wait, and the timeout that finds a hung card must not end that.
        _groups.append(distributed.new_group(backend="gloo", timeout=_PATIENCE))
        atexit.register(_leave)


def _control_group() -> Any:
    return _groups[0] if _groups else None


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def broadcast(value: Any) -> Any:
    """The main process's `value`, on all of them; also a point at which all wait for each other."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, group=_control_group(), device=torch.device("cpu"))
    return box[0]


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if world_size() == 1 or not flags:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX, group=_control_group())
    return [bool(flag) for flag in tensor.tolist()]


def main_process_first(work: Callable[[], Any]) -> Any:
    """Runs `work` in the main process while the others wait, however long; returns its result in all of them."""
    return broadcast(work() if rank() == 0 else None)


@contextmanager
def shared_draft(config: StageConfig, kind: Kind, parents: Mapping[str, Artifact]) -> Iterator[Draft]:
    """A resumable `artifacts.draft.draft` that the first process makes and finishes, and all of them write into."""
    if rank() > 0:
        path, resumed = broadcast(None)
        follower = Draft(path, resumed)
        yield follower
        follower._artifact = broadcast(None)
        return
    with draft(config, kind, parents, resumable=True) as made:
        broadcast((made.path, made.resumed))
        yield made
    broadcast(made.artifact)
