"""Where a plan comes from: nothing, a profile, or what is measured while the prompt is read."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import FAMILIES, make_prompt, read, tiny
from support.planning import Asked
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset, save_preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import SamplingConfig, ScorerConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.allocation import (
    Allocation,
    allocate,
    fixed,
    make_allocation,
    profile_of,
)
from uncomp_cli.engine.spend.gauge import measure_layer
from uncomp_cli.errors import UsageError
from uncomp_cli.models.loading import load_model
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure, parse_measure
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile

LAYERS, HEADS, KV_HEADS, LENGTH, PROTECTED = 4, 4, 2, 1000, 12
SPEC = ModelSpec("llama", LAYERS, HEADS, KV_HEADS, 8, 32, 48, 61, 4096, 4, (None,) * LAYERS)
ENTROPY, LOSS = "entropy/q/r1/4", "loss"


def wanted(policy: str, spec: ModelSpec = SPEC, *, entries: int = 1600, kv_bits: int = 16) -> Asked:
    return Asked(make_policy(policy), Wanted(spec, LENGTH, entries, PROTECTED, kv_bits))


def values_of(seed: int = 0, width: int = HEADS) -> tuple[tuple[float, ...], ...]:
    drawn = 2 + 9 * torch.rand(LAYERS, width, generator=torch.Generator().manual_seed(seed))
    return tuple(map(tuple, drawn.tolist()))


def profile_with(*keys: str, samples: int = 2, seed: int = 0) -> UncertaintyProfile:
    generator = torch.Generator().manual_seed(seed)
    widths = {key: parse_measure(key).width(SPEC) for key in keys}
    values = {key: 0.1 + torch.rand(samples, LAYERS, width, generator=generator) for key, width in widths.items()}
    infos = tuple(SampleInfo(f"text {n}", f"{n:064x}", 2000, "plain") for n in range(samples))
    return UncertaintyProfile(ModelFingerprint("m", "llama", LAYERS, HEADS, KV_HEADS, 8, "0a" * 32), infos, values, {})


def never(measure: Measure, view: LayerView) -> Tensor:
    raise AssertionError(f"{measure} was measured")


class Told:
    """A measurer that says what it is told, layer by layer, and remembers what it was asked for."""

    def __init__(self, values: Sequence[Sequence[float]]) -> None:
        self.values = values
        self.asked: list[tuple[str, int]] = []

    def __call__(self, measure: Measure, view: LayerView) -> Tensor:
        self.asked.append((str(measure), view.layer))
        return torch.tensor(self.values[view.layer], dtype=torch.float64)


def view_of(layer: int) -> LayerView:
    nothing = torch.zeros(HEADS, 0, 8)
    return LayerView(layer, nothing, nothing[:KV_HEADS], nothing[:KV_HEADS], (), Form(1.0))


@pytest.mark.parametrize("policy", ["uniform", "sinks", "pyramid", "adaptive", "uncertain:by=random"])
def test_a_policy_that_measures_nothing_has_its_plan_at_once(policy: str) -> None:
    allocation = allocate(*wanted(policy), profile=profile_with(ENTROPY, LOSS), measurer=never)
    assert allocation.plan == wanted(policy).plan()
    assert (allocation.live, allocation.waits, allocation.uncertainty, allocation.trust()) == (False, False, None, None)
    allocation.report(0, view_of(0))
    assert allocation.plan == wanted(policy).plan()


def test_a_profile_is_used_where_it_holds_the_measure() -> None:
    profile = profile_with(ENTROPY)
    allocation = allocate(*wanted("uncertain"), profile=profile, measurer=never)
    assert (allocation.live, allocation.waits) == (False, False)
    assert allocation.uncertainty == Uncertainty(ENTROPY, profile.as_rows(ENTROPY))
    assert allocation.plan == wanted("uncertain").plan(allocation.uncertainty)
    assert len(set(allocation.plan.kept)) == LAYERS
    for layer in range(LAYERS):
        allocation.report(layer, view_of(layer))
    assert allocation.plan == wanted("uncertain").plan(allocation.uncertainty)


def test_of_several_measures_the_preferred_one_is_used() -> None:
    profile = profile_with(ENTROPY, LOSS, "lmba/raw")
    allocation = allocate(*wanted("uncertain"), profile=profile, measurer=never)
    assert allocation.uncertainty is not None
    assert allocation.uncertainty.key == LOSS
    entropy = allocate(*wanted("uncertain:by=entropy"), profile=profile, measurer=never)
    assert entropy.uncertainty is not None
    assert entropy.uncertainty.key == ENTROPY
    assert allocation.plan != entropy.plan


def test_a_layer_that_reports_again_has_the_mean_of_its_reports() -> None:
    told = Told([[1.0] * HEADS])
    allocation = allocate(*wanted("uncertain"), profile=None, measurer=told)
    for value in (1.0, 2.0, 6.0, 7.0):
        told.values = [[value, 2 * value, 0.0, 1.0]]
        allocation.report(0, view_of(0))
    assert allocation.uncertainty == Uncertainty(ENTROPY, ((4.0, 8.0, 0.0, 1.0),))


@pytest.mark.parametrize("profile", [None, profile_with("lmba/raw"), profile_with("entropy/q/rfull")])
def test_what_no_profile_holds_is_measured_live(profile: UncertaintyProfile | None) -> None:
    told = Told(values_of())
    allocation = allocate(*wanted("uncertain"), profile=profile, measurer=told)
    assert (allocation.live, allocation.waits, allocation.uncertainty, allocation.trust()) == (True, True, None, None)
    assert allocation.plan == wanted("uniform").plan()  # until something is known
    for layer in range(LAYERS):
        allocation.report(layer, view_of(layer))
    assert told.asked == [(ENTROPY, layer) for layer in range(LAYERS)]
    expected = Uncertainty(ENTROPY, values_of())
    assert allocation.uncertainty == expected
    assert allocation.plan == wanted("uncertain").plan(expected)
    assert allocation.live  # also when all is known


@pytest.mark.parametrize(
    ("policy", "key"), [("uncertain:by=loss", LOSS), ("uncertain:by=entropy,state=hidden", "entropy/hidden/r1/4")]
)
def test_what_only_calibration_measures_is_refused_without_it(policy: str, key: str) -> None:
    for profile in (None, profile_with(ENTROPY, "lmba/raw")):
        with pytest.raises(UsageError, match=f"uncertain needs {key}") as caught:
            allocate(*wanted(policy), profile=profile, measurer=never)
        assert "uncomp calibrate" in str(caught.value.hint)
    allocation = allocate(*wanted(policy), profile=profile_with(key), measurer=never)
    assert allocation.uncertainty is not None
    assert allocation.uncertainty.key == key


@pytest.mark.parametrize("policy", ["zigzag", "uncertain:by=entropy", "uncertain:by=lmba-free", "uncertain:by=lmbo"])
def test_counts_only_shrink_while_later_layers_report(policy: str) -> None:
    allocation = allocate(*wanted(policy), profile=None, measurer=Told(values_of(5)))
    before: tuple[tuple[int, ...], ...] = ()
    for layer in range(LAYERS):
        allocation.report(layer, view_of(layer))
        assert allocation.plan.entries == 1600
        for then, now in zip(before, allocation.plan.kept, strict=False):
            assert all(b >= a - 1 for b, a in zip(then, now, strict=True))
        before = allocation.plan.kept[: layer + 1]
    assert before == wanted(policy).plan(allocation.uncertainty).kept


def test_a_layers_own_counts_are_final_when_it_has_reported() -> None:
    allocation = allocate(*wanted("uncomp"), profile=None, measurer=Told(values_of(2)))
    assert (allocation.live, allocation.waits) == (True, False)
    decided = []
    for layer in range(LAYERS):
        allocation.report(layer, view_of(layer))
        decided.append(allocation.plan.kept[layer])
    assert tuple(decided) == allocation.plan.kept == wanted("uncomp").plan(Uncertainty(ENTROPY, values_of(2))).kept
    assert len({counts for layer in decided for counts in layer}) > 1


def test_a_plan_is_held_in_its_bits_whenever_it_is_made() -> None:
    for policy in ("uniform", "uncertain", "uncomp"):
        want = wanted(policy, kv_bits=4)
        allocation = allocate(*want, profile=None, measurer=Told(values_of()))
        assert (allocation.plan.kv_bits, want.plan().kv_bits) == (4, 4)
        allocation.report(0, view_of(0))
        assert allocation.plan.kv_bits == 4


@pytest.mark.parametrize("policy", ["uncertain", "uncomp:groups=2", "zigzag", "uncertain:reverse=true"])
def test_trust_is_the_square_of_the_weights(policy: str) -> None:
    allocation = allocate(*wanted(policy), profile=None, measurer=Told(values_of(3)))
    for layer in range(LAYERS):
        allocation.report(layer, view_of(layer))
        trust, weights = allocation.trust(), make_policy(policy).weights(SPEC, allocation.uncertainty)
        assert trust is not None
        assert [len(row) for row in trust] == [KV_HEADS] * LAYERS
        for row, given in zip(trust, weights, strict=True):
            assert row == pytest.approx([weight * weight for weight in given])
    assert len({value for row in weights for value in row}) > 1


def test_trust_by_hand() -> None:
    """Calibrated losses: value / largest + 0.02, squared."""
    losses = ((1.0, 0.0), (0.25, 0.5), (0.0, 0.0), (2.0, 1.0))
    profile = profile_with(LOSS, samples=1)
    profile = UncertaintyProfile(profile.fingerprint, profile.samples, {LOSS: torch.tensor([losses])}, {})
    trust = allocate(*wanted("uncertain:by=loss,power=1"), profile=profile, measurer=never).trust()
    assert trust is not None
    for row, values in zip(trust, losses, strict=True):
        assert row == pytest.approx([(value / 2 + 0.02) ** 2 for value in values])


def test_sliding_layers_are_not_measured_and_stand_as_nothing() -> None:
    windows = (64, None, 64, None)
    spec = replace(SPEC, sliding_windows=windows)
    for policy, key, width in (("uncertain", ENTROPY, HEADS), ("uncomp:state=k", "entropy/k/r1/4", KV_HEADS)):
        told = Told(values_of(4, width))
        want = Asked(make_policy(policy), Wanted(spec, LENGTH, 1000, PROTECTED))
        allocation = allocate(*want, profile=None, measurer=told)
        for layer in spec.full_layers:
            allocation.report(layer, view_of(layer))
        assert told.asked == [(key, 1), (key, 3)]
        values, nothing = values_of(4, width), (0.0,) * width
        assert allocation.uncertainty == Uncertainty(key, (nothing, values[1], nothing, values[3]))
        assert [allocation.plan.kept[layer] for layer in (0, 2)] == [(64, 64)] * 2
        assert allocation.plan.entries == 1000
        other = Uncertainty(key, (values[0], values[1], values[2], values[3]))
        assert allocation.plan == want.plan(other)  # what stands for a sliding layer has no say


@pytest.mark.parametrize(
    "types", [["sliding_attention", "full_attention"] * 2, ["full_attention"] * 2 + ["sliding_attention"] * 2]
)
@pytest.mark.parametrize("policy", ["uncertain", "zigzag", "uncomp"])
def test_a_model_with_sliding_layers_is_measured_where_it_is_cut(
    policy: str, types: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, extra = FAMILIES["gemma3_text"]
    monkeypatch.setitem(FAMILIES, "gemma3_text", (name, {**extra, "layer_types": types}))
    _, decoder, spec = tiny("gemma3_text")
    prompt = make_prompt(200, [8], protected=4)
    seen: list[int] = []

    def measurer(measure: Measure, view: LayerView) -> Tensor:
        seen.append(view.layer)
        return measure_layer(measure, view, window=8, sinks=4)

    entries = spec.full_entries(prompt.seq_len) // 3
    want = Asked(make_policy(policy), Wanted(spec, prompt.seq_len, entries, prompt.always_kept))
    allocation = allocate(*want, profile=None, measurer=measurer)
    _, done = read(decoder, prompt, allocation, ScorerConfig(window=8))
    assert tuple(seen) == spec.full_layers
    assert allocation.uncertainty is not None
    for layer, row in enumerate(allocation.uncertainty.values):
        assert any(row) == (layer in spec.full_layers)
    lengths = tuple(tuple(done.cache.layer(layer).lengths) for layer in range(spec.num_layers))
    assert lengths == allocation.plan.kept
    assert sum(map(sum, lengths)) == entries


def test_a_plan_is_taken_for_an_allocation() -> None:
    plan = BudgetPlan(10, ((3, 4),) * LAYERS)
    allocation = fixed(plan)
    assert (allocation.plan, allocation.live, allocation.waits, allocation.trust()) == (plan, False, False, None)
    assert fixed(allocation) is allocation
    allocation.report(0, view_of(0))
    assert allocation.plan == plan
    assert Allocation(plan).uncertainty is None


def preset_in(folder: Path, policy: str, profile: UncertaintyProfile | None, **changes: Any) -> Preset:
    preset = Preset("mine", "", "20%", policy, ScorerConfig(window=8), **changes)
    save_preset(preset, folder, profile)
    return preset if profile is None else replace(preset, profile="mine", folder=str(folder))


def test_a_presets_profile_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    preset = preset_in(tmp_path, "uncertain", profile_with(ENTROPY))
    first = profile_of(preset)
    assert first is not None
    assert profile_of(preset) is first
    other = profile_with(ENTROPY, seed=9)
    preset_in(tmp_path, "uncertain", other)
    path = preset.profile_path
    assert path is not None
    os.utime(path, ns=(1, 1))
    again = profile_of(preset)
    assert again is not None
    assert torch.equal(again.values[ENTROPY], other.values[ENTROPY])
    assert profile_of(replace(preset, profile=None)) is None


def test_a_presets_profile_that_is_gone_is_named(tmp_path: Path) -> None:
    preset = preset_in(tmp_path, "uncertain", profile_with(ENTROPY))
    path = preset.profile_path
    assert path is not None
    path.unlink()
    with pytest.raises(UsageError, match="mine"):
        profile_of(preset)


def test_a_preset_spends_its_budget_by_its_profile_or_live(tmp_path: Path) -> None:
    prompt = make_prompt(500, [20], protected=4)
    preset = preset_in(tmp_path, "uncertain", profile_with(ENTROPY))
    allocation = make_allocation(SPEC, preset, prompt, available=2**40, measurer=never)
    assert allocation.uncertainty is not None
    assert make_allocation(SPEC, preset, prompt, available=2**40).plan == allocation.plan
    assert allocation.plan.entries == SPEC.full_entries(520) // 5
    live = replace(preset, profile=None)
    even = make_allocation(SPEC, live, prompt, available=2**40).plan
    assert even == make_allocation(SPEC, replace(live, policy="uniform"), prompt, available=2**40).plan
    assert even.entries == allocation.plan.entries
    full = make_allocation(SPEC, replace(live, budget="full"), prompt, available=2**40, measurer=never)
    assert (full.plan.keeps_everything, full.live) == (True, False)


@pytest.mark.parametrize(
    ("policy", "source"), [("uniform", None), ("uncertain", "live"), ("uncomp", "live"), ("uncertain", "profile")]
)
def test_a_context_says_where_its_values_come_from(
    policy: str, source: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    loaded = load_model(str(tiny_model))
    spec, preset = loaded.spec, Preset("mine", "", "50%", policy, ScorerConfig(window=8))
    if source == "profile":
        print_of = ModelFingerprint("m", "llama", spec.num_layers, spec.num_heads, spec.num_kv_heads, 8, "0a" * 32)
        values = {LOSS: torch.rand(1, spec.num_layers, spec.num_kv_heads)}
        profile = UncertaintyProfile(print_of, (SampleInfo("t", "0" * 64, 9, "plain"),), values, {})
        save_preset(preset, tmp_path, profile)
        preset = replace(preset, profile="mine", folder=str(tmp_path))
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=2))
    reading = engine.read(make_prompt(60, [12], protected=4), preset)
    begun = reading.planned.allocation.plan
    assert sum(1 for _ in reading) == spec.num_layers
    account = reading.context.account
    assert (None if account.uncertainty is None else account.uncertainty.source) == source
    assert account.plan.entries == begun.entries == spec.full_entries(72) // 2
    assert (account.plan != begun) == (source == "live")
    if account.uncertainty is not None:
        assert account.uncertainty.key == (LOSS if source == "profile" else ENTROPY)
        assert len(account.uncertainty.values) == spec.num_layers
    assert sum(1 for _ in engine.writer(engine.asked(reading.context)).write()) >= 1
