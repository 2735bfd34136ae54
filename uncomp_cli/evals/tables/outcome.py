"""What one setting scored on one sample, one line of a results file; and what its metrics are.

Figures are plain numbers, so that a line survives JSON and needs no model to be read again.
"""

from dataclasses import dataclass, field
from functools import partial

from uncomp_cli.evals.journal import Kind
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.tasks.task import Regime, Sample
from uncomp_cli.schema import Count, read

ORDER = (
    "exact",
    "match",
    "f1",
    "choice",
    "of_right",
    "match_first",
    "match_last",
    "top_1",
    "top_3",
    "nll",
    "coverage",
    "kl",
    "kl_p99",
    "agreement",
    "divergence",
)
"""Answers first, then likelihood, then distances; others follow by name."""

RIGHT_OR_WRONG = frozenset(
    {"exact", "match", "match_first", "match_last", "top_1", "top_3", "choice", "of_right", "within"}
)
"""Of one query these are 0 or 1, so that their intervals are those of a proportion."""

SHARES = RIGHT_OR_WRONG | {"f1", "coverage", "agreement", "divergence", "reread"}
"""Shown in per cent."""

LOWER_IS_BETTER = frozenset(
    {"nll", "kl", "kl_p99", "nll_weighted", "gain_lost", "nll_to_32", "nll_to_128", "nll_to_512"}
)
"""Metrics in which less is better; in all others more is."""


Key = tuple[str, int, int, str, str]
"""Subtask, tokens, index, regime, setting."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One setting on one sample in one regime.

    `setting` is the contestant with its budget (`uniform/window 20%`), `contestant` the same without the budget, which
    is what a curve over budgets belongs to. `kept_fraction` is allocated bytes over those of a full cache of the same
    tokens, measured after compression. `metrics` are the scores: `nll` (nats a token, from the answer's second token
    on), `exact` (0 or 1), `match` (0 to 1), `coverage` (share of the evidence's entries that were kept), `kl`,
    `kl_p99`, `agreement`, `divergence` (first token that differs, as a share of the length)... `coverage` by layer and
    KV head is `coverage_by_head` [L][G]. A budget too small for the prompt is `refused`, with the reason.
    """

    subtask: str
    index: Count
    regime: Regime
    setting: str
    contestant: str
    budget: str
    tokens: Count
    depth: float | None
    kept_fraction: float
    kv_bytes: Count
    metrics: dict[str, float] = field(default_factory=dict)
    coverage_by_head: list[list[float]] | None = None
    answer: str | None = None
    refused: str | None = None

    @classmethod
    def of(cls, sample: Sample, setting: Setting, regime: Regime) -> "Outcome":
        """One that waits for what was kept and for its metrics."""
        named = setting.label, setting.contestant, setting.budget
        return cls(sample.subtask, sample.index, regime, *named, sample.tokens, sample.depth, 0.0, 0)

    @property
    def key(self) -> Key:
        """What makes a line unique in a results file."""
        return (self.subtask, self.tokens, self.index, self.regime, self.setting)


OUTCOMES = Kind(
    program="uncomp eval",
    make=partial(read, Outcome),
    key=lambda outcome: outcome.key,
    place=lambda outcome: f"{outcome.setting} on {outcome.subtask} {outcome.index}",
)
"""The results of `uncomp eval`, and the outcomes of a calibration of quality."""
