"""The evaluation's statistics against closed forms: coverage, pairing, strata."""

from collections.abc import Sequence
from math import isclose, sqrt
from typing import Any

import numpy as np
import pytest

from uncomp_cli.evals.tables.statistics import (
    Interval,
    paired_difference,
    stratified_mean,
    wilson,
)


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def _mean(values: Sequence[float], **how: Any) -> Interval:
    return stratified_mean([values], **how)


def _normal(count: int, *, seed: int, scale: float = 1.0) -> list[float]:
    return list(np.random.default_rng(seed).normal(2.0, scale, count))


def test_the_interval_holds_the_true_mean_of_normal_data_95_times_in_100() -> None:
    intervals = [_mean(_normal(80, seed=seed), seed=seed, resamples=1000) for seed in range(300)]
    held = sum(interval.low <= 2.0 <= interval.high for interval in intervals)
    # 300 draws at 0.95 (0.945 for a percentile interval of 80): three standard deviations are 12.
    assert 271 <= held <= 297


@pytest.mark.parametrize("count", [5, 10])
def test_few_samples_hold_the_truth_as_often(count: int) -> None:
    intervals = [_mean(_normal(count, seed=seed), seed=seed, resamples=1000) for seed in range(300)]
    held = sum(interval.low <= 2.0 <= interval.high for interval in intervals)
    assert 274 <= held <= 297  # 273 are expected of ten samples without the correction, 252 of five


def test_the_stretch_is_students() -> None:
    from uncomp_cli.evals.tables import statistics

    for freedom, quantile in ((4, 2.776), (9, 2.262), (30, 2.042)):
        assert statistics._t_over_z(freedom) * 1.96 == pytest.approx(quantile, rel=0.003)


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = _normal(400, seed=1, scale=3.0)
    interval = _mean(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert _width(interval) == pytest.approx(2 * 1.96 * np.std(values) / sqrt(400), rel=0.03)
    assert interval.count == 400


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    values = _normal(30, seed=2)
    assert _mean(values, seed=5) == _mean(values, seed=5)
    assert _mean(values, seed=5) != _mean(values, seed=6)


@pytest.mark.parametrize("count", [2, 7, 1000])
def test_constant_data_has_no_width(count: int) -> None:
    assert _mean([0.1] * count) == Interval(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), count)
    assert _width(_mean([0.1] * count)) == 0.0


def test_one_sample_is_its_own_interval() -> None:
    assert _mean([0.7]) == Interval(0.7, 0.7, 0.7, 1)


def test_more_draws_than_are_held_at_once_are_all_made() -> None:
    interval = _mean(list(range(1_500_000)), resamples=3)  # one resample a part, three different means
    assert interval.low < interval.high


def test_five_of_five_is_not_certainty() -> None:
    ones = dict.fromkeys(range(5), 1.0)
    same, lost = paired_difference(ones, ones, binary=True), _mean([-1.0] * 5, binary=True)
    assert (same.mean, lost.mean) == (0.0, -1.0)
    # b = c = 0 of 5: 1.96 · √1 / 7; b = 5: centre -5/7, 1.96 · √(6 - 25/7) / 7
    assert (same.low, same.high) == (pytest.approx(-0.28), pytest.approx(0.28))
    assert (lost.low, lost.high) == (-1.0, pytest.approx(-0.278, abs=1e-3))
    assert _mean([1.0, 1.0], binary=True).low <= 0
    few = paired_difference({1: 0.0, 2: 0.0, 3: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}, binary=True)
    assert -1 <= few.low < few.high <= 1  # a share loses no more than all of it
    assert _mean([0.0] * 5) == Interval(0.0, 0.0, 0.0, 5)  # a KL of zero is zero


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        _mean([])
    with pytest.raises(ValueError, match="at least one value"):
        stratified_mean([[1.0], []])


def test_pairs_that_move_together_give_a_narrower_interval() -> None:
    hardness = _normal(60, seed=4)
    noise = _normal(60, seed=5, scale=0.1)
    full = dict(enumerate(hardness))
    ours = {index: value + shift for index, (value, shift) in enumerate(zip(hardness, noise, strict=True))}
    paired = paired_difference(ours, full)
    shuffled = paired_difference(ours, dict(enumerate(reversed(hardness))))
    assert paired.mean == pytest.approx(np.mean(noise)) == pytest.approx(shuffled.mean)
    assert _width(paired) == pytest.approx(2 * 2.001 * np.std(noise, ddof=1) / sqrt(60), rel=0.05)
    assert _width(shuffled) > 8 * _width(paired)
    assert paired.low > 0 or paired.high < 0


def test_a_difference_takes_only_the_samples_that_both_have() -> None:
    difference = paired_difference({"a": 3.0, "b": 5.0, "only ours": 100.0}, {"b": 4.0, "a": 1.0, "only full": 100.0})
    assert (difference.mean, difference.count) == (1.5, 2)
    with pytest.raises(ValueError, match="at least one value"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_strata_weigh_the_same_whatever_their_size() -> None:
    many, few = [0.0] * 90, [0.5] * 10
    assert stratified_mean([many, few]) == Interval(0.25, 0.25, 0.25, 100)
    assert stratified_mean([[0.0] * 90, [1.0] * 10]).mean == 0.5
    difference = paired_difference(
        {("many", i): 0.0 for i in range(90)} | {("few", i): 1.0 for i in range(10)},
        {("many", i): 0.0 for i in range(90)} | {("few", i): 0.0 for i in range(10)},
        stratum=lambda key: key[0],
    )
    assert difference.mean == 0.5


def test_strata_are_drawn_from_by_themselves() -> None:
    # Between the strata lies all the spread: drawn together the mean would wander, drawn apart it may not.
    near, far = [0.0, 0.1] * 10, [10.0, 10.1] * 10
    expected = 2 * 1.96 * 0.05 / sqrt(20) / sqrt(2)
    assert _width(stratified_mean([near, far])) == pytest.approx(expected, rel=0.1)
    assert _width(_mean(near + far)) > 50 * expected


def test_wilson_solves_its_own_equation_and_doubts_ten_of_ten() -> None:
    for hits, total in [(0, 10), (3, 10), (10, 10), (46, 50)]:
        interval = wilson(hits, total)
        assert (interval.mean, interval.count) == (hits / total, total)
        for bound in (interval.low, interval.high):  # (p̂ − p)² = z² p (1 − p) / n, or the end of the scale
            distance, spread = (hits / total - bound) ** 2, 1.96**2 * bound * (1 - bound) / total
            assert isclose(distance, spread, abs_tol=1e-12)
    assert wilson(10, 10).low == pytest.approx(0.7225, abs=1e-4)
    with pytest.raises(ValueError, match="11 of 10"):
        wilson(11, 10)
