"""Policies: how a total budget is spread over layers and KV heads.

A policy is a small class that declares what it needs measured and which scorer it fixes, if any; its settings are its
fields (notation.py). To add one: a class, a line in POLICIES; or, in a package of your own, an entry of the group
`uncomp.policies` (plugins.py).
"""

from typing import ClassVar, Literal, Protocol

from uncomp_cli.budget.baselines import (
    AdaptivePolicy,
    FullPolicy,
    PyramidPolicy,
    RandomPolicy,
    ReversedPolicy,
    SinksPolicy,
    UniformPolicy,
    ZigzagPolicy,
)
from uncomp_cli.budget.notation import make_named
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.uncertain import UncertainPolicy
from uncomp_cli.budget.uncomp import UncompPolicy
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.config import ScorerConfig
from uncomp_cli.spec import ModelSpec


class Policy(Protocol):
    """Turns a number of KV entries into a plan; a frozen dataclass that derives from PolicyText.

    `fixed_scorer`: the scorer that defines this policy, or None when any scorer will do; `published`: see PolicyText.
    """

    name: ClassVar[str]
    fixed_scorer: ClassVar[str | None]
    published: ClassVar[ScorerConfig | None]

    @property
    def measures(self) -> tuple[str, ...]:
        """Keys of the measures it can use, the preferred first (uncertainty/measures.py); () when none is needed."""

    @property
    def scope(self) -> Literal["none", "layer", "model"]:
        """What a layer's counts depend on: nothing measured, its own values, or those of all layers.

        In scope `model` a plan from the values of the first k layers gives each of these at least what every later plan
        does, rounding aside: what was over-kept is trimmed again, and the last plan is that of all values at once.
        """

    def weights(self, spec: ModelSpec, uncertainty: Uncertainty | None) -> list[list[float]]:
        """How much of a shared budget each head is due, [L][G] on a common scale; 0 for layers that did not report."""
        ...

    def plan(self, wanted: Wanted) -> BudgetPlan:
        """A plan of exactly the entries that are wanted, in which every head keeps at least the protected tokens.

        When all heads are full, it has fewer entries. Without `uncertainty`, as before a prefill, a policy that needs
        it spreads evenly. Raises DoesNotFitError when the protected tokens are over the budget, ModelError for values
        of another measure or another shape.
        """
        ...


POLICIES: dict[str, type[Policy]] = {
    "full": FullPolicy,
    "uniform": UniformPolicy,
    "sinks": SinksPolicy,
    "random": RandomPolicy,
    "pyramid": PyramidPolicy,
    "adaptive": AdaptivePolicy,
    "reversed": ReversedPolicy,
    "uncomp": UncompPolicy,
    "zigzag": ZigzagPolicy,
    "uncertain": UncertainPolicy,
}


def make_policy(text: str) -> Policy:
    """The policy that `text` names, `NAME[:key=value[,key=value...]]`; raises UsageError with the nearest names."""
    made: Policy = make_named(text, POLICIES, what="policy", group="policies")
    return made
