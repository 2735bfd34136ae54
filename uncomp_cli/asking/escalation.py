"""Asking again with more of the text: budgets that double up to all of it, which answer stays, and what each cost.

Of the answers so far the last one stays when it is not flagged; else the one with the lowest measured rate of errors,
of equals the one with most kept: entropies of other budgets do not compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.doubts import Risk
from uncomp_cli.numerals import format_bytes, format_seconds

if TYPE_CHECKING:
    from uncomp_cli.budget.amount import Budget
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.context.session import RunStats

__all__ = ["HELD_BACK", "Try", "best_of", "escalation_record", "try_note", "wider"]

HELD_BACK = "--escalate: an answer is written when it is final"


@dataclass(frozen=True, slots=True)
class Try:
    """One answer to a question: the budget that it was given with, what it took, and how sure it was."""

    budget: "Budget"
    kv_bytes: int
    seconds: float
    risk: Risk

    @classmethod
    def of(cls, preset: "Preset", stats: "RunStats", risk: Risk) -> "Try":
        """What `stats` say of an answer under `preset`."""
        return cls(preset.budget, stats.kv_bytes, stats.ttft_s + stats.decode_s, risk)

    @property
    def more_may_help(self) -> bool:
        """Whether it was flagged."""
        return bool(self.risk.flagged)


def wider(preset: "Preset") -> "Preset | None":
    """The preset with twice the budget; None when it keeps all already, or all that the memory holds."""
    budget = preset.budget.times(2)
    if budget is None:
        return None
    if budget.kind == "full":
        return replace(preset, budget=budget, policy="full", floor_tokens=0, thinning="none")
    return replace(preset, budget=budget, floor_tokens=2 * preset.floor_tokens)


def best_of(tries: Sequence[Try]) -> int:
    """Which of the answers stays: the last when it is not flagged, else that of the lowest rate, the last of equals."""
    if not tries[-1].more_may_help:
        return len(tries) - 1
    return min(range(len(tries)), key=lambda number: (tries[number].risk.error_rate, -number))


def try_note(latest: Try, number: int) -> str:
    """`try 2: budget 40% · 12.3 s · KV 30.1 MiB · entropy 0.22`, and whether that is flagged."""
    entropy = "" if latest.risk.entropy is None else f" · entropy {latest.risk.entropy:.2f}"
    verdict = {True: ", flagged", False: ", not flagged", None: ""}[latest.risk.flagged]
    cost = f"{format_seconds(latest.seconds)} · KV {format_bytes(latest.kv_bytes)}"
    return f"try {number}: budget {latest.budget} · {cost}{entropy}{verdict}"


def escalation_record(tries: Sequence[Try]) -> list[dict[str, Any]]:
    """Every try, in order, for the JSON of an answer."""
    return [
        {
            "budget": str(each.budget),
            "kv_bytes": each.kv_bytes,
            "seconds": each.seconds,
            "attention_entropy": each.risk.entropy,
            "flagged": each.risk.flagged,
        }
        for each in tries
    ]
