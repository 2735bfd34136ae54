"""A preset's floor: short documents keep at least so many of their tokens, long ones follow the budget."""

from dataclasses import replace

import pytest

from uncomp_cli.budget.presets import Preset, load_preset, shipped_preset_dir
from uncomp_cli.engine.spend.allocation import make_allocation
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.spend.memory import estimate
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

SPEC = ModelSpec("llama", 2, 4, 2, 8, 32, 64, 100, 100_000, 4, (None, None))
OPENING, QUESTION = 10, 20


def prompt_of(document: int) -> Prompt:
    opening, rest = Tokens.of((1,) * OPENING, protected=True), Tokens.of((1,) * document)
    return Prompt(Tokens.join([opening, rest]), ((2,) * QUESTION,))


def preset_of(floor: int, budget: str = "5%") -> Preset:
    return Preset(name="x", description="", budget=budget, policy="uniform", floor_tokens=floor)


@pytest.mark.parametrize(("document", "kept"), [(50, 80), (400, 130), (20_000, 1001)])
def test_the_floor_counts_document_tokens_beside_the_protected_ones(document: int, kept: int) -> None:
    plan = make_allocation(SPEC, preset_of(100), prompt_of(document), available=2**30).plan
    assert set(plan.kept[0] + plan.kept[1]) == {kept} | ({kept + 1} if document == 20_000 else set())


def test_without_a_floor_the_same_budget_keeps_what_is_always_kept_and_says_so() -> None:
    prompt = prompt_of(50)
    allocation = make_allocation(SPEC, preset_of(0), prompt, available=2**30)
    assert set(allocation.plan.kept[0] + allocation.plan.kept[1]) == {prompt.always_kept}
    assert allocation.shortage is not None
    with pytest.raises(DoesNotFitError):
        allocation.refuse_shortage()


def test_questions_that_wait_their_turn_count_in_bytes_and_in_the_estimate() -> None:
    one = prompt_of(4000)
    five = Prompt(one.context, one.questions * 5)
    assert (one.waiting_tokens, five.waiting_tokens) == (0, 5 * QUESTION)
    assert five.flat_len == len(one.context) + 5 * QUESTION
    plans = [make_allocation(SPEC, preset_of(0, "128KiB"), prompt, available=2**30).plan for prompt in (one, five)]
    heads = SPEC.num_layers * SPEC.num_kv_heads
    assert plans[0].entries - plans[1].entries == 5 * QUESTION * heads
    estimates = [estimate(SPEC, plans[0], prompt=prompt) for prompt in (one, five)]
    grown = estimates[1].kv_kept_bytes - estimates[0].kv_kept_bytes
    assert grown == 5 * QUESTION * heads * (SPEC.kv_bytes_per_entry + 4)
    assert estimates[1].activation_bytes > estimates[0].activation_bytes


PRESETS = [load_preset(path.stem) for path in sorted(shipped_preset_dir().glob("*.json"))]
WINDOWS = {"none": (None,) * 6, "gemma3": (512,) * 5 + (None,), "half": (64, None) * 3, "all": (512,) * 6}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("document", [1, 40, 600, 1500, 9000])
def test_every_preset_runs_with_every_kind_of_layers_at_every_length(
    document: int, windows: str, preset: Preset
) -> None:
    """Windows come on top of what is asked for; where the protected tokens alone are more, more is kept."""
    spec = replace(SPEC, num_layers=6, sliding_windows=WINDOWS[windows])
    prompt = prompt_of(document)
    planned = plan_compression(spec, replace(preset, profile=None), prompt, available=2**33)
    plan, always = planned.allocation.plan, planned.prompt.always_kept
    least = min(prompt.seq_len, always + preset.floor_tokens)
    assert all(min(plan.kept[layer]) >= always for layer in spec.full_layers)
    entries = sum(sum(plan.kept[layer]) for layer in spec.full_layers)
    asked = 1.0 if preset.budget.kind == "full" else preset.budget.amount
    heads = len(spec.full_layers) * spec.num_kv_heads
    assert entries >= max(least * heads, int(asked * prompt.seq_len * heads) - 1)
