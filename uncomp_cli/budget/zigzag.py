"""ZigZagKV (arXiv 2412.09036, eq. 6-8): layers that need more tokens for the same attention keep more.

    u_l = LMBA_l / sum of LMBA      b_l = b_min + (b_avg - b_min) L u_l      b_min = floor * b_avg

LMBA_l is the layer's mean over heads and rows; LMBO, the least budget of the attention output, can take its place. The
total is exact. No layer can use more tokens than there are: what b_l has above that goes to the others by their u_l.
Protected tokens lie beneath: b_avg is the mean of what is left. All heads of a layer are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from uncomp_cli.budget.notation import PolicyText, require
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.values import LEAST_TOKENS, Uncertainty, kv_rows, spread_rows
from uncomp_cli.spec import ModelSpec

__all__ = ["ZigzagPolicy"]

_MEASURES = {"lmba-raw": "lmba/raw", "lmba-free": "lmba/sinkfree", "lmbo": "lmbo"}


@dataclass(frozen=True, slots=True)
class ZigzagPolicy(PolicyText):
    """Layer budgets by minimum budget; `lmba-free` leaves out sinks and window; `reverse` puts 1/LMBA for LMBA."""

    name: ClassVar[str] = "zigzag"
    fixed_scorer: ClassVar[str | None] = None
    floor: float = 0.2
    by: Literal["lmba-raw", "lmba-free", "lmbo"] = "lmba-raw"
    reverse: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.floor <= 1, f"zigzag floor is {self.floor}", hint="use a share of the mean, from 0 to 1")

    @property
    def measures(self) -> tuple[str, ...]:
        """The least budget it goes by."""
        return (_MEASURES[self.by],)

    @property
    def scope(self) -> Literal["none", "layer", "model"]:
        """Layers share by all layers' values."""
        return "model"

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """[L][G]: what is above b_min is spread by these, equal in a layer; layers without values weigh 0."""
        rows = kv_rows(uncertainty, spec, measures=self.measures)
        means = [None if row is None else (sum(row) / len(row),) * len(row) for row in rows]
        return spread_rows(means, spec, power=-1.0 if self.reverse else 1.0, least=LEAST_TOKENS)

    def plan(
        self,
        spec: ModelSpec,
        *,
        seq_len: int,
        entries: int,
        protected: int,
        uncertainty: Uncertainty | None = None,
        caps: Sequence[int] | None = None,
    ) -> BudgetPlan:
        """b_l for every full-attention layer; layers that did not report yet have b_min."""
        return BudgetPlan.of_shares(
            spec,
            seq_len=seq_len,
            entries=entries,
            protected=protected,
            weights=self.weights(spec, uncertainty),
            even_share=self.floor,
            caps=caps,
        )
