"""What `--preset`, `--budget`, `--max-loss`, `--policy`, `--scorer` and `--seed` come to, and for which model."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from uncomp_cli.asking.request import choose_preset, settle_preset
from uncomp_cli.budget import presets
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.budget.presets import Preset, load_preset, save_preset
from uncomp_cli.cli.declare.options import PresetOptions
from uncomp_cli.config import DEFAULT_PRESET
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile


def chosen(name=None, *, budget=None, policy=None, scorer=None, seed=0):
    preset = choose_preset(name, budget=budget, policy=policy, scorer=scorer, seed=seed)
    return preset.policy, str(preset.budget), preset.floor_tokens


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("uncertain", "20%", 512)),
        ({"budget": "5%"}, ("uncertain", "5%", 0)),
        ({"budget": "FULL"}, ("full", "full", 0)),
        ({"policy": "full"}, ("full", "full", 0)),
        ({"policy": "full", "budget": "Full"}, ("full", "full", 0)),
        ({"name": "full"}, ("full", "full", 0)),
        ({"policy": "sinks"}, ("sinks", "20%", 512)),
        ({"name": "full", "policy": "sinks", "budget": "10%"}, ("sinks", "10%", 0)),
    ],
)
def test_budget_and_policy_agree(given: dict, expected: tuple) -> None:
    assert chosen(given.pop("name", None), **given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"policy": "full", "budget": "10%"},
        {"name": "full", "budget": "5%"},
        {"name": "full", "policy": "sinks"},
        {"policy": "sinks", "budget": "full"},
    ],
)
def test_what_keeps_everything_and_what_does_not_are_refused_together(given: dict) -> None:
    with pytest.raises(UsageError, match="keeps everything"):
        chosen(given.pop("name", None), **given)


@pytest.mark.parametrize(("policy", "scorer"), [(None, "agreement"), ("uncertain", "agreement"), ("uniform", "window")])
def test_a_policy_that_measures_nothing_has_the_plain_scorer(policy: str | None, scorer: str) -> None:
    assert choose_preset(None, budget="5%", policy=policy, scorer=None).scorer.name == scorer


def test_the_seed_reaches_the_random_control() -> None:
    first = choose_preset(None, budget="5%", policy="random", scorer=None, seed=1)
    second = choose_preset(None, budget="5%", policy="random", scorer=None, seed=2)
    assert (first.scorer.seed, second.scorer.seed) == (1, 2)


MODEL = ModelFingerprint("calibrated-model", "llama", 2, 4, 2, 8, "0a" * 32)
OTHER = replace(MODEL, name="other-model", weights_sha256="0b" * 32)
CURVE = (
    QualityPoint("5%", 0.05, 0.02, -0.01, 0.04, 8),
    QualityPoint("12%", 0.12, 0.0, -0.01, 0.009, 8),
    QualityPoint("full", 1.0, 0.0, 0.0, 0.0, 8),
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's presets: `balanced` and `mine`, calibrated on MODEL and measured, and two that lack a half of it."""
    monkeypatch.setattr(presets, "user_preset_dir", lambda: tmp_path)
    values = {"lmba/raw": torch.ones(1, 2, 4)}
    profile = UncertaintyProfile(MODEL, (SampleInfo("text", f"{7:064x}", 2000, "plain"),), values, {})
    for name, policy in ((DEFAULT_PRESET, "uncertain"), ("mine", "uncertain"), ("flat", "uniform")):
        save_preset(Preset(name, "d", "10%", policy, floor_tokens=64, quality=CURVE), tmp_path, profile)
    save_preset(Preset("unknown", "d", "10%", "uncertain", quality=CURVE), tmp_path)
    save_preset(Preset("unmeasured", "d", "10%", "uncertain", profile="mine"), tmp_path)
    return tmp_path


def within(max_loss: str, name: str | None = "mine", **given: Any) -> Preset:
    return choose_preset(name, **{"budget": None, "policy": None, "scorer": None, **given}, max_loss=max_loss)


@pytest.mark.parametrize(
    ("max_loss", "expected"),
    [("4%", ("uncertain", "5%", 64)), ("0.01", ("uncertain", "12%", 64)), ("0", ("full", "full", 0))],
)
def test_the_smallest_budget_within_the_loss_with_the_presets_own_floor(
    own: Path, max_loss: str, expected: tuple
) -> None:
    preset = within(max_loss)
    assert (preset.policy, str(preset.budget), preset.floor_tokens) == expected
    assert within(max_loss, None).budget == preset.budget


def test_a_loss_that_no_budget_holds_names_the_best_bound(own: Path) -> None:
    save_preset(replace(load_preset("mine"), name="rough", quality=CURVE[:2]), own)
    with pytest.raises(DoesNotFitError, match=r"best upper bound is 0\.9%, of budget 12%"):
        within("0.5%", "rough")


def test_a_loss_and_a_budget_are_refused_together(own: Path) -> None:
    with pytest.raises(UsageError, match="--max-loss 1% and --budget 5% both choose the budget"):
        within("1%", budget="5%")


@pytest.mark.parametrize("name", ["live", "unknown", "unmeasured"])
def test_a_loss_needs_what_was_measured_on_a_known_model(own: Path, name: str) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        within("1%", name)
    assert f"preset {name} has no quality" in caught.value.message
    assert "uncomp calibrate --quality" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "given", "flag"),
    [
        ("mine", {"policy": "uniform"}, "--policy"),
        (None, {"policy": "uncertain"}, "--policy"),
        ("mine", {"scorer": "keydiff"}, "--scorer"),
        ("mine", {"kv_bits": 4}, "--kv-bits"),
        ("mine", {"thinning": "gather"}, "--thin"),
    ],
)
def test_a_loss_does_not_hold_for_another_setting(own: Path, name: str | None, given: dict, flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        within("1%", name, **given)
    assert f"not with another {flag}" in caught.value.message
    assert flag in str(caught.value.hint)


def test_what_was_measured_with_may_be_said_again(own: Path) -> None:
    assert str(within("1%", policy="uncertain", scorer="window", kv_bits=16, seed=5).budget) == "12%"


def test_a_mistyped_loss_is_a_usage_error(own: Path) -> None:
    with pytest.raises(UsageError, match="loss '1' is everything or more"):
        within("1")


@pytest.mark.parametrize(
    ("name", "policy", "profile"),
    [
        (None, None, "balanced"),
        ("mine", None, "mine"),
        ("mine", "zigzag", "mine"),
        (None, "uncertain", None),
        ("mine", "uniform", None),
        ("flat", None, None),
        ("mine", "full", None),
    ],
)
def test_a_policy_alone_is_measured_live_and_a_named_preset_lends_its_profile(
    own: Path, name: str | None, policy: str | None, profile: str | None
) -> None:
    assert choose_preset(name, budget=None, policy=policy, scorer=None).profile == profile


def settled(name: str | None, model: ModelFingerprint, **given: Any) -> tuple[Preset, str | None]:
    choose = partial(choose_preset, **{"budget": None, "policy": None, "scorer": None, **given})
    return settle_preset(choose(name), model, named=name is not None, choose=choose)


def test_the_model_that_was_measured_keeps_its_preset_under_any_name(own: Path) -> None:
    renamed = replace(MODEL, name="elsewhere")
    assert settled(None, renamed) == (choose_preset(None, budget=None, policy=None, scorer=None), None)
    assert settled("mine", renamed)[1] is None


def test_the_default_preset_gives_way_to_live_with_the_users_own_settings(own: Path) -> None:
    preset, note = settled(None, OTHER, budget="7%", kv_bits=8, seed=3)
    assert (preset.name, preset.profile, str(preset.budget), preset.floor_tokens) == ("live", None, "7%", 0)
    assert (preset.kv_bits, preset.scorer.seed) == (8, 3)
    assert note == "preset balanced was measured on calibrated-model; for other-model preset live is used"


def test_a_named_preset_of_another_model_is_refused_with_both_values(own: Path) -> None:
    for name in ("mine", DEFAULT_PRESET):
        with pytest.raises(UsageError) as caught:
            settled(name, OTHER)
        assert f"preset {name} is not for this model" in caught.value.message
        assert MODEL.weights_sha256 in caught.value.message
        assert OTHER.weights_sha256 in caught.value.message
        assert caught.value.hint == "--preset live, or uncomp calibrate -m other-model"


@pytest.mark.parametrize("name", ["live", "flat"])
def test_what_takes_no_profile_fits_any_model(own: Path, name: str) -> None:
    preset, note = settled(name, OTHER)
    assert (preset.name, note) == (name, None)


def test_a_measured_loss_is_not_carried_to_another_model(own: Path) -> None:
    for name in ("mine", "flat"):
        with pytest.raises(UsageError, match="is not for this model"):
            settled(name, OTHER, max_loss="1%")
    with pytest.raises(DoesNotFitError, match="preset live has no quality"):
        settled(None, OTHER, max_loss="1%")
    assert str(settled("flat", MODEL, max_loss="1%")[0].budget) == "12%"


def test_a_damaged_profile_is_refused_even_of_the_default_preset(own: Path) -> None:
    path = own / "balanced.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UsageError, match="is damaged"):
        settled(None, MODEL)


@pytest.mark.parametrize(
    ("name", "given", "thinning"),
    [
        (None, {}, "none"),
        ("thin", {}, "gather:keep=0.3"),
        ("thin", {"budget": "full"}, "none"),
        ("thin", {"thinning": "none"}, "none"),
        ("thin", {"thinning": "uncertain: most=0.7, least=0.1"}, "uncertain:least=0.1"),
    ],
)
def test_a_thinning_that_was_named_takes_the_place_of_the_presets(
    own: Path, name: str | None, given: dict, thinning: str
) -> None:
    save_preset(Preset("thin", "d", "10%", "uniform", thinning="gather:keep=0.3"), own)
    wanted = {"budget": None, "policy": None, "scorer": None, **given}
    assert choose_preset(name, **wanted).thinning == thinning


def test_a_misspelt_thinning_is_named(own: Path) -> None:
    with pytest.raises(UsageError, match="unknown thinning 'gahter'"):
        choose_preset(None, budget=None, policy=None, scorer=None, thinning="gahter")


@pytest.mark.parametrize(
    ("given", "profile"),
    [
        ({"name": "flat"}, None),
        ({"name": "flat", "thinning": "gather"}, None),
        ({"name": "flat", "thinning": "uncertain"}, "flat"),
        ({"name": "flat", "thinning": "stages", "policy": "adaptive"}, "flat"),
        ({"name": "mine", "thinning": "uncertain", "budget": "full"}, "mine"),
        ({"name": "mine", "thinning": "gather", "budget": "full"}, None),
        ({"name": None, "thinning": "uncertain", "policy": "uniform"}, None),
    ],
)
def test_a_thinning_keeps_the_profile_that_it_goes_by(own: Path, given: dict, profile: str | None) -> None:
    assert choose_preset(**{"budget": None, "policy": None, "scorer": None, **given}).profile == profile


def test_a_policy_names_scorer_bits_and_thinning_as_in_eval() -> None:
    chosen = PresetOptions(policy="uniform:a=1/keydiff/8bit/thin=gather:after=8,keep=0.2").choice(3)
    assert (chosen.policy, chosen.scorer, chosen.kv_bits) == ("uniform:a=1", "keydiff", 8)
    assert (chosen.thinning, chosen.seed) == ("gather:after=8,keep=0.2", 3)
    assert PresetOptions(policy="uniform").choice(0).scorer is None
    for options in (
        PresetOptions(policy="uniform/keydiff", scorer="window"),
        PresetOptions(policy="uniform/8bit/4bit"),
    ):
        with pytest.raises(UsageError, match="both choose one thing"):
            options.choice(0)
    with pytest.raises(UsageError, match="'pool=3' is nothing that follows a policy"):
        PresetOptions(policy="uniform/pool=3").choice(0)


def test_a_preset_that_there_is_not_is_refused_before_torch_is_imported() -> None:
    script = """
import sys
from uncomp_cli.asking.request import choose_preset
from uncomp_cli.errors import UsageError
try:
    choose_preset("nosuch")
except UsageError as error:
    print(error.message, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unknown preset 'nosuch' False"
