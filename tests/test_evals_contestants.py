"""Contestants: short words to settings, and slips named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.scoring import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.contestants import make_settings, parse_contestant


def test_a_policy_alone_gets_our_coherence() -> None:
    preset = parse_contestant("uniform", seed=3)
    assert (preset.policy, preset.kv_bits, preset.budget, preset.floor_tokens) == ("uniform", 16, "full", 0)
    assert preset.scorer == ScorerConfig(seed=3)


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


def test_a_preset_stands_without_its_budget_and_floor() -> None:
    preset = parse_contestant("preset:tiny", seed=0)
    assert (preset.budget, preset.floor_tokens) == ("full", 0)
    assert re.fullmatch("preset:tiny#[0-9a-f]{8}", preset.name)


def test_a_preset_that_was_edited_is_another_contestant(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    names = []
    for width in (21, 9):
        preset = replace(load_preset("tiny"), name="mine", scorer=ScorerConfig(width=width))
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
    assert [s.preset.budget for s in settings] == ["full", "20%", "64", "full"]
    assert settings[-1].preset.kv_bits == 8


def test_a_budget_that_depends_on_the_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="auto"):
        make_settings(["uniform"], ["auto"], seed=0)
