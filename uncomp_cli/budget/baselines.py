"""Policies that need no measurement: the field's baselines and the controls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from uncomp_cli.budget.notation import PolicyText
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.spec import ModelSpec

__all__ = [
    "AdaptivePolicy",
    "FullPolicy",
    "PyramidPolicy",
    "RandomPolicy",
    "ReversedPolicy",
    "SinksPolicy",
    "UniformPolicy",
]


@dataclass(frozen=True, slots=True)
class _Unmeasured(PolicyText):
    """A policy whose counts depend on the model's shape and the budget alone."""

    fixed_scorer: ClassVar[str | None] = None

    @property
    def measures(self) -> tuple[str, ...]:
        """None is needed."""
        return ()

    @property
    def scope(self) -> Literal["none", "layer", "model"]:
        """Counts depend on nothing measured."""
        return "none"

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """Every head is due the same."""
        return [[1.0] * spec.num_kv_heads for _ in range(spec.num_layers)]

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
        """Shares by weight."""
        weights = self.weights(spec, uncertainty)
        return BudgetPlan.of_shares(
            spec, seq_len=seq_len, entries=entries, protected=protected, weights=weights, caps=caps
        )


@dataclass(frozen=True, slots=True)
class FullPolicy(_Unmeasured):
    """Everything is kept, whatever the budget says."""

    name: ClassVar[str] = "full"

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
        """The whole prompt in every head."""
        return BudgetPlan.everything(spec, seq_len=seq_len, caps=caps)


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
        """Equal shares, of which each head is sure of HEAD_FLOOR."""
        plan = UniformPolicy().plan(spec, seq_len=seq_len, entries=entries, protected=protected, caps=caps)
        return replace(plan, head_floor=self.HEAD_FLOOR)
