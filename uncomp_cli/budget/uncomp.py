"""UNComp (arXiv 2410.03090): heads whose states use more directions keep more tokens; layers go by stages.

    KV heads of a layer, ranked by truncated matrix entropy (the mean over a KV head's query heads), fall into groups;
    a group's share of the layer's mean rises linearly from `low` to `high` (released averages of 384 tokens: 32, 384,
    736 in three groups; 128, 298, 470, 640 in four). The mean over a layer's heads is 1 whatever the group sizes.

`paper` is the paper's setting: rank 32, two groups at 0.5 and 1.5. There the groups are of query heads, here always of
KV heads, the unit that is evicted. `stages` also spreads the layers: linearly from `high` in the first stage to `low`
in the last, as the paper thins hidden states. Heads of equal entropy share what their places in the ranking would get.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.notation import PolicyText, require
from uncomp_cli.budget.plan import BudgetPlan, apportion
from uncomp_cli.budget.stages import PAPER_THRESHOLD, layer_stages, relative_threshold, stage_weights
from uncomp_cli.budget.values import Uncertainty, entropy_measure, is_complete, kv_rows
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure

__all__ = ["UncompPolicy", "group_ramp"]

_FREE_WITH_PAPER = ("reverse", "stages", "paper")
_MOST = 1e6


@dataclass(frozen=True, slots=True)
class UncompPolicy(PolicyText):
    """Entropy head groups within each layer; `reverse` is the control, low entropy keeps more."""

    name: ClassVar[str] = "uncomp"
    fixed_scorer: ClassVar[str | None] = None
    groups: int = 3
    low: float = 0.5
    high: float = 1.5
    rank: str = "1/4"
    state: Literal["q", "k", "v"] = "q"
    renormalise: bool = False
    rope: Literal["post", "pre"] = "post"
    reverse: bool = False
    stages: bool = False
    paper: bool = False

    def __post_init__(self) -> None:
        require(2 <= self.groups <= 1024, f"uncomp groups is {self.groups}", hint="use 2 groups or more, at most 1024")
        ordered = 0 <= self.low <= self.high <= _MOST and self.high > 0
        hint = "use 0 <= low <= high with high above 0; reverse=true turns the order round"
        require(ordered, f"uncomp low is {self.low}, high is {self.high}", hint=hint)
        object.__setattr__(self, "rank", str(self._measure.rank))
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        mixed = [key for key in changed if key not in _FREE_WITH_PAPER]
        hint = f"leave out paper=true, or {', '.join(mixed)}"
        require(not self.paper or not mixed, f"uncomp paper=true sets {', '.join(mixed)} itself", hint=hint)

    @property
    def measures(self) -> tuple[str, ...]:
        """The entropy it ranks by."""
        return (str((_PAPER if self.paper else self)._measure),)

    @property
    def scope(self) -> Literal["none", "layer", "model"]:
        """A layer's heads share what is the layer's; stages move tokens between layers."""
        return "model" if self.stages else "layer"

    @property
    def _measure(self) -> Measure:
        return entropy_measure(state=self.state, rank=self.rank, renormalise=self.renormalise, rope=self.rope)

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """[L][G], with mean 1 in every layer; layers without values are even."""
        rows = kv_rows(uncertainty, spec, measures=self.measures)
        constants = _PAPER if self.paper else self
        ramp = group_ramp(constants.groups, spec.num_kv_heads, low=constants.low, high=constants.high)
        return [[1.0] * len(ramp) if row is None else _by_rank(row, ramp, reverse=self.reverse) for row in rows]

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
        """Each layer's even share, split by its head groups; with stages, all layers at once.

        Stages are known when all layers are: with values of some, nothing is dropped yet.
        """
        weights = self.weights(spec, uncertainty)
        even = UniformPolicy().plan(spec, seq_len=seq_len, entries=entries, protected=protected, caps=caps)
        if uncertainty is None:
            return even
        if self.stages:
            if not is_complete(uncertainty, spec):
                return BudgetPlan.everything(spec, seq_len=seq_len, caps=caps)
            weights = self._staged(spec, uncertainty, weights)
            return BudgetPlan.of_shares(
                spec, seq_len=seq_len, entries=entries, protected=protected, weights=weights, caps=caps
            )
        floor = min(protected, seq_len)
        kept = list(even.kept)
        for layer in spec.full_layers:
            cap = seq_len if caps is None else min(seq_len, max(caps[layer], floor))
            kept[layer] = tuple(apportion(sum(kept[layer]), weights[layer], floor=floor, cap=cap))
        return replace(even, kept=tuple(kept))

    def _staged(
        self, spec: ModelSpec, uncertainty: Uncertainty, weights: Sequence[Sequence[float]]
    ) -> list[list[float]]:
        constants = _PAPER if self.paper else self
        layers = dict.fromkeys(range(spec.num_layers), 1.0)
        stages = self._stages([uncertainty.values[layer] for layer in spec.full_layers])
        layers.update(
            zip(spec.full_layers, stage_weights(stages, first=constants.high, last=constants.low), strict=True)
        )
        return [[layers[layer] * weight for weight in row] for layer, row in enumerate(weights)]

    def _stages(self, rows: Sequence[Sequence[float]]) -> list[range]:
        """Of full-attention layers. The published sums, near 2.3 a head, have the size of exp(entropy / ln D) <= e."""
        if self.paper:
            return layer_stages(
                [sum(math.exp(min(value, 1.0)) for value in row) for row in rows], threshold=PAPER_THRESHOLD
            )
        sums = [sum(row) for row in rows]
        return layer_stages(sums, threshold=relative_threshold(sums))


_PAPER = UncompPolicy(groups=2, low=0.5, high=1.5, rank="32")


def group_ramp(groups: int, num_heads: int, *, low: float, high: float) -> list[float]:
    """Weights by ascending rank: `groups` of sizes as even as can be, from `low` to `high`, scaled to mean 1."""
    groups = min(groups, num_heads)
    step = (high - low) / max(1, groups - 1)
    weights = [low + step * (place * groups // num_heads) for place in range(num_heads)]
    total = sum(weights)
    return [weight * num_heads / total for weight in weights] if groups > 1 else [1.0] * num_heads


def _by_rank(values: Sequence[float], ramp: Sequence[float], *, reverse: bool) -> list[float]:
    order = sorted(values, reverse=reverse)
    places = {value: [ramp[i] for i, other in enumerate(order) if other == value] for value in values}
    return [sum(places[value]) / len(places[value]) for value in values]
