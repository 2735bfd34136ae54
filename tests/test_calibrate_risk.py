"""Fitting a risk curve: signs that know are weighed, signs that know nothing are not made to, and rates only rise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from support.programs import script
from uncomp_cli.calibrate.reliability import (
    CROSS_FITTED,
    RiskAnswer,
    Separation,
    cross_rates,
    fit_absence,
    fit_risk,
    risk_bins,
)
from uncomp_cli.errors import UsageError
from uncomp_cli.uncertainty.error_rates import SIGNS, auroc, weighed

risk = script("risk")
HEADS = ((3, 0), (7, 2))


def answers(count: int, *, seed: int = 0, gap: float = 0.0) -> list[RiskAnswer]:
    """Half of them wrong, half of these for lack of an answer: `gap` is what tells, in standard deviations."""
    chance = np.random.default_rng(seed)
    made = []
    for index in range(count):
        wrong, absent = index % 2 == 0, index % 4 == 0
        signs = dict(zip(SIGNS, chance.standard_normal(len(SIGNS)), strict=True))
        signs["attention"] += gap * wrong
        signs["together"] -= gap * absent
        made.append(RiskAnswer(2000 + index % 2, wrong, signs, absent))
    return made


def values_of(weights: dict[str, float], made: list[RiskAnswer]) -> list[float]:
    found = [weighed(weights, one.signs) for one in made]
    return [value for value in found if value is not None]


def test_signs_that_tell_are_weighed_and_the_curve_rises() -> None:
    fit = fit_risk(answers(120, gap=3), HEADS, rope="trained")
    weights = fit.curve.weights
    assert weights["attention"] > 3 * max(abs(weights[name]) for name in ("peak", "output", "looked"))
    assert fit.absent is not None
    assert fit.absent.weights.keys() == {"bias", "together"}
    assert fit.curve.auroc > 0.9
    rates = [one.error_rate for one in fit.curve.bins]
    assert rates[0] < 0.2
    assert rates[-1] > 0.8
    assert (fit.curve.samples, fit.curve.tokens, fit.curve.rope) == (120, (2000, 2001), "trained")
    assert fit.candidates[0].name == "attention"
    assert fit.baseline.name == "output"


def test_the_curve_tells_new_answers_apart_as_well_as_it_says() -> None:
    fit, fresh = fit_risk(answers(200, gap=1.5), HEADS), answers(800, seed=1, gap=1.5)
    curve = fit.curve
    values, wrong = np.array(values_of(curve.weights, fresh)), np.array([one.wrong for one in fresh])
    assert curve.auroc_low <= auroc(values.tolist(), wrong.tolist()) <= curve.auroc_high
    assert (values[wrong] > curve.band[1]).mean() > (values[~wrong] > curve.band[1]).mean() + 0.5
    absent, told = np.array([one.absent for one in fresh]), fit.absent
    assert told is not None
    said = np.array(values_of(told.weights, fresh)) > told.limit
    assert said[~absent].mean() < 0.16
    assert said[absent].mean() == pytest.approx(told.caught, abs=0.15)
    assert told.caught > 0.5


def test_answers_are_judged_by_what_was_fitted_without_them() -> None:
    fit, fresh = fit_risk(answers(200, gap=1.5), HEADS), answers(40, seed=1, gap=1.5)
    own, other = fit.judged, risk.judge(fit.curve, fresh, name="fresh")
    assert (own.name, other.name) == (CROSS_FITTED, "fresh")
    found = Separation.of("", own.wrong.values, own.wrong.holds)
    assert (found.auroc, own.wrong.limit) == (fit.curve.auroc, fit.curve.band[1])
    assert own.absent is not None
    assert fit.absent is not None
    assert sum(value > own.absent.limit for value in own.absent.values) == round(
        50 * fit.absent.caught + 150 * fit.absent.alarms
    )
    assert list(other.wrong.values) == pytest.approx(values_of(fit.curve.weights, fresh))
    assert other.wrong.holds == tuple(one.wrong for one in fresh)
    assert set(other.rates) <= {one.error_rate for one in fit.curve.bins}
    assert fit.absent.tokens == (2000, 2001)


def test_of_every_source_few_are_told_and_the_hardest_is_reported() -> None:
    """Easy facts do not pay for alarms of what people typed; a source of few answers does not decide."""
    made = [RiskAnswer(9, False, {"together": (n + 1) / 25}, source="typed") for n in range(25)]
    made += [RiskAnswer(9, False, {"together": n / 20}, absent=True, source="typed") for n in range(15)]
    made += [RiskAnswer(9, False, {"together": 1.0}, source="easy") for _ in range(75)]
    made += [RiskAnswer(9, False, {"together": 0.0}, absent=True, source="easy") for _ in range(75)]
    made += [RiskAnswer(9, False, {"together": 0.0}, source="few") for _ in range(9)]
    found, judged = fit_absence(made)
    assert found is not None
    assert judged is not None
    told = np.array(judged.values) > found.limit
    assert told[:25].sum() == 1  # of 25 no more than 8 %
    assert (found.caught, found.alarms, found.samples) == (told[25:40].mean(), 1 / 25, 40)
    assert told[115:190].all()


def test_a_rate_is_stated_by_the_bins_of_other_answers() -> None:
    """Of eleven answers in one bin six are wrong: without two of these and a right one half, else five of nine."""
    rates = cross_rates(np.arange(11.0), np.arange(11) < 6)
    assert rates == tuple(4 / 8 if index in (0, 5, 6) else 5 / 9 for index in range(11))


def test_signs_that_know_nothing_look_like_it() -> None:
    """Fitted and judged on the same answers, five random signs would seem to tell them apart."""
    areas = [fit_risk(answers(40, seed=seed), HEADS).curve.auroc for seed in range(12)]
    assert abs(np.mean(areas) - 0.5) < 0.1


def test_without_questions_that_lack_an_answer_nothing_tells_them() -> None:
    made = [replace(one, absent=False) for one in answers(40, gap=2)]
    assert fit_risk(made, HEADS).absent is None


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
    made = [RiskAnswer(100, at < wrong, dict.fromkeys(SIGNS, 0.1 * at)) for at in range(count)]
    with pytest.raises(UsageError) as refusal:
        fit_risk(made, HEADS)
    assert str(count) in refusal.value.message
    assert refusal.value.hint


def test_a_separation_holds_its_area() -> None:
    one = Separation.of("it", [0.1, 0.2, 0.3, 0.4], [False, False, True, True])
    assert one.low < one.auroc == one.high == 1
