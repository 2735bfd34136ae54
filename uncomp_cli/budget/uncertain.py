"""Ours: one budget over all layers and KV heads, spread by what was measured of each head.

    by=loss       (loss / max loss) ^ power + floor   calibrated: what the answer's likelihood loses when this head
                                                      alone keeps few tokens
    by=entropy    entropy ^ power                     live: truncated matrix entropy at a quarter of the dimension
    by=lmba-free  LMBA ^ -power                       peaked heads keep more; the published direction is reverse=true
    by=lmbo       LMBO ^ power
    by=random     drawn by `seed`                     the control
    by=auto       loss when a profile has it, else entropy

`reverse` is the other control: 1 / weight. Every head has the protected tokens beneath its share.
"""

import math
import random
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from uncomp_cli.budget.notation import PolicyText
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.values import LEAST_TOKENS, Rows, Uncertainty, entropy_measure, is_complete, kv_rows, spread_rows
from uncomp_cli.errors import require
from uncomp_cli.spec import ModelSpec

LOSS = "loss"
_BUDGETS = {"lmba-free": "lmba/sinkfree", "lmbo": "lmbo"}
_ENTROPY_POWER = 10.0
_LOSS_POWER = 0.7
# Below this an entropy says no more than that the head's states are one direction.
_LEAST_ENTROPY = 1e-6
_LEAST_WEIGHT = 1e-6
_OF_ENTROPY = ("rank", "state", "renormalise", "rope", "power", "reverse")
_OF_LOSS = ("floor", "power", "reverse")
_SETTINGS = {
    "auto": {*_OF_ENTROPY, *_OF_LOSS},
    "loss": {*_OF_LOSS},
    "entropy": {*_OF_ENTROPY},
    "lmba-free": {"power", "reverse"},
    "lmbo": {"power", "reverse"},
    "random": {"seed"},
}


@dataclass(frozen=True, slots=True)
class UncertainPolicy(PolicyText):
    """Joint over layer x KV head. Without `power`: 10 for entropy, 0.7 for loss, 1 for the others."""

    name: ClassVar[str] = "uncertain"
    fixed_scorer: ClassVar[str | None] = None
    by: Literal["auto", "loss", "entropy", "lmba-free", "lmbo", "random"] = "auto"
    floor: float = 0.02
    power: float | None = None
    rank: str = "1/4"
    state: Literal["q", "k", "v", "hidden"] = "q"
    renormalise: bool = False
    rope: Literal["post", "pre"] = "post"
    reverse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.floor <= 1, f"uncertain floor is {self.floor}", hint="use a share of the largest, 0 to 1")
        bounded = self.power is None or 0 < self.power <= 32
        require(bounded, f"uncertain power is {self.power}", hint="use a power above 0, at most 32")
        measure = entropy_measure(state=self.state, rank=self.rank, renormalise=self.renormalise, rope=self.rope)
        object.__setattr__(self, "rank", str(measure.rank))
        changed = [f.name for f in fields(self) if f.name != "by" and getattr(self, f.name) != f.default]
        unused = [key for key in changed if key not in _SETTINGS[self.by]]
        message = f"uncertain by={self.by} has no use for {', '.join(unused)}"
        require(not unused, message, hint=f"by={self.by} takes {', '.join(sorted(_SETTINGS[self.by]))}")

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures it can go by, the preferred first."""
        if self.by == "random":
            return ()
        if self.by in _BUDGETS:
            return (_BUDGETS[self.by],)
        measure = entropy_measure(state=self.state, rank=self.rank, renormalise=self.renormalise, rope=self.rope)
        entropy = str(measure)
        return {"loss": (LOSS,), "entropy": (entropy,)}.get(self.by, (LOSS, entropy))

    @property
    def scope(self) -> Literal["none", "layer", "model"]:
        """All heads of all layers share one budget; random weights are nobody's values."""
        return "none" if self.by == "random" else "model"

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """[L][G]; layers without values have none of what the others have above the floor."""
        if self.by == "random":
            draw = random.Random(self.seed)
            return [[1 - draw.random() for _ in range(spec.num_kv_heads)] for _ in range(spec.num_layers)]
        rows = kv_rows(uncertainty, spec, measures=self.measures)
        if uncertainty is not None and uncertainty.key == LOSS:
            return self._by_loss(rows, spec)
        least = LEAST_TOKENS if self.by in _BUDGETS else _LEAST_ENTROPY
        return spread_rows(rows, spec, power=self._signed_power, least=least)

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """Shares by weight over all heads.

        The floor of a loss goes by the largest of all layers: with values of some, nothing is dropped yet.
        """
        spec, uncertainty = wanted.spec, wanted.uncertainty
        plan = BudgetPlan.of_shares(wanted, self.weights(spec, uncertainty))
        return BudgetPlan.everything(wanted) if self._waits(spec, uncertainty) else plan

    def _waits(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> bool:
        if self.scope == "none" or uncertainty is None or uncertainty.key != LOSS:
            return False
        return not is_complete(uncertainty, spec)

    def _by_loss(self, rows: Rows, spec: ModelSpec) -> list[list[float]]:
        power = _LOSS_POWER if self.power is None else self.power
        relative = spread_rows(rows, spec, power=power, least=0.0)
        weights = [[value + self.floor for value in row] for row in relative]
        return [[1 / max(w, _LEAST_WEIGHT) for w in row] for row in weights] if self.reverse else weights

    @property
    def _signed_power(self) -> float:
        """Of an entropy or a least budget: above 0 high values keep more, below 0 low ones."""
        own = {"lmba-free": -1.0, "lmbo": 1.0}.get(self.by, _ENTROPY_POWER)
        power = own if self.power is None else math.copysign(self.power, own)
        return -power if self.reverse else power
