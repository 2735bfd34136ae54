"""Allocation: the plan of one prompt, known before it is read or made while its layers report.

    make_allocation(spec, preset, prompt, available=…)   from an amount in the user's unit to what every head keeps

A policy that measures nothing, or whose measure a profile holds, has its plan from the start. Live, each layer is
measured as it is read:

    scope "layer"   a layer's counts depend on that layer alone: final at once
    scope "model"   layers that have not reported weigh nothing yet, so that the counts of those that have only shrink

What a layer keeps until all have reported is the business of overkeep.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor

from uncomp_cli.budget.amount import Budget, resolve_entries, resolve_quantized
from uncomp_cli.budget.plan import ALWAYS_KEPT, BudgetPlan, Wanted
from uncomp_cli.budget.policies import Policy, make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.spend.gauge import measure_layer
from uncomp_cli.engine.spend.memory import activation_bytes, kept_amount
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure, parse_measure
from uncomp_cli.uncertainty.profile import UncertaintyProfile, load_profile

Measurer = Callable[[Measure, LayerView], Tensor]
"""Values [X] of a measure in one layer."""
MEMORY_MARGIN = 0.9
"""Of the memory that is free: what a budget of auto may use."""


@dataclass(frozen=True, slots=True)
class Live:
    """What to measure while a prompt is read, and how."""

    measure: Measure
    measurer: Measurer


class Allocation:
    """How many tokens the heads of each layer keep; `plan` is final when the last layer has reported.

    It is what `policy` makes of `wanted`, whose values are a profile's, or those measured so far; or it is fixed.
    `shortage` says that more is kept than was asked for, because it is always kept; None where it is not.
    """

    def __init__(
        self, plan: BudgetPlan, *, policy: Policy | None = None, wanted: Wanted | None = None, live: Live | None = None
    ) -> None:
        self.plan = plan
        self._policy = policy
        self._wanted = wanted
        self._live = live
        self._reports: dict[int, int] = {}
        self.shortage: str | None = None

    @classmethod
    def of(cls, policy: Policy, wanted: Wanted, live: Live | None = None) -> "Allocation":
        """What `policy` makes of `wanted`; even, when it has yet to be told what it needs.

        Raises DoesNotFitError when the budget is too small.
        """
        return cls(policy.plan(wanted), policy=policy, wanted=wanted, live=live)

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The values that the plan was made from."""
        return None if self._wanted is None else self._wanted.uncertainty

    @property
    def live(self) -> bool:
        """Whether the plan is made from what is measured while the prompt is read."""
        return self._live is not None

    @property
    def waits(self) -> bool:
        """Whether the counts of a layer may still shrink when later layers report."""
        return self._live is not None and self._policy is not None and self._policy.scope == "model"

    def report(self, layer: int, view: LayerView, ranks: Ranks = ALONE) -> None:
        """Measure `layer`, which follows those that were reported, and plan anew.

        A layer that reports again, of a later chunk, has the mean of all its reports. Of heads that are dealt out to
        `ranks` each measures those of `view`.
        """
        live, policy, wanted = self._live, self._policy, self._wanted
        if live is None or policy is None or wanted is None:
            return
        values = () if wanted.uncertainty is None else wanted.uncertainty.values
        skipped = (0.0,) * live.measure.width(wanted.spec)  # sliding layers are not measured
        values += (skipped,) * (layer + 1 - len(values))
        before, new = self._reports.get(layer, 0), ranks.whole(live.measurer(live.measure, view)).tolist()
        mean = tuple((old * before + value) / (before + 1) for old, value in zip(values[layer], new, strict=True))
        self._reports[layer] = before + 1
        known = Uncertainty(str(live.measure), (*values[:layer], mean, *values[layer + 1 :]), "live")
        self._wanted = replace(wanted, uncertainty=known)
        self.plan = policy.plan(self._wanted)

    def fit(self, caps: Sequence[int]) -> None:
        """Plan anew for heads of layer l that can hold `caps[l]` tokens."""
        self.plan = self.fitted(caps)

    def fitted(self, caps: Sequence[int]) -> BudgetPlan:
        """The plan for heads of layer l that can hold `caps[l]` tokens: what they cannot goes to the others."""
        if self._policy is None or self._wanted is None:
            return self.plan
        return self._policy.plan(self._wanted.capped(caps))

    def narrowed(self, seq_len: int, protected: int) -> "Allocation":
        """The allocation of as many entries, where there are as many, to a part of the prompt: `seq_len` tokens.

        What was measured on the whole prompt is used.
        """
        policy, wanted = self._policy, self._wanted
        if policy is None or wanted is None:
            kept = tuple(tuple(min(count, seq_len) for count in layer) for layer in self.plan.kept)
            return Allocation(replace(self.plan, seq_len=seq_len, kept=kept))
        entries = min(self.plan.entries, wanted.spec.full_entries(seq_len))
        return Allocation.of(policy, replace(wanted, seq_len=seq_len, entries=entries, protected=protected, caps=None))

    def refuse_shortage(self) -> None:
        """Raise DoesNotFitError when more is kept than was asked for: for who compares budgets."""
        if self.shortage is not None:
            raise DoesNotFitError(self.shortage, hint="use a larger --budget")

    def trust(self) -> tuple[tuple[float, ...], ...] | None:
        """How far each head of each layer is trusted to say what matters; None when nothing was measured.

        It is the square of the weight that the policy gives the head (cache/window.py).
        """
        policy, wanted = self._policy, self._wanted
        if policy is None or wanted is None or wanted.uncertainty is None:
            return None
        weights = policy.weights(wanted.spec, wanted.uncertainty)
        return tuple(tuple(weight**2 for weight in layer) for layer in weights)


def fixed(plan: BudgetPlan | Allocation) -> Allocation:
    """A plan that is known, as an allocation."""
    return plan if isinstance(plan, Allocation) else Allocation(plan)


def allocate(policy: Policy, wanted: Wanted, *, profile: UncertaintyProfile | None, measurer: Measurer) -> Allocation:
    """The allocation of a policy: by values that are known, else by those of `profile` that it can use, else live.

    Raises UsageError when the policy can use neither.
    """
    if wanted.uncertainty is not None or not policy.measures:
        return Allocation.of(policy, wanted)
    held = next((key for key in policy.measures if profile is not None and key in profile.values), None)
    if profile is not None and held is not None:
        return Allocation.of(policy, replace(wanted, uncertainty=Uncertainty(held, profile.as_rows(held))))
    live = next((measure for measure in map(parse_measure, policy.measures) if measure.live), None)
    if live is None:
        raise UsageError(
            f"policy {policy.name} needs {' or '.join(policy.measures)}, which only calibration measures",
            hint="uncomp calibrate, then use the --preset that it saves",
        )
    return Allocation.of(policy, wanted, Live(live, measurer))


def make_allocation(
    spec: ModelSpec,
    preset: Preset,
    prompt: Prompt,
    *,
    available: int,
    measurer: Measurer | None = None,
    at_once: int | None = None,
    most_entries: int | None = None,
    uncertainty: Uncertainty | None = None,
    most_held: int | None = None,
) -> Allocation:
    """How `preset` spreads its budget over `prompt`; `available` bytes are what a budget of `auto` may use.

    `measurer` measures for a policy that does so live; `uncertainty` is what is known already. `at_once` tokens go
    through the model together (None: all). Whatever the budget, no more than `most_entries` are kept, by no head more
    than `most_held` tokens. Raises DoesNotFitError when bytes are too few, UsageError when the policy needs a
    measure that the preset's profile does not have. A share or tokens are no limit of memory: where more is always
    kept, so it is, and the allocation says so. Bytes are one.
    """
    spare = int(MEMORY_MARGIN * available) - activation_bytes(spec, at_once or prompt.flat_len)
    entries = _entries(spec, preset, prompt, free_bytes=max(0, spare))
    name = "full" if preset.budget.kind == "full" else preset.policy
    caps = None if most_held is None else (most_held,) * spec.num_layers
    wanted = Wanted(spec, prompt.seq_len, entries, prompt.always_kept, preset.kv_bits, caps, uncertainty)
    short = preset.budget.kind in ("fraction", "tokens") and entries < wanted.least_entries and name != "full"
    if short:
        wanted = replace(wanted, entries=wanted.least_entries)
    if most_entries is not None and most_entries < wanted.entries:
        wanted, name = replace(wanted, entries=most_entries), "uniform" if preset.policy == "full" else preset.policy
    measuring = measurer or partial(measure_layer, window=preset.scorer.window, sinks=preset.scorer.sinks)
    allocation = allocate(make_policy(name), wanted, profile=profile_of(preset), measurer=measuring)
    if short:
        allocation.shortage = _shortage(preset.budget, wanted, allocation.plan, prompt)
    return allocation


def _shortage(budget: Budget, wanted: Wanted, plan: BudgetPlan, prompt: Prompt) -> str:
    """What was asked for and what is kept, in the unit that was used."""
    kept = kept_amount(budget, wanted.spec, plan, question_tokens=prompt.longest_question)
    # So few tokens a head were hardly meant.
    meant = f"; did you mean {budget.amount:g}%?" if budget.kind == "tokens" and budget.amount < 100 else ""
    return (
        f"budget {budget} is less than is always kept {ALWAYS_KEPT}: {wanted.floor:,} tokens per head; "
        f"{kept} is kept{meant}"
    )


def _entries(spec: ModelSpec, preset: Preset, prompt: Prompt, *, free_bytes: int) -> int:
    """KV entries that the budget of `preset` allows for `prompt`, its floor included.

    In bytes, the questions that wait their turn count too.
    """
    budget, heads = preset.budget, spec.num_layers * spec.num_kv_heads
    if preset.kv_bits != 16:
        entries = resolve_quantized(
            budget,
            spec,
            seq_len=prompt.seq_len,
            free_bytes=free_bytes,
            kv_bits=preset.kv_bits,
            question_tokens=prompt.longest_question,
            waiting_tokens=prompt.waiting_tokens,
        )
    else:
        entries = resolve_entries(budget, spec, seq_len=prompt.seq_len, free_bytes=free_bytes)
        if budget.kind in ("auto", "bytes"):
            entries = max(0, entries - heads * prompt.waiting_tokens)
    if preset.floor_tokens:
        floor = (prompt.always_kept + preset.floor_tokens) * len(spec.full_layers) * spec.num_kv_heads
        least = spec.window_entries(prompt.seq_len) + floor
        entries = max(entries, min(least, spec.full_entries(prompt.seq_len)))
    return entries


def scorer_config(preset: Preset) -> ScorerConfig:
    """The scorer of a preset; some policies are defined by theirs. Coherence is the same for all, controls included."""
    fixed = make_policy(preset.policy).fixed_scorer
    return preset.scorer if fixed is None else replace(preset.scorer, name=fixed)


def profile_of(preset: Preset) -> UncertaintyProfile | None:
    """The profile of `preset`, or None when it has none. Raises UsageError when its file cannot be used."""
    path = preset.profile_path
    return None if path is None else _read_profile(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=8)
def _read_profile(path: Path, modified_ns: int) -> UncertaintyProfile:
    return load_profile(path)
