"""Fitting a risk curve: heads that know are found, heads that know nothing are not made to, and rates only rise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from uncomp_cli.calibrate.reliability import RiskAnswer, Separation, fit_risk, risk_bins
from uncomp_cli.errors import UsageError
from uncomp_cli.uncertainty.error_rates import auroc

HEADS = tuple((layer, head) for layer in range(10) for head in range(3))


def answers(count: int, *, seed: int = 0, gap: float = 0.0, telling: tuple[int, ...] = ()) -> list[RiskAnswer]:
    """Half of them wrong; where an answer is wrong, the heads `telling` are higher by `gap` standard deviations."""
    chance = np.random.default_rng(seed)
    made = []
    for index in range(count):
        wrong = index % 2 == 0
        entropy = 0.3 + 0.05 * chance.standard_normal((int(chance.integers(1, 12)), len(HEADS)))
        entropy += 0.05 * chance.standard_normal(len(HEADS))  # what an answer has of its own
        entropy[:, list(telling)] += 0.05 * gap * wrong
        made.append(RiskAnswer(12_000 + index % 2, wrong, entropy, float(chance.random() + wrong) / 1000))
    return made


def test_heads_that_tell_are_found_and_the_curve_rises() -> None:
    fit = fit_risk(answers(80, gap=4, telling=(4, 11, 17, 20)), HEADS, rope="repack")
    assert set(fit.curve.heads) >= {HEADS[at] for at in (4, 11, 17, 20)}
    assert fit.curve.auroc > 0.9
    rates = [one.error_rate for one in fit.curve.bins]
    assert rates[0] < 0.2
    assert rates[-1] > 0.8
    assert (fit.curve.samples, fit.curve.tokens, fit.curve.rope) == (80, (12_000, 12_001), "repack")
    assert fit.baseline.auroc == 1
    assert fit.candidates[0].auroc == max(one.auroc for one in fit.candidates)


def test_the_curve_tells_new_answers_apart_as_well_as_it_says() -> None:
    curve = fit_risk(answers(80, gap=2, telling=(4, 11, 17, 20)), HEADS).curve
    fresh, at = answers(400, seed=1, gap=2, telling=(4, 11, 17, 20)), [HEADS.index(head) for head in curve.heads]
    reduced = {
        "entropy/mean": np.mean,
        "entropy/least": lambda e: e.min(axis=1).mean(),
        "entropy/first": lambda e: e[0].mean(),
        "entropy/joint": np.mean,
    }
    said = [one.output_entropy if curve.signal == "entropy/joint" else 0.0 for one in fresh]
    values = [float(reduced[curve.signal](one.entropy[:, at])) + out for one, out in zip(fresh, said, strict=True)]
    area = auroc(values, [one.wrong for one in fresh])
    assert curve.auroc_low <= area <= curve.auroc_high
    flagged = [curve.flagged(value) for value in values]
    right = [flag for flag, one in zip(flagged, fresh, strict=True) if not one.wrong]
    wrong = [flag for flag, one in zip(flagged, fresh, strict=True) if one.wrong]
    assert np.mean(wrong) > np.mean(right) + 0.5


def test_heads_that_know_nothing_look_like_it() -> None:
    """Chosen and judged on the same answers, the best 4 of 30 random heads would seem to tell them apart."""
    areas = [
        one.auroc
        for seed in range(8)
        for one in fit_risk(answers(40, seed=seed), HEADS).candidates
        if one.name == "best 4 heads, entropy/mean"
    ]
    assert abs(np.mean(areas) - 0.5) < 0.1


def test_heads_by_cost_win_a_draw() -> None:
    telling = (0, 1, 2, 3, 4, 5)
    fit = fit_risk(answers(60, gap=6, telling=telling), HEADS, costly=[HEADS[at] for at in telling])
    assert fit.curve.heads == tuple(HEADS[at] for at in telling)


def test_where_it_looks_and_what_it_says_are_told_together() -> None:
    """Two signals that each know a part: their sum is what the curve is made of."""
    known = answers(80, gap=1, telling=tuple(range(30)))
    made = [replace(one, output_entropy=40 * one.output_entropy) for one in known]
    fit = fit_risk(made, HEADS, costly=HEADS[:6])
    assert fit.curve.signal == "entropy/joint"
    areas = {one.name: one.auroc for one in fit.candidates}
    assert fit.curve.auroc == areas["costly heads, entropy/joint"] > areas["costly heads, entropy/mean"]


def test_bins_pool_what_does_not_rise() -> None:
    values = np.arange(40) / 40
    wrong = np.array([*[False] * 6, *[True] * 2, *[False] * 8, *[True] * 4, *[False] * 4, *[True] * 16])
    bins = risk_bins(values, wrong)
    assert [(one.samples, one.error_rate) for one in bins] == [(16, 0.125), (8, 0.5), (16, 1.0)]
    rates = [one.error_rate for one in bins]
    assert rates == sorted(set(rates))
    assert sum(one.samples for one in bins) == 40
    assert all(low.upper < high.lower for low, high in pairwise(bins))


def test_equal_values_are_in_one_bin() -> None:
    (one,) = risk_bins(np.zeros(40), np.arange(40) < 20)
    assert (one.samples, one.error_rate, one.lower, one.upper) == (40, 0.5, 0.0, 0.0)


@pytest.mark.parametrize(("wrong", "count"), [(10, 12), (30, 30), (2, 40), (37, 40)])
def test_too_few_of_a_kind_are_refused(wrong: int, count: int) -> None:
    made = [RiskAnswer(100, at < wrong, np.full((3, len(HEADS)), 0.1 * at), 0.5) for at in range(count)]
    with pytest.raises(UsageError) as refusal:
        fit_risk(made, HEADS)
    assert str(count) in refusal.value.message
    assert refusal.value.hint


def test_a_separation_holds_its_area() -> None:
    one = Separation.of("it", [0.1, 0.2, 0.3, 0.4], [False, False, True, True])
    assert one.low < one.auroc == one.high == 1
