"""Reliability: what an answer's signs meant, fitted to answers that were judged (observation.py).

    signs        of uncertainty/error_rates.py: SEEN while an answer was written, ASKED of the question and the text
    signal       the weighted sum of the former by a logistic regression, ridge 1 on unit variance: log odds of wrong
    cross-fit    every answer's signal by weights that were fitted without it, of five parts: no rate comes from weights
                 that were fitted to its own answers, and the AUROC is that of new ones
    band         up to the value that parts right from wrong best (Youden: share of wrong ones above − of right ones)
    absent       the same of the latter, for what the text does not say: limited so that of a hundred questions that
                 the text answers eight at most are above, of every source of questions: where planted facts are told
                 easily, they must not pay for alarms of questions that people typed

The entropy of the next token's distribution alone is the baseline, which is reported beside them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncomp_cli.engine.look.watch import HeadAt
from uncomp_cli.errors import UsageError
from uncomp_cli.table import Table
from uncomp_cli.uncertainty.error_rates import (
    ASKED,
    BIAS,
    SEEN,
    SIGNS,
    Absence,
    RiskBin,
    RiskCurve,
    auroc,
    auroc_interval,
    nearest_bin,
    wilson_interval,
)

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

FOLDS = 5
LEAST_ANSWERS = 20
MOST_ALARMS = 0.08
CROSS_FITTED = "calibration, cross-fitted"
_MOST_BINS, _BIN_ANSWERS = 5, 8
_RIDGE, _STEPS = 1.0, 30


@dataclass(frozen=True, slots=True)
class RiskAnswer:
    """An answer behind `tokens` of text: its signs, whether it was wrong, and whether the text has what was asked.

    `source` is where its question is from.
    """

    tokens: int
    wrong: bool
    signs: dict[str, float]
    absent: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Separation:
    """How well something tells some answers from others: AUROC with its 95 % interval."""

    name: str
    auroc: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Sequence[float] | Values, wrong: Sequence[bool] | Flags) -> "Separation":
        """Raises UsageError unless there are both kinds."""
        told = [bool(one) for one in wrong]
        area, ups = auroc([float(value) for value in values], told), sum(told)
        low, high = auroc_interval(area, wrong=ups, right=len(told) - ups)
        return cls(name, area, min(low, area), max(high, area))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A signal of every answer [N], whether it should be high there, and above which value it counts as high."""

    values: tuple[float, ...]
    holds: tuple[bool, ...]
    limit: float

    @classmethod
    def of(cls, values: Values, holds: Flags, limit: float) -> "Verdict":
        """The same of arrays."""
        return cls(tuple(map(float, values)), tuple(map(bool, holds)), limit)


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of answers and what they were: the stated rate of errors [N], `wrong`, and not in the text."""

    name: str
    rates: tuple[float, ...]
    wrong: Verdict
    absent: Verdict | None


@dataclass(frozen=True, slots=True)
class RiskFit:
    """The curve, what tells questions without an answer, every sign by itself, the best first, the baseline, and the
    answers as cross-fits judge them.
    """

    curve: RiskCurve
    absent: Absence | None
    candidates: tuple[Separation, ...]
    baseline: Separation
    judged: Judged

    def table(self) -> Table:
        """The reliability of the signal, and how well it tells right from wrong."""
        rows = [
            (
                f"{one.lower:.3f}",
                f"{one.upper:.3f}",
                f"{one.samples:,}",
                *(f"{100 * share:.0f} %" for share in (one.error_rate, one.low, one.high)),
            )
            for one in self.curve.bins
        ]
        return Table(("SIGNAL", "", "ANSWERS", "WRONG", "95 % FROM", "TO"), rows, notes=[*self._notes()])

    def _notes(self) -> Iterator[str]:
        curve, baseline = self.curve, self.baseline
        heads = ", ".join(f"{layer}.{head}" for layer, head in curve.heads)
        yield f"the heads {heads} (layer.KV head) were watched; flagged above {curve.band[1]:.3f}"
        yield (
            f"AUROC {curve.auroc:.2f} ({curve.auroc_low:.2f} to {curve.auroc_high:.2f}), cross-fitted on "
            f"{curve.samples:,} answers read with {curve.rope}; entropy of the next token's distribution, for "
            f"comparison: {baseline.auroc:.2f} ({baseline.low:.2f} to {baseline.high:.2f})"
        )
        if self.absent is not None:
            caught, alarms = 100 * self.absent.caught, 100 * self.absent.alarms
            yield f"not in the document: {caught:.0f} % of such questions are told, and {alarms:.0f} % of the others"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON: lists, since each range of lengths has its own."""
        return {
            "risk": [asdict(self.curve)],
            "absent": [self.absent and asdict(self.absent)],
            "risk_candidates": [[asdict(one) for one in self.candidates]],
            "risk_baseline": [asdict(self.baseline)],
        }


def fit_risk(
    answers: Sequence[RiskAnswer], heads: Sequence[HeadAt], *, rope: str = "", budget: str = "", scorer: str = ""
) -> RiskFit:
    """The curve of the answers, written while `heads` were watched.

    Raises UsageError for fewer than 20 answers, and when too few are right or wrong to tell them apart.
    """
    wrong = np.array([answer.wrong for answer in answers], dtype=np.bool_)
    _check(wrong)
    told = {name: np.array([answer.signs[name] for answer in answers]) for name in SIGNS}
    seen = {name: told[name] for name in SEEN}
    values, found = cross_fit(seen, wrong), Separation.of
    fitted = found("signal", values, wrong)
    absence, not_there = fit_absence(answers)
    curve = RiskCurve(
        weights=logistic(seen, wrong),
        heads=tuple(heads),
        band=_band(values, wrong),
        bins=risk_bins(values, wrong),
        auroc=fitted.auroc,
        auroc_low=fitted.low,
        auroc_high=fitted.high,
        samples=len(answers),
        tokens=tuple(sorted({answer.tokens for answer in answers})),
        rope=rope,
        budget=budget,
        scorer=scorer,
    )
    alone = {name: found(name, column, wrong) for name, column in told.items()}
    candidates = tuple(sorted(alone.values(), key=lambda one: -abs(one.auroc - 0.5)))
    judged = Judged(CROSS_FITTED, cross_rates(values, wrong), Verdict.of(values, wrong, curve.band[1]), not_there)
    return RiskFit(curve, absence, candidates, alone["output"], judged)


def logistic(signs: Mapping[str, Values], wrong: Flags) -> dict[str, float]:
    """Weights of the signs, [N] each, and of `bias`, whose sum is the log odds of being wrong (Newton's steps)."""
    columns = np.column_stack([*signs.values()])
    centre, scale = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = np.column_stack([np.ones(len(wrong)), (columns - centre) / scale])
    ridge = np.diag([0.0, *[_RIDGE] * len(signs)])
    weights = np.zeros(rows.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-(rows @ weights)))
        slope = rows.T @ (wrong - chance) - ridge @ weights
        weights = weights + np.linalg.solve((rows.T * (chance * (1 - chance) + 1e-9)) @ rows + ridge, slope)
    plain = weights[1:] / scale
    named = dict(zip(signs, map(float, plain), strict=True))
    return {BIAS: float(weights[0] - plain @ centre), **named}


def cross_fit(signs: Mapping[str, Values], wrong: Flags) -> Values:
    """Every answer's signal [N] by weights that were fitted without it."""
    folds, values = _folds(wrong), np.empty(len(wrong))
    for fold in range(FOLDS):
        left_out = folds == fold
        weights = logistic({name: told[~left_out] for name, told in signs.items()}, wrong[~left_out])
        values[left_out] = weights[BIAS] + sum(weights[name] * told[left_out] for name, told in signs.items())
    return values


def cross_rates(values: Values, wrong: Flags) -> tuple[float, ...]:
    """The rate [N] that bins of the other answers state for each: those of four parts for the fifth."""
    folds, rates = _folds(wrong), np.empty(len(wrong))
    for fold in range(FOLDS):
        left_out = folds == fold
        bins = risk_bins(values[~left_out], wrong[~left_out])
        rates[left_out] = [nearest_bin(bins, value).error_rate for value in values[left_out]]
    return tuple(map(float, rates))


def fit_absence(answers: Sequence[RiskAnswer]) -> tuple[Absence, Verdict] | tuple[None, None]:
    """What tells questions that the text does not answer, and how it judges them; None where too few were asked.

    Its shares are those of the source with most alarms.
    """
    absent = np.array([answer.absent for answer in answers], dtype=np.bool_)
    if min(absent.sum(), (~absent).sum()) < 2 * FOLDS:
        return None, None
    signs = {name: np.array([answer.signs[name] for answer in answers]) for name in ASKED}
    values, weights = cross_fit(signs, absent), logistic(signs, absent)
    limits = [np.quantile(values[kind & ~absent], 1 - MOST_ALARMS, method="higher") for kind in sources(answers)]
    limit, lengths = float(max(limits)), [answer.tokens for answer in answers]
    shares = hardest(answers, values > limit)
    return Absence(weights, limit, *shares, (min(lengths), max(lengths))), Verdict.of(values, absent, limit)


def sources(answers: Sequence[RiskAnswer]) -> list[Flags]:
    """Which answers [N] are of one source, for each that has enough of either kind; all where none has."""
    names = np.array([answer.source for answer in answers])
    absent = np.array([answer.absent for answer in answers], dtype=np.bool_)
    kinds = [names == name for name in np.unique(names)]
    enough = [kind for kind in kinds if min((kind & absent).sum(), (kind & ~absent).sum()) >= 2 * FOLDS]
    return enough or [np.ones(len(answers), dtype=np.bool_)]


def hardest(answers: Sequence[RiskAnswer], told: Flags) -> tuple[float, float, int]:
    """Of the source with most alarms: the share told of what the text lacks, that of the others, how many questions."""
    absent = np.array([answer.absent for answer in answers], dtype=np.bool_)
    shares = [
        (float(told[kind & absent].mean()), float(told[kind & ~absent].mean()), int(kind.sum()))
        for kind in sources(answers)
    ]
    return max(shares, key=lambda one: (one[1], -one[0]))


def risk_bins(values: Values, wrong: Flags) -> tuple[RiskBin, ...]:
    """Bins of about the same count, five at most, of which neighbours are pooled until error rates rise."""
    order = np.argsort(values, kind="stable")
    count = max(1, min(_MOST_BINS, len(values) // _BIN_ANSWERS))
    pooled: list[NDArray[np.int64]] = []
    for part in np.array_split(order, count):
        pooled.append(part)
        while len(pooled) > 1 and _must_join(pooled[-2], pooled[-1], values, wrong):
            last = pooled.pop()
            pooled[-1] = np.concatenate([pooled[-1], last])
    return tuple(_bin(values[part], wrong[part]) for part in pooled)


def _must_join(below: NDArray[np.int64], above: NDArray[np.int64], values: Values, wrong: Flags) -> bool:
    """Whether the rate does not rise from one bin to the next, or one value lies in both."""
    return bool(wrong[below].mean() >= wrong[above].mean() or values[below].max() == values[above].min())


def _bin(values: Values, wrong: Flags) -> RiskBin:
    hits, total = int(wrong.sum()), len(wrong)
    low, high = wilson_interval(hits, total)
    return RiskBin(float(values.min()), float(values.max()), hits / total, low, high, total)


def _folds(wrong: Flags) -> NDArray[np.int64]:
    """A fold [N] for every answer, wrong and right ones dealt out in turn."""
    folds = np.empty(len(wrong), dtype=np.int64)
    for kind in (True, False):
        at = np.flatnonzero(wrong == kind)
        folds[at] = np.arange(len(at)) % FOLDS
    return folds


def _band(values: Values, wrong: Flags) -> tuple[float, float]:
    """From the lowest value of a right answer to the middle between the two values that part the answers best."""
    ordered = np.unique(values)
    borders = (ordered[:-1] + ordered[1:]) / 2
    gains = [float((values[wrong] > border).mean() - (values[~wrong] > border).mean()) for border in borders]
    lowest = float(values[~wrong].min())
    return lowest, max(lowest, float(borders[int(np.argmax(gains))]) if gains else lowest)


def _check(wrong: Flags) -> None:
    count, ups = len(wrong), int(wrong.sum())
    if count < LEAST_ANSWERS:
        raise UsageError(f"risk needs {LEAST_ANSWERS} answers, there are {count}", hint="more --risk-samples")
    if min(ups, count - ups) < FOLDS:
        raise UsageError(
            f"{ups} of {count} answers were wrong: {FOLDS} right and {FOLDS} wrong ones are needed",
            hint="use harder samples when few are wrong: a larger --risk-tokens or a smaller --budget; easier ones "
            "when few are right",
        )
