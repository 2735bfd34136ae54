"""Allocation: the plan of one prompt, known before it is read or made while its layers report.

A policy that measures nothing, or whose measure a profile holds, has its plan from the start. Live, each layer is
measured as it is read:

    scope "layer"   a layer's counts depend on that layer alone: final at once
    scope "model"   layers that have not reported weigh nothing yet, so that the counts of those that have only shrink

What a layer keeps until all have reported is the business of overkeep.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.policies import Policy
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.view import LayerView
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure, parse_measure
from uncomp_cli.uncertainty.profile import UncertaintyProfile

__all__ = ["Allocation", "Live", "Measurer", "Wanted", "allocate", "fixed"]

Measurer = Callable[[Measure, LayerView], Tensor]
"""Values [X] of a measure in one layer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A budget to spread over a prompt of `seq_len` tokens: `entries` KV entries, `protected` tokens in every head.

    No head of layer l ever holds more than `caps[l]` tokens.
    """

    policy: Policy
    spec: ModelSpec
    seq_len: int
    entries: int
    protected: int
    kv_bits: int = 16
    caps: tuple[int, ...] | None = None

    def plan(self, uncertainty: Uncertainty | None = None, *, caps: Sequence[int] | None = None) -> BudgetPlan:
        """What the policy makes of it; even, when it has yet to be told what it needs.

        A head of layer l can hold `caps[l]` tokens. Raises DoesNotFitError when the budget is too small.
        """
        plan = self.policy.plan(
            self.spec,
            seq_len=self.seq_len,
            entries=self.entries,
            protected=self.protected,
            uncertainty=uncertainty,
            caps=_lower(self.caps, caps),
        )
        return plan.held_in(self.kv_bits)


def _no_more(kept: Sequence[Sequence[int]], most: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(min(count, most) for count in layer) for layer in kept)


def _lower(first: Sequence[int] | None, second: Sequence[int] | None) -> Sequence[int] | None:
    """The lower of two caps for each layer; None: no cap."""
    if first is None or second is None:
        return second if first is None else first
    return [min(pair) for pair in zip(first, second, strict=True)]


@dataclass(frozen=True, slots=True)
class Live:
    """What to measure while a prompt is read, and how."""

    measure: Measure
    measurer: Measurer


class Allocation:
    """How many tokens the heads of each layer keep; `plan` is final when the last layer has reported.

    `uncertainty` are the values that the plan was made from: a profile's, or those measured so far.
    """

    def __init__(
        self,
        plan: BudgetPlan,
        *,
        wanted: Wanted | None = None,
        live: Live | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        self.plan = plan
        self.uncertainty = uncertainty
        self._wanted = wanted
        self._live = live
        self._reports: dict[int, int] = {}

    @property
    def live(self) -> bool:
        """Whether the plan is made from what is measured while the prompt is read."""
        return self._live is not None

    @property
    def waits(self) -> bool:
        """Whether the counts of a layer may still shrink when later layers report."""
        return self._live is not None and self._wanted is not None and self._wanted.policy.scope == "model"

    def report(self, layer: int, view: LayerView) -> None:
        """Measure `layer`, which follows those that were reported, and plan anew.

        A layer that reports again, of a later chunk, has the mean of all its reports.
        """
        live, wanted = self._live, self._wanted
        if live is None or wanted is None:
            return
        values = self.uncertainty.values if self.uncertainty is not None else ()
        skipped = (0.0,) * live.measure.width(wanted.spec)  # sliding layers are not measured
        values += (skipped,) * (layer + 1 - len(values))
        before, new = self._reports.get(layer, 0), live.measurer(live.measure, view).tolist()
        mean = tuple((old * before + value) / (before + 1) for old, value in zip(values[layer], new, strict=True))
        self._reports[layer] = before + 1
        self.uncertainty = Uncertainty(str(live.measure), (*values[:layer], mean, *values[layer + 1 :]))
        self.plan = wanted.plan(self.uncertainty)

    def fit(self, caps: Sequence[int]) -> None:
        """Plan anew for heads of layer l that can hold `caps[l]` tokens: what they cannot goes to the others."""
        if self._wanted is not None:
            self.plan = self._wanted.plan(self.uncertainty, caps=caps)

    def narrowed(self, seq_len: int, protected: int) -> "Allocation":
        """The allocation of as many entries, where there are as many, to a part of the prompt: `seq_len` tokens.

        What was measured on the whole prompt is used.
        """
        if self._wanted is None:
            return Allocation(replace(self.plan, seq_len=seq_len, kept=_no_more(self.plan.kept, seq_len)))
        spec = self._wanted.spec
        entries = min(self.plan.entries, spec.full_entries(seq_len))
        wanted = replace(self._wanted, seq_len=seq_len, entries=entries, protected=protected, caps=None)
        return Allocation(wanted.plan(self.uncertainty), wanted=wanted, uncertainty=self.uncertainty)

    def trust(self) -> tuple[tuple[float, ...], ...] | None:
        """How far each head of each layer is trusted to say what matters; None when nothing was measured.

        It is the square of the weight that the policy gives the head (cache/agreement.py).
        """
        if self._wanted is None or self.uncertainty is None:
            return None
        weights = self._wanted.policy.weights(self._wanted.spec, self.uncertainty)
        return tuple(tuple(weight**2 for weight in layer) for layer in weights)


def fixed(plan: BudgetPlan | Allocation) -> Allocation:
    """A plan that is known, as an allocation."""
    return plan if isinstance(plan, Allocation) else Allocation(plan)


def allocate(
    wanted: Wanted,
    *,
    profile: UncertaintyProfile | None,
    measurer: Measurer,
    uncertainty: Uncertainty | None = None,
) -> Allocation:
    """The allocation of a policy: from `profile` when it holds a measure that the policy can use, otherwise live.

    `uncertainty` are values that are known already, and used. Raises UsageError when the policy can use neither.
    """
    if uncertainty is not None:
        return Allocation(wanted.plan(uncertainty), wanted=wanted, uncertainty=uncertainty)
    measures = wanted.policy.measures
    if not measures:
        return Allocation(wanted.plan(), wanted=wanted)
    held = next((key for key in measures if profile is not None and key in profile.values), None)
    if profile is not None and held is not None:
        uncertainty = Uncertainty(held, profile.as_rows(held))
        return Allocation(wanted.plan(uncertainty), wanted=wanted, uncertainty=uncertainty)
    live = next((measure for measure in map(parse_measure, measures) if measure.live), None)
    if live is None:
        raise UsageError(
            f"policy {wanted.policy.name} needs {' or '.join(measures)}, which only calibration measures",
            hint="uncomp calibrate, then use the --preset that it saves",
        )
    return Allocation(wanted.plan(), wanted=wanted, live=Live(live, measurer))
