"""Policies: how a total budget is spread over layers and KV heads.

A policy declares what it needs and which scorer it fixes, if any. To add one: a class, a line in POLICIES.
"""

import difflib
from collections.abc import Callable
from typing import ClassVar, Protocol

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec

__all__ = ["POLICIES", "FullPolicy", "Policy", "RandomPolicy", "SinksPolicy", "UniformPolicy", "make_policy"]


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


POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy for policy in (FullPolicy, UniformPolicy, SinksPolicy, RandomPolicy)
}


def make_policy(name: str) -> Policy:
    """The policy called `name`; raises UsageError with the nearest names."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(POLICIES)}"
        raise UsageError(f"unknown policy '{name}'", hint=hint)
    return POLICIES[name]()
