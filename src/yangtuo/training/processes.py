"""The processes of a run: one on a desk, many under `torchrun` or `accelerate launch`.

The first process alone writes, speaks and decides; the others follow. They need one file system. This module knows
nothing of models.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from yangtuo import console
from yangtuo.artifacts.draft import Draft, draft
from yangtuo.artifacts.manifest import Artifact, Kind
from yangtuo.config.options import StageConfig


def rank() -> int:
    """This process's rank, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Joins the group, if there is one; from then on all processes but the first are silent."""
    if world_size() > 1:
        PartialState(cpu=not torch.cuda.is_available())
        console.stderr.quiet = console.stdout.quiet = rank() > 0
        atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def broadcast(value: Any) -> Any:
    """The first process's `value`, on all of them; also a point at which all wait for each other."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if world_size() == 1 or not flags:
        return list(flags)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    tensor = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def main_process_first(work: Callable[[], Any]) -> Any:
    """Runs `work` in the first process while the others wait; returns its result in all of them."""
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
