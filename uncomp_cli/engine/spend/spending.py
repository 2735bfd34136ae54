"""Spending a preset's budget: from an amount in the user's unit to what every head keeps of one prompt."""

from dataclasses import replace
from functools import partial

from uncomp_cli.budget.amount import Budget, resolve_entries, resolve_quantized
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.spend.allocation import Allocation, Measurer, Wanted, allocate
from uncomp_cli.engine.spend.measurer import measure_layer
from uncomp_cli.engine.spend.memory import activation_bytes
from uncomp_cli.engine.spend.profiles import profile_of
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.spec import ModelSpec

__all__ = ["MEMORY_MARGIN", "make_allocation", "make_plan", "scorer_config"]

MEMORY_MARGIN = 0.9
"""Of the memory that is free: what a budget of auto may use."""


def make_plan(spec: ModelSpec, preset: Preset, prompt: Prompt, *, available: int) -> BudgetPlan:
    """The plan of `make_allocation`: of a policy that measures live, one of as many entries, evenly spread."""
    return make_allocation(spec, preset, prompt, available=available).plan


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
    than `most_held` tokens. Raises DoesNotFitError when the budget is too small, UsageError when the policy needs a
    measure that the preset's profile does not have.
    """
    budget = preset.budget
    spare = int(MEMORY_MARGIN * available) - activation_bytes(spec, at_once or prompt.flat_len)
    entries = _entries(spec, budget, prompt, kv_bits=preset.kv_bits, free_bytes=max(0, spare))
    if preset.floor_tokens:
        floor = (prompt.always_kept + preset.floor_tokens) * spec.num_layers * spec.num_kv_heads
        entries = max(entries, min(floor, spec.full_entries(prompt.seq_len)))
    name = "full" if budget.kind == "full" else preset.policy
    if most_entries is not None and most_entries < entries:
        entries, name = most_entries, "uniform" if preset.policy == "full" else preset.policy
    policy = make_policy(name)
    caps = None if most_held is None else (most_held,) * spec.num_layers
    wanted = Wanted(policy, spec, prompt.seq_len, entries, prompt.always_kept, preset.kv_bits, caps)
    measuring = measurer or partial(measure_layer, window=preset.scorer.window, sinks=preset.scorer.sinks)
    return allocate(wanted, profile=profile_of(preset), measurer=measuring, uncertainty=uncertainty)


def _entries(spec: ModelSpec, budget: Budget, prompt: Prompt, *, kv_bits: int, free_bytes: int) -> int:
    """KV entries that `budget` allows for `prompt`; in bytes, the questions that wait their turn count too."""
    if kv_bits != 16:
        return resolve_quantized(
            budget,
            spec,
            seq_len=prompt.seq_len,
            free_bytes=free_bytes,
            kv_bits=kv_bits,
            question_tokens=prompt.longest_question,
            waiting_tokens=prompt.waiting_tokens,
        )
    entries = resolve_entries(budget, spec, seq_len=prompt.seq_len, free_bytes=free_bytes)
    if budget.kind in ("auto", "bytes"):
        entries = max(0, entries - spec.num_layers * spec.num_kv_heads * prompt.waiting_tokens)
    return entries


def scorer_config(preset: Preset) -> ScorerConfig:
    """The scorer of a preset; some policies are defined by theirs. Coherence is the same for all, controls included."""
    fixed = make_policy(preset.policy).fixed_scorer
    return preset.scorer if fixed is None else replace(preset.scorer, name=fixed)
