"""Means with 95 % intervals, differences on the same samples, and rank correlation.

Percentile bootstrap (Efron 1979): draw n of the n samples with replacement, take the mean, repeat; the interval lies
between the 2.5 % and 97.5 % quantiles of those means. The sample is what is drawn, never a metric or a setting, so that
the two sides of a difference stay a pair. With strata (subtasks) each is drawn from by itself and weighs the same:

    mean = 1/K · Σ_k mean of stratum k

Few samples spread less than what they are drawn from: deviations are stretched by √(n/(n − 1)) in each stratum and by
t/z over all (expanded percentile interval: Hesterberg 2015, section 5). Without it ten samples hold the truth in 91 of
100 cases. Of `binary` values, all -1, 0 or 1 (right or wrong, and differences of them), an interval is at least that of
Agresti & Min (2005), half a pair added to each of the four cells: five of five is not certainty, as a bootstrap would
say. Not done: no correction for many comparisons.

Spearman's rho is Pearson's r of the ranks, ties sharing the mean of their ranks: do two figures of the same cells rise
together? Its interval is the same bootstrap over cells. Cells of one text are not independent: it tells how far the
cells agree, not how another text would come out.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from uncomp_cli.uncertainty.error_rates import wilson_interval

K = TypeVar("K", bound=Hashable)

_Z = 1.96
_QUANTILES = (0.025, 0.975)
# A table asks for the same draws thousands of times, so parts of 2 MB are kept; of large samples never all at once.
_PART_DRAWS = 250_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of `count` samples and its 95 % interval.

    One sample tells nothing about its spread: with `count` 1 the interval is the point itself.
    """

    mean: float
    low: float
    high: float
    count: int


def stratified_mean(
    strata: Sequence[Sequence[float]], *, binary: bool = False, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """The mean of the strata's means; a stratum of one sample adds no width. Raises ValueError on an empty one.

    `binary` values are shares or their differences: no interval goes past -1 or 1. Where all have one sample the strata
    themselves are what is drawn.
    """
    if not strata or not all(strata):
        raise ValueError("a mean needs at least one value in every stratum")
    if len(strata) > 1 and all(len(values) == 1 for values in strata):
        strata = [[value for (value,) in strata]]
    arrays = [np.asarray(values, dtype=np.float64) for values in strata]
    mean = float(np.mean([array.mean() for array in arrays]))
    count = sum(map(len, strata))
    pooled = np.concatenate(arrays)
    least, most = (-1.0, 1.0) if binary else (-np.inf, np.inf)
    binary = binary and count > 1 and bool(np.isin(pooled, (-1, 0, 1)).all())
    sure_low, sure_high = _binary_bounds(mean, pooled) if binary else (mean, mean)
    if all(np.all(array == array[0]) for array in arrays):  # no spread, and no rounding that looks like one
        return Interval(mean, min(mean, sure_low), max(mean, sure_high), count)
    deviations = [_deviations(array, resamples, seed, place) for place, array in enumerate(arrays)]
    low, high = np.quantile(np.mean(deviations, axis=0), _QUANTILES) * _t_over_z(count - len(strata))
    return Interval(mean, max(least, min(mean + low, sure_low)), min(most, max(mean + high, sure_high)), count)


def _binary_bounds(mean: float, values: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of Agresti & Min about `mean`, from values that are -1, 0 or 1 in all strata together."""
    ups, downs, total = int((values > 0).sum()), int((values < 0).sum()), len(values)
    centre = mean * total / (total + 2)
    half = _Z * sqrt(ups + downs + 1 - (ups - downs) ** 2 / (total + 2)) / (total + 2)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _deviations(values: NDArray[np.float64], resamples: int, *seeds: int) -> NDArray[np.float64]:
    """Resampled means minus the mean, stretched to the spread of what the values were drawn from."""
    stretch = sqrt(len(values) / max(1, len(values) - 1))
    deviations: NDArray[np.float64] = (_resampled_means(values, resamples, *seeds) - values.mean()) * stretch
    return deviations


def _t_over_z(freedom: int) -> float:
    """Student's 97.5 % quantile over the normal one, by its Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5)."""
    z = _Z
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    freedom = max(1, freedom)
    expanded: float = sum(term / freedom**power for power, term in enumerate(terms)) / z
    return expanded


def _resampled_means(values: NDArray[np.float64], resamples: int, *seeds: int) -> NDArray[np.float64]:
    rows = max(1, _PART_DRAWS // len(values))
    starts = range(0, resamples, rows)
    return np.concatenate([_weights(len(values), min(rows, resamples - at), *seeds, at) @ values for at in starts])


@lru_cache(maxsize=64)
def _weights(count: int, resamples: int, *seeds: int) -> NDArray[np.float64]:
    """How often each of `count` samples was drawn, over `count`: [resamples, count], each row's sum 1."""
    drawn = np.random.default_rng(seeds).integers(0, count, size=(resamples, count))
    drawn += count * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * count)
    return counts.reshape(resamples, count) / count


def paired_difference(
    ours: Mapping[K, float],
    full: Mapping[K, float],
    *,
    stratum: Callable[[K], Hashable] | None = None,
    binary: bool = False,
) -> Interval:
    """The mean of ours minus full over the samples that both have, `stratum` (a key's subtask) weighing the same.

    Raises ValueError when they have no sample in common.
    """
    strata: dict[Hashable, list[float]] = {}
    for key in ours:
        if key in full:
            strata.setdefault(stratum(key) if stratum else None, []).append(ours[key] - full[key])
    return stratified_mean(list(strata.values()), binary=binary)


def wilson(hits: int, total: int) -> Interval:
    """Wilson's score interval of a rate: ten right of ten is not certainty, as a bootstrap would say."""
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total} is no rate")
    low, high = wilson_interval(hits, total)
    return Interval(hits / total, low, high, total)


_LEAST, _RESAMPLES = 8, 1000


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's rho of `count` pairs and its 95 % interval."""

    rho: float
    low: float
    high: float
    count: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation | None:
    """The correlation; None for fewer than eight pairs, or where either figure is the same throughout.

    Raises ValueError for sequences of different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} figures make no pairs")
    pairs = np.array([first, second], dtype=np.float64)
    rho = _rho(pairs) if len(first) >= _LEAST else None
    if rho is None:
        return None
    drawn = np.random.default_rng(0).integers(0, len(first), size=(_RESAMPLES, len(first)))
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
