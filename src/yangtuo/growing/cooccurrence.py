"""Rows from the neighbours that tokens have: counted in text, and mapped onto a base's own rows where both are known.

Tokens of both languages stand in the same text, so their co-occurrence puts old and new ones into one space. A linear
map from that space to the base's rows, fitted on the old tokens, then says where the new ones belong. No donor model.
This module knows ids, not texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Ids = Sequence[int] | npt.NDArray[np.int32]

WINDOW = 4
"""Tokens on each side that count, each as the inverse of its distance."""
NEW_LANGUAGE = 0.1
"""The share of new tokens from which on a stretch of text is one of the new language."""
_SMOOTHING = 0.75  # power of the context's frequency (Levy et al. 2015)
_PENALTY = 0.1  # ridge; chosen by experiment, docs/design/011-expansion.md
_MIN_COUNT = 10  # an old row that the text has less often says little
_MAX_COUNT = 200.0  # beyond it, more occurrences add no certainty
_DIMENSIONS = 512
_RARE = 1e-3  # share of the other documents' tokens up to which a row can be spared there
_PENDING = 1 << 22  # tokens between two additions to the table
_POWER_STEPS = 4
_CHUNK = 2048


@dataclass(frozen=True)
class Cooccurrence:
    """What stands around each token, as float32 features of shape (num_rows, dimensions + 1), and how often it stands.

    The last feature is the token's log frequency, which a head has to know.
    """

    both_contexts: torch.Tensor
    left_context: torch.Tensor
    counts: torch.Tensor
    counts_new: torch.Tensor
    """How often each token stands in documents of the new language."""

    def related_rows(self, num_old: int) -> list[int]:
        """The old rows that documents of the new language use more than the others do, by their shares, and that the
        others hardly need: what the base has of the new language already. None without other documents.
        """
        here, elsewhere = self.counts_new, self.counts - self.counts_new
        if not elsewhere.sum():
            return []
        share = elsewhere / elsewhere.sum()
        chosen = (here / here.sum().clamp_min(1) > share) & (share <= _RARE) & (here >= _MIN_COUNT)
        return [int(row) for row in chosen[:num_old].nonzero().ravel()]


def count_cooccurrence(
    documents: Iterable[Ids], num_old: int, num_rows: int, dimensions: int, seed: int = 0
) -> Cooccurrence:
    """Counts the neighbours of each token in `documents` and factors the counts; ids from `num_old` on are new.

    Positive pointwise mutual information, then a truncated singular value decomposition (Levy and Goldberg 2014).
    Memory grows with the number of different pairs, not with the text.
    """
    following, counts, counts_new = _count(documents, num_old, num_rows)
    dimensions = min(dimensions, _DIMENSIONS, num_rows - 1)
    frequency = torch.log(counts + 0.5)[:, None].float()
    frequency = (frequency - frequency.mean()) / frequency.std().clamp_min(1e-6)
    beside = (following + following.transpose(0, 1)).coalesce()
    both_contexts, left_context = (
        torch.cat([_factored(table, dimensions, seed), frequency], dim=1)
        for table in (beside, following.transpose(0, 1).coalesce())
    )
    return Cooccurrence(both_contexts, left_context, counts, counts_new)


def _count(documents: Iterable[Ids], num_old: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A sparse table (num_rows, num_rows) of how often column follows row, and the number of each token: in all, and
    in documents of the new language.
    """
    table = _table(torch.empty(2, 0, dtype=torch.long), torch.empty(0), num_rows)
    counts, counts_new = torch.zeros(2, num_rows, dtype=torch.float64)
    pending: list[torch.Tensor] = []

    def add() -> torch.Tensor:
        pairs = [torch.stack([ids[:-d], ids[d:]]) for d in range(1, WINDOW + 1) for ids in pending]
        weights = [torch.full((max(len(ids) - d, 0),), 1 / d) for d in range(1, WINDOW + 1) for ids in pending]
        pending.clear()
        return (table + _table(torch.cat(pairs, 1), torch.cat(weights), num_rows)).coalesce()

    for document in documents:
        ids = torch.from_numpy(np.array(document, dtype=np.int64))
        occurrences = torch.bincount(ids, minlength=num_rows)
        counts += occurrences
        if occurrences[num_old:].sum() >= NEW_LANGUAGE * len(ids):
            counts_new += occurrences
        pending.append(ids)
        if sum(map(len, pending)) >= _PENDING:
            table = add()
    return (add() if pending else table), counts, counts_new


def _table(indices: torch.Tensor, values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """A sparse square table; the same place twice is the sum. The indices are ours: torch need not check them."""
    return torch.sparse_coo_tensor(indices, values, (num_rows, num_rows), check_invariants=False).coalesce()


def _factored(table: torch.Tensor, dimensions: int, seed: int) -> torch.Tensor:
    """The rows of a sparse table of counts as points: (num_rows, dimensions), of length 1 on average."""
    (rows, columns), values = table.indices(), table.values()
    num_rows = table.shape[0]
    row_sums = torch.zeros(num_rows).index_add_(0, rows, values)
    contexts = torch.zeros(num_rows).index_add_(0, columns, values) ** _SMOOTHING
    information = torch.log(values / (row_sums[rows] * contexts[columns] / contexts.sum()))
    kept = information > 0
    positive = _table(table.indices()[:, kept], information[kept], num_rows)
    left, strengths = _left_factors(positive, dimensions, seed)
    points = left * strengths.sqrt()
    points /= points.norm(dim=1).mean().clamp_min(1e-12)
    return points


def _left_factors(table: torch.Tensor, num_factors: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The strongest left singular vectors, as columns, and their singular values (Halko et al. 2011, algorithm 4.4).

    `torch.svd_lowrank` hands its products QR's columns, which a sparse product reads five times as slowly as rows, and
    decomposes a dense matrix for right vectors that nobody asks for.
    """

    def basis_of(columns: torch.Tensor) -> torch.Tensor:
        orthonormal: torch.Tensor = torch.linalg.qr(columns).Q
        return orthonormal.contiguous()

    basis = basis_of(table @ torch.randn(table.shape[1], num_factors, generator=torch.Generator().manual_seed(seed)))
    for _ in range(_POWER_STEPS):
        basis = basis_of(table @ basis_of(table.T @ basis))
    inner = table.T @ basis
    squares, turned = torch.linalg.eigh((inner.T @ inner).double())
    return basis @ turned.flip(1).float(), squares.flip(0).clamp_min(0).sqrt().float()


def map_rows(old: torch.Tensor, features: torch.Tensor, counts: torch.Tensor) -> torch.Tensor | None:
    """Rows for the tokens after `old` (num_old, hidden): float32 of shape (num_new, hidden).

    Ridge regression from features to rows over the old tokens that the text has, certain ones weighing more
    (a linear map between embedding spaces, as in Mikolov et al. 2013). No new row stands further from the mean than
    old ones do on average. None where the text has too few of them.
    """
    known = (counts[: len(old)] >= _MIN_COUNT).nonzero().ravel()
    if len(known) < 2:
        return None
    weights = counts[known].clamp(max=_MAX_COUNT)[:, None]
    weights = weights / weights.mean()
    points = features[known].double()
    center = (weights * points).mean(dim=0)
    mean = torch.zeros(old.shape[1], dtype=torch.float64)
    product = torch.zeros(features.shape[1], old.shape[1], dtype=torch.float64)
    for start in range(0, len(known), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = weights[part] * old[known[part]].double()
        mean += rows.sum(dim=0) / len(known)
        product += (points[part] - center).T @ rows  # centred points: the rows' mean drops out
    centred = (points - center) * weights.sqrt()
    gram = centred.T @ centred + _PENALTY * torch.eye(features.shape[1], dtype=torch.float64)
    solution: torch.Tensor = torch.linalg.solve(gram, product)
    # Where few old rows are known the map overshoots, and new pieces would be said in the middle of English.
    furthest = _mean_distance(old, known, mean)
    mapped = torch.empty(len(features) - len(old), old.shape[1])
    for start in range(0, len(mapped), _CHUNK):
        points = features[len(old) + start :][:_CHUNK]
        moved = (points.double() - center) @ solution
        moved *= (furthest / moved.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0)
        mapped[start : start + _CHUNK] = mean + moved
    return mapped


def _mean_distance(old: torch.Tensor, known: torch.Tensor, mean: torch.Tensor) -> float:
    parts = (old[known[start : start + _CHUNK]].double() for start in range(0, len(known), _CHUNK))
    return sum(float((part - mean).norm(dim=1).sum()) for part in parts) / len(known)
