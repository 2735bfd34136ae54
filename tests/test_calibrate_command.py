"""`uncomp calibrate` as its users run it: a preset that can be used, a stopped run that goes on, and refusals."""

import json
import os
import signal
from pathlib import Path

import pytest

from support.commands import Running, last_object, run_here, start, two_lines
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cli.app import run
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.tables.outcome import OUTCOMES
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.maker import CONTINUATION, SampleMaker, choose_sources
from uncomp_cli.uncertainty.measures import DEFAULT_MEASURES
from uncomp_cli.uncertainty.profile import load_profile

SHAPE = ("--tokens", "400", "-t", "needle/digits7", "-t", "continuation")

pytestmark = pytest.mark.usefixtures("alone", "short_prose")


def measure(model: Path, *args: str, samples: int = 2) -> tuple[int, str, str]:
    return run_here("calibrate", "-m", str(model), *SHAPE, "--samples", str(samples), *args)


def test_a_table_and_a_preset_that_can_be_used(tiny_model: Path) -> None:
    code, out, err = measure(tiny_model, "--name", "mine", "-b", "30%", "--scorer", "expected")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "MEASURE"
    assert [line.split()[0] for line in lines[1:]] == [*DEFAULT_MEASURES, "loss"]
    folder = Path("data/uncomp/presets")
    kinds = ("mine", "mine-small", "mine-tiny", "mine-unseen")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(f"{n}.json" for n in kinds), "mine.safetensors"])
    assert "preset mine: " in err
    preset = load_preset("mine")
    assert (preset.policy, str(preset.budget), preset.scorer.name) == ("uncertain", "30%", "expected")
    assert preset.floor_tokens > 0
    assert "2 samples" in preset.description
    assert preset.profile_path is not None
    profile = load_profile(preset.profile_path)
    assert [info.task for info in profile.samples] == ["needle/digits7", "continuation"]
    assert all(info.source.startswith("generated prose") for info in profile.samples)
    code, out, err = run_here("preset", "show", "mine")
    assert code == 0, err


def test_what_was_calibrated_is_taken_for_its_model(tiny_model: Path) -> None:
    Path("notes.txt").write_text("The harbour was quiet and the lamps were lit. " * 8)
    asked = ("ask", "-m", str(tiny_model), "-f", "notes.txt", "--max-new-tokens", "4", "Where?")
    assert (
        measure(tiny_model, "--name", "mine", samples=1)[2]
        .rstrip()
        .endswith("use it with uncomp ask --preset mine, which ask takes for it by itself")
    )
    err = run_here(*asked)[2]
    assert f"preset mine is used: it was calibrated for {tiny_model}\n" in err
    assert "(mine, uncertain)" in err
    assert run_here(*asked, "-p", "live")[2].count("mine") == 0
    err = run_here("chat", "-m", str(tiny_model), "-b", "30%", "--kv-bits", "8", stdin=b"/budget\n")[2]
    assert f"preset mine-unseen is used: it was calibrated for {tiny_model}\n" in err
    assert "preset mine-unseen · budget 30%, at least 256 tokens, in 8 bits" in err
    assert measure(tiny_model, "-o", "away.json")[2].rstrip().endswith("use it with uncomp ask --preset away.json")
    Path("data/uncomp/presets/mine.safetensors").write_bytes(b"damaged")
    assert "preset live is used" in run_here(*asked)[2]


def test_the_whole_family_is_made_like_the_shipped_one(tiny_model: Path) -> None:
    code, _, err = measure(tiny_model, "--name", "mine", "--quality", "--quality-samples", "2", samples=1)
    assert code == 0, err
    for suffix, like in (("", "balanced"), ("-small", "small"), ("-tiny", "tiny"), ("-unseen", "unseen")):
        mine, shipped = load_preset(f"mine{suffix}"), load_preset(like)
        for what in ("budget", "policy", "scorer", "floor_tokens", "kv_bits", "thinning"):
            assert getattr(mine, what) == getattr(shipped, what), (like, what)
        assert mine.profile == "mine"
        assert bool(mine.quality) == (like in ("balanced", "small"))  # bits and another scorer lose otherwise
    said = err.splitlines()[-1]
    assert "mine 20%, mine-small 10%, mine-tiny 5%, mine-unseen full" in said
    assert "measured to lose" in said
    assert "--preset mine" in said
    code, _, err = measure(tiny_model, "--name", "mine", samples=1)  # nothing that was measured is lost
    assert code == 0, err
    assert load_preset("mine-small").quality == load_preset("mine").quality != ()


def test_a_preset_of_the_family_that_somebody_wrote_is_not_overwritten(tiny_model: Path) -> None:
    Path("mine-tiny.json").write_text(json.dumps(load_preset("tiny").to_dict() | {"profile": None}))
    code, _, err = measure(tiny_model, "-o", "mine.json")
    assert code == 2
    assert "mine-tiny.json exists already" in two_lines(err)[0]


def test_json_is_one_object_and_the_last_line(tiny_model: Path) -> None:
    code, out, err = measure(tiny_model, "--name", "mine", "--json", "-q")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    record = last_object(out)
    assert record["schema_version"] == 1
    assert json.loads(Path(record["preset"]).read_text())["profile"] == "mine"
    assert load_profile(Path(record["profile"])).samples[0].sha256 == record["samples"][0]["sha256"]
    assert set(record["measures"]) == {*DEFAULT_MEASURES, "loss"}
    assert record["parameters"]["seed"] == 0
    assert record["stability"]["samples"] == 2


def test_a_text_of_the_users_own_in_two_lengths(tiny_model: Path) -> None:
    text = "\n\n".join(f"Boat {number} came to the harbour when the lamps had been lit." for number in range(60))
    Path("story.txt").write_text(text)
    code, out, err = measure(tiny_model, "-f", "story.txt", "-o", "here.json", "--tokens", "700")
    assert code == 0, err
    assert load_preset("here.json").name == "here"
    samples = load_profile(Path("here")).samples
    assert [(info.task, round(info.tokens, -2)) for info in samples] == [
        ("needle/digits7", 400),
        ("needle/digits7", 700),
        ("continuation", 400),
        ("continuation", 700),
    ]
    assert {info.source for info in samples} == {"story.txt"}
    assert "–" not in out.splitlines()[1]  # agreement over texts and lengths, both are known


def test_a_killed_run_is_gone_on_with_and_loses_nothing(tiny_model: Path, long_lived: list[Running]) -> None:
    args = ("calibrate", "-m", str(tiny_model), *SHAPE, "--name", "mine", "-o", ".")
    running = start(*args, "--samples", "200")
    long_lived.append(running)
    while not Path("mine.partial.safetensors").is_file():
        running.process.join(0.05)
        assert running.process.is_alive()
    running.process.kill()
    code, out, _ = running.finish()
    assert (code, out) == (-signal.SIGKILL, "")
    assert not Path("mine.json").exists()
    before = load_profile(Path("mine.partial"))
    count = len(before.samples)
    assert 1 <= count < 200
    code, _, err = run_here(*args, "--samples", str(count + 1))
    assert code == 0, err
    assert "going on from mine.partial.safetensors" in err
    assert {"mine.json", "mine.safetensors"} <= {path.name for path in Path().glob("mine*")}
    assert not Path("mine.partial.safetensors").exists()
    after = load_profile(Path("mine"))
    assert after.samples[:count] == before.samples
    assert len(after.samples) == count + 1
    assert all((after.values[key][:count] == values).all() for key, values in before.values.items())


def test_another_seed_is_refused_and_fresh_sets_aside(tiny_model: Path) -> None:
    assert measure(tiny_model, "-o", "mine.json", samples=1)[0] == 0
    before = Path("mine.safetensors").read_bytes()
    code, out, err = measure(tiny_model, "-o", "mine.json", "--seed", "7", samples=1)
    assert (code, out) == (2, "")
    message, hint = two_lines("\n".join(line for line in err.splitlines() if not line.startswith("going on")))
    assert "seed 0, not 7" in message
    assert "--fresh" in hint
    assert Path("mine.safetensors").read_bytes() == before
    code, _, err = measure(tiny_model, "-o", "mine.json", "--seed", "7", "--fresh", samples=1)
    assert code == 0, err
    assert Path("mine.safetensors.1").read_bytes() == before
    assert Path("mine.json.1").is_file()
    assert load_profile(Path("mine")).parameters["seed"] == 7


QUALITY = ("--tokens", "400", "-t", "needle/digits7", "--name", "mine")
TWO = ("--quality", "--quality-samples", "2")


def calibrate(model: Path, *args: str) -> tuple[int, str, str]:
    return run_here("calibrate", "-m", str(model), *QUALITY, "--samples", "1", *args)


def test_quality_is_measured_and_a_loss_chooses_the_budget(tiny_model: Path) -> None:
    code, out, err = calibrate(tiny_model, *TWO, "--quality-budget", "full", "--quality-budget", "40%")
    assert code == 0, err
    rows = [line.split() for line in out.partition("\n\n")[2].splitlines()]
    assert [row[0] for row in rows] == ["BUDGET", "40%", "full"]
    preset = load_preset("mine")
    full, forty = preset.quality
    assert (full.budget, forty.budget, full.samples) == ("full", "40%", 2)
    assert full.loss_high == pytest.approx(0, abs=1e-5)
    assert forty.kept_fraction < 1 <= full.kept_fraction
    assert abs(forty.loss) > 1e-4
    assert "not calibrated on" in err
    assert not list(Path("data/uncomp/presets").glob("*.jsonl"))
    code, out, err = run_here("preset", "show", "mine")
    assert "40%" in out
    assert "72 questions; for texts of 150 to 30,000 tokens" in out
    assert preset.absent == load_preset("balanced").absent
    Path("story.txt").write_text("The harbour was quiet and the lamps were lit along the old wall. " * 8)
    ask = ("ask", "-m", str(tiny_model), "-p", "mine", "-f", "story.txt", "When?", "--max-new-tokens", "4", "--json")
    assert forty.loss_high > 0.002
    for max_loss, budget in ((f"{100 * forty.loss_high + 0.1:.1f}%", "40%"), ("0.1%", "full")):
        code, out, err = run_here(*ask, "--max-loss", max_loss)
        assert code == 0, err
        assert last_object(out)["compression"]["budget_requested"] == budget
        assert f"--max-loss {max_loss}: budget {budget}, measured loss" in err


def test_quality_of_a_saved_profile_measures_the_profile_no_second_time(tiny_model: Path) -> None:
    assert calibrate(tiny_model)[0] == 0
    saved = Path("data/uncomp/presets/mine.safetensors")
    before = load_profile(saved)
    assert load_preset("mine").quality == ()
    code, out, err = calibrate(tiny_model, *TWO, "--quality-budget", "40%", "--quality-budget", "1", "--json")
    assert code == 0, err
    assert load_profile(saved).parameters == before.parameters  # the date among them
    record = last_object(out)
    (point,) = load_preset("mine").quality
    assert record["quality"] == [
        {name: getattr(point, name) for name in ("budget", "kept_fraction", "loss", "loss_low", "loss_high", "samples")}
    ]
    (refused,) = record["quality_refused"]
    assert refused["budget"] == "1"
    assert f"budget 1 has no loss: {refused['reason']}" in err


def test_quality_stays_as_long_as_it_is_that_of_the_preset(tiny_model: Path) -> None:
    assert calibrate(tiny_model, *TWO, "--quality-budget", "40%")[0] == 0
    before = load_preset("mine").quality
    code, _, err = calibrate(tiny_model, "-b", "33%")
    assert code == 0, err
    assert (load_preset("mine").quality, str(load_preset("mine").budget)) == (before, "33%")
    assert "left out" not in err
    code, _, err = calibrate(tiny_model, "--scorer", "expected")
    assert code == 0, err
    assert load_preset("mine").quality == ()
    assert "the quality that was measured is of other settings" in err


def test_an_interrupted_quality_goes_on_with_the_preset_usable(tiny_model: Path, long_lived: list[Running]) -> None:
    args = ("calibrate", "-m", str(tiny_model), *QUALITY, "--samples", "1", "-o", ".", "--quality-budget", "40%")
    kept = Path("mine.quality.jsonl")
    running = start(*args, "--quality", "--quality-samples", "100")
    long_lived.append(running)
    while not kept.is_file() or kept.read_bytes().count(b"\n") < 3:  # the header, and two settings of a sample
        running.process.join(0.05)
        assert running.process.is_alive()
    running.interrupt()
    code, out, err = running.finish()
    assert (code, out) == (130, "")
    assert "what was measured is in mine.quality.jsonl" in err
    assert load_preset("./mine.json").quality == ()
    done = kept.read_bytes().count(b"\n") // 2
    assert 1 <= done < 100
    os.link(kept, "copy.jsonl")
    before = kept.read_bytes()
    code, _, err = run_here(*args, "--quality", "--quality-samples", str(done + 1))
    assert code == 0, err
    assert load_preset("./mine.json").quality[0].samples == done + 1
    after = Path("copy.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == before.count(b"\n") + 2
    assert not kept.exists()


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_outcomes_of_something_else_are_set_aside(tiny_model: Path, fresh: tuple[str, ...]) -> None:
    folder = Path("data/uncomp/presets")
    folder.mkdir(parents=True)
    Journal.open(folder / "mine.quality.jsonl", OUTCOMES, {"seed": 99}).close()
    code, _, err = calibrate(tiny_model, *TWO, "--quality-budget", "40%", *fresh)
    assert code == 0, err
    assert "set aside: " in err
    assert json.loads((folder / "mine.quality.1.jsonl").read_text())["settings"] == {"seed": 99}
    assert load_preset("mine").quality


def test_budgets_that_are_all_too_small_are_refused(tiny_model: Path) -> None:
    code, out, err = calibrate(tiny_model, *TWO, "--quality-budget", "1", "--quality-budget", "2")
    assert (code, out) == (3, "")
    message, hint = two_lines("\n".join(err.splitlines()[-2:]))
    assert "no budget of 1, 2 is large enough for samples of 400 tokens" in message
    assert "--quality-budget" in hint
    assert load_preset("mine").quality == ()


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("--quality-samples", "3"), "--quality-samples", "add --quality"),
        (("--quality-budget", "5%"), "--quality-budget", "add --quality"),
        (("--quality", "--quality-budget", "15 %%"), "budget '15 %%'", "10%"),
        (("--quality", "--quality-budget", "auto"), "budget auto", "20%"),
        (("--quality", "--quality-samples", "1"), "1", ""),
        (("-t", "nedle"), "unknown task 'nedle'", "did you mean"),
        (("-t", "perplexity"), "task perplexity has no answers", "continuation"),
        (("--policy", "uncertian"), "uncertian", "uncertain"),
        (("--policy", "uniform"), "policy uniform uses nothing that is measured", "--policy uncertain"),
        (("--scorer", "windwo"), "windwo", "window"),
        (("-b", "15 %%"), "budget '15 %%'", "10%"),
        (("-b", "full"), "full", "20%"),
        (("--name", "a/b"), "a/b", ""),
        (("--name", ""), "''", ""),
        (("--samples", "0"), "0", ""),
        (("--tokens", "100"), "100", ""),
        (("--name", "one", "-o", "two.json"), "differently", "leave one"),
    ],
)
def test_a_slip_is_named_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str, hint: str
) -> None:
    code = run(["calibrate", "-m", "no-such-model", *args])
    out, err = capsys.readouterr()
    said, mends = two_lines(err)
    assert (code, out) == (2, "")
    assert message in said
    assert hint in mends


@pytest.mark.parametrize(
    ("text", "message"), [("", ""), ("The harbour was quiet, and the lamps were lit along the wall. " * 3, "has 1")]
)
def test_a_text_that_is_too_short(tiny_model: Path, text: str, message: str) -> None:
    Path("short.txt").write_text(text)
    code, out, err = measure(tiny_model, "-f", "short.txt", "--name", "mine")
    assert (code, out) == (2 if text else code, "")
    assert code != 0
    said, mends = two_lines(err)
    assert "short.txt" in said
    assert message in said
    assert mends
    assert not Path("data").exists()


def test_a_length_past_the_models_context(tiny_model: Path) -> None:
    code, out, err = measure(tiny_model, "--tokens", "4000")
    assert (code, out) == (3, "")
    said, mends = two_lines(err)
    assert "4,000" in said
    assert "4,096" in said
    assert "--tokens 3968" in mends


def test_samples_take_the_tasks_in_turn_and_are_always_the_same() -> None:
    def make(samples: int) -> list[tuple[str, str]]:
        haystack = Haystack.generated_for(400, seed=1)
        maker = SampleMaker(choose_sources(["needle/uuid", CONTINUATION]), haystack, lambda text: len(text.split()), 1)
        return [(one.subtask, one.sha256) for one in maker.make([300, 400], samples)]

    four = make(4)
    assert [task for task, _ in four] == ["needle/uuid"] * 2 + [CONTINUATION] * 2 + ["needle/uuid"] * 2 + [
        CONTINUATION
    ] * 2
    assert len({sha256 for _, sha256 in four}) == 8
    assert make(2) == four[:4]


def test_a_continuation_is_one_text_in_three_parts() -> None:
    haystack = Haystack.generated_for(400, seed=1)
    maker = SampleMaker(choose_sources([CONTINUATION]), haystack, lambda text: len(text.split()), 1)
    (sample,) = maker.make([300], 1)
    (query,) = sample.queries
    whole = " ".join(haystack.paragraphs)
    assert " ".join((sample.context + query.question + query.answer).split()) in " ".join(whole.split())
    assert 60 <= len(query.answer.split()) <= 64
    assert 28 <= len(query.question.split()) <= 32
    assert 330 <= len((sample.context + query.question + query.answer).split()) <= 364
    assert query.answer[0].isspace()
    assert not query.question[-1].isspace()


@pytest.mark.slow
@pytest.mark.model
def test_the_default_models_retrieval_heads_stand_out_and_its_answers_lose_more_the_less_is_kept(
    default_model_dir: Path,
) -> None:
    assert default_model_dir.is_dir()
    sizes = ("--samples", "1", "--tokens", "300", "-t", "needle/digits7", "--quality-samples", "2")
    budgets = ("--quality-budget", "60%", "--quality-budget", "12%")
    code, _, err = run_here("calibrate", *sizes, "-o", ".", "--quality", *budgets)
    assert code == 0, err
    preset = load_preset("./smollm2-135m.json")
    assert preset.profile_path is not None
    profile = load_profile(preset.profile_path)
    loss = profile.mean("loss").flatten()
    assert loss.topk(9).values.sum() > 0.3 * loss.sum()  # a tenth of the heads
    assert 0.3 < profile.mean("entropy/q/r1/4").mean() < 0.7
    most, least = preset.quality
    assert abs(most.loss) < 0.1
    assert least.loss > most.loss + 0.05
