"""The field's baselines and the controls; only ZigZagKV needs a measurement."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from uncomp_cli.budget.notation import PolicyText
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.values import LEAST_TOKENS, Uncertainty, kv_rows, spread_rows
from uncomp_cli.errors import require
from uncomp_cli.spec import ModelSpec

_LEAST_BUDGETS = {"lmba-raw": "lmba/raw", "lmba-free": "lmba/sinkfree", "lmbo": "lmbo"}


@dataclass(frozen=True, slots=True)
class _Unmeasured(PolicyText):
    """A policy whose counts depend on the model's shape and the budget alone."""

    fixed_scorer: ClassVar[str | None] = None
    measures: ClassVar[tuple[str, ...]] = ()
    scope: ClassVar[Literal["none", "layer", "model"]] = "none"

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """Every head is due the same."""
        return [[1.0] * spec.num_kv_heads for _ in range(spec.num_layers)]

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """Shares by weight."""
        return BudgetPlan.of_shares(wanted, self.weights(wanted.spec, wanted.uncertainty))


@dataclass(frozen=True, slots=True)
class FullPolicy(_Unmeasured):
    """Everything is kept, whatever the budget says."""

    name: ClassVar[str] = "full"

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """The whole prompt in every head."""
        return BudgetPlan.everything(wanted)


@dataclass(frozen=True, slots=True)
class UniformPolicy(_Unmeasured):
    """The same number of tokens for every head; the scorer chooses which (SnapKV, arXiv 2404.14469, with `window`)."""

    name: ClassVar[str] = "uniform"


@dataclass(frozen=True, slots=True)
class SinksPolicy(UniformPolicy):
    """Attention sinks and the most recent tokens (StreamingLLM, arXiv 2309.17453)."""

    name: ClassVar[str] = "sinks"
    fixed_scorer: ClassVar[str | None] = "recent"


@dataclass(frozen=True, slots=True)
class RandomPolicy(UniformPolicy):
    """The control: the same number of tokens, chosen at random."""

    name: ClassVar[str] = "random"
    fixed_scorer: ClassVar[str | None] = "random"


@dataclass(frozen=True, slots=True)
class ReversedPolicy(UniformPolicy):
    """The control: the same number of tokens, those that the question looks at least."""

    name: ClassVar[str] = "reversed"
    fixed_scorer: ClassVar[str | None] = "reversed"


@dataclass(frozen=True, slots=True)
class PyramidPolicy(_Unmeasured):
    """Fewer tokens from layer to layer, the same number for every head of one (PyramidKV, arXiv 2406.02069, eq. 4-6).

    Of the mean, the first full-attention layer gets 2 - 1/BETA and the last 1/BETA, those between on a line; protected
    tokens do not count in it. What a layer cannot use, because the prompt is shorter, goes to the others.
    """

    name: ClassVar[str] = "pyramid"
    BETA: ClassVar[float] = 20.0

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """On a line over the full-attention layers."""
        steps = max(1, len(spec.full_layers) - 1)
        slope = 2 * (1 - 1 / self.BETA) / steps if len(spec.full_layers) > 1 else 0.0
        weights = [[1.0] * spec.num_kv_heads for _ in range(spec.num_layers)]
        for order, layer in enumerate(spec.full_layers):
            weights[layer] = [1 + slope * (steps / 2 - order)] * spec.num_kv_heads
        return weights


@dataclass(frozen=True, slots=True)
class AdaptivePolicy(_Unmeasured):
    """The same number of tokens for every layer, whose heads share them by their scores (AdaKV, arXiv 2407.11550)."""

    name: ClassVar[str] = "adaptive"
    HEAD_FLOOR: ClassVar[float] = 0.2

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """Equal shares, of which each head is sure of HEAD_FLOOR."""
        return replace(UniformPolicy().plan(wanted), head_floor=self.HEAD_FLOOR)


@dataclass(frozen=True, slots=True)
class ZigzagPolicy(PolicyText):
    """Layers that need more tokens for the same attention keep more (ZigZagKV, arXiv 2412.09036, eq. 6-8).

        u_l = LMBA_l / sum of LMBA      b_l = b_min + (b_avg - b_min) L u_l      b_min = floor * b_avg

    LMBA_l is the layer's mean over heads and rows; LMBO, the least budget of the attention output, can take its place.
    The total is exact. No layer can use more tokens than there are: what b_l has above that goes to the others by their
    u_l. Protected tokens lie beneath: b_avg is the mean of what is left. All heads of a layer are equal. `lmba-free`
    leaves out sinks and window; `reverse` puts 1/LMBA for LMBA.
    """

    name: ClassVar[str] = "zigzag"
    fixed_scorer: ClassVar[str | None] = None
    scope: ClassVar[Literal["none", "layer", "model"]] = "model"
    floor: float = 0.2
    by: Literal["lmba-raw", "lmba-free", "lmbo"] = "lmba-raw"
    reverse: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.floor <= 1, f"zigzag floor is {self.floor}", hint="use a share of the mean, from 0 to 1")

    @property
    def measures(self) -> tuple[str, ...]:
        """The least budget it goes by."""
        return (_LEAST_BUDGETS[self.by],)

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """[L][G]: what is above b_min is spread by these, equal in a layer; layers without values weigh 0."""
        rows = kv_rows(uncertainty, spec, measures=self.measures)
        means = [None if row is None else (sum(row) / len(row),) * len(row) for row in rows]
        return spread_rows(means, spec, power=-1.0 if self.reverse else 1.0, least=LEAST_TOKENS)

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """b_l for every full-attention layer; layers that did not report yet have b_min."""
        return BudgetPlan.of_shares(wanted, self.weights(wanted.spec, wanted.uncertainty), even_share=self.floor)
