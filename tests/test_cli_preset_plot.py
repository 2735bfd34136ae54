"""`uncomp preset plot` and what `preset show` tells of a profile, from a profile that was saved for the test."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uncomp_cli.budget import presets
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.cli.app import run
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile

LAYERS, HEADS, KV_HEADS = 4, 6, 2
MODEL = ModelFingerprint("no-such-model", "llama", LAYERS, HEADS, KV_HEADS, 16, "ab" * 32)
LOSS = [[0.5, 0.01], [0.02, 0.03], [0.0, 1.0], [0.1, 0.2]]
KEY = "entropy/q/r1/4"


def a_profile(*keys: str) -> UncertaintyProfile:
    """Two samples around the mean: LOSS, and entropies that rise from head to head."""
    entropy = torch.arange(LAYERS * HEADS, dtype=torch.float32).view(1, LAYERS, HEADS) / 8
    values = {"loss": torch.tensor([LOSS, LOSS]), KEY: torch.cat([entropy, entropy + 0.5])}
    samples = tuple(SampleInfo(f"text {n}", f"{n}" * 64, 900 + 100 * n, "needle") for n in (1, 2))
    return UncertaintyProfile(
        MODEL, samples, {key: values[key] for key in keys}, {"created": "2025-11-02", "window": 32}
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset directory of the user's own with `mine`, which has a profile and a curve."""
    own = tmp_path / "presets"
    monkeypatch.setattr(presets, "user_preset_dir", lambda: own)
    save("mine", a_profile("loss", KEY))
    return own


def save(name: str, profile: UncertaintyProfile | None, **changes: Any) -> None:
    quality = (
        QualityPoint("20%", 0.2, 0.001, -0.002, 0.004, 40),
        QualityPoint("5%", 0.0512, 0.031, 0.02, 0.042, 40),
    )
    preset = replace(
        presets.load_preset("live"), name=name, policy="uncertain", budget="10%", floor_tokens=0, quality=quality,
        folder=None,
    )  # fmt: skip
    presets.save_preset(replace(preset, **changes), presets.user_preset_dir(), profile)


def plotted(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["preset", "plot", "mine", "--json", *args]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    capsys.readouterr()
    assert run(["preset", "plot", *args]) == 2
    message, hint = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "hint"))]
    return message, hint


def test_the_maps_of_uncertainty_and_of_tokens_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "plot", "mine"]) == 0
    out, err = capsys.readouterr()
    first, second, third = out.split("\n\n")
    assert first.splitlines()[:2] == ["mine: loss", "layer  KV head 0–1"]
    assert [line.split()[0] for line in first.splitlines()[3:7]] == ["0", "1", "2", "3"]
    assert first.splitlines()[-1] == "least 0.00 (layer 2, head 0) ·░▒▓█ most 1.00 (layer 2, head 1)"
    assert second.splitlines()[0] == "mine: tokens kept of 2,000, budget 10%"
    assert "(layer 2, head 1)" in second.splitlines()[-1]
    title, *bars = third.splitlines()
    assert title == "mine: loss by budget"
    assert all(re.fullmatch(r" +\d+%  +\d+\.\d\d %  █*░*", bar) for bar in bars)
    assert len(bars) == len(presets.load_preset("mine").quality)
    assert "model no-such-model is not on this machine" in err


def test_the_kept_map_spends_the_budget_by_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    record = plotted(capsys)
    assert (record["policy_measure"], record["measure"], record["model"]) == ("loss", "loss", "no-such-model")
    assert record["tokens"] == 2000
    assert sum(map(sum, record["kept"])) == record["entries"] == 2000 * LAYERS * KV_HEADS // 10
    order = sorted(range(LAYERS * KV_HEADS), key=lambda cell: LOSS[cell // 2][cell % 2])
    kept = [record["kept"][cell // 2][cell % 2] for cell in order]
    assert kept == sorted(kept)
    assert kept[-1] > 3 * kept[0]
    assert record["uncertainty"] == [pytest.approx(row, abs=1e-6) for row in LOSS]


def test_the_length_of_the_prompt_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    record = plotted(capsys, "--tokens", "8000")
    assert record["tokens"] == 8000
    assert sum(map(sum, record["kept"])) == 8000 * LAYERS * KV_HEADS // 10
    assert max(map(max, record["kept"])) <= 8000


def test_another_measure_is_shown_and_the_budget_stays(capsys: pytest.CaptureFixture[str]) -> None:
    record, usual = plotted(capsys, "--measure", KEY), plotted(capsys)
    assert record["measure"] == KEY
    assert record["policy_measure"] == "loss"
    assert len(record["uncertainty"][0]) == HEADS
    assert record["uncertainty"][0][:2] == pytest.approx([0.25, 0.375])  # the mean of both samples
    assert record["kept"] == usual["kept"]


def test_an_unknown_measure_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    message, hint = refusal(capsys, "mine", "--measure", "lmbo")
    assert "no measure 'lmbo'" in message
    assert KEY in hint


def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = plotted(capsys, "--plot", str(tmp_path / "pictures"))
    assert [Path(path).name for path in record["pictures"]] == ["mine-loss.png", "mine-kept.png", "mine-quality.png"]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in record["pictures"])
    assert run(["preset", "plot", "mine", "--measure", KEY, "--plot", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "mine-entropy-q-r1-4.png").is_file()
    assert f"3 pictures in {tmp_path / 'pictures'}" in capsys.readouterr().err


def test_a_preset_that_measures_live_has_nothing_to_plot(capsys: pytest.CaptureFixture[str]) -> None:
    message, hint = refusal(capsys, "live")
    assert "preset live has no profile to plot: it measures on your own prompt" in message
    assert "uncomp calibrate" in hint


def test_a_policy_that_measures_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "its policy, full, measures nothing" in refusal(capsys, "full")[0]


def test_a_profile_without_what_the_policy_uses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save("other", a_profile("loss"), policy="uncertain:by=entropy")
    message, hint = refusal(capsys, "other")
    assert f"has no {KEY}" in message
    assert "uncomp calibrate" in hint


def test_a_damaged_profile_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = folder / "mine.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged" in refusal(capsys, "mine")[0]
    assert run(["preset", "validate", str(folder / "mine.json")]) == 2


def test_show_tells_what_was_measured_and_the_curve(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "show", "mine"]) == 0
    settings, curve = capsys.readouterr().out.split("\n\n")
    shown = dict(line.split(maxsplit=1) for line in settings.splitlines())
    assert shown["policy"] == "uncertain"
    assert shown["profile"] == "mine"
    assert shown["measured.model"] == "no-such-model (4 layers, 6 query and 2 KV heads)"
    assert shown["measured.samples"] == "2"
    assert shown["measured.tokens"] == "2,100 (1,000 to 1,100 each)"
    assert shown["measured.created"] == "2025-11-02"
    assert shown["measured.measures"] == f"{KEY}, loss"
    assert "quality" not in shown
    assert [line.split() for line in curve.splitlines()[1:]] == [
        ["5%", "5.1", "%", "3.10", "%", "2.00", "to", "4.20", "%", "40"],
        ["20%", "20.0", "%", "0.10", "%", "-0.20", "to", "0.40", "%", "40"],
    ]


def test_show_says_a_risk_calibration_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "show", "balanced"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("risk")]
    curves = presets.load_preset("balanced").risk
    assert [name for name, _ in lines] == [f"risk.{curve.rope}" for curve in curves]
    for (_, told), curve in zip(lines, curves, strict=True):
        assert told.startswith(f"{curve.samples} answers of {min(curve.tokens):,} to {max(curve.tokens):,} tokens, ")
        assert f"{curve.auroc:.2f} ({curve.auroc_low:.2f} to {curve.auroc_high:.2f})" in told


def test_show_says_a_risk_calibration_of_no_stated_length(capsys: pytest.CaptureFixture[str]) -> None:
    save("mine", None, risk=(replace(presets.load_preset("balanced").risk[0], tokens=(), rope=""),))
    assert run(["preset", "show", "mine"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("risk"))
    assert line.split(maxsplit=1)[0] == "risk.any"
    assert "answers of any length, AUROC" in line


def test_show_as_json_has_the_means_and_not_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "show", "mine", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [point["budget"] for point in record["quality"]] == ["20%", "5%"]
    measured = record["measured"]
    assert (measured["samples"], measured["tokens"], measured["created"]) == (2, 2100, "2025-11-02")
    assert measured["model"]["weights_sha256"] == "ab" * 32
    assert measured["means"]["loss"] == [pytest.approx(row) for row in LOSS]
    assert measured["means"][KEY][0][0] == 0.25


def test_show_of_a_preset_without_a_profile_is_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["preset", "show", "live", "--json"]) == 0
    path = tmp_path / "live.json"
    path.write_text(capsys.readouterr().out)
    assert run(["preset", "validate", str(path)]) == 0


def test_remove_says_which_files_are_gone(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run(["preset", "remove", "mine"]) == 0
    assert capsys.readouterr().err == "removed preset 'mine' and its profile mine.safetensors\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["preset", "plot", "mine"], ["eval", "-t", "needle", "--out", "x.jsonl"], ["rope"], ["calibrate", "--risk"]],
)
@pytest.mark.parametrize("below", ["", "pictures"])
def test_a_file_is_no_place_for_pictures_and_that_is_said_first(
    command: list[str], below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert run([*command, "--plot", str(Path("taken", below))]) == 2
    assert "lies at or below a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"
    assert not (tmp_path / "x.jsonl").exists()
