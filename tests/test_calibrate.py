"""A calibration: every sample is measured once and kept at once; a run goes on, or is refused for another's files."""

import math
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from support.families import make_prompt, tiny, tokens
from uncomp_cli.calibrate.calibration import (
    CalibrateRequest,
    MeasuringConfig,
    calibrate,
    check_lengths,
    measurable,
    read_and_measure,
)
from uncomp_cli.calibrate.findings import ProfileFiles, choose_files, profile_record, profile_table
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.errors import DoesNotFitError, ModelError, UncompError, UsageError
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.steps import Progress
from uncomp_cli.uncertainty.measures import DEFAULT_MEASURES, parse_measure
from uncomp_cli.uncertainty.profile import UncertaintyProfile, load_profile

TEXT = "The harbour was quiet and the lamps were lit along the old wall, as on any evening of that winter. "


@pytest.fixture
def files(tmp_path: Path) -> ProfileFiles:
    return ProfileFiles(tmp_path, "mine")


def sample(number: int, *, answer: str = " at dusk", system: str | None = None, times: int = 2) -> Sample:
    context = f"{number} boats lay there. {TEXT * times}"
    return Sample("told", number, 300, context, (Query(" When were the lamps lit?", answer, ()),), system=system)


def request(count: int, **extra: Any) -> CalibrateRequest:
    return CalibrateRequest(tuple(map(sample, range(count))), "a story", provenance={"seed": 0, **extra})


def finish(
    loaded: LoadedModel, wanted: CalibrateRequest, files: ProfileFiles
) -> tuple[list[Progress], UncertaintyProfile]:
    work, steps = calibrate(loaded, wanted, files), []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as done:
            return steps, done.value


def test_a_profile_has_every_measure_of_every_sample(loaded: LoadedModel, files: ProfileFiles) -> None:
    steps, profile = finish(loaded, request(3), files)
    assert [step.rate for step in steps] == ["0 of 3", "1 of 3", "2 of 3", "3 of 3"]
    assert "told" in steps[0].label
    assert steps[-1].fraction == 1
    assert set(profile.values) == {*DEFAULT_MEASURES, "loss"}
    for key, values in profile.values.items():
        assert values.shape == (3, loaded.spec.num_layers, parse_measure(key).width(loaded.spec))
        assert (values[0] != values[1]).any(), key
    assert (profile.values["loss"] > 0).all()
    for key in ("entropy/hidden/r1/4", "entropy/q/r1/4", "loss"):
        assert len(profile.values[key][0, :, 0].unique()) == loaded.spec.num_layers
    assert profile.fingerprint == fingerprint(loaded)
    text = TEXT * 2
    assert [info.tokens for info in profile.samples] == [len(f"0 boats lay there. {text} When were the lamps lit?")] * 3
    assert len({info.sha256 for info in profile.samples}) == 3
    assert profile.parameters["dtype"] == "float32"
    assert profile.parameters["seed"] == 0


def test_measuring_needs_no_second_look_at_the_prompt(loaded: LoadedModel) -> None:
    """A reading without the hidden states and the loss gives the same values as one with them."""
    decoder = Decoder(loaded.model, loaded.spec)
    prompt, answer = make_prompt(40, [8]), tokens(5, 9)
    together = read_and_measure(decoder, prompt, answer, config=MeasuringConfig())
    alone = read_and_measure(decoder, prompt, answer, config=MeasuringConfig(("lmba/raw", "entropy/q/rfull")))
    assert set(alone) == {"lmba/raw", "entropy/q/rfull"}
    for key, values in alone.items():
        assert torch.equal(values, together[key])


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_keeps_what_it_measured_and_goes_on(
    loaded: LoadedModel, files: ProfileFiles, tmp_path: Path, stop_after: int
) -> None:
    stopped = calibrate(loaded, request(4), files)
    list(islice(stopped, stop_after + 1))
    stopped.close()
    kept = load_profile(files.partial)
    assert len(kept.samples) == stop_after
    steps, resumed = finish(loaded, request(4), files)
    assert [str(step.rate)[-1] for step in steps] == [str(4 - stop_after)] * (5 - stop_after)
    _, once = finish(loaded, request(4), ProfileFiles(tmp_path, "once"))
    assert resumed.samples == once.samples
    for key, values in once.values.items():
        torch.testing.assert_close(resumed.values[key], values)
        assert torch.equal(resumed.values[key][:stop_after], kept.values[key])


def test_more_samples_are_added_to_a_finished_profile(loaded: LoadedModel, files: ProfileFiles) -> None:
    _, two = finish(loaded, request(2), files)
    files.partial.rename(files.profile)
    steps, three = finish(loaded, request(3), files)
    assert [step.label for step in steps][1:] == ["done"]
    assert three.samples[:2] == two.samples
    steps, again = finish(loaded, request(1), files)
    assert [step.label for step in steps] == ["done"]
    assert again.samples == three.samples


def test_a_sample_that_comes_twice_is_measured_once(loaded: LoadedModel, files: ProfileFiles) -> None:
    steps, profile = finish(loaded, replace(request(1), samples=(sample(0), sample(0))), files)
    assert len(steps) == 2
    assert len(profile.samples) == 1


def test_what_was_measured_otherwise_is_refused_with_both_values(loaded: LoadedModel, files: ProfileFiles) -> None:
    finish(loaded, request(1), files)
    before = files.partial.read_bytes()
    with pytest.raises(UsageError, match="measured with seed 0, not 7") as refusal:
        finish(loaded, request(1, seed=7), files)
    assert "--fresh" in str(refusal.value.hint)
    other = replace(request(1), config=MeasuringConfig(("lmbo",)))
    with pytest.raises(UsageError, match="other measures: attention_entropy"):
        finish(loaded, other, files)
    stranger = replace(loaded, info=replace(loaded.info, sha256="0" * 64))
    with pytest.raises(UsageError, match="weights_sha256"):
        finish(stranger, request(1), files)
    assert files.partial.read_bytes() == before


def test_files_are_set_aside_and_none_is_lost(loaded: LoadedModel, files: ProfileFiles) -> None:
    for number in (1, 2):
        finish(loaded, request(1), files)
        kept = files.partial.read_bytes()
        files.preset.write_text("{}")
        renamed = files.set_aside()
        assert [path.name for path in renamed] == [f"mine.json.{number}", f"mine.partial.safetensors.{number}"]
        assert renamed[1].read_bytes() == kept
        assert files.found is None
    assert files.set_aside() == []


def test_a_preset_that_somebody_wrote_is_not_overwritten(files: ProfileFiles) -> None:
    files.check()
    files.preset.write_text("{}")
    with pytest.raises(UsageError, match=r"mine\.json exists already"):
        files.check()
    files.profile.write_bytes(b"")
    files.check()


@pytest.mark.parametrize(
    ("model", "name", "out", "expected"),
    [
        ("smollm2-135m", None, None, "presets/smollm2-135m"),
        ("org/Model-1.5B", None, None, "presets/Model-1.5B"),
        ("models/Some Model.gguf", None, None, "presets/Some-Model"),
        ("smollm2-135m", "mine", None, "presets/mine"),
        ("smollm2-135m", None, "there", "there/smollm2-135m"),
        ("smollm2-135m", "mine", "there", "there/mine"),
        ("smollm2-135m", None, "there/other.json", "there/other"),
        ("smollm2-135m", "v1.5", "there/v1.5", "there/v1.5"),
    ],
)
def test_where_the_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str | None, out: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    chosen = choose_files(model, name=name, out=None if out is None else Path(out), folder=Path("presets"))
    assert (chosen.folder / chosen.name).as_posix() == expected


def test_two_names_for_one_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the preset differently"):
        choose_files("m", name="one", out=tmp_path / "two.json", folder=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (sample(0, answer="!"), UsageError, "an answer of 1 token, 2 are needed"),
        (sample(0, answer=""), UsageError, "an answer of 0 tokens"),
        (replace(sample(0), queries=(Query("", " at dusk", ()),)), UsageError, "an empty question"),
        (replace(sample(0), context=""), UsageError, "an empty context"),
        (sample(0, times=42), DoesNotFitError, "the model was trained for 4,096"),
    ],
)
def test_a_sample_that_cannot_be_measured_is_refused_before_any_is_read(
    loaded: LoadedModel, files: ProfileFiles, wrong: Sample, error: type[UncompError], message: str
) -> None:
    with pytest.raises(error, match=message):
        next(calibrate(loaded, replace(request(1), samples=(sample(1), wrong)), files))
    assert files.found is None


def test_no_samples_are_refused(loaded: LoadedModel, files: ProfileFiles) -> None:
    with pytest.raises(UsageError, match="no sample"):
        finish(loaded, request(0), files)


def test_a_length_without_room_for_an_answer_is_refused() -> None:
    check_lengths([200, 3968], 4096)
    with pytest.raises(DoesNotFitError, match=r"3,969 tokens and 128 .* 4,096") as refusal:
        check_lengths([3969, 200], 4096)
    assert "--tokens 3968" in str(refusal.value.hint)


def test_int8_weights_are_refused(tiny_model: Path, files: ProfileFiles) -> None:
    loaded = load_model(str(tiny_model))
    loaded.model.is_loaded_in_8bit = True  # what bitsandbytes makes of a model is known by one attribute
    with pytest.raises(UsageError, match="int8") as refusal:
        next(calibrate(loaded, request(1), files))
    assert "--quantize none" in str(refusal.value.hint)


def test_states_that_are_no_numbers_name_their_layer_and_lose_nothing(tiny_model: Path, files: ProfileFiles) -> None:
    loaded = load_model(str(tiny_model))
    work = calibrate(loaded, request(3), files)
    list(islice(work, 2))
    with torch.no_grad():
        loaded.model.model.layers[2].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layer 2: .*not finite"):
        next(work)
    assert len(load_profile(files.partial).samples) == 1


def test_a_chat_is_read_in_the_models_format(loaded: LoadedModel, files: ProfileFiles) -> None:
    wanted = replace(request(1), samples=(sample(0), sample(0, system=""), sample(0, system="Be brief.")))
    _, profile = finish(loaded, wanted, files)
    plain, chat, told = (info.tokens for info in profile.samples)
    assert plain < chat < told


@pytest.mark.parametrize("family", ["gemma3_text", "mistral-sliding", "phi3", "smollm3"])
def test_families_that_slide_or_turn_in_parts(family: str) -> None:
    _, decoder, spec = tiny(family)
    measures = measurable(decoder, MeasuringConfig().measures)
    assert ("entropy/q/r1/4/prerope" in measures) == (family in ("mistral-sliding", "phi3"))
    values = read_and_measure(decoder, make_prompt(40, [12]), tokens(5, 9), config=MeasuringConfig(measures, keep=6))
    for key, of_layers in values.items():
        assert of_layers.shape == (spec.num_layers, parse_measure(key).width(spec))
        assert of_layers.isfinite().all()
    for layer, window in enumerate(spec.sliding_windows):
        assert bool((values["loss"][layer] > 0).all()) == (window is None)
        if window is not None:
            assert values["lmba/raw"][layer].max() <= window + 12


def test_a_report_says_how_stable_each_measure_is(loaded: LoadedModel, files: ProfileFiles) -> None:
    wanted = request(2)
    long = tuple(sample(number, times=4) for number in range(2))
    _, profile = finish(loaded, replace(wanted, samples=(*wanted.samples, *long)), files)
    shown = profile_table(profile)
    table = {row["MEASURE"]: row for row in shown.record()}
    assert list(table) == list(profile.values)
    assert table["loss"]["LIKE loss"] == "1.00 / 1.00"
    shares = re.compile(r"(\d\.\d\d|–) / (\d\.\d\d)")
    assert all(shares.fullmatch(row[column]) for row in table.values() for column in shown.columns[3:])
    assert float(table["lmba/raw"]["MEAN"]) == pytest.approx(profile.mean("lmba/raw").mean().item(), rel=0.01)
    record = profile_record(profile)
    assert [one["sha256"] for one in record["samples"]] == [info.sha256 for info in profile.samples]
    figures = record["measures"]["lmba/raw"]
    assert figures["least"] <= figures["mean"] <= figures["largest"]
    assert math.isclose(sum(figures["layers"]) / len(figures["layers"]), figures["mean"])
    assert record["stability"]["samples"] == 4
