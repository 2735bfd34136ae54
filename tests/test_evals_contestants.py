"""Contestants: short words to settings, and slips named."""

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from uncomp_cli.budget import presets
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset, load_preset, save_preset
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.judges.contestants import make_settings, parse_contestant
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile


def test_a_policy_alone_gets_our_coherence() -> None:
    preset = parse_contestant("uniform", seed=3)
    assert (preset.policy, preset.kv_bits, str(preset.budget), preset.floor_tokens) == ("uniform", 16, "full", 0)
    assert preset.scorer == ScorerConfig(seed=3)


def test_a_contestant_may_have_its_own_budget_and_a_preset_that_of_ask() -> None:
    settings = make_settings(["uniform@10%", "preset:small@own", "preset:small@10%"], ["20%"], seed=0)
    _, uniform, asked, plain = settings
    assert uniform.label == "uniform 10%"
    assert (asked.budget, asked.preset.floor_tokens) == ("10%", load_preset("small").floor_tokens)
    assert (plain.budget, plain.preset.floor_tokens) == ("10%", 0)
    assert asked.label != plain.label
    with pytest.raises(UsageError, match="no budget of its own"):
        make_settings(["uniform@own"], [], seed=0)


def test_parts_may_stand_in_any_order() -> None:
    a, b = (parse_contestant(text, seed=0) for text in ("uniform/keydiff/8bit", "uniform/8bit/keydiff"))
    assert a.scorer == b.scorer
    assert a.scorer.name == "keydiff"
    assert a.kv_bits == b.kv_bits == 8


def test_published_takes_the_papers_coherence() -> None:
    scorer = parse_contestant("uniform/published", seed=5).scorer
    assert (scorer.pooling, scorer.width, scorer.whole_words, scorer.seed) == ("mean", 5, False, 5)
    assert scorer != ScorerConfig(seed=5)
    assert parse_contestant("uniform/tova/published", seed=0).scorer == make_scorer(ScorerConfig("tova")).published


def test_a_policy_that_ranks_in_its_own_way_is_published_whole() -> None:
    """UNComp's released code: the last 8 queries, the maximum of 7 neighbours, single tokens; not SnapKV's 64 and 5."""
    scorer = parse_contestant("uncomp:paper=true/published", seed=0).scorer
    assert (scorer.name, scorer.window, scorer.pooling, scorer.width, scorer.recent) == ("window", 8, "max", 7, 8)
    assert not scorer.whole_words
    other = parse_contestant("uncomp:paper=true/keydiff/published", seed=0).scorer
    assert other == make_scorer(ScorerConfig("keydiff")).published


def test_a_preset_stands_without_its_budget_and_floor() -> None:
    preset = parse_contestant("preset:tiny", seed=0)
    assert (str(preset.budget), preset.floor_tokens) == ("full", 0)
    assert re.fullmatch("preset:tiny#[0-9a-f]{8}", preset.name)


def test_a_preset_that_was_edited_is_another_contestant(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    names = []
    for width in (21, 9):
        preset = replace(load_preset("live"), name="mine", scorer=ScorerConfig(width=width))
        mine.write_text(json.dumps(preset.to_dict()))
        (_, setting) = make_settings([f"preset:{mine}"], ["20%"], seed=0)
        names.append(setting.label)
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrom", "unknown policy 'unifrom'"),
        ("uniform/keydif", "unknown part 'keydif'"),
        ("uniform/8bit/4bit", "says one thing twice"),
        ("uniform/window/keydiff", "says one thing twice"),
        ("uniform/8bit/8bit", "says one thing twice"),
        ("sinks/keydiff", "its own scorer, recent"),
        ("preset:tyni", "unknown preset 'tyni'"),
        ("", "unknown policy ''"),
        ("full/keydiff", "policy full ranks nothing"),
        ("full/published", "policy full ranks nothing"),
        ("full/width=7", "policy full ranks nothing"),
        ("full/profile=tiny", "policy full ranks nothing"),
        ("uniform/widht=7", "unknown setting 'widht'"),
        ("uniform/width=wide", "width is 'wide'"),
        ("uniform/pooling=median", "pooling is 'median'"),
        ("uniform/whole_words=1", "whole_words is '1'"),
        ("uniform/width=8", "width is 8"),
        ("uniform/width=", "is not key=value"),
        ("uniform/width=7/width=9", "sets width twice"),
        ("uniform/name=keydiff", "has its own place"),
        ("uniform/seed=3", "has its own place"),
        ("uncertain/profile=tiny/profile=tiny", "says one thing twice"),
        ("uncertain/profile=live", "preset live has no profile"),
        ("uncertain/profile=tyni", "unknown preset 'tyni'"),
        ("uncertain:pwoer=3", "unknown setting 'pwoer'"),
        ("uniform:groups=2", "unknown setting 'groups'"),
        ("uniform/thin=gahter", "unknown thinning 'gahter'"),
        ("uniform/thin=", "unknown thinning ''"),
        ("uniform/thin=gather:kep=0.2", "unknown setting 'kep'"),
        ("full/thin=gather/thin=none", "says one thing twice"),
        ("full/thin=gather/width=7", "policy full ranks nothing"),
        ("uniform/thin=stages", "thinning stages goes by a profile"),
        ("preset:live/thin=stages", "thinning stages goes by a profile"),
        ("preset:live/thin=gahter", "unknown thinning 'gahter'"),
    ],
)
def test_a_slip_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_contestant(text, seed=0)
    assert caught.value.hint


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        parse_contestant("uniform/keydif", seed=0)
    assert caught.value.hint == "did you mean 'keydiff'?"


def test_settings_are_every_contestant_at_every_budget_and_full_once() -> None:
    settings = make_settings(["uniform", "full", "full/8bit", "uniform"], ["20%", "64"], seed=0)
    assert [s.label for s in settings] == ["full", "uniform 20%", "uniform 64", "full/8bit"]
    assert [s.budget for s in settings] == ["full", "20%", "64", "full"]
    assert settings[-1].preset.kv_bits == 8


def test_a_budget_that_depends_on_the_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="auto"):
        make_settings(["uniform"], ["auto"], seed=0)


def test_settings_of_the_scorer_are_read_by_their_types() -> None:
    text = "uniform/keydiff/width=7/pooling=max/whole_words=false/held=0.5/8bit"
    preset = parse_contestant(text, seed=2)
    assert preset.scorer == ScorerConfig("keydiff", width=7, pooling="max", whole_words=False, held=0.5, seed=2)
    assert (preset.name, preset.kv_bits, preset.profile) == (text, 8, None)
    turned = parse_contestant("uniform/held=0.5/8bit/width=7/whole_words=false/keydiff/pooling=max", seed=2)
    assert (turned.scorer, turned.kv_bits) == (preset.scorer, 8)


def test_a_setting_changes_what_is_published_and_nothing_else() -> None:
    published = parse_contestant("uniform/published", seed=0).scorer
    assert parse_contestant("uniform/published/width=7", seed=0).scorer == replace(published, width=7)
    assert parse_contestant("sinks/recent=3", seed=0).scorer == ScorerConfig("recent", recent=3)


def test_a_policy_keeps_its_own_settings() -> None:
    preset = parse_contestant("uncomp:groups=2,high=1.8/agreement/shared=0.5", seed=0)
    assert preset.policy == "uncomp:groups=2,high=1.8"
    assert preset.scorer == ScorerConfig("agreement", shared=0.5)


def test_a_rank_that_is_a_fraction_is_written_with_a_point() -> None:
    assert make_policy(parse_contestant("uncertain:rank=0.125/agreement", seed=0).policy).measures == (
        "loss",
        "entropy/q/r1/8",
    )


def calibrated(folder: Path, value: float, *, policy: str = "uniform") -> str:
    """A preset with a profile of that value, as a contestant names it."""
    fingerprint = ModelFingerprint("tiny", "llama", 2, 4, 2, 8, "0a" * 32)
    sample = SampleInfo("text", f"{7:064x}", 2000, "plain")
    profile = UncertaintyProfile(fingerprint, (sample,), {"loss": torch.full((1, 2, 2), value)}, {"window": 32})
    save_preset(Preset("mine", "", "20%", policy, ScorerConfig(width=9)), folder, profile)
    return "mine"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's preset directory."""
    monkeypatch.setattr(presets, "user_preset_dir", lambda: tmp_path)
    return tmp_path


def test_a_profile_is_taken_from_the_preset_that_holds_it_and_nothing_else_is(own: Path) -> None:
    name = calibrated(own, 1.0)
    preset = parse_contestant(f"uncertain/width=7/profile={name}", seed=4)
    assert preset.profile_path == own / "mine.safetensors"
    assert (preset.policy, str(preset.budget), preset.kv_bits) == ("uncertain", "full", 16)
    assert preset.scorer == ScorerConfig(width=7, seed=4)
    assert re.fullmatch("uncertain/width=7/profile=mine#[0-9a-f]{8}", preset.name)
    (_, setting) = make_settings([f"uncertain/profile={name}"], ["20%"], seed=0)
    assert setting.label.endswith(" 20%")
    assert setting.preset.profile_path == own / "mine.safetensors"


def test_a_profile_that_was_measured_again_is_another_contestant(own: Path) -> None:
    texts = [f"uncertain/profile={calibrated(own, 1.0)}", "preset:mine"]
    before = [parse_contestant(text, seed=0).name for text in texts]
    assert before == [parse_contestant(text, seed=0).name for text in texts]
    calibrated(own, 2.0)
    for old, text in zip(before, texts, strict=True):
        new = parse_contestant(text, seed=0).name
        assert new != old
        assert new.partition("#")[0] == old.partition("#")[0] == text
    calibrated(own, 1.0)
    assert before == [parse_contestant(text, seed=0).name for text in texts]


def test_a_presets_policy_decides_its_digest(own: Path) -> None:
    calibrated(own, 1.0)
    even = parse_contestant("preset:mine", seed=0)
    calibrated(own, 1.0, policy="uncertain")
    other = parse_contestant("preset:mine", seed=0)
    assert even.name != other.name
    assert other.profile_path == own / "mine.safetensors"


def test_a_thinning_keeps_its_commas_and_colons() -> None:
    text = "uniform/agreement/thin=gather:after=8,keep=0.3/width=7/8bit"
    preset = parse_contestant(text, seed=2)
    assert preset.thinning == "gather:keep=0.3"
    assert (preset.name, preset.kv_bits) == (text, 8)
    assert preset.scorer == ScorerConfig("agreement", width=7, seed=2)
    plain = parse_contestant("uniform/agreement/width=7/8bit", seed=2)
    assert preset == replace(plain, name=text, thinning=preset.thinning)


def test_full_with_thinning_is_one_setting_of_its_own() -> None:
    texts = ["full/thin=gather:after=8,keep=0.2", "full", "full/8bit/thin=uncertain"]
    settings = make_settings(texts, ["20%", "5%"], seed=0)
    assert [s.label for s in settings] == ["full", texts[0], texts[2]]
    assert [s.preset.thinning for s in settings] == ["none", "gather", "uncertain"]
    assert {s.preset.policy for s in settings} == {"full"}


def test_every_budget_is_thinned_alike() -> None:
    settings = make_settings(["uniform/thin=gather"], ["20%", "5%"], seed=0)[1:]
    assert [s.label for s in settings] == ["uniform/thin=gather 20%", "uniform/thin=gather 5%"]


def test_a_thinning_goes_by_the_profile_that_is_named(own: Path) -> None:
    name = calibrated(own, 1.0)
    for text in (f"full/profile={name}/thin=uncertain", f"uniform/thin=stages/profile={name}"):
        preset = parse_contestant(text, seed=0)
        assert preset.profile_path == own / "mine.safetensors"
        assert preset.name.partition("#")[0] == text


def test_a_presets_thinning_can_be_changed_and_decides_its_digest(own: Path) -> None:
    name = calibrated(own, 1.0)
    plain = parse_contestant(f"preset:{name}", seed=0)
    thinned = parse_contestant(f"preset:{name}/thin=gather:keep=0.4,after=3", seed=0)
    assert thinned.thinning == "gather:after=3,keep=0.4"
    assert replace(thinned, name="", thinning="none") == replace(plain, name="")
    digests = [preset.name.partition("#")[2] for preset in (plain, thinned)]
    assert digests[0] != digests[1]
    save_preset(replace(load_preset(name), thinning="gather"), own)
    assert parse_contestant(f"preset:{name}", seed=0).thinning == "gather"
    assert parse_contestant(f"preset:{name}", seed=0).name != plain.name
    assert parse_contestant(f"preset:{name}/thin=none", seed=0).name.partition("#")[2] == digests[0]


def test_labels_of_what_is_not_thinned_are_those_of_older_results() -> None:
    """A results file that was begun before there was thinning is continued, not begun anew."""
    live = load_preset("live")
    decisive = json.dumps([live.policy, asdict(live.scorer), live.kv_bits, ""])
    digest = hashlib.sha256(decisive.encode()).hexdigest()[:8]
    assert parse_contestant("preset:live/thin=none", seed=0).name == f"preset:live/thin=none#{digest}"
    assert parse_contestant("preset:live", seed=0).name.partition("#")[2] != digest
