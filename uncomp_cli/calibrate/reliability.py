"""Reliability: what an answer's signal meant, fitted to answers that were judged (observation.py).

    candidates   heads by what their evictions cost (the profile's loss), or the N that tell answers apart best by
                 themselves; each with every signal of uncertainty/error_rates.py
    cross-fit    heads are chosen on four fifths of the answers and judged on the fifth; a value that is the q-quantile
                 of those four fifths' counts as the q-quantile of the final heads' values on all answers
    choice       the candidate with the highest AUROC of such values; heads by cost, and where the model looks together
                 with what it says, unless others are clearly better: of few answers the best of many is often chance
    band         up to the value that parts right from wrong best (Youden: share of wrong ones above − of right ones)
    bins         of such values, so that no answer's rate comes from heads that were chosen by it

The entropy of the next token's distribution alone is the baseline, which is reported beside them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncomp_cli.engine.look.watch import HeadAt
from uncomp_cli.errors import UsageError, require
from uncomp_cli.table import Table
from uncomp_cli.uncertainty.error_rates import (
    JOINT,
    SIGNALS,
    RiskBin,
    RiskCurve,
    auroc,
    auroc_interval,
    wilson_interval,
)

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

FOLDS = 5
LEAST_ANSWERS = 20
BEST_HEADS = (4, 8, 16)
_CLEARLY = 0.05
_MOST_BINS, _BIN_ANSWERS = 5, 8


@dataclass(frozen=True, slots=True, eq=False)
class RiskAnswer:
    """An answer behind `tokens` of text: entropies [T, K] / ln n of its tokens in K heads, and whether it was wrong.

    `output_entropy` is the mean entropy / ln V of the distributions over V tokens that its own were taken from.
    """

    tokens: int
    wrong: bool
    entropy: Values
    output_entropy: float


@dataclass(frozen=True, slots=True)
class Separation:
    """How well something tells wrong answers from right ones: AUROC with its 95 % interval."""

    name: str
    auroc: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Sequence[float] | Values, wrong: Sequence[bool]) -> "Separation":
        """Raises UsageError unless there are both wrong and right answers."""
        area, ups = auroc([float(value) for value in values], wrong), sum(wrong)
        low, high = auroc_interval(area, wrong=ups, right=len(wrong) - ups)
        return cls(name, area, min(low, area), max(high, area))


@dataclass(frozen=True, slots=True)
class RiskFit:
    """The curve, every candidate best first, and the baseline."""

    curve: RiskCurve
    candidates: tuple[Separation, ...]
    baseline: Separation

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
        return Table(("ENTROPY", "", "ANSWERS", "WRONG", "95 % FROM", "TO"), rows, notes=[*self._notes()])

    def _notes(self) -> Iterator[str]:
        curve, baseline = self.curve, self.baseline
        heads = ", ".join(f"{layer}.{head}" for layer, head in curve.heads)
        yield f"{curve.signal} of the heads {heads} (layer.KV head); flagged above {curve.band[1]:.3f}"
        yield (
            f"AUROC {curve.auroc:.2f} ({curve.auroc_low:.2f} to {curve.auroc_high:.2f}), cross-fitted on "
            f"{curve.samples:,} answers read with {curve.rope}, one of {len(self.candidates)} candidates; entropy of "
            f"the next token's distribution, for comparison: {baseline.auroc:.2f} ({baseline.low:.2f} to "
            f"{baseline.high:.2f})"
        )

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "risk": asdict(self.curve),
            "risk_candidates": [asdict(one) for one in self.candidates],
            "risk_baseline": asdict(self.baseline),
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """Answers' entropies, [T, K] each and of their outputs [N], and which of them were wrong, bool [N]."""

    entropies: tuple[Values, ...]
    outputs: Values
    wrong: Flags

    def part(self, chosen: Flags) -> "_Told":
        """Some of the answers."""
        some = tuple(entropy for entropy, wanted in zip(self.entropies, chosen, strict=True) if wanted)
        return _Told(some, self.outputs[chosen], self.wrong[chosen])

    def signal(self, name: str, heads: Sequence[int]) -> Values:
        """The signal [N] of these heads, as AnswerWatch makes it of them while an answer is written."""
        reduce = _REDUCTIONS[name]
        values = np.array([reduce(entropy[:, heads]) for entropy in self.entropies])
        return values + self.outputs if name == JOINT else values

    def areas(self) -> Values:
        """The AUROC [K] of every head by itself."""
        means = np.stack([entropy.mean(axis=0) for entropy in self.entropies])
        return np.array([auroc(column.tolist(), self.wrong.tolist()) for column in means.T])


_REDUCTIONS: dict[str, Callable[[Values], float]] = {
    "entropy/mean": lambda tokens: float(tokens.mean()),
    "entropy/least": lambda tokens: float(tokens.min(axis=1).mean()),
    "entropy/first": lambda tokens: float(tokens[0].mean()),
    JOINT: lambda tokens: float(tokens.mean()),
}


@dataclass(frozen=True, slots=True)
class _Rule:
    """How heads are chosen: those given, or the `count` that tell the answers apart best."""

    name: str
    heads: tuple[int, ...] = ()
    count: int = 0

    def choose(self, told: _Told) -> list[int]:
        """Indices of heads."""
        if self.heads:
            return list(self.heads)
        best = np.argsort(-told.areas(), kind="stable")[: self.count]
        return sorted(int(at) for at in best)


def fit_risk(
    answers: Sequence[RiskAnswer],
    heads: Sequence[HeadAt],
    *,
    costly: Sequence[HeadAt] = (),
    rope: str = "",
    budget: str = "",
    scorer: str = "",
) -> RiskFit:
    """The curve of the answers, whose entropies are those of `heads`; `costly` are the heads that the profile names.

    Raises UsageError for fewer than 20 answers, and when too few are right or wrong to tell them apart.
    """
    _check(answers, len(heads))
    told = _Told(
        tuple(answer.entropy for answer in answers),
        np.array([answer.output_entropy for answer in answers]),
        np.array([answer.wrong for answer in answers]),
    )
    rules = [_Rule(f"best {count} heads", count=count) for count in BEST_HEADS if count <= len(heads)]
    if costly:
        rules.insert(0, _Rule("costly heads", tuple(heads.index(head) for head in costly)))
    tried = [_try(rule, signal, told) for rule in rules for signal in SIGNALS]
    chosen = max(tried, key=_preference)
    curve = RiskCurve(
        signal=chosen.signal,
        heads=tuple(heads[at] for at in chosen.rule.choose(told)),
        band=_band(chosen.values, told.wrong),
        bins=risk_bins(chosen.values, told.wrong),
        auroc=chosen.separation.auroc,
        auroc_low=chosen.separation.low,
        auroc_high=chosen.separation.high,
        samples=len(answers),
        tokens=tuple(sorted({answer.tokens for answer in answers})),
        rope=rope,
        budget=budget,
        scorer=scorer,
    )
    candidates = sorted((one.separation for one in tried), key=lambda one: -one.auroc)
    baseline = Separation.of("output entropy", [answer.output_entropy for answer in answers], told.wrong.tolist())
    return RiskFit(curve, tuple(candidates), baseline)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """A candidate with its cross-fitted values [N]."""

    rule: _Rule
    signal: str
    values: Values
    separation: Separation


def _try(rule: _Rule, signal: str, told: _Told) -> _Tried:
    values = _cross_fit(rule, signal, told)
    return _Tried(rule, signal, values, Separation.of(f"{rule.name}, {signal}", values, told.wrong.tolist()))


def _preference(tried: _Tried) -> float:
    """The AUROC, and what a candidate that others must clearly beat has beside it."""
    return tried.separation.auroc + _CLEARLY * (bool(tried.rule.heads) + (tried.signal == JOINT))


def _cross_fit(rule: _Rule, signal: str, told: _Told) -> Values:
    """Every answer's value on the final heads' scale, by heads that were chosen without it; plain for given heads."""
    final = told.signal(signal, rule.choose(told))
    if rule.heads:
        return final
    folds, values = _folds(told.wrong), np.empty(len(final))
    for fold in range(FOLDS):
        known, held_out = told.part(folds != fold), told.part(folds == fold)
        heads = rule.choose(known)
        among = np.sort(known.signal(signal, heads))
        shares = np.interp(held_out.signal(signal, heads), among, np.linspace(0, 1, len(among)))
        values[folds == fold] = np.quantile(final, shares)
    return values


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


def _check(answers: Sequence[RiskAnswer], num_heads: int) -> None:
    same = all(answer.entropy.shape[1:] == (num_heads,) for answer in answers)
    require(same, f"answers have entropies of other than the {num_heads} heads", hint="uncomp calibrate --risk --fresh")
    wrong = sum(answer.wrong for answer in answers)
    if len(answers) < LEAST_ANSWERS:
        raise UsageError(f"risk needs {LEAST_ANSWERS} answers, there are {len(answers)}", hint="more --risk-samples")
    if min(wrong, len(answers) - wrong) < FOLDS:
        raise UsageError(
            f"{wrong} of {len(answers)} answers were wrong: {FOLDS} right and {FOLDS} wrong ones are needed",
            hint="use harder samples when few are wrong: a larger --risk-tokens or a smaller --budget; easier ones "
            "when few are right",
        )
