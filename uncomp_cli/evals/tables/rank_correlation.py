"""Spearman's rank correlation with a bootstrap interval: do two figures of the same cells rise together?

    rho = Pearson's r of the ranks, ties sharing the mean of their ranks

The interval is between the 2.5 % and 97.5 % quantiles over resampled cells (percentile bootstrap, Efron 1979). Cells of
one text are not independent: it tells how far the cells agree, not how another text would come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RankCorrelation", "rank_correlation"]

_QUANTILES = (0.025, 0.975)
_LEAST = 8


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's rho of `count` pairs and its 95 % interval."""

    rho: float
    low: float
    high: float
    count: int


def rank_correlation(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 1000
) -> RankCorrelation | None:
    """The correlation; None for fewer than eight pairs, or where either figure is the same throughout.

    Raises ValueError for sequences of different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} figures make no pairs")
    pairs = np.array([first, second], dtype=np.float64)
    rho = _rho(pairs) if len(first) >= _LEAST else None
    if rho is None:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(first), size=(resamples, len(first)))
    resampled = [found for rows in drawn if (found := _rho(pairs[:, rows])) is not None]
    low, high = np.quantile(resampled, _QUANTILES)
    return RankCorrelation(rho, float(low), float(high), len(first))


def _rho(pairs: NDArray[np.float64]) -> float | None:
    """Of pairs [2, N]; None where one of the two does not vary."""
    ranks = np.array([_ranks(row) for row in pairs])
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / spread) if spread > 0 else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, those of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
