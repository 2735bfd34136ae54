"""Measured quality: the smallest budget whose bound holds, the refusal that names the best one, losses as typed."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uncomp_cli.budget.loss_curve import QualityPoint, parse_loss, smallest_budget
from uncomp_cli.errors import DoesNotFitError, UsageError


def point(percent: float, low: float, high: float, loss: float | None = None) -> QualityPoint:
    return QualityPoint(f"{percent:g}%", percent / 100, (low + high) / 2 if loss is None else loss, low, high, 24)


CURVE = (point(20, -0.004, 0.002), point(2.5, 0.2, 0.3), point(10, 0.0, 0.009), point(5, -0.01, 0.021))


@pytest.mark.parametrize(("max_loss", "budget"), [(0.9, "2.5%"), (0.3, "2.5%"), (0.299, "5%"), (0.02, "10%")])
def test_the_least_that_is_kept_whose_upper_bound_holds(max_loss: float, budget: str) -> None:
    assert smallest_budget(CURVE, max_loss).budget == budget


def test_a_good_mean_with_a_bad_bound_does_not_do() -> None:
    lucky = point(5, -0.2, 0.2, loss=-0.1)
    assert smallest_budget((*CURVE[:1], lucky), 0.01).budget == "20%"


@pytest.mark.parametrize(
    ("points", "max_loss", "says", "hint"),
    [
        (CURVE, 0.0, "best upper bound is 0.2%, of budget 20%", "--max-loss 0.2%, or --budget full"),
        ((point(5, 0.0, 0.02101),), 0.021, "at most 2.1% for sure: the best upper bound is 2.2%", "--max-loss 2.2%"),
        ((point(5, 0.0, 0.9999),), 0.5, "best upper bound is 100%", "--budget full"),
        ((point(5, 0.0, 0.007),), 0.0, "best upper bound is 0.7%", "--max-loss 0.7%"),
        ((), 0.5, "loss of no budget has been measured", "uncomp calibrate --quality"),
    ],
)
def test_when_none_holds_the_best_bound_is_named(
    points: tuple[QualityPoint, ...], max_loss: float, says: str, hint: str
) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        smallest_budget(points, max_loss)
    assert caught.value.exit_code == 3
    assert says in caught.value.message
    assert str(caught.value.hint).startswith(hint)


@example(highs=[0.007], max_loss=0.0)
@example(highs=[math.nextafter(0.007, 1)], max_loss=0.0)
@given(highs=st.lists(st.floats(0.0, 0.98), min_size=1, max_size=6), max_loss=st.floats(0.0, 0.99))
def test_what_is_chosen_holds_and_what_is_hinted_would(highs: list[float], max_loss: float) -> None:
    points = [point(number + 1, 0.0, high) for number, high in enumerate(highs)]
    try:
        chosen = smallest_budget(points, max_loss)
    except DoesNotFitError as refusal:
        assert min(highs) > max_loss
        hinted = str(refusal.hint).removeprefix("--max-loss ").partition(",")[0]
        assert min(highs) <= smallest_budget(points, parse_loss(hinted)).loss_high <= parse_loss(hinted)
    else:
        assert chosen.loss_high <= max_loss
        assert not any(p.loss_high <= max_loss for p in points if p.kept_fraction < chosen.kept_fraction)


@pytest.mark.parametrize(
    ("text", "loss"),
    [("1%", 0.01), ("0.01", 0.01), (" 0.5 % ", 0.005), ("0", 0.0), ("0%", 0.0), (".02", 0.02), ("99.9%", 0.999)],
)
def test_a_loss_is_a_share_or_per_cent(text: str, loss: float) -> None:
    assert parse_loss(text) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *((text, "write 1% or 0.01") for text in ("", "%", "-1%", "nan", "inf", "1e-2", "0,5%", "1%%", "a lot", "١%")),
        ("100%", "write 1% or 0.01"),
        ("1", "write 1% for per cent"),
        ("2.5", "write 2.5% for per cent"),
    ],
)
def test_a_loss_that_is_none(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_loss(text)
    assert f"'{text}'" in caught.value.message
    assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": "much"}, "budget 'much'"),
        ({"kept_fraction": 0.0}, "kept_fraction is 0.0"),
        ({"kept_fraction": math.nan}, "kept_fraction is nan"),
        ({"loss_high": math.nan}, "loss_high is nan"),
        ({"loss": 1.5}, "loss is 1.5"),
        ({"loss_low": -math.inf}, "loss_low is -inf"),
        ({"loss_high": 0.01}, "loss is 0.02, outside of its interval from -0.01 to 0.01"),
        ({"loss_low": 0.03}, "outside of its interval"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_points_that_cannot_be(change: dict[str, object], says: str) -> None:
    good = {"budget": "5%", "kept_fraction": 0.05, "loss": 0.02, "loss_low": -0.01, "loss_high": 0.04, "samples": 8}
    QualityPoint(**good)
    with pytest.raises(UsageError) as caught:
        QualityPoint(**{**good, **change})
    assert says in caught.value.message


def test_an_interval_of_equal_samples_may_miss_their_mean_by_a_rounding() -> None:
    third = 0.1 + 0.2
    assert QualityPoint("5%", 0.05, 0.3, third, third, 3).loss_high == third
