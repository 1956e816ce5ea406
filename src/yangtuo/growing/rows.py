"""Growing the rows of embedding and head: where new rows start, and a model's tensors with those rows in place.

A new row is described by the ids of the old rows that the base would have used in its stead. This module knows ids,
not pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from yangtuo.growing.cooccurrence import Cooccurrence, map_rows
from yangtuo.weights.checkpoint import Tensors
from yangtuo.weights.shape import USUAL, Family

Init = Literal["cooccurrence", "subtoken-mean", "exponential", "mean", "random"]
Role = Literal["embedding", "head", "tied"]
_CHUNK = 2048  # rows handled at once, to bound float32 copies


@dataclass(frozen=True)
class NewRows:
    """How many old rows stay and what each new row is made of."""

    num_kept: int
    """Old rows that keep their place; rows beyond (padding of the vocabulary) are dropped."""
    sources: Sequence[Sequence[int]]
    """For each new row, the old rows it stands for; empty where there are none."""
    init: Init
    seed: int
    counted: Cooccurrence | None = None
    """What stands around each row's token, for cooccurrence."""

    @property
    def num_rows(self) -> int:
        """Rows after growing."""
        return self.num_kept + len(self.sources)


def grow(old: torch.Tensor, rows: NewRows, role: Role = "tied") -> torch.Tensor:
    """The matrix `old` (rows, hidden) with `rows.num_rows` rows, in its dtype; kept rows are bit for bit the same.

    subtoken-mean is the mean of the sources (Gee et al. 2022, Fast Vocabulary Transfer); exponential weighs them by
    powers of two, the last most in an embedding, whose reader has come to the end of the piece, and the first most in
    a head, which says what comes next (Nakash et al. 2025, AdaptiVocab; a tied matrix is both, and gets the mean);
    mean is that of all kept rows (Hewitt 2021); random is normal with the mean and deviation of their entries;
    cooccurrence maps the neighbours that tokens have in text onto the kept rows (`cooccurrence.map_rows`), and takes
    the mean of the sources for tokens that the text lacks.
    """
    assert old.dim() == 2 and rows.num_kept <= old.shape[0], (old.shape, rows.num_kept)
    grown = torch.empty(rows.num_rows, old.shape[1], dtype=old.dtype)
    grown[: rows.num_kept] = old[: rows.num_kept]
    mean = _mean_row(old, rows.num_kept)
    if rows.init == "random":
        _fill_random(grown, rows)
        return grown
    grown[rows.num_kept :] = mean.to(old.dtype)
    if rows.init != "mean":
        for offset, source in enumerate(rows.sources, rows.num_kept):
            if source:
                weights = _source_weights(len(source), rows.init, role)
                grown[offset] = (weights @ old[list(source)].float()).to(old.dtype)
    if rows.init == "cooccurrence":
        _place_by_cooccurrence(grown, rows, role)
    return grown


def _place_by_cooccurrence(grown: torch.Tensor, rows: NewRows, role: Role) -> None:
    counted = rows.counted
    assert counted is not None and len(counted.counts) == rows.num_rows
    features = counted.left_context if role == "head" else counted.both_contexts
    mapped = map_rows(grown[: rows.num_kept], features, counted.counts)
    if mapped is not None:
        met = counted.counts[rows.num_kept :] > 0
        grown[rows.num_kept :][met] = mapped[met].to(grown.dtype)


def _source_weights(count: int, init: Init, role: Role) -> torch.Tensor:
    weights = torch.ones(count)
    if init == "exponential" and role != "tied":
        weights = 2.0 ** torch.arange(count)
        weights = weights if role == "embedding" else weights.flip(0)
    return weights / weights.sum()


def _mean_row(old: torch.Tensor, num_kept: int) -> torch.Tensor:
    total = torch.zeros(old.shape[1], dtype=torch.float64)
    for start in range(0, num_kept, _CHUNK):
        total += old[start : min(start + _CHUNK, num_kept)].double().sum(dim=0)
    return total / num_kept


def _fill_random(grown: torch.Tensor, rows: NewRows) -> None:
    kept = grown[: rows.num_kept]
    sample = kept[:: max(rows.num_kept // _CHUNK, 1)].float()
    generator = torch.Generator().manual_seed(rows.seed)
    noise = torch.randn(len(rows.sources), grown.shape[1], generator=generator)
    grown[rows.num_kept :] = (noise * sample.std() + sample.mean()).to(grown.dtype)


def _grown_bias(old: torch.Tensor, rows: NewRows) -> torch.Tensor:
    """A head's bias (rows,) grown: for a new row the mean of its sources' values, or of all kept ones."""
    kept = old[: rows.num_kept]
    added = [kept[list(source)].float().mean() if source else kept.float().mean() for source in rows.sources]
    return torch.cat([kept, torch.tensor(added).to(old.dtype)])


class GrownTensors:
    """A model's tensors, one at a time, with embedding and head grown; a tied head may be untied."""

    def __init__(self, tensors: Tensors, rows: NewRows, family: Family = USUAL) -> None:
        self._tensors = tensors
        self._rows = rows
        self._replaced: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.embedding, self.head = family.embedding, family.head
        self._was_tied = self.tied = self.head not in tensors.names()
        self._head_bias = self.head.removesuffix("weight") + "bias"

    @property
    def num_kept(self) -> int:
        """Old rows that keep their place."""
        return self._rows.num_kept

    def names(self) -> list[str]:
        """Names of all tensors."""
        return [*self._tensors.names(), self.head] if self._was_tied and not self.tied else self._tensors.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor after growing."""
        shape = self._tensors.shape(self._source(name))
        return (self._rows.num_rows, *shape[1:]) if name in (self.embedding, self.head, self._head_bias) else shape

    def dtype(self, name: str) -> torch.dtype:
        """Number format, which stays."""
        return self._tensors.dtype(self._source(name))

    def get(self, name: str) -> torch.Tensor:
        """The tensor, grown where it has a row for each piece."""
        tensor = self._tensors.get(self._source(name))
        if name == self._head_bias:
            return _grown_bias(tensor, self._rows)
        if name not in (self.embedding, self.head):
            return tensor
        role: Role = "tied" if self._was_tied else "head" if name == self.head else "embedding"
        grown = grow(tensor, self._rows, role)
        key = self.embedding if self.tied else name
        if key in self._replaced:
            places, values = self._replaced[key]
            grown[places] = values
        return grown

    def untie(self) -> None:
        """Gives a tied head rows of its own, which are those of the embedding until they are replaced."""
        if self.tied and self.embedding in self._replaced:
            self._replaced[self.head] = self._replaced[self.embedding]
        self.tied = False

    @property
    def new_places(self) -> torch.Tensor:
        """The ids of the new rows, (num_new,)."""
        return torch.arange(self._rows.num_kept, self._rows.num_rows)

    def replace(self, name: str, places: torch.Tensor, rows: torch.Tensor) -> None:
        """Sets the rows (n, hidden) at the ids `places` (n,), all new ones among them, of the embedding or the head: of
        both where they are tied.
        """
        self._replaced[self.embedding if self.tied else name] = places, rows.to(self.dtype(name))

    def _source(self, name: str) -> str:
        return self.embedding if name == self.head and self._was_tied else name
