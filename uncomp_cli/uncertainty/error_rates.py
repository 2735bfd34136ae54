"""Risk: what a signal of uncertainty has meant for the answers of a calibration, as measured error rates.

    bins      the calibration's answers, ordered by the signal and cut into bins of the same count; neighbours whose
              error rates fall are pooled (pooled adjacent violators, Ayer et al. 1955), so that rates only rise
    rate      wrong answers over answers of a bin, with its 95 % interval (Wilson 1927)
    band      from the lowest signal of a right answer to the highest that is not flagged
    AUROC     the chance that a wrong answer has a higher signal than a right one (Mann-Whitney; ties count half)

The signal itself is no probability. A rate holds for answers like the calibration's: its model, its kind of text and
question, its lengths. Signals are made so that higher is more uncertain. Nothing here imports torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from uncomp_cli.errors import UsageError, require

BIAS = "bias"
SEEN, ASKED = ("attention", "output", "peak", "looked"), ("together",)
SIGNS = SEEN + ASKED
"""What is seen of an answer's first tokens (engine/look/watch.py), and how much the text has of the question:

    attention    entropy of the watched heads' attention / ln n, sinks left out: the mean
    output       entropy / ln V of the distributions over V tokens that the answer's are taken from: the mean
    peak         the share of their attention on the text that eight tokens have, those they look at most
    looked       the share of what the question's words tell (engine/context/telling.py) that stands there, nearby
    together     the share that stands in two neighbouring sentences of the text, the best
"""

_AGAIN = "measure it again: uncomp calibrate --risk"
_MORE = "use easier and harder samples: several --risk-tokens, more --risk-samples"
_Z = 1.96
_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class RiskBin:
    """Answers whose signal is from `lower` to `upper`: the share that was wrong, and the interval it lies in."""

    lower: float
    upper: float
    error_rate: float
    low: float
    high: float
    samples: int

    def __post_init__(self) -> None:
        where = f"a risk bin from {self.lower} to {self.upper} has"
        some = self.samples >= 1 and math.isfinite(self.lower) and math.isfinite(self.upper)
        require(some, f"{where} {self.samples} samples", hint=_AGAIN)
        ordered = self.lower <= self.upper and 0 <= self.low <= self.error_rate <= self.high <= 1
        found = f"error rate {self.error_rate} in an interval from {self.low} to {self.high}"
        require(ordered, f"{where} {found}", hint=_AGAIN)


@dataclass(frozen=True, slots=True)
class Absence:
    """How questions are told whose answer is not in the text: the signal of `weights` is above `limit`.

    So it was for the share `caught` of such questions, and for the share `alarms` of the others, of `samples` together.
    It holds for texts whose lengths `tokens` spans. It goes by the text, and says nothing of an answer.
    """

    weights: dict[str, float]
    limit: float
    caught: float
    alarms: float
    samples: int
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        by_text = not self.weights.keys().isdisjoint(ASKED) and self.weights.keys() <= {BIAS, *ASKED}
        require(by_text and self.samples >= 1, f"{self.samples} absent answers by {[*self.weights]}", hint=_AGAIN)
        shares = 0 <= min(self.caught, self.alarms) <= max(self.caught, self.alarms) <= 1
        require(shares, f"of absent answers {self.caught} are caught with {self.alarms} alarms", hint=_AGAIN)

    def tells(self, signs: Mapping[str, float], tokens: int) -> bool:
        """Whether a text of so many tokens is told not to have what was asked for."""
        signal = weighed(self.weights, signs)
        return signal is not None and signal > self.limit and _spans(self.tokens, tokens)


@dataclass(frozen=True, slots=True)
class RiskCurve:
    """What the signs of an answer meant on `samples` answers behind texts of these lengths.

    The signal is the sum of the signs by `weights`, and of the weight `bias`; `heads`, (layer, KV head), are watched.
    `band` is the signal of answers that are not flagged; `bins` rise in signal and in error rate. `rope` is how
    positions past the trained length were made, `budget` what was kept, and `scorer` by which; empty where that was not
    told. Raises UsageError for anything that is not such a curve.
    """

    weights: dict[str, float]
    heads: tuple[tuple[int, int], ...]
    band: tuple[float, float]
    bins: tuple[RiskBin, ...]
    auroc: float
    auroc_low: float
    auroc_high: float
    samples: int
    tokens: tuple[int, ...]
    rope: str = ""
    budget: str = ""
    scorer: str = ""

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        watched = bool(self.heads) and all(min(head) >= 0 for head in self.heads)
        require(watched, f"the risk curve watches the heads {self.heads}", hint=_AGAIN)
        least, most = self.band
        require(least <= most, f"the risk curve's band is {least} to {most}", hint=_AGAIN)
        found = f"{self.auroc} in an interval from {self.auroc_low} to {self.auroc_high}"
        ordered = 0 <= self.auroc_low <= self.auroc <= self.auroc_high <= 1
        require(ordered, f"the risk curve's AUROC is {found}", hint=_AGAIN)
        self._check_bins()

    def _check_bins(self) -> None:
        pairs = list(zip(self.bins[:-1], self.bins[1:], strict=True))
        rising = all(a.upper <= b.lower and a.error_rate <= b.error_rate for a, b in pairs)
        some = bool(self.bins) and rising
        require(some, "the risk curve's bins do not rise in signal and error rate", hint=_AGAIN)
        held = sum(one.samples for one in self.bins)
        require(held == self.samples, f"the risk curve's bins do not hold its {self.samples} samples", hint=_AGAIN)

    def speaks_of(self, tokens: int) -> bool:
        """Whether texts of this length were calibrated: none shorter or longer than all of them."""
        return _spans(self.tokens, tokens)

    def flagged(self, value: float) -> bool:
        """Whether an answer of this signal is outside the band: above it, or no number.

        Below it an answer is more certain than any right one of the calibration, which is no reason to doubt it.
        """
        return not value <= self.band[1]

    def bin_of(self, value: float) -> RiskBin:
        """The bin of this signal."""
        return nearest_bin(self.bins, value)


def _spans(lengths: Sequence[int], tokens: int) -> bool:
    return not lengths or min(lengths) <= tokens <= max(lengths)


def nearest_bin(bins: Sequence[RiskBin], value: float) -> RiskBin:
    """The bin of a signal; beyond the bins the outermost one, between two the nearer one."""
    return min(bins, key=lambda one: max(one.lower - value, value - one.upper, 0.0))


def curve_for(curves: Sequence[RiskCurve], tokens: int) -> RiskCurve | None:
    """The curve that speaks of prompts of this length, else the one that is nearest; None of none."""

    def far(curve: RiskCurve) -> int:
        return 0 if curve.speaks_of(tokens) else min(abs(tokens - each) for each in curve.tokens)

    return min(curves, key=far, default=None)


def weighed(weights: Mapping[str, float], signs: Mapping[str, float]) -> float | None:
    """The signal of an answer's signs, their weighted sum and the bias; None where one of them is lacking."""
    known = {BIAS: 1.0, **signs}
    return sum(weight * known[name] for name, weight in weights.items()) if weights.keys() <= known.keys() else None


def _check_weights(weights: Mapping[str, float]) -> None:
    unknown = next((name for name in weights if name not in (BIAS, *SIGNS)), None)
    require(unknown is None, f"the sign '{unknown}' is unknown", hint=f"known signs: {', '.join(SIGNS)}")


def auroc(values: Sequence[float], wrong: Sequence[bool]) -> float:
    """The chance that a wrong answer's value is above a right one's, ties counting half; in O(n log n).

    Raises UsageError unless there are both right and wrong answers.
    """
    ups = sum(map(bool, wrong))
    downs = len(values) - ups
    if not ups or not downs:
        raise UsageError(f"{ups} of {len(values)} answers were wrong: nothing can be told apart", hint=_MORE)
    ranked = sorted(zip(values, wrong, strict=True))
    first, total = 0, 0.0
    while first < len(ranked):
        last = first
        while last + 1 < len(ranked) and ranked[last + 1][0] == ranked[first][0]:
            last += 1
        total += (first + last + 2) / 2 * sum(bool(one) for _, one in ranked[first : last + 1])
        first = last + 1
    return (total - ups * (ups + 1) / 2) / (ups * downs)


def roc(values: Sequence[float], wrong: Sequence[bool]) -> list[tuple[float, float]]:
    """The shares of right and of wrong answers whose value is that of a limit or above, for every limit, from 0 to 1.

    The area below these points, joined by straight lines, is `auroc`.
    """
    ups = sum(map(bool, wrong))
    downs = len(values) - ups
    points, hits, alarms = [(0.0, 0.0)], 0, 0
    for _, tied in groupby(sorted(zip(values, wrong, strict=True), reverse=True), key=lambda pair: pair[0]):
        of_limit = [bool(one) for _, one in tied]
        hits, alarms = hits + sum(of_limit), alarms + len(of_limit) - sum(of_limit)
        points.append((alarms / downs, hits / ups))
    return points


def auroc_interval(area: float, *, wrong: int, right: int) -> tuple[float, float]:
    """The 95 % interval of an AUROC of so many wrong and right answers: Newcombe (2006), method 5.

    As Wilson's, it holds the areas θ that the one found is within 1.96 standard errors of, by θ's own error: of few
    answers an area of 1 is not certainty. N = (wrong + right) / 2,
    error² = θ (1 − θ) (1 + (N − 1) ((1 − θ) / (2 − θ) + θ / (1 + θ))) / (wrong · right)
    """
    typical = (wrong + right) / 2 - 1

    def far(theta: float) -> bool:
        spread = 1 + typical * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(area - theta) > _Z * math.sqrt(theta * (1 - theta) * spread / (wrong * right))

    return _edge(area, 0.0, far), _edge(area, 1.0, far)


def _edge(inside: float, outside: float, far: Callable[[float], bool]) -> float:
    """Where, between a value that is near and the end, `far` begins to hold; the end where it never does."""
    if inside == outside or not far(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if far(middle) else (middle, outside)
    return inside


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate of `hits` in `total` (Wilson 1927): ten of ten is not certainty.

    centre, half width = (hits + z²/2) / (total + z²), z · √(hits · (total − hits) / total + z²/4) / (total + z²)
    """
    centre = (hits + _Z**2 / 2) / (total + _Z**2)
    half = _Z / (total + _Z**2) * math.sqrt(hits * (total - hits) / total + _Z**2 / 4)
    return max(0.0, min(hits / total, centre - half)), min(1.0, max(hits / total, centre + half))
