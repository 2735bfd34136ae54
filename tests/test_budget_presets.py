"""Preset files: the shipped ones load, a mistake in one is an error that names it."""

import json
from pathlib import Path
from typing import Any

import pytest

from uncomp_cli.budget import presets
from uncomp_cli.budget.presets import DEFAULT_PRESET, Preset, list_presets, load_preset, remove_preset
from uncomp_cli.cache.scoring import make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[1] / "presets").glob("*.json"))
GOOD: dict[str, Any] = {
    "schema_version": 1,
    "name": "mine",
    "description": "My own.",
    "budget": "12%",
    "policy": "uniform",
    "scorer": {"name": "window", "window": 16},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's preset directory."""
    monkeypatch.setattr(presets, "user_preset_dir", lambda: tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> str:
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
    assert {"kv_bits": 16, **json.loads(file.read_text())} == preset.to_dict()


def test_the_list(own: Path) -> None:
    assert [preset.name for preset in list_presets()] == SHIPPED
    assert DEFAULT_PRESET in SHIPPED
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
    assert load_preset("tiny").budget == "12%"
    remove_preset("tiny")
    assert load_preset("tiny").budget == "5%"


@pytest.mark.parametrize("name", ["balanced", "../mine", "never"])
def test_only_ones_own_is_removed(own: Path, name: str) -> None:
    (own.parent / "mine.json").write_text("{}")
    with pytest.raises(UsageError, match="not one of your own"):
        remove_preset(name)
    assert (own.parent / "mine.json").exists()


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({"budgte": "1%"}, "unknown key 'budgte'", "did you mean 'budget'?"),
        ({"zzz": 1}, "unknown key 'zzz'", "known keys: name"),
        ({"scorer": {"widht": 5}}, "unknown key 'widht'", "did you mean 'width'?"),
        ({"budget": 12}, "'budget' is 12", "must be str"),
        ({"name": None}, "'name' is None", "must be str"),
        ({"scorer": []}, "must be an object", "preset list"),
        ({"scorer": {"window": "16"}}, "'window' is '16'", "must be int"),
        ({"scorer": {"window": 16.0}}, "'window' is 16.0", "must be int"),
        ({"scorer": {"sinks": True}}, "'sinks' is True", "must be int"),
        ({"scorer": {"whole_words": 1}}, "'whole_words' is 1", "must be bool"),
        ({"scorer": {"pooling": "median"}}, "pooling is 'median'", "none, mean or max"),
        ({"scorer": {"pooling": 3}}, "pooling is '3'", "none, mean or max"),
        ({"scorer": {"width": 4}}, "width is 4", "odd"),
        ({"scorer": {"window": 0}}, "window is 0", "1 token"),
        ({"scorer": {"sinks": -1}}, "sinks is -1", "0 or more"),
        ({"budget": "1.5"}, "budget '1.5'", "10%"),
        ({"policy": "unifrom"}, "policy 'unifrom'", "did you mean 'uniform'?"),
        ({"budget": ...}, "lacks 'budget'", "preset show"),
        ({"schema_version": 2}, "schema version 2, this uncomp reads 1", "update"),
        ({"schema_version": ...}, "schema version None", "update"),
    ],
)
def test_mistakes(own: Path, changes: dict[str, Any], says: str, hint: str) -> None:
    error = refusal(write(own, **changes))
    assert says in error.message
    assert hint in str(error.hint)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe{}"])
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
    from uncomp_cli.cli.prepare import choose_preset

    assert choose_preset("tiny", budget=None, policy=None, scorer=None).floor_tokens == 128
    assert choose_preset("tiny", budget="5%", policy=None, scorer=None).floor_tokens == 0


def test_a_negative_floor_is_refused() -> None:
    with pytest.raises(UsageError, match="floor_tokens is -1"):
        Preset(name="x", description="", budget="5%", policy="uniform", floor_tokens=-1)
