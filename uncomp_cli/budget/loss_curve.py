"""What a budget costs in quality, as measured: the points of a preset's curve, and the smallest that is good enough.

    loss = 1 - exp(-(NLL - NLL of the full cache))        NLL in nats a token of the answer

is the share of the likelihood of an answer's token that the budget loses; below 0 the budget did better than the full
cache. Every point has an interval for it, and a budget is chosen by the interval's upper end, not by the estimate.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from uncomp_cli.budget.amount import Budget
from uncomp_cli.errors import DoesNotFitError, UsageError, require
from uncomp_cli.numerals import format_count
from uncomp_cli.table import Table

_HINT = "write 1% or 0.01: the share of the likelihood of an answer's token that may be lost"
_NUMBER = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})\s*(?P<unit>%?)")
_ROUNDING = 1e-9  # an interval over equal samples may miss their mean by the last digit


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """The loss of one budget: its mean over `samples` answers, and the interval it lies in.

    `kept_fraction` is the share of the full cache's KV bytes that was kept in the mean; points are ordered by it.
    """

    budget: str
    kept_fraction: float
    loss: float
    loss_low: float
    loss_high: float
    samples: int

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        kept = self.kept_fraction
        require(0 < kept < math.inf, f"kept_fraction is {kept}", hint="use the fraction that was kept: above 0")
        for name in ("loss", "loss_low", "loss_high"):
            value = getattr(self, name)
            require(-math.inf < value <= 1, f"{name} is {value}", hint="use a share of the likelihood: at most 1")
        within = self.loss_low - _ROUNDING <= self.loss <= self.loss_high + _ROUNDING
        message = f"loss is {self.loss}, outside of its interval from {self.loss_low} to {self.loss_high}"
        require(within, message, hint="loss_low <= loss <= loss_high must hold")
        require(self.samples >= 1, f"samples is {self.samples}", hint="use 1 or more")


def parse_loss(text: str) -> float:
    """`1%` or `0.01` as 0.01; raises UsageError for anything but a share from 0 up to, not including, all."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"loss '{text}' is not a share", hint=_HINT)
    loss = float(Decimal(match["number"]) / (100 if match["unit"] else 1))  # in floats, 0.7% is less than 0.007
    if loss >= 1:
        hint = _HINT if match["unit"] else f"write {match['number']}% for per cent"
        raise UsageError(f"loss '{text}' is everything or more", hint=hint)
    return loss


def smallest_budget(points: Sequence[QualityPoint], max_loss: float) -> QualityPoint:
    """The point that keeps least of those whose upper bound is at most `max_loss`.

    Raises DoesNotFitError when there is none, with the best bound that was measured.
    """
    if not points:
        raise DoesNotFitError("the loss of no budget has been measured", hint="uncomp calibrate --quality")
    good = [point for point in points if point.loss_high <= max_loss]
    if good:
        return min(good, key=lambda point: (point.kept_fraction, point.loss_high))
    best = min(points, key=lambda point: (point.loss_high, point.kept_fraction))
    bound = _rounded_up(best.loss_high)
    raise DoesNotFitError(
        f"no budget was measured whose loss is at most {100 * max_loss:g}% for sure: "
        f"the best upper bound is {bound:g}%, of budget {best.budget}",
        hint="--budget full" if bound >= 100 else f"--max-loss {bound:g}%, or --budget full",
    )


def _rounded_up(share: float) -> float:
    """In per cent, to the next tenth above: written as this, the bound holds."""
    return math.ceil(Decimal(str(share)) * 1000) / 10


def quality_table(points: Sequence[QualityPoint], notes: Sequence[str] = ()) -> Table:
    """The curve in per cent, from the smallest budget on."""
    rows = [
        (
            point.budget,
            f"{100 * point.kept_fraction:.1f} %",
            f"{100 * point.loss:.2f} %",
            f"{100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %",
            format_count(point.samples),
        )
        for point in sorted(points, key=lambda point: point.kept_fraction)
    ]
    return Table(("BUDGET", "KEPT", "LOSS", "95 % INTERVAL", "SAMPLES"), rows, notes=notes)
