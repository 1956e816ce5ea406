"""Confidence intervals of 95 %: of proportions, of means over groups, and of ratios of sums by resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Z = 1.959964  # of the normal distribution, two-sided 95 %
_NUM_RESAMPLES = 2_000

Interval = tuple[float, float]


def proportion(num_right: int, num_all: int) -> Interval:
    """Wilson's interval of a proportion; it keeps a width where all or none are right."""
    share, z2 = num_right / num_all, _Z * _Z
    centre = (share + z2 / (2 * num_all)) / (1 + z2 / num_all)
    half = _Z * math.sqrt(share * (1 - share) / num_all + z2 / (4 * num_all**2)) / (1 + z2 / num_all)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_of_proportions(counts: Sequence[tuple[int, int]]) -> Interval:
    """Interval of the unweighted mean of several proportions, given as (right, all), around that mean."""
    mean = sum(right / total for right, total in counts) / len(counts)
    # Two of each outcome are added to each group (Agresti and Coull), so that a perfect group has a variance too.
    adjusted = [((right + 2) / (total + 4), total + 4) for right, total in counts]
    half = _Z * math.sqrt(sum(share * (1 - share) / total for share, total in adjusted)) / len(counts)
    return max(0.0, mean - half), min(1.0, mean + half)


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Interval | None:
    """Bootstrap interval of sum(numerators) / sum(denominators) over the items; None for a single one."""
    if len(numerators) < 2:
        return None
    resampled = _resampled_ratios(np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _resampled_ratios(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(0)  # equal inputs, equal interval
    weights = generator.multinomial(len(numerators), np.full(len(numerators), 1 / len(numerators)), _NUM_RESAMPLES)
    ratios: npt.NDArray[np.float64] = (weights @ numerators) / (weights @ denominators)
    return ratios
