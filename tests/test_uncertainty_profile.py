"""Profiles: mean and spread in closed form, merging, the round trip over the disk, and every file that is refused."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.uncertainty.profile import (
    ModelFingerprint,
    SampleInfo,
    UncertaintyProfile,
    load_profile,
    profile_path,
    save_profile,
)

FINGERPRINT = ModelFingerprint(
    name="smollm2-135m",
    model_type="llama",
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    weights_sha256="0a" * 32,
)
PARAMETERS = {
    "window": 32,
    "sinks": 4,
    "mass": 0.9,
    "tolerance": 0.1,
    "uncomp": "0.1.0",
    "created": "2026-01-02T03:04:05Z",
}
WIDTHS = {"entropy/q/r1/4": 4, "entropy/k/r1/4": 2, "entropy/hidden/r1/4": 1, "lmba/raw": 4}


def _samples(count: int, start: int = 0) -> tuple[SampleInfo, ...]:
    return tuple(SampleInfo(f"text {n}", f"{n:064x}", 2000 + n, "plain") for n in range(start, start + count))


def _profile(count: int = 3, start: int = 0, **parameters: object) -> UncertaintyProfile:
    random = torch.Generator().manual_seed(start)
    values = {key: torch.rand(count, 2, width, generator=random) for key, width in WIDTHS.items()}
    return UncertaintyProfile(FINGERPRINT, _samples(count, start), values, {**PARAMETERS, **parameters})


def _one(values: Tensor, **fields: Any) -> UncertaintyProfile:
    return UncertaintyProfile(FINGERPRINT, _samples(len(values)), {"lmba/raw": values}, PARAMETERS, **fields)


def _only(profile: UncertaintyProfile, *keys: str) -> UncertaintyProfile:
    return replace(profile, values={key: profile.values[key] for key in keys})


def _same(a: UncertaintyProfile, b: UncertaintyProfile) -> bool:
    described = (a.fingerprint, a.samples, a.parameters) == (b.fingerprint, b.samples, b.parameters)
    return described and set(a.values) == set(b.values) and all(a.values[k].equal(b.values[k]) for k in a.values)


# What is in a profile


def test_mean_and_spread_in_closed_form() -> None:
    profile = _one(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1).expand(3, 2, 4))
    assert profile.mean("lmba/raw").equal(torch.full((2, 4), 3.0))
    assert profile.spread("lmba/raw").equal(torch.full((2, 4), 7.0).sqrt())  # (4 + 1 + 9) / 2
    assert profile.as_rows("lmba/raw") == ((3.0,) * 4,) * 2


def test_a_measure_is_found_by_another_way_to_write_it() -> None:
    profile = _profile()
    assert profile.mean("entropy/q/r2/8").equal(profile.mean("entropy/q/r1/4"))


def test_a_single_sample_has_no_spread() -> None:
    profile = _profile(1)
    assert profile.spread("lmba/raw").equal(torch.zeros(2, 4))
    assert profile.mean("lmba/raw").equal(profile.values["lmba/raw"][0])


def test_layers_and_heads_keep_their_places() -> None:
    values = torch.arange(8.0).view(1, 2, 4)
    assert _one(values).as_rows("lmba/raw") == ((0.0, 1.0, 2.0, 3.0), (4.0, 5.0, 6.0, 7.0))


def test_values_are_held_as_float32_apart_from_what_they_came_from() -> None:
    values = torch.full((1, 2, 4), 0.1, dtype=torch.float64, requires_grad=True)
    held = _one(values).values["lmba/raw"]
    assert held.dtype == torch.float32
    assert not held.requires_grad


def test_a_measure_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="smollm2-135m has no measure 'lmbo'") as caught:
        _profile().mean("lmbo")
    assert "entropy/q/r1/4, entropy/k/r1/4" in str(caught.value.hint)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused_with_their_place(bad: float) -> None:
    values = torch.zeros(3, 2, 4)
    values[1, 0, 2] = bad
    with pytest.raises(UsageError, match=rf"'lmba/raw' is {bad} at sample 1 \(text 1\), layer 0, head 2") as caught:
        _one(values)
    assert "--dtype float32" in str(caught.value.hint)


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4, 4), (2, 2, 4), (3, 2), (3, 2, 4, 1)])
def test_shapes_that_do_not_fit_the_model_are_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        UncertaintyProfile(FINGERPRINT, _samples(3), {"lmba/raw": torch.zeros(shape)}, PARAMETERS)
    assert f"{list(shape)}, not [3, 2, 4]" in caught.value.message


def test_nothing_is_no_profile() -> None:
    with pytest.raises(UsageError, match="without samples"):
        _one(torch.zeros(0, 2, 4))
    with pytest.raises(UsageError, match="without measures"):
        UncertaintyProfile(FINGERPRINT, _samples(1), {}, PARAMETERS)


def test_a_measure_has_one_key() -> None:
    with pytest.raises(UsageError, match="'entropy/q/r2/8'") as caught:
        UncertaintyProfile(FINGERPRINT, _samples(1), {"entropy/q/r2/8": torch.zeros(1, 2, 4)}, PARAMETERS)
    assert caught.value.hint == "write entropy/q/r1/4"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_parameters_must_be_json(value: object) -> None:
    with pytest.raises(UsageError, match="parameters are no JSON data"):
        _profile(mass=value)


# Which model it is of


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "qwen2"),
        ("num_layers", 3),
        ("num_heads", 8),
        ("num_kv_heads", 4),
        ("head_dim", 16),
        ("weights_sha256", "0b" * 32),
    ],
)
def test_another_model_is_refused_with_both_values(field: str, value: Any) -> None:
    other = replace(FINGERPRINT, name="my model", **{field: value})
    with pytest.raises(UsageError) as caught:
        FINGERPRINT.check(other)
    mine = getattr(FINGERPRINT, field)
    assert caught.value.message == f"the profile was measured on smollm2-135m, {field} {mine}; my model has {value}"
    assert caught.value.hint == "uncomp calibrate -m 'my model'"


def test_the_first_difference_is_named() -> None:
    with pytest.raises(UsageError, match="num_layers 2; big has 3"):
        FINGERPRINT.check(replace(FINGERPRINT, name="big", num_layers=3, head_dim=16, weights_sha256="f"))


def test_the_same_model_under_another_name_passes() -> None:
    FINGERPRINT.check(replace(FINGERPRINT, name="models/copy"))


@pytest.mark.parametrize("counts", [{"num_layers": 0}, {"num_kv_heads": 3}, {"num_kv_heads": 0}, {"head_dim": -1}])
def test_an_impossible_shape_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="impossible shape"):
        replace(FINGERPRINT, **counts)


# Merging


def test_merged_profiles_have_all_samples() -> None:
    a, b = _profile(3), _profile(2, start=3)
    merged = a.merge(b)
    assert merged.samples == _samples(5)
    for key in WIDTHS:
        assert merged.values[key].equal(torch.cat((a.values[key], b.values[key])))


def test_the_same_sample_is_kept_once_and_as_it_was_measured_first() -> None:
    a, b = _profile(3), _profile(3, start=1)
    renamed = replace(b, samples=tuple(replace(sample, source="elsewhere") for sample in b.samples))
    merged = a.merge(renamed)
    assert [sample.source for sample in merged.samples] == ["text 0", "text 1", "text 2", "elsewhere"]
    assert merged.values["lmba/raw"].equal(torch.cat((a.values["lmba/raw"], b.values["lmba/raw"][2:])))


@pytest.mark.parametrize("change", [{"tokens": 4000}, {"task": "chat"}, {"sha256": "f" * 64}])
def test_another_length_task_or_text_is_another_sample(change: dict[str, Any]) -> None:
    a = _profile(1)
    assert len(a.merge(replace(a, samples=(replace(a.samples[0], **change),))).samples) == 2


@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_merging_is_associative(counts: list[int], starts: list[int]) -> None:
    a, b, c = (_profile(count, start) for count, start in zip(counts, starts, strict=True))
    assert _same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert _same(a.merge(a), a)


def test_dates_alone_do_not_keep_profiles_apart_and_the_later_stays() -> None:
    early, late = _profile(1, created="2026-01-02"), _profile(1, start=1, created="2026-03-01")
    assert early.merge(late).parameters["created"] == "2026-03-01"
    assert late.merge(early).parameters["created"] == "2026-03-01"


def test_other_parameters_are_refused_with_both_values() -> None:
    with pytest.raises(UsageError, match=r"measured with mass 0\.9 and mass 0\.95"):
        _profile().merge(_profile(start=3, mass=0.95))
    with pytest.raises(UsageError, match='measured with rope not set and rope "yarn:4"'):
        _profile().merge(_profile(start=3, rope="yarn:4"))


def test_other_models_and_measures_are_refused() -> None:
    with pytest.raises(UsageError, match="head_dim 8; smollm2-135m has 16"):
        _profile().merge(replace(_profile(start=3), fingerprint=replace(FINGERPRINT, head_dim=16)))
    with pytest.raises(UsageError, match="only the first of the profiles has the measure 'lmba/raw'"):
        _profile().merge(_only(_profile(start=3), "entropy/q/r1/4", "entropy/k/r1/4", "entropy/hidden/r1/4"))
    with pytest.raises(UsageError, match="only the second of the profiles has the measure 'entropy/"):
        _only(_profile(), "lmba/raw").merge(_profile(start=3))


# On the disk


@pytest.mark.parametrize(
    ("given_path", "file"),
    [
        ("mine", "mine.safetensors"),
        ("mine.json", "mine.safetensors"),
        ("mine.safetensors", "mine.safetensors"),
        ("qwen2.5", "qwen2.5.safetensors"),
        ("a/b.c/mine", "a/b.c/mine.safetensors"),
    ],
)
def test_a_profile_lies_beside_its_preset(given_path: str, file: str) -> None:
    assert profile_path(Path(given_path)) == Path(file)


def test_a_folder_is_no_file_name() -> None:
    with pytest.raises(UsageError, match="not a file name"):
        profile_path(Path())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    profile = _profile()
    path = save_profile(profile, tmp_path / "new folder" / "mine.json")
    assert path == tmp_path / "new folder" / "mine.safetensors"
    assert _same(load_profile(tmp_path / "new folder" / "mine"), profile)
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.safetensors"]


def test_what_is_loaded_can_be_merged_saved_and_measured_on(tmp_path: Path) -> None:
    a, b = (load_profile(save_profile(_profile(2, start), tmp_path / str(start))) for start in (0, 2))
    again = load_profile(save_profile(a.merge(b), tmp_path / "0"))
    assert again.samples == _samples(4)
    assert again.mean("lmba/raw").equal(
        torch.cat((a.values["lmba/raw"], b.values["lmba/raw"])).double().mean(0).float()
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    source=st.text(st.characters(exclude_categories=["Cs"])),
    parameter=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e100, 1e100) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_value_name_and_parameter_survives_the_disk(
    tmp_path: Path, value: float, source: str, parameter: object
) -> None:
    profile = UncertaintyProfile(
        FINGERPRINT,
        (SampleInfo(source, "00", 7, "plain"),),
        {"lmba/raw": torch.full((1, 2, 4), value)},
        {**PARAMETERS, "other": parameter},
    )
    assert _same(load_profile(save_profile(profile, tmp_path / "mine")), profile)


def test_equal_profiles_are_equal_files(tmp_path: Path) -> None:
    assert (
        save_profile(_profile(), tmp_path / "a").read_bytes() == save_profile(_profile(), tmp_path / "b").read_bytes()
    )


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize(("failure", "error"), [(_no_space, UncompError), (_killed, KeyboardInterrupt)])
def test_a_save_that_is_cut_short_leaves_the_old_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    old = _profile(2)
    path = save_profile(old, tmp_path / "mine")
    with monkeypatch.context() as patched:
        patched.setattr(os, step, failure)
        with pytest.raises(error):
            save_profile(_profile(3), tmp_path / "mine")
    assert _same(load_profile(path), old)
    assert list(tmp_path.iterdir()) == [path]


def test_the_whole_new_profile_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, seen, replace_file = _profile(), [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_size))

    def _look(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert seen == [source.stat().st_size]
        copy = tmp_path / "copy.safetensors"
        copy.write_bytes(source.read_bytes())
        assert _same(load_profile(copy), profile)
        seen.append(-1)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", _look)
    save_profile(profile, tmp_path / "mine")
    assert -1 in seen


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").mkdir()
    with pytest.raises(UncompError, match=r"mine\.safetensors cannot be written") as caught:
        save_profile(_profile(), tmp_path / "mine")
    assert "-o" in str(caught.value.hint)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(UncompError, match="cannot be written"):
        save_profile(_profile(), tmp_path / "file" / "mine")


# Files that are refused


def _refused(path: Path, message: str) -> UsageError:
    with pytest.raises(UsageError, match=message) as caught:
        load_profile(path)
    assert path.name in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path / "mine.safetensors", "does not exist")
    assert "uncomp calibrate" in str(error.hint)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = save_profile(_profile(), tmp_path / "mine")
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, 100, header // 2, header - 1, header, header + 1, (header + len(whole)) // 2]
    for cut in [*cuts, len(whole) - 4, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        _refused(path, "damaged or no safetensors file")
    path.write_bytes(whole + b"\0")
    _refused(path, "damaged")


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    profile = _profile(1)
    path = save_profile(profile, tmp_path / "mine")
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UsageError) as caught:
            load_profile(path)
        assert caught.value.hint


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"model.embed.weight": torch.zeros(2)}, path)
    assert "uncomp calibrate" in str(_refused(path, "no uncertainty profile").hint)
    save_file({"model.embed.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    _refused(path, "no uncertainty profile")
    for text in ("", "nonsense", "[" * 100_000, "[1]", "null"):
        save_file({"lmba/raw": torch.zeros(2)}, path, metadata={"uncomp_profile": text})
        _refused(path, "no uncertainty profile|schema version null")


def _rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The file with its record and tensors changed, and the checksum as it was."""
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["uncomp_profile"])
    values = load_file(path)
    change(record, values)
    save_file(values, path, metadata={"uncomp_profile": json.dumps(record)})


@pytest.mark.parametrize(
    ("version", "hint"), [(2, "update uncomp"), (0, "measure it again"), ("1", "measure it again"), (None, "again")]
)
def test_other_schema_versions_are_refused_with_both(tmp_path: Path, version: object, hint: str) -> None:
    path = save_profile(_profile(), tmp_path / "mine")
    _rewrite(path, lambda record, _: record.update(schema_version=version, something="new"))
    error = _refused(path, f"it has schema version {json.dumps(version)}, this uncomp reads 1")
    assert hint in str(error.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, _: r.update(mood="good"), "its record: mood is an unknown key"),
        (lambda r, _: r["fingerprint"].update(colour=1), "fingerprint.colour is an unknown key"),
        (lambda r, _: r["samples"][1].update(weight=1), r"samples\[1\].weight is an unknown key"),
        (lambda r, _: r.pop("sha256"), "sha256 is missing"),
        (lambda r, _: r["fingerprint"].pop("head_dim"), "fingerprint.head_dim is missing"),
        (lambda r, _: r["fingerprint"].update(head_dim="8"), 'fingerprint.head_dim is "8"'),
        (lambda r, _: r["fingerprint"].update(num_layers=True), "fingerprint.num_layers is true"),
        (lambda r, _: r.update(samples={}), "samples is {}"),
        (lambda r, _: r.update(samples=[3]), r"samples\[0\] is 3"),
        (lambda r, _: r.update(samples=[]), "without samples"),
        (lambda r, _: r.update(fingerprint=None), "fingerprint is null"),
        (lambda r, _: r["fingerprint"].update(num_kv_heads=3), "impossible shape"),
        (lambda r, _: r["fingerprint"].update(num_layers=3), r"\[3, 2, .\], not \[3, 3, .\]"),
        (lambda r, _: r["samples"].pop(), r"\[3, 2, .\], not \[2, 2, .\]"),
        (lambda _, v: v.update({"lmba/raw": torch.zeros(3, 2, 2)}), r"'lmba/raw' .* \[3, 2, 2\], not \[3, 2, 4\]"),
        (lambda _, v: v["lmba/raw"].fill_(float("nan")), "'lmba/raw' is nan at sample 0"),
        (lambda _, v: v["lmba/raw"].fill_(float("inf")), "'lmba/raw' is inf at sample 0"),
        (lambda _, v: v.update({"lmba/row": torch.zeros(3, 2, 4)}), "measure 'lmba/row' is unknown"),
        (lambda _, v: v["lmba/raw"].add_(1e-3), "checksum"),
        (lambda _, v: v.pop("lmba/raw"), "checksum"),
        (lambda _, v: v.update({"lmba/sinkfree": v.pop("lmba/raw")}), "checksum"),
        (lambda r, _: r["parameters"].update(mass=0.5), "checksum"),
        (lambda r, _: r["parameters"].update(extra=1), "checksum"),
        (lambda r, _: r["fingerprint"].update(weights_sha256="x"), "checksum"),
    ],
)
def test_contents_that_are_wrong_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], message: str
) -> None:
    path = save_profile(_profile(), tmp_path / "mine")
    _rewrite(path, lambda *_: None)
    assert _same(load_profile(path), _profile())
    _rewrite(path, change)
    _refused(path, message)


def test_a_parameter_that_is_no_number_is_refused_on_loading(tmp_path: Path) -> None:
    path = save_profile(_profile(), tmp_path / "mine")
    _rewrite(path, lambda record, _: record["parameters"].update(mass=float("nan")))
    _refused(path, "NaN is no number")
