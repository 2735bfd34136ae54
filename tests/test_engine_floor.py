"""A preset's floor: short documents keep at least so many of their tokens, long ones follow the budget."""

import pytest
import torch

from uncomp_cli.budget.presets import Preset
from uncomp_cli.engine.spend.memory import estimate
from uncomp_cli.engine.spend.spending import make_plan
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

SPEC = ModelSpec("llama", 2, 4, 2, 8, 32, 64, 100, 100_000, 4, (None, None))
OPENING, QUESTION = 10, 20


def prompt_of(document: int) -> Prompt:
    protected = torch.zeros(OPENING + document, dtype=torch.bool)
    protected[:OPENING] = True
    return Prompt(context=(1,) * (OPENING + document), questions=((2,) * QUESTION,), protected=protected)


def preset_of(floor: int, budget: str = "5%") -> Preset:
    return Preset(name="x", description="", budget=budget, policy="uniform", floor_tokens=floor)


@pytest.mark.parametrize(("document", "kept"), [(50, 80), (400, 130), (20_000, 1001)])
def test_the_floor_counts_document_tokens_beside_the_protected_ones(document: int, kept: int) -> None:
    plan = make_plan(SPEC, preset_of(100), prompt_of(document), available=2**30)
    assert set(plan.kept[0] + plan.kept[1]) == {kept} | ({kept + 1} if document == 20_000 else set())


def test_without_a_floor_the_same_budget_is_refused() -> None:
    with pytest.raises(DoesNotFitError):
        make_plan(SPEC, preset_of(0), prompt_of(50), available=2**30)


def test_questions_that_wait_their_turn_count_in_bytes_and_in_the_estimate() -> None:
    one = prompt_of(4000)
    five = Prompt(context=one.context, questions=one.questions * 5, protected=one.protected)
    assert (one.waiting_tokens, five.waiting_tokens) == (0, 5 * QUESTION)
    assert five.flat_len == len(one.context) + 5 * QUESTION
    plans = [make_plan(SPEC, preset_of(0, "128KiB"), prompt, available=2**30) for prompt in (one, five)]
    heads = SPEC.num_layers * SPEC.num_kv_heads
    assert plans[0].entries - plans[1].entries == 5 * QUESTION * heads
    estimates = [estimate(SPEC, plans[0], prompt=prompt) for prompt in (one, five)]
    grown = estimates[1].kv_kept_bytes - estimates[0].kv_kept_bytes
    assert grown == 5 * QUESTION * heads * (SPEC.kv_bytes_per_entry + 4)
    assert estimates[1].activation_bytes > estimates[0].activation_bytes
