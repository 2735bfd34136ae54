"""A policy and what it is asked for, as tests of allocations need them together."""

from dataclasses import replace
from typing import NamedTuple

from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import Policy
from uncomp_cli.budget.values import Uncertainty


class Asked(NamedTuple):
    """`allocate(*asked, …)` is the allocation, `asked.plan(values)` what it has to come to."""

    policy: Policy
    wanted: Wanted

    def plan(self, uncertainty: Uncertainty | None = None) -> BudgetPlan:
        """What the policy makes of it when it knows `uncertainty`."""
        return self.policy.plan(replace(self.wanted, uncertainty=uncertainty))
