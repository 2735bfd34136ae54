"""UNComp (arXiv 2410.03090): heads whose states use more directions keep more tokens; layers go by stages.

    KV heads of a layer, ranked by truncated matrix entropy (the mean over a KV head's query heads), fall into groups;
    a group's share of the layer's mean rises linearly from `low` to `high` (released averages of 384 tokens: 32, 384,
    736 in three groups; 128, 298, 470, 640 in four). The mean over a layer's heads is 1 whatever the group sizes.

`paper` is the paper's setting: rank 32, two groups at 0.5 and 1.5. There the groups are of query heads, here always of
KV heads, the unit that is evicted. With `/published` tokens are ranked as in the released code: the last 8 queries,
the maximum of 7 neighbours. `stages` also spreads the layers: linearly from `high` in the first stage to `low`
in the last, as the paper thins hidden states. Heads of equal entropy share what their places in the ranking would get.

    layer l starts a stage when E[l] - E[l-1] < -threshold          (3.3)

The published threshold is 1 on sums over heads of values near 2.3; `relative_threshold` is its counterpart for sums of
any size: a tenth of their spread, which is what 1 is of the published sums of 32 layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar, Literal

from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.notation import PolicyText
from uncomp_cli.budget.plan import BudgetPlan, Wanted, apportion
from uncomp_cli.budget.values import Uncertainty, entropy_measure, is_complete, kv_rows
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import require
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure

_FREE_WITH_PAPER = ("reverse", "stages", "paper")
_MOST = 1e6
PAPER_THRESHOLD = 1.0
_SPREAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class UncompPolicy(PolicyText):
    """Entropy head groups within each layer; `reverse` is the control, low entropy keeps more."""

    name: ClassVar[str] = "uncomp"
    fixed_scorer: ClassVar[str | None] = None
    published: ClassVar[ScorerConfig | None] = ScorerConfig(
        "window", 8, "max", 7, whole_words=False, renormalise=False, recent=8
    )
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

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """Each layer's even share, split by its head groups; with stages, all layers at once.

        Stages are known when all layers are: with values of some, nothing is dropped yet.
        """
        spec, uncertainty = wanted.spec, wanted.uncertainty
        weights, even = self.weights(spec, uncertainty), UniformPolicy().plan(wanted)
        if uncertainty is None:
            return even
        if self.stages:
            if not is_complete(uncertainty, spec):
                return BudgetPlan.everything(wanted)
            return BudgetPlan.of_shares(wanted, self._staged(spec, uncertainty, weights))
        floor, kept = wanted.floor, list(even.kept)
        most = wanted.most_a_head(least=floor)
        for layer in spec.full_layers:
            kept[layer] = tuple(apportion(sum(kept[layer]), weights[layer], floor=floor, cap=most[layer]))
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


def layer_stages(sums: Sequence[float], *, threshold: float) -> list[range]:
    """The stages of layers with entropy `sums` [L], in order; together they are range(L)."""
    starts = [layer for layer in range(len(sums)) if layer == 0 or sums[layer] - sums[layer - 1] < -threshold]
    return [range(start, end) for start, end in pairwise([*starts, len(sums)])]


def relative_threshold(sums: Sequence[float]) -> float:
    """_SPREAD_SHARE of the distance from the lowest sum to the highest."""
    return _SPREAD_SHARE * (max(sums) - min(sums)) if sums else 0.0


def stage_weights(stages: Sequence[range], *, first: float, last: float) -> list[float]:
    """Weights [L] that fall linearly from the first stage to the last, equal within a stage, with mean 1."""
    slope = (last - first) / max(1, len(stages) - 1)
    weights = [first + slope * order for order, stage in enumerate(stages) for _ in stage]
    total = sum(weights)
    return [weight * len(weights) / total for weight in weights]
