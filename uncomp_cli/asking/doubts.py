"""What the signs of an answer say of it: a word, a warning, the JSON, the measured chance, and what larger budgets did.

Signs are flags of risk and no probability. A word and a rate of errors are named only where one was measured, in the
preset's risk curves (uncertainty/error_rates.py), and they hold for answers like those that they were measured on.

Escalation doubles the budget up to all of the text. Of the answers so far the last one stays when it is not flagged;
else the one with the lowest measured rate of errors, of equals the one with most kept: entropies of other budgets do
not compare.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.errors import ThresholdError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.uncertainty.error_rates import curve_for, weighed

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.records import RunStats
    from uncomp_cli.models.runnable import LoadedModel
    from uncomp_cli.uncertainty.error_rates import Absence, RiskBin, RiskCurve


T = TypeVar("T")
HELD_BACK = "--escalate: an answer is written when it is final"
_CALIBRATE = "measure what the signal means: uncomp calibrate --risk, then name that preset with -p"


@dataclass(frozen=True, slots=True)
class Risk:
    """The signs of one answer, the curve that says what they mean, and how the answer came about.

    There are none of the answer when no head was watched, or it was too short to be; `curve` is None when nothing was
    calibrated. Nothing is known of an answer to a question for the `whole` text. The prompt of `prompt_tokens` was read
    with `rope`, and `budget` of it kept by `scorer`.
    """

    signs: Mapping[str, float]
    curve: "RiskCurve | None" = None
    prompt_tokens: int = 0
    rope: str = ""
    budget: Budget = FULL_BUDGET
    scorer: str = ""
    whole: bool = False
    absent: "Absence | None" = None

    @property
    def signal(self) -> float | None:
        """The sum of the signs that the curve is of; None when there are none, or no curve for such a question."""
        return None if self.curve is None or self.whole else weighed(self.curve.weights, self.signs)

    @property
    def flagged(self) -> bool | None:
        """Whether the answer is less certain than right ones of the calibration, or such answers were mostly wrong.

        None when that is not known: a band of long texts says nothing of shorter ones.
        """
        curve, signal = self.curve, self.signal
        if self.absence:
            return True
        if curve is None or signal is None or self.prompt_tokens < min(curve.tokens, default=0):
            return None
        return curve.flagged(signal) or (self.bin is not None and self.bin.error_rate > 1 / 2)

    @property
    def bin(self) -> "RiskBin | None":
        """The calibrated answers that were like this one; None when none were."""
        if self.curve is None or self.signal is None or self.doubts:
            return None
        return self.curve.bin_of(self.signal)

    @property
    def absence(self) -> "Absence | None":
        """How it is told that the document does not have what was asked for; None where nothing says so.

        It goes by the text and the question, whatever is kept of the text.
        """
        absent = None if self.whole else self.absent
        return absent if absent is not None and absent.tells(self.signs, self.prompt_tokens) else None

    @property
    def word(self) -> str | None:
        """What a person is told of it; None where no such answers were calibrated."""
        if self.absence:
            return "probably not in the document"
        return None if self.bin is None else "unsure" if self.flagged else "sure"

    @property
    def doubts(self) -> tuple[str, ...]:
        """In what the answer differs from all that were calibrated."""
        return () if self.curve is None else tuple(_doubts(self, self.curve))

    @property
    def error_rate(self) -> float:
        """The measured rate of errors; 1 where none is known."""
        return 1.0 if self.bin is None else self.bin.error_rate


def risk_of(preset: "Preset", stats: "RunStats", loaded: "LoadedModel") -> Risk:
    """What is known of the answer that `stats` are of."""
    rope, scorer, tokens = str(loaded.rope), preset.scorer.name, stats.prompt_tokens
    curve = curve_for(preset.risk, tokens)
    return Risk(stats.signs, curve, tokens, rope, preset.budget, scorer, stats.whole, preset.absent)


def risk_warnings(risk: Risk) -> list[str]:
    """A flagged answer's warning, with its rate of errors, or why none is known."""
    if not risk.flagged:
        return []
    like, absent, begun = risk.bin, risk.absence, "the answer is unusually uncertain"
    if absent is not None:
        said = f"so said of {_percent(absent.caught)} % of such questions, and of {_percent(absent.alarms)} % of others"
        begun = f"what was asked for is probably not in the document ({said})"
    if like is None:
        why = f": {'; '.join(risk.doubts)}" if risk.doubts else ""
        return [f"{begun}; how often such answers are wrong was not measured{why}"]
    rate = f"wrong in {_percent(like.error_rate)} % of calibrated cases like this"
    return [f"{begun}: {rate}, {_percent(like.low)} to {_percent(like.high)} %"]


def _doubts(risk: Risk, curve: "RiskCurve") -> Iterator[str]:
    """What fits into the trained length is calibrated as trained; more may be kept than was, but not less.

    A calibration speaks of the lengths between its shortest and its longest text.
    """
    if curve.rope and risk.rope not in (curve.rope, "trained"):
        yield f"calibrated with --rope {curve.rope}, read with {risk.rope}"
    if not curve.speaks_of(risk.prompt_tokens):
        shortest, longest = format_count(min(curve.tokens)), format_count(max(curve.tokens))
        yield f"calibrated on {shortest} to {longest} tokens, this prompt has {format_count(risk.prompt_tokens)}"
    if curve.budget and not _as_large(risk.budget, Budget.parse(curve.budget)):
        yield f"calibrated with --budget {curve.budget}, kept with {risk.budget}"
    if curve.scorer and curve.scorer != risk.scorer:
        yield f"calibrated with scorer {curve.scorer}, kept by {risk.scorer}"


def _as_large(ours: Budget, theirs: Budget) -> bool:
    """Whether a budget is known to keep as much as another: the same, or more of the same unit."""
    if ours.kind == "full" or ours == theirs:
        return True
    return ours.kind == theirs.kind != "auto" and ours.amount >= theirs.amount


def risk_record(risk: Risk, *, trained_length: int) -> dict[str, Any]:
    """`uncertainty` in the JSON of an answer."""
    like = risk.bin
    return {
        "attention_entropy": risk.signs.get("attention"),
        "signs": dict(risk.signs),
        "signal": risk.signal,
        "prompt_in_trained_length": risk.prompt_tokens <= trained_length,
        "calibrated": like is not None,
        "flagged": risk.flagged,
        "word": risk.word,
        "error_rate": None if like is None else like.error_rate,
        "error_rate_interval": None if like is None else [like.low, like.high],
    }


def check_calibrated(preset: "Preset", flag: str) -> None:
    """Raise UsageError when `flag` needs a risk curve that the preset does not have."""
    if not preset.risk:
        raise UsageError(f"{flag} needs measured error rates, preset {preset.name} has none", hint=_CALIBRATE)


def check_lengths(preset: "Preset", lengths: Sequence[int], *, escalate: bool, fail_under: float | None) -> None:
    """Raise UsageError when the error rates that were measured speak of none of these prompts, by their tokens."""
    name = preset.scorer.name
    curves = [curve_for(preset.risk, tokens) for tokens in lengths]
    risks = [
        Risk({}, curve, tokens, curve.rope, preset.budget, name)
        for tokens, curve in zip(lengths, curves, strict=True)
        if curve is not None
    ]
    if not risks:
        return
    if escalate and all(risk.prompt_tokens < min(risk.curve.tokens, default=0) for risk in risks if risk.curve):
        flag, why = "--escalate", risks[0].doubts[0]
    elif fail_under is not None and all(risk.doubts for risk in risks):
        flag, why = f"--fail-under {fail_under:g}", "; ".join(risks[0].doubts)
    else:
        return
    hint = f"leave it out, or measure it there: uncomp calibrate --risk --risk-tokens {max(lengths)}"
    raise UsageError(f"{flag} goes by error rates that do not speak of this: {why}", hint=hint)


def held_back(preset: "Preset") -> list[str]:
    """What is said when a conversation begins to be escalated."""
    shortest = min((min(curve.tokens, default=0) for curve in preset.risk), default=0)
    reach = f"error rates were measured from {format_count(shortest)} tokens on: what is shorter is answered once"
    return [HELD_BACK, *([reach] if shortest else [])]


def check_fail_under(value: float | None) -> None:
    """Raise UsageError for a chance that is none."""
    if value is not None and not 0 < value <= 1:
        raise UsageError(f"fail-under is {value:g}, not a chance above 0 and up to 1", hint="--fail-under 0.8")


def fall_short(risk: Risk, least: float) -> ThresholdError | None:
    """Why an answer's chance of being right, as calibrated, is not known to be `least`; None when it is."""
    like, hint = risk.bin, "a larger --budget, --escalate or another --rope; --evidence shows what it looked at"
    if risk.absence is not None:
        why = "what was asked for is probably not in the document"
        return ThresholdError(
            f"{why}, so not known to reach --fail-under {least:g}", hint="ask in the document's words"
        )
    if like is None:
        why = "; ".join(risk.doubts) or _unjudged(risk)
        return ThresholdError(f"{why}, so not known to reach --fail-under {least:g}", hint=hint)
    chance = 1 - like.error_rate
    if chance >= least:
        return None
    message = (
        f"the answer is right in {_percent(chance)} % of calibrated cases like this "
        f"({_percent(1 - like.high)} to {_percent(1 - like.low)} %), below --fail-under {least:g}"
    )
    return ThresholdError(message, hint=hint)


def _unjudged(risk: Risk) -> str:
    if risk.curve is None:
        return "no error rates were measured for this reading"
    return "nothing in particular was asked for" if risk.whole else "the answer is too short to be judged"


def _percent(share: float) -> str:
    return format_decimal(100 * share).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Try:
    """One answer to a question: the budget that it was given with, what it took, and how sure it was."""

    budget: "Budget"
    kv_bytes: int
    seconds: float
    risk: Risk

    @property
    def is_doubted(self) -> bool:
        """Whether it was flagged."""
        return bool(self.risk.flagged)


class Attempts(Generic[T]):
    """The answers to one question, each with a larger budget than the one before."""

    def __init__(self) -> None:
        self.answers: list[T] = []
        self.tries: list[Try] = []
        self._kept_fraction = 0.0

    def add(self, answer: T, preset: "Preset", stats: "RunStats", loaded: "LoadedModel") -> None:
        """One answer more, given under `preset`."""
        self.answers.append(answer)
        seconds, risk = stats.ttft_s + stats.decode_s, risk_of(preset, stats, loaded)
        self.tries.append(Try(preset.budget, stats.kv_bytes, seconds, risk))
        self._kept_fraction = stats.kept_fraction

    @property
    def is_open(self) -> bool:
        """Whether more may help: the latest is flagged, and kept more than the one before, yet not all."""
        grew = len(self.tries) < 2 or self.tries[-2].kv_bytes < self.tries[-1].kv_bytes
        latest = self.tries[-1]
        told = latest.risk.absence is not None  # by the text: a larger budget changes nothing of it
        return latest.is_doubted and not told and grew and self._kept_fraction < 1

    @property
    def final(self) -> T:
        """The answer that stays."""
        return self.answers[best_of(self.tries)]

    @property
    def note(self) -> str:
        """`try 2: budget 40% · 12.3 s · KV 30.1 MiB · entropy 0.22` of the newest try, and whether that is flagged."""
        latest = self.tries[-1]
        entropy = f" · entropy {latest.risk.signs['attention']:.2f}" if "attention" in latest.risk.signs else ""
        verdict = {True: ", flagged", False: ", not flagged", None: ""}[latest.risk.flagged]
        cost = f"{format_seconds(latest.seconds)} · KV {format_bytes(latest.kv_bytes)}"
        return f"try {len(self.tries)}: budget {latest.budget} · {cost}{entropy}{verdict}"


def wider(preset: "Preset") -> "Preset | None":
    """The preset with twice the budget; None when it keeps all already, or all that the memory holds."""
    budget = preset.budget.times(2)
    if budget is None:
        return None
    if budget.kind == "full":
        return preset.keeping_all()
    return replace(preset, budget=budget, floor_tokens=2 * preset.floor_tokens)


def best_of(tries: Sequence[Try]) -> int:
    """Which of the answers stays: the last when it is not flagged, else that of the lowest rate, the last of equals."""
    if not tries[-1].is_doubted:
        return len(tries) - 1
    return min(range(len(tries)), key=lambda number: (tries[number].risk.error_rate, -number))


def escalation_record(tries: Sequence[Try]) -> list[dict[str, Any]]:
    """Every try, in order, for the JSON of an answer."""
    return [
        {
            "budget": str(each.budget),
            "kv_bytes": each.kv_bytes,
            "seconds": each.seconds,
            "attention_entropy": each.risk.signs.get("attention"),
            "signal": each.risk.signal,
            "flagged": each.risk.flagged,
        }
        for each in tries
    ]
