"""`uncomp compare`: two settings side by side, on pipes and as JSON, and what is refused."""

from pathlib import Path

import pytest

from support.commands import last_object, run_here, two_lines
from support.tiny import scaled_model
from uncomp_cli.cli.app import run
from uncomp_cli.evals.judges.predictions import word_diff

TEXT = "The harbour was quiet and the lamps were lit. Nobody had seen the keeper since noon. " * 12


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("notes.txt").write_text(TEXT)


def compare(model: Path, *args: str) -> tuple[int, str, str]:
    return run_here("compare", "-m", str(model), "-f", "notes.txt", "--max-new-tokens", "12", *args, "Where?")


def test_two_settings_side_by_side(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "--policy", "uniform", "-b", "20%")
    assert code == 0, err
    assert out.index("full:") < out.index("balanced: uniform/window 20%:")
    for word in ("KV", "OF 16 BITS", "FIRST TOKEN", "DECODE TOK/S", "second / first", "KL"):
        assert word in out


def test_a_setting_is_itself(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "--policy", "uniform", "-b", "20%", "--against", "uniform@20%", "--json")
    assert code == 0, err
    record = last_object(out)
    first, second = record["sides"]
    assert first["answer"] == second["answer"]
    assert first["memory"]["kv_bytes"] == second["memory"]["kv_bytes"]
    assert record["first_divergence"] is None
    assert record["fidelity"]["kl"] == pytest.approx(0, abs=1e-6)
    assert record["fidelity"]["agreement"] == 1.0


def test_two_scorers_are_told_apart(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "--policy", "uniform", "-b", "20%", "--against", "uniform/keydiff@20%")
    assert code == 0, err
    assert "balanced: uniform/window 20%" in out
    assert "uniform/keydiff: uniform/keydiff 20%" in out


def test_json_has_both_answers_bytes_and_how_far_they_are_apart(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "--policy", "uniform", "-b", "10%", "--json")
    assert code == 0, err
    record = last_object(out)
    full, small = record["sides"]
    assert (full["compression"]["policy"], small["compression"]["policy"]) == ("full", "uniform")
    assert small["memory"]["kv_bytes"] < 0.3 * full["memory"]["kv_bytes"]
    assert record["fidelity"]["kl"] > 0
    differs = full["answer"] != small["answer"]
    assert (record["first_divergence"] is not None) == differs


def test_fewer_bits_are_a_setting_too(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "-b", "full", "--kv-bits", "8", "--json")
    assert code == 0, err
    full, eight = last_object(out)["sides"]
    assert eight["compression"]["kv_bits"] == 8
    assert eight["memory"]["kv_bytes"] < 0.6 * full["memory"]["kv_bytes"]


def test_thinning_alone_is_told_apart_from_the_full_cache(tiny_model: Path) -> None:
    args = ("-b", "full", "--thin", "gather:after=1,keep=0.3")
    code, out, err = compare(tiny_model, *args, "--json")
    assert code == 0, err
    full, thinned = last_object(out)["sides"]
    assert thinned["memory"]["kv_bytes"] < 0.9 * full["memory"]["kv_bytes"]
    code, out, err = compare(tiny_model, *args, "--against", "full/thin=gather:after=1,keep=0.3")
    assert code == 0, err
    assert out.count("full, thin gather:after=1,keep=0.3:") == 2
    assert "the answers are the same" in out


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("unifrom@20%", "unknown policy 'unifrom'"),
        ("uniform", "has no budget"),
        ("full@20%", "keeps everything"),
        ("uniform@some", "budget 'some'"),
        ("uniform/thin=gahter@20%", "unknown thinning 'gahter'"),
    ],
)
def test_the_other_side_is_checked_before_loading(
    capsys: pytest.CaptureFixture[str], against: str, message: str
) -> None:
    code = run(["compare", "-m", "no-such-model", "-f", "notes.txt", "--against", against, "Where?"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    said, hint = two_lines(err)
    assert message in said
    assert hint


@pytest.mark.parametrize(
    ("args", "rope", "how"),
    [
        (["--rope", "yarn:2"], "yarn:2", "extended by --rope yarn:2"),
        (["--rope", "dynamic", "--context", "2560"], "dynamic:2", "extended by --rope dynamic:2"),
        (["--context", "2560"], "yarn:2", "--rope yarn:2"),
        (["--force"], "plain", "--rope plain"),
    ],
)
def test_both_sides_read_past_the_trained_length(tiny_model: Path, args: list[str], rope: str, how: str) -> None:
    Path("notes.txt").write_text(TEXT * 2)
    model = Path(scaled_model(tiny_model, 1280, rope_type="default"))
    small = ("--policy", "uniform", "-b", "20%", "--against", "uniform@10%")
    assert compare(model, *small)[0] == 3
    code, out, err = compare(model, *small, *args, "--json")
    assert code == 0, err
    for side in last_object(out)["sides"]:
        assert side["model"]["rope"] == rope
        (warning,) = side["warnings"]
        assert how in warning
        assert warning in err
    assert ("rope auto: " in err) == (args == ["--context", "2560"])


def test_what_is_re_packed_has_no_full_cache_to_compare_with(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    assert run(["compare", "-m", str(tiny_model), "-f", "notes.txt", "--rope", "reread", "Where?"]) == 2
    said, hint = two_lines(capsys.readouterr().err)
    assert said.startswith("a comparison cannot be re-packed")
    assert "--rope yarn:2" in hint


def test_a_context_that_memory_cannot_hold_is_refused(tiny_model: Path) -> None:
    code, out, err = compare(tiny_model, "-b", "full", "--context", "900000000", "--force")
    assert (code, out) == (3, "")
    said, hint = two_lines(err)
    assert "a context of 900,000,000 tokens needs" in said
    assert "--budget" in hint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rope", "yran:2"], "'yran'"),
        (["--context", "soon"], "context 'soon'"),
        (["--rope", "yarn:2", "--force"], "--rope yarn:2 does not"),
    ],
)
def test_a_slip_in_what_is_said_of_the_length_is_found_before_loading(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code = run(["compare", "-m", "org/never-pulled", "-f", "notes.txt", *args, "Where?"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    said, hint = two_lines(err)
    assert message in said
    assert hint


def test_word_diff_says_what_one_side_alone_says() -> None:
    assert list(word_diff("a red boat left", "a blue boat left early")) == [
        ("same", "a"),
        ("first", "red"),
        ("second", "blue"),
        ("same", "boat left"),
        ("second", "early"),
    ]
