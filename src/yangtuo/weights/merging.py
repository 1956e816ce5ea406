"""Adapters folded into their base, tensor by tensor: sums in float32, one rounding at the end.

`MergedTensors` looks like any other checkpoint's tensors and computes each when it is asked for, in blocks of rows, so
that memory holds a block and the result. LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024)
follow PEFT's arithmetic. It refuses to know files, tokenizers and lineage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch

from yangtuo.errors import UserError, WeightsError, raise_all
from yangtuo.weights.adapter import Adapter, Add, Difference, LowRank, Replace, ReplaceRows, Update
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.shape import USUAL, Family

_BLOCK = 1 << 20  # elements computed at a time: 4 MiB of float32, which stays in the processor's cache

Step = tuple[Adapter, Update]


class MergedTensors:
    """The tensors of a base with adapters folded in, in order."""

    def __init__(
        self,
        base: Tensors,
        tied: bool,
        adapters: Sequence[Adapter],
        dtype: torch.dtype | None,
        family: Family = USUAL,
    ) -> None:
        """Plans the merge and checks every name and shape; raises `WeightsError` with all problems at once."""
        self.base = base
        self._dtype = dtype
        self._embedding, self._head = family.embedding, family.head
        self._family = family
        self._names = [name for name in base.names() if not (tied and name == self._head)]
        self._shapes = {name: base.shape(name) for name in self._names}
        self._steps: dict[str, list[Step]] = {}
        self.tied = tied
        if self._embedding not in self._shapes:
            raise WeightsError(
                f"the base has no embedding under the name {self._embedding}", found=", ".join(self._names[:3])
            )
        if self.tied:
            self._shapes[self._head] = self._shapes[self._embedding]
        errors: list[UserError] = []
        for adapter in adapters:
            errors.extend(self._plan(adapter))
        if self.num_rows != self._shapes.get(self._head, self._shapes[self._embedding])[0]:
            errors.append(
                WeightsError(
                    "embedding and head would differ in rows",
                    found=f"{self._shapes[self._embedding][0]:,} and {self._shapes[self._head][0]:,}",
                    expected="an adapter that was trained with both",
                )
            )
        raise_all(errors)
        if not self.tied and self._head not in self._names:
            self._names.append(self._head)

    @property
    def num_rows(self) -> int:
        """Rows of the merged embedding."""
        return self._shapes[self._embedding][0]

    @property
    def steps(self) -> Mapping[str, Sequence[Step]]:
        """What happens to each tensor that changes, in order."""
        return self._steps

    @property
    def num_changed(self) -> int:
        """Tensors that the adapters change."""
        return len(self._steps)

    def names(self) -> list[str]:
        """The base's names, and the head where a trained one unties it."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape after the merge: embedding and head may have grown."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Number format after the merge."""
        kept = self.base.dtype(self.source(name))
        return self._dtype if self._dtype is not None and kept.is_floating_point else kept

    def get(self, name: str) -> torch.Tensor:
        """The merged tensor; raises `WeightsError` where it does not fit into its number format."""
        steps = self._steps.get(name, [])
        if not steps:
            return self.base.get(self.source(name))  # whoever writes it casts it
        folds = [_fold(adapter, update) for adapter, update in steps]
        base = None if isinstance(steps[0][1], Replace) else self.base.get(self.source(name))
        result = torch.empty(self._shapes[name], dtype=self.dtype(name))
        rows = result.shape[0]
        height = max(1, _BLOCK // max(1, result[0].numel()))
        if any(isinstance(update, LowRank) and update.magnitude and update.transposed for _, update in steps):
            height = rows  # DoRA's norm runs down the columns: no block knows it alone
        limit = torch.finfo(result.dtype).max

        def compute(start: int) -> bool:
            block = slice(start, min(start + height, rows))
            value = base[block].to(torch.float32, copy=True) if base is not None else torch.empty(0)
            for fold in folds:
                value = fold(value, block)
            result[block] = value
            least, greatest = torch.aminmax(value)
            return bool(least >= -limit) and bool(greatest <= limit)  # false for NaN too

        # One thread a block instead of all threads in each operation: blocks stay in cache, and nobody waits.
        with one_thread_an_operation() as num_threads, ThreadPoolExecutor(num_threads) as pool:
            if not all(pool.map(compute, range(0, rows, height))):
                raise WeightsError(
                    f"{name} is not finite after the merge, or not in {result.dtype}",
                    expected=f"magnitudes up to {limit:.6g}; a damaged adapter, or a --dtype that is too narrow",
                )
        return result

    def source(self, name: str) -> str:
        """The base's tensor behind a name: a head that was tied starts as the embedding."""
        return self._embedding if name == self._head and self._head not in self.base.names() else name

    def _plan(self, adapter: Adapter) -> list[UserError]:
        errors: list[UserError] = []
        updates = {
            name: [self._oriented(name, update) for update in changes] for name, changes in adapter.updates.items()
        }
        if self.tied:
            self._share_with_head(updates, adapter.ties_embeddings)
            # What went before holds for the head too; it parts from the embedding here, if it does.
            self._steps[self._head] = list(self._steps.get(self._embedding, []))
        unmatched = [name for name in updates if name not in self._shapes]
        if unmatched:
            errors.append(
                WeightsError(
                    f"{adapter.name} trains {len(unmatched)} of {len(updates)} tensors that the base does not have",
                    found=", ".join(unmatched[:4]),
                    expected=", ".join(name for name in self._names[1:4]),
                )
            )
        misfits: list[str] = []
        for name, changes in updates.items():
            if name in self._shapes:
                misfits += filter(None, (self._misfit(name, adapter, update) for update in changes))
                self._steps.setdefault(name, []).extend((adapter, update) for update in changes)
        if misfits:
            errors.append(
                WeightsError(
                    f"{adapter.name} does not fit {len(misfits)} of the {len(updates)} tensors that it trains",
                    found="; ".join(misfits[:3]) + (" …" if len(misfits) > 3 else ""),
                    expected="the base that it was trained on, and adapters in the order of their training",
                )
            )
        if self.tied and not errors:
            self.tied = self._same_result()
        return errors

    def _oriented(self, name: str, update: Update) -> Update:
        """Layers of GPT-2's kind alone are stored as (in, out), whatever `fan_in_fan_out` says; PEFT resets it too."""
        if isinstance(update, LowRank) and self._family.conv1d and name not in (self._embedding, self._head):
            return replace(update, transposed=True)
        return update

    def _share_with_head(self, updates: dict[str, list[Update]], ties: bool) -> None:
        """What an adapter that trains a tied embedding, but names no head, does to the head in PEFT.

        Trained rows, and everything under `ensure_weight_tying`, hold for the head too; any other training leaves the
        head at the base's values, which unties it.
        """
        embedding = updates.get(self._embedding, [])
        if embedding and self._head not in updates:
            shared = [
                update
                for update in embedding
                if ties or isinstance(update, ReplaceRows) or (isinstance(update, Replace) and update.is_base)
            ]
            if shared:
                updates[self._head] = shared
            self._shapes[self._head] = self._shapes[self._embedding]

    def _misfit(self, name: str, adapter: Adapter, update: Update) -> str | None:
        """What is wrong with the update's shape; notes where embedding and head grow."""
        shape = self._shapes[name]
        tensors = adapter.tensors
        if isinstance(update, Replace):
            actual, expected = tensors.shape(update.key), shape
            if name in (self._embedding, self._head) and len(actual) == 2 and actual[1:] == shape[1:]:
                if actual[0] < shape[0]:
                    return f"{name} would shrink from {shape[0]:,} to {actual[0]:,} rows, and vocabularies only grow"
                self._shapes[name] = expected = actual
        elif isinstance(update, ReplaceRows):
            actual, expected = tensors.shape(update.key), (len(update.rows), *shape[1:])
            if update.rows and not 0 <= min(update.rows) <= max(update.rows) < shape[0]:
                return f"{name} has {shape[0]:,} rows, and row {max(update.rows):,} is trained"
        elif isinstance(update, Add):
            actual, expected = tensors.shape(update.key), shape
        elif isinstance(update, Difference):
            actual, expected = tensors.shape(update.tuned), shape
            if update.num_rows is not None and update.num_rows <= shape[0]:
                actual = (shape[0], *actual[1:])  # whatever rows it has beyond those are no matter
        else:
            actual = (tensors.shape(update.b)[0], tensors.shape(update.a)[1])
            expected = shape[::-1] if update.transposed else shape
        return None if actual == expected else f"{name} is {actual} in the adapter and {expected} before it"

    def _same_result(self) -> bool:
        """Whether embedding and head, tied until now, stay equal: by the same steps, or by value."""
        embedding, head = self._steps.get(self._embedding, []), self._steps.get(self._head, [])
        if self._shapes[self._embedding] != self._shapes[self._head]:
            return False
        if embedding != head and not torch.equal(self.get(self._embedding), self.get(self._head)):
            return False
        self._steps.pop(self._head, None)
        return True


@contextmanager
def one_thread_an_operation() -> Iterator[int]:
    """Inside, every torch operation runs on its caller's thread alone; yields the number of threads there were."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def _fold(adapter: Adapter, update: Update) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """The update as a function of a block of rows, float32, and of which rows it is; it may change the block."""
    get = adapter.tensors.get
    if isinstance(update, Replace):
        trained = get(update.key)
        return lambda _, rows: trained[rows].to(torch.float32, copy=True)
    if isinstance(update, Add):
        vector = get(update.key).float() * update.scaling
        return lambda value, rows: value.add_(vector[rows])
    if isinstance(update, Difference):
        return _difference(adapter, update)
    if isinstance(update, ReplaceRows):
        places, source = torch.tensor(update.rows, dtype=torch.long), get(update.key).float()

        def replace(value: torch.Tensor, rows: slice) -> torch.Tensor:
            inside = (places >= rows.start) & (places < rows.stop)
            return value.index_copy_(0, places[inside] - rows.start, source[inside])

        return replace
    return _low_rank(adapter, update)


def _difference(adapter: Adapter, update: Difference) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    tuned, base = adapter.tensors.get(update.tuned), adapter.tensors.get(update.base)
    end = len(tuned) if update.num_rows is None else update.num_rows

    def add(value: torch.Tensor, rows: slice) -> torch.Tensor:
        shared = slice(rows.start, max(rows.start, min(rows.stop, end)))
        value[: shared.stop - shared.start].add_(tuned[shared].float() - base[shared].float(), alpha=update.scale)
        for row, source in update.whole:
            if rows.start <= row < rows.stop:
                value[row - rows.start] = tuned[source].float()
        return value

    return add


def _low_rank(adapter: Adapter, update: LowRank) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """In PEFT's order, so that float32 results are the same: product, scaling, sum, and for DoRA the rescaling."""
    a, b = adapter.tensors.get(update.a).float(), adapter.tensors.get(update.b).float()
    magnitude = adapter.tensors.get(update.magnitude).float() if update.magnitude else None

    def add(value: torch.Tensor, rows: slice) -> torch.Tensor:
        delta = (b @ a[:, rows]).T if update.transposed else b[rows] @ a
        value.add_(delta.mul_(update.scaling))
        if magnitude is None:
            return value
        norm = torch.linalg.norm(value, dim=0 if update.transposed else 1)
        factor = magnitude / norm if update.transposed else (magnitude[rows] / norm).unsqueeze(1)
        return value.mul_(factor)

    return add


def scaled(adapter: Adapter, share: float) -> Adapter:
    """The adapter with a share of what it adds; what it replaces, such as rows, stays whole.

    Raises `WeightsError` for DoRA, whose magnitudes belong to the whole.
    """
    if share == 1:
        return adapter
    if any(
        isinstance(update, LowRank) and update.magnitude for updates in adapter.updates.values() for update in updates
    ):
        raise WeightsError(
            f"{adapter.name} cannot be merged in part",
            found="DoRA, whose magnitudes belong to the whole update",
            expected="LoRA or rsLoRA",
            run="the same command without --lora-scale",
        )
    updates = {
        name: [
            replace(update, scaling=share * update.scaling) if isinstance(update, LowRank | Add) else update
            for update in some
        ]
        for name, some in adapter.updates.items()
    }
    return replace(adapter, updates=updates)
