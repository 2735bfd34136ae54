"""Policies: how a total budget is spread over layers and KV heads.

A policy declares what it needs and which scorer it fixes, if any. To add one: a class, a line in POLICIES.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Protocol

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec

__all__ = [
    "POLICIES",
    "AdaptivePolicy",
    "FullPolicy",
    "Policy",
    "PyramidPolicy",
    "RandomPolicy",
    "ReversedPolicy",
    "SinksPolicy",
    "UniformPolicy",
    "make_policy",
]


class Policy(Protocol):
    """Turns a number of KV entries into a plan.

    `needs_profile`: whether an uncertainty profile of the model must be given.
    `fixed_scorer`: the scorer that defines this policy, or None when any scorer will do.
    """

    name: ClassVar[str]
    needs_profile: ClassVar[bool]
    fixed_scorer: ClassVar[str | None]

    def plan(self, spec: ModelSpec, *, seq_len: int, entries: int, protected: int) -> BudgetPlan:
        """A plan of exactly `entries` KV entries in which every head keeps at least `protected` tokens."""
        ...


class FullPolicy:
    """Everything is kept, whatever the budget says."""

    name: ClassVar[str] = "full"
    needs_profile: ClassVar[bool] = False
    fixed_scorer: ClassVar[str | None] = None

    def plan(self, spec: ModelSpec, *, seq_len: int, entries: int, protected: int) -> BudgetPlan:
        """The whole prompt in every head."""
        return UniformPolicy().plan(spec, seq_len=seq_len, entries=spec.full_entries(seq_len), protected=protected)


class UniformPolicy:
    """The same number of tokens for every head; the scorer chooses which (SnapKV, arXiv 2404.14469, with `window`)."""

    name: ClassVar[str] = "uniform"
    needs_profile: ClassVar[bool] = False
    fixed_scorer: ClassVar[str | None] = None

    def plan(self, spec: ModelSpec, *, seq_len: int, entries: int, protected: int) -> BudgetPlan:
        """Equal shares."""
        weights = [[1.0] * spec.num_kv_heads] * spec.num_layers
        return BudgetPlan.of_shares(spec, seq_len=seq_len, entries=entries, protected=protected, weights=weights)


class SinksPolicy(UniformPolicy):
    """Attention sinks and the most recent tokens (StreamingLLM, arXiv 2309.17453)."""

    name: ClassVar[str] = "sinks"
    fixed_scorer: ClassVar[str | None] = "recent"


class RandomPolicy(UniformPolicy):
    """The control: the same number of tokens, chosen at random."""

    name: ClassVar[str] = "random"
    fixed_scorer: ClassVar[str | None] = "random"


class ReversedPolicy(UniformPolicy):
    """The control: the same number of tokens, those that the question looks at least."""

    name: ClassVar[str] = "reversed"
    fixed_scorer: ClassVar[str | None] = "reversed"


class PyramidPolicy:
    """Fewer tokens from layer to layer, the same number for every head of one (PyramidKV, arXiv 2406.02069, eq. 4-6).

    Of the mean, the first full-attention layer gets 2 - 1/BETA and the last 1/BETA, those between on a line; protected
    tokens do not count in it. What a layer cannot use, because the prompt is shorter, goes to the others.
    """

    name: ClassVar[str] = "pyramid"
    needs_profile: ClassVar[bool] = False
    fixed_scorer: ClassVar[str | None] = None
    BETA: ClassVar[float] = 20.0

    def plan(self, spec: ModelSpec, *, seq_len: int, entries: int, protected: int) -> BudgetPlan:
        """Shares that fall linearly over the full-attention layers."""
        steps = max(1, len(spec.full_layers) - 1)
        slope = 2 * (1 - 1 / self.BETA) / steps if len(spec.full_layers) > 1 else 0.0
        weights = [[1.0] * spec.num_kv_heads for _ in range(spec.num_layers)]
        for order, layer in enumerate(spec.full_layers):
            weights[layer] = [1 + slope * (steps / 2 - order)] * spec.num_kv_heads
        return BudgetPlan.of_shares(spec, seq_len=seq_len, entries=entries, protected=protected, weights=weights)


class AdaptivePolicy:
    """The same number of tokens for every layer, whose heads share them by their scores (AdaKV, arXiv 2407.11550)."""

    name: ClassVar[str] = "adaptive"
    needs_profile: ClassVar[bool] = False
    fixed_scorer: ClassVar[str | None] = None
    HEAD_FLOOR: ClassVar[float] = 0.2

    def plan(self, spec: ModelSpec, *, seq_len: int, entries: int, protected: int) -> BudgetPlan:
        """Equal shares, of which each head is sure of HEAD_FLOOR."""
        plan = UniformPolicy().plan(spec, seq_len=seq_len, entries=entries, protected=protected)
        return replace(plan, head_floor=self.HEAD_FLOOR)


POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy
    for policy in (
        FullPolicy,
        UniformPolicy,
        SinksPolicy,
        RandomPolicy,
        PyramidPolicy,
        AdaptivePolicy,
        ReversedPolicy,
    )
}


def make_policy(name: str) -> Policy:
    """The policy called `name`; raises UsageError with the nearest names."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(POLICIES)}"
        raise UsageError(f"unknown policy '{name}'", hint=hint)
    return POLICIES[name]()
