"""Every shipped preset runs on models of every kind and on texts of every length, and says where it keeps more."""

from dataclasses import replace

import pytest

from support.batches import engine_of, load_tiny
from support.families import make_prompt
from uncomp_cli.budget.presets import Preset, load_preset, shipped_preset_dir
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.memory import kept_amount

PRESETS = sorted(path.stem for path in shipped_preset_dir().glob("*.json"))
LENGTHS = (5, 50, 200, 1500)
TEMPLATE_TOKENS = 3


def engine_for(family: str) -> Engine:
    """A tiny model that was trained for long texts."""
    loaded = load_tiny(family)
    return engine_of(replace(loaded, spec=replace(loaded.spec, trained_length=4096)), SamplingConfig(max_new_tokens=3))


@pytest.fixture(scope="module", params=["llama", "llama-mha", "mistral-sliding", "gemma3_text"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """GQA, a KV head for every head, windows in all layers, windows in some."""
    return engine_for(request.param)


def of_preset(name: str) -> Preset:
    """The preset; on a model that its profile is not of, it measures live."""
    return replace(load_preset(name), profile=None)


@pytest.mark.sparse(2)
@pytest.mark.parametrize("for_any", [False, True], ids=["for the question", "for any"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(engine: Engine, name: str, length: int, for_any: bool) -> None:
    prompt = make_prompt(length, (9,), protected=TEMPLATE_TOKENS)
    context = engine.read(prompt, of_preset(name), for_any=for_any).finish()
    assert list(engine.writer(engine.asked(context)).write())


@pytest.mark.sparse(2)
@pytest.mark.parametrize("budget", ["0.1%", "30%", "1", "200"])
@pytest.mark.parametrize("kv_bits", [16, 4])
@pytest.mark.parametrize("length", [5, 50, 1500])
def test_a_budget_below_what_is_always_kept_keeps_that_and_says_so(
    engine: Engine, budget: str, kv_bits: int, length: int
) -> None:
    prompt = make_prompt(length, (9,), protected=TEMPLATE_TOKENS)
    preset = replace(of_preset("balanced"), budget=budget, floor_tokens=0, thinning="none", kv_bits=kv_bits)
    planned = engine.plan(prompt, preset)
    plan, spec = planned.allocation.plan, engine.spec
    least = planned.prompt.always_kept
    assert all(count >= min(least, length + 9) for layer in spec.full_layers for count in plan.kept[layer])
    kept = kept_amount(preset.budget, spec, plan, question_tokens=planned.prompt.longest_question)
    more = float(kept.rstrip("%")) > 1.02 * preset.budget.amount * (100 if budget.endswith("%") else 1)
    assert bool(planned.notes) == more
    for note in planned.notes:
        assert note.startswith(f"budget {budget} is less than is always kept (template, ")
        assert f"{least:,} tokens per head; {kept} is kept" in note
        assert note.endswith("did you mean 1%?") == (budget == "1")
