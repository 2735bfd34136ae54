"""Preset files: the shipped ones load, a mistake in one is an error that names it, a profile goes with its preset."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uncomp_cli.budget import presets
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.budget.presets import (
    Preset,
    list_presets,
    load_preset,
    preset,
    read_presets,
    remove_preset,
    save_preset,
)
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.config import DEFAULT_PRESET, LIVE_PRESET, ScorerConfig
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile, load_profile

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[1] / "presets").glob("*.json"))
GOOD: dict[str, Any] = {
    "schema_version": 1,
    "name": "mine",
    "description": "My own.",
    "budget": "12%",
    "policy": "uniform",
    "scorer": {"name": "window", "window": 16},
}
POINT = {"budget": "5%", "kept_fraction": 0.05, "loss": 0.02, "loss_low": -0.01, "loss_high": 0.04, "samples": 8}
FINGERPRINT = ModelFingerprint("tiny", "llama", 2, 4, 2, 8, "0a" * 32)


def profile_of(value: float = 1.0) -> UncertaintyProfile:
    sample = SampleInfo("text", f"{7:064x}", 2000, "plain")
    return UncertaintyProfile(FINGERPRINT, (sample,), {"lmba/raw": torch.full((1, 2, 4), value)}, {"window": 32})


def preset_of(name: str = "mine", **changes: Any) -> Preset:
    return replace(Preset(name, "d", "10%", "uniform", quality=(QualityPoint(**POINT),)), **changes)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's preset directory."""
    monkeypatch.setattr(presets, "user_preset_dir", lambda: tmp_path)
    return tmp_path


def write(folder: Path, /, **changes: Any) -> str:
    data = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    path = folder / "mine.json"
    path.write_text(json.dumps(data))
    return str(path)


def refusal(path: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_preset(path)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_presets_load(name: str, own: Path) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.description.endswith(".")
    make_scorer(preset.scorer)
    file = Path(__file__).parents[1] / "presets" / f"{name}.json"
    stored = json.loads(file.read_text())
    scorer = {**asdict(ScorerConfig()), **stored.pop("scorer")}
    later = {"kv_bits": 16, "thinning": "none", "open_below": 0.0, "profile": None, "quality": [], "risk": []}
    assert {**later, **stored, "scorer": scorer} == json.loads(json.dumps(preset.to_dict()))


def test_what_a_text_lacks_is_told_by_every_preset_whatever_is_kept(own: Path) -> None:
    """It goes by the text and the question: neither a profile nor a policy has a say in it."""
    (absent,) = {json.dumps(asdict(load_preset(name).absent)) for name in SHIPPED}
    told = json.loads(absent)
    assert (told["samples"], told["alarms"] <= 0.12 < told["caught"]) == (72, True)
    for changed in ({"policy": "sinks", "budget": "20%"}, {"budget": "full"}, {"thinning": "none", "policy": "full"}):
        assert json.dumps(asdict(presets.preset("balanced", **changed).absent)) == absent


def test_the_list(own: Path) -> None:
    assert [preset.name for preset in list_presets()] == SHIPPED
    assert {DEFAULT_PRESET, LIVE_PRESET} <= set(SHIPPED)
    write(own)
    assert [preset.name for preset in list_presets()] == sorted([*SHIPPED, "mine"])


def test_round_trip(own: Path) -> None:
    preset = Preset(name="mine", description="d", budget="64MiB", policy="sinks", scorer=ScorerConfig(width=5, seed=3))
    (own / "mine.json").write_text(json.dumps(preset.to_dict()))
    assert load_preset("mine") == preset


def test_missing_scorer_keys_have_their_defaults(own: Path) -> None:
    assert load_preset(write(own)).scorer == ScorerConfig(window=16)
    assert load_preset(write(own, scorer=...)).scorer == ScorerConfig()


def test_the_users_own_wins(own: Path) -> None:
    (own / "tiny.json").write_text(json.dumps({**GOOD, "name": "tiny"}))
    assert str(load_preset("tiny").budget) == "12%"
    remove_preset("tiny")
    assert str(load_preset("tiny").budget) == "5%"


@pytest.mark.parametrize("name", ["balanced", "../mine", "never"])
def test_only_ones_own_is_removed(own: Path, name: str) -> None:
    (own.parent / "mine.json").write_text("{}")
    with pytest.raises(UsageError, match="not one of your own"):
        remove_preset(name)
    assert (own.parent / "mine.json").exists()


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({"budgte": "1%"}, "budgte is an unknown key", "did you mean 'budget'?"),
        ({"zzz": 1}, "zzz is an unknown key", "known keys: name"),
        ({"scorer": {"widht": 5}}, "scorer.widht is an unknown key", "did you mean 'width'?"),
        ({"budget": 12}, "budget is 12", "must be text"),
        ({"name": None}, "name is null", "must be text"),
        ({"scorer": []}, "scorer is []", "must be an object"),
        ({"folder": "/"}, "folder is an unknown key", "known keys"),
        ({"profile": 3}, "profile is 3", "must be text or null"),
        *(
            ({"profile": name}, f"profile is {name!r}", "in the preset's own folder, without .safetensors")
            for name in ("", ".", "..", "../x", "a/b", "a\\b", "a.safetensors", "a\n", " a", "\ud800")
        ),
        ({"quality": {}}, "quality is {}", "must be a list"),
        ({"quality": [1]}, "quality[0] is 1", "must be an object"),
        ({"quality": [{**POINT, "los": 1}]}, "quality[0].los is an unknown key", "did you mean 'loss'?"),
        ({"quality": [{**POINT, "samples": 8.0}]}, "quality[0].samples is 8.0", "must be a whole number"),
        ({"quality": [{**POINT, "loss": "1%"}]}, 'quality[0].loss is "1%"', "must be a number"),
        ({"quality": [{**POINT, "loss": float("nan")}]}, "NaN is no number", "mend the place"),
        (
            {"quality": [{key: POINT[key] for key in POINT if key != "loss_high"}]},
            "quality[0].loss_high is missing",
            "known keys: budget",
        ),
        ({"scorer": {"window": "16"}}, 'scorer.window is "16"', "must be a whole number"),
        ({"scorer": {"window": 16.0}}, "scorer.window is 16.0", "must be a whole number"),
        ({"scorer": {"sinks": True}}, "scorer.sinks is true", "must be a whole number"),
        ({"scorer": {"whole_words": 1}}, "scorer.whole_words is 1", "must be true or false"),
        ({"scorer": {"pooling": "median"}}, 'scorer.pooling is "median"', "none or mean or max"),
        ({"scorer": {"pooling": 3}}, "scorer.pooling is 3", "none or mean or max"),
        ({"scorer": {"width": 4}}, "width is 4", "odd"),
        ({"scorer": {"window": 0}}, "window is 0", "1 token"),
        ({"scorer": {"sinks": -1}}, "sinks is -1", "0 or more"),
        ({"risk": {}}, "risk is {}", "must be a list"),
        ({"risk": [{"absent": {"limit": 0}}]}, "risk[].absent is of an older uncomp", "uncomp calibrate --risk"),
        ({"risk": [{"weights": {}, "absent": None}]}, "risk[0].heads is missing", "known keys: weights"),
        ({"risk": [{"weights": {}}]}, "risk[0].heads is missing", "known keys: weights"),
        ({"budget": "1.5"}, "budget '1.5'", "10%"),
        ({"policy": "unifrom"}, "policy 'unifrom'", "did you mean 'uniform'?"),
        ({"thinning": "gahter"}, "thinning 'gahter'", "did you mean 'gather'?"),
        ({"thinning": 0.2}, "thinning is 0.2", "must be text"),
        ({"budget": ...}, "budget is missing", "known keys: name"),
        ({"floor_tokens": 10**400}, "floor_tokens is a number of 401 digits", "18 at most"),
        ({"floor_tokens": 2**64}, "floor_tokens is a number of 20 digits", "18 at most"),
        ({"scorer": {"window": 2**40}}, "scorer window is 1,099,511,627,776", "1,048,576 tokens at most"),
        ({"scorer": {"sinks": 2**40}}, "scorer sinks is 1,099,511,627,776", "1,048,576 tokens at most"),
        ({"quality": [{**POINT, "loss": -(10**400)}]}, "quality[0].loss is a number of 401 digits", "18 at most"),
        ({"quality": [{**POINT, "loss": -1e300}]}, "quality[0].loss is -1e+300", "1e+100 at most"),
        ({"name": "x" * 10**7}, "it has more than 4,194,304 bytes", "another file"),
        ({"schema_version": 2}, "schema version 2, this uncomp reads 1", "update"),
        ({"schema_version": 0}, "schema version 0, this uncomp reads 1", "write the preset again"),
        ({"schema_version": True}, "schema version true", "write the preset again"),
        ({"schema_version": ...}, "schema version null", "write the preset again"),
    ],
)
def test_mistakes(own: Path, changes: dict[str, Any], says: str, hint: str) -> None:
    error = refusal(write(own, **changes))
    assert says in error.message
    assert hint in str(error.hint)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000])
def test_files_that_are_no_presets(own: Path, content: bytes) -> None:
    path = own / "bad.json"
    path.write_bytes(content)
    assert str(path) in refusal(str(path)).message


def test_a_missing_file(own: Path) -> None:
    assert "nowhere.json" in refusal(str(own / "nowhere.json")).message


@pytest.mark.parametrize(("name", "hint"), [("balanecd", "did you mean 'balanced'?"), ("qqq", "uncomp preset list")])
def test_unknown_names(own: Path, name: str, hint: str) -> None:
    error = refusal(name)
    assert f"unknown preset '{name}'" in error.message
    assert error.hint == hint


def test_a_preset_keeps_a_short_document_whole_and_an_explicit_budget_is_taken_at_its_word() -> None:
    from uncomp_cli.asking.request import choose_preset

    assert choose_preset("tiny", budget=None, policy=None, scorer=None).floor_tokens == 128
    assert choose_preset("tiny", budget="5%", policy=None, scorer=None).floor_tokens == 0


def test_a_negative_floor_is_refused() -> None:
    with pytest.raises(UsageError, match="floor_tokens is -1"):
        Preset(name="x", description="", budget="5%", policy="uniform", floor_tokens=-1)


def test_a_preset_is_saved_with_its_profile_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = save_preset(preset_of(), tmp_path / "a" / "b", profile_of())
    assert sorted(file.name for file in path.parent.iterdir()) == ["mine.json", "mine.safetensors"]
    preset = load_preset(str(path))
    assert preset == preset_of(profile="mine")
    assert preset.profile_path == tmp_path / "a" / "b" / "mine.safetensors"
    assert load_profile(preset.profile_path).fingerprint == FINGERPRINT


def test_several_presets_share_a_profile(own: Path) -> None:
    save_preset(preset_of(profile="tiny-model"), own, profile_of())
    save_preset(preset_of("other", profile="tiny-model"), own)
    assert load_preset("mine").profile_path == load_preset("other").profile_path == own / "tiny-model.safetensors"


def test_a_preset_as_plain_data_comes_back_with_its_folder(own: Path) -> None:
    save_preset(preset_of(), own, profile_of())
    preset = load_preset("mine")
    again = Preset.from_plain(json.loads(json.dumps(preset.to_plain())))
    assert again == preset
    assert again.profile_path == preset.profile_path


def test_a_relative_file_is_found_again_from_another_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_preset(preset_of(), own, profile_of())
    monkeypatch.chdir(own)
    preset = load_preset("mine.json")
    monkeypatch.chdir(own.parent)
    assert preset.profile_path is not None
    assert preset.profile_path.is_file()


def test_a_profile_without_a_folder_is_not_taken_for_none() -> None:
    assert preset_of().profile_path is None
    with pytest.raises(UsageError, match="names the profile x, and was read from no folder"):
        _ = preset_of(profile="x").profile_path


def test_a_profile_that_is_missing_is_named_and_the_preset_is_left_out(own: Path) -> None:
    path = write(own, profile="gone")
    for name in (path, "mine"):
        error = refusal(name)
        assert "names the profile gone" in error.message
        assert str(own / "gone.safetensors") in error.message
        assert "uncomp calibrate" in str(error.hint)
    listed, broken = read_presets()
    assert "mine" not in {preset.name for preset in listed}
    assert [error.message for error in broken] == [refusal("mine").message]
    (own / "gone.safetensors").mkdir()
    assert "does not exist" in refusal("mine").message


def test_a_preset_whose_profile_is_not_there_is_not_saved(own: Path) -> None:
    with pytest.raises(UsageError, match="names the profile gone"):
        save_preset(preset_of(profile="gone"), own)
    assert list(own.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../mine", "a/b", "a\\b", ".hidden", "mine.json", "a\nb", "\ud800"])
def test_names_that_are_no_files_are_not_saved(own: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        save_preset(preset_of(name), own)
    assert repr(name) in caught.value.message
    assert list(own.iterdir()) == []


def test_a_failure_leaves_the_older_preset_and_nothing_else(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_preset(preset_of(), own, profile_of(1.0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UncompError) as caught:
        save_preset(preset_of(budget="5%"), own, profile_of(2.0))
    assert "mine.json cannot be written: No space left on device" in caught.value.message
    assert sorted(file.name for file in own.iterdir()) == ["mine.json", "mine.safetensors"]
    preset = load_preset("mine")
    assert str(preset.budget) == "10%"
    assert preset.profile_path is not None
    assert load_profile(preset.profile_path).mean("lmba/raw")[0, 0] == 1.0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UncompError) as caught:
        save_preset(preset_of(), tmp_path / "file" / "presets")
    assert caught.value.exit_code == 1
    assert caught.value.hint == "name another place with -o"


def test_a_profile_goes_with_the_last_preset_that_names_it(own: Path) -> None:
    save_preset(preset_of(), own, profile_of())
    save_preset(preset_of("other", profile="mine"), own)
    (own / "model.safetensors").write_bytes(b"not ours")
    assert remove_preset("mine") == (own / "mine.json",)
    assert load_preset("other").profile_path == own / "mine.safetensors"
    assert remove_preset("other") == (own / "other.json", own / "mine.safetensors")
    assert [file.name for file in own.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("content", [b'{"schema_version": 9, "profile": "mine", "new": 1}', b"{", b"\xff"])
def test_a_profile_stays_while_a_file_that_this_uncomp_cannot_read_may_name_it(own: Path, content: bytes) -> None:
    save_preset(preset_of(), own, profile_of())
    (own / "newer.json").write_bytes(content)
    assert remove_preset("mine") == (own / "mine.json",)
    assert (own / "mine.safetensors").is_file()


@pytest.mark.parametrize("text", ['{"profile": "../victim"}', '{"profile": 3}', "[]", "{"])
def test_a_damaged_preset_is_removed_and_takes_nothing_else_along(own: Path, text: str) -> None:
    victim = own.parent / "victim.safetensors"
    victim.write_bytes(b"weights")
    (own / "bad.json").write_text(text)
    (own / "bad.safetensors").write_bytes(b"weights")
    assert remove_preset("bad") == (own / "bad.json",)
    assert victim.is_file()
    assert [file.name for file in own.iterdir()] == ["bad.safetensors"]


THINNED = "uncertain:least=0.5,most=0.7,earliest=0.4"


def test_a_budget_that_is_named_is_taken_at_its_word() -> None:
    named = preset(budget="5%")
    assert (str(named.budget), named.floor_tokens, named.thinning) == ("5%", 0, THINNED)
    assert str(named).startswith(
        "balanced: budget 5%, no floor · policy uncertain (profile smollm2-135m) · scorer agre"
    )
    assert preset("small", budget=Budget.parse("5%"), floor_tokens=100).floor_tokens == 100
    assert preset("full", floor_tokens=100).floor_tokens == 0  # nothing is dropped that a floor could hold


def test_a_preset_says_all_that_bears_on_what_is_kept() -> None:
    assert str(preset()).startswith(
        "balanced: budget 20%, at least 512 document tokens a head · policy uncertain (prof"
    )
    assert str(preset()).endswith(f" · thinning {THINNED} · held in the model's own dtype")
    assert str(preset(policy="sinks", budget="64", thinning="gather", kv_bits=4)) == (
        "balanced: budget 64, no floor · policy sinks · scorer recent · thinning gather · held in 4 bits"
    )
