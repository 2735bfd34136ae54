"""The risk curve: areas and intervals in closed form, what is flagged, and what is no curve."""

import json
import random
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest

from uncomp_cli.errors import UsageError
from uncomp_cli.schema import read
from uncomp_cli.uncertainty.error_rates import (
    Absence,
    RiskBin,
    RiskCurve,
    auroc,
    auroc_interval,
    curve_for,
    roc,
    weighed,
    wilson_interval,
)

ABSENT = Absence({"together": -1.0}, -0.5, 0.7, 0.1, 40)
CURVE = RiskCurve(
    weights={"attention": 1.0, "bias": -0.1},
    heads=((3, 1), (7, 0)),
    band=(0.05, 0.3),
    bins=(RiskBin(0.05, 0.2, 0.1, 0.02, 0.4, 10), RiskBin(0.3, 0.5, 0.6, 0.31, 0.83, 10)),
    auroc=0.85,
    auroc_low=0.62,
    auroc_high=0.95,
    samples=20,
    tokens=(6000, 16000),
    rope="repack",
)


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    chance = random.Random(1)
    values = [chance.randrange(6) / 6 for _ in range(40)]  # with ties
    wrong = [chance.random() < 0.4 for _ in values]
    pairs = [
        (w, r) for w, up in zip(values, wrong, strict=True) if up for r, no in zip(values, wrong, strict=True) if not no
    ]
    expected = sum((w > r) + (w == r) / 2 for w, r in pairs) / len(pairs)
    assert auroc(values, wrong) == pytest.approx(expected, abs=1e-12)
    assert auroc([1, 2, 3], [False, False, True]) == 1
    assert auroc([3, 2, 1], [False, False, True]) == 0
    assert auroc([2, 2], [False, True]) == 0.5


def test_the_area_is_below_the_curve() -> None:
    chance = random.Random(2)
    values = [chance.randrange(9) / 9 for _ in range(60)]  # with ties
    wrong = [chance.random() < 0.3 + 0.5 * value for value in values]
    points = roc(values, wrong)
    assert (points[0], points[-1], len(points)) == ((0, 0), (1, 1), len(set(values)) + 1)
    below = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))
    assert below == pytest.approx(auroc(values, wrong), abs=1e-12)
    assert roc([1, 3, 2], [False, True, True]) == [(0, 0), (0, 0.5), (0, 1), (1, 1)]


@pytest.mark.parametrize("wrong", [[True, True], [False, False]])
def test_an_area_needs_both_kinds(wrong: list[bool]) -> None:
    with pytest.raises(UsageError, match="nothing can be told apart"):
        auroc([0.1, 0.2], wrong)


def test_few_answers_are_no_certainty() -> None:
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))  # Wilson 1927
    assert wilson_interval(5, 10) == (pytest.approx(0.2366, abs=1e-3), pytest.approx(0.7634, abs=1e-3))
    low, high = auroc_interval(1.0, wrong=10, right=10)
    assert (0.6 < low < 0.9, high) == (True, 1.0)
    wide = auroc_interval(0.8, wrong=10, right=10)
    narrow = auroc_interval(0.8, wrong=1000, right=1000)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
    assert narrow[1] - narrow[0] < 0.05
    mirrored = auroc_interval(0.2, wrong=10, right=10)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx(wide, abs=1e-6)


def test_what_is_above_the_band_is_flagged() -> None:
    assert [CURVE.flagged(value) for value in (0.0, 0.05, 0.3, 0.30001, 9.0)] == [False, False, False, True, True]
    assert CURVE.flagged(float("nan"))


def test_every_value_has_a_bin() -> None:
    first, last = CURVE.bins
    assert [CURVE.bin_of(value) is first for value in (-1.0, 0.05, 0.2, 0.24)] == [True] * 4
    assert [CURVE.bin_of(value) is last for value in (0.26, 0.3, 0.5, 7.0)] == [True] * 4


def test_a_curve_survives_json() -> None:
    plain = json.loads(json.dumps(asdict(CURVE)))
    assert read(RiskCurve, plain) == CURVE
    assert read(RiskCurve, {key: value for key, value in plain.items() if key != "rope"}) == replace(CURVE, rope="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"entropy": 1}}, "the sign 'entropy' is unknown"),
        ({"weights": {"attention": "much"}}, "weights.attention is"),
        ({"heads": []}, "watches the heads"),
        ({"heads": [[1, -1]]}, "watches the heads"),
        ({"heads": [[1, 0.5]]}, "heads[0][1] is 0.5"),
        ({"heads": [[1]]}, "heads[0] is [1]"),
        ({"band": [0.3, 0.1]}, "band is 0.3 to 0.1"),
        ({"band": [0.3]}, "band is [0.3]"),
        ({"auroc": 0.5}, "AUROC is 0.5"),
        ({"auroc": "high"}, 'auroc is "high"'),
        ({"bins": []}, "bins do not rise"),
        ({"bins": [asdict(CURVE.bins[1]), asdict(CURVE.bins[0])]}, "bins do not rise"),
        ({"bins": [{**asdict(CURVE.bins[0]), "rate": 1}]}, "bins[0].rate is an unknown key"),
        ({"bins": [3]}, "bins[0] is 3"),
        ({"bins": [{**asdict(CURVE.bins[0]), "error_rate": 1.5}]}, "error rate 1.5"),
        ({"bins": [{**asdict(CURVE.bins[0]), "samples": 0}]}, "has 0 samples"),
        ({"samples": 21}, "do not hold its 21 samples"),
        ({"samples": 20.0}, "samples is 20.0"),
        ({"aurok": 1}, "aurok is an unknown key"),
    ],
)
def test_what_is_no_curve_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read(RiskCurve, {**asdict(CURVE), **change})
    assert message in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weights": {"entropy": 1}}, "the sign 'entropy' is unknown"), ({"caught": 2}, "2 are caught")],
)
def test_what_tells_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(Absence, {**asdict(ABSENT), **change})


def test_a_text_is_told_by_what_it_has_of_the_question_and_by_its_length() -> None:
    absent = replace(ABSENT, weights={"bias": 1, "together": -2}, limit=0.5, tokens=(100, 200))
    assert absent.tells({"together": 0.2}, 100)
    assert not absent.tells({"together": 0.3}, 100)
    assert not absent.tells({"attention": 0.2}, 100)
    assert not absent.tells({"together": 0.2}, 201)


def test_a_key_that_lacks_is_named() -> None:
    plain = {key: value for key, value in asdict(CURVE).items() if key != "band"}
    with pytest.raises(UsageError, match="band is missing"):
        read(RiskCurve, plain)


def test_a_signal_is_the_weighted_sum_of_the_signs() -> None:
    signs = {"attention": 0.5, "output": 0.25}
    assert weighed({"bias": 1, "attention": 2, "output": -4}, signs) == pytest.approx(1)
    assert weighed({"bias": 1, "together": 2}, signs) is None


def test_the_curve_of_a_prompt_is_that_of_its_length_or_the_nearest() -> None:
    short = replace(CURVE, tokens=(1500, 4000))
    found = [curve_for([CURVE, short], tokens) for tokens in (100, 1500, 4000, 4900, 5100, 16_000, 99_000)]
    assert [each is short for each in found] == [True, True, True, True, False, False, False]
    assert curve_for([], 100) is None
