"""`uncomp rope` as its users run it: tables, JSON, pictures, a file that is continued and shown, what is refused."""

import json
from pathlib import Path

import pytest

from support.commands import last_object, run_here, two_lines
from support.tiny import scaled_model
from uncomp_cli.cli.app import run
from uncomp_cli.evals.journal import read_journal
from uncomp_cli.evals.rope.cells import CELLS

SHAPE = ("--tokens", "400,600", "--depths", "2", "--kinds", "plain,yarn:2,repack:2@40%")
NUM_CELLS = 3 + 3 * 2 * 2

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The results file of one run, and what it wrote."""
    path = tmp_path_factory.mktemp("rope") / "r.jsonl"
    code, out, err = run_here("rope", "-m", str(tiny_model), "--out", str(path), *SHAPE)
    assert code == 0, err
    return path, out, err


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["rope", *args])
    out, err = capsys.readouterr()
    assert out == ""
    return code, *two_lines(err)


def test_tables_an_estimate_and_a_recommendation(finished: tuple[Path, str, str]) -> None:
    path, out, err = finished
    for arm in ("plain", "yarn:2", "repack:2@40%"):
        assert arm in out
    for heading in ("FOUND", "ENTROPY", "DIVERGENCE", "NLL PAST", "RHO", "recommended: none", "No kind finds a needle"):
        assert heading in out
    assert "about" in err
    assert "to go on this machine" in err
    _, cells = read_journal(path, CELLS)
    # One more text: that of the model as trained, up to its trained length, with which the others are compared.
    assert len(cells) == NUM_CELLS + 1


def test_a_finished_run_measures_nothing_again_and_gives_json(
    finished: tuple[Path, str, str], tiny_model: Path
) -> None:
    path, *_ = finished
    before = path.read_bytes()
    code, out, err = run_here("rope", "-m", str(tiny_model), "--out", str(path), *SHAPE, "--json")
    assert code == 0, err
    assert path.read_bytes() == before
    assert f"({NUM_CELLS + 1} there)" in err
    assert len(out.splitlines()) == 1
    record = last_object(out)
    assert (record["schema_version"], record["kind"]) == (1, "uncomp rope")
    assert {(row["arm"].partition(":")[0], row["tokens"]) for row in record["needles"]} == {
        (arm, tokens) for arm in ("plain", "yarn", "repack") for tokens in (400, 600)
    }
    assert len(record["cells"]) == 12
    assert record["recommendation"]["flags"] is None
    kept = {row["arm"].partition(":")[0]: row["kept_fraction"] for row in record["needles"] if row["tokens"] == 600}
    assert kept["repack"] < 0.5 < 1 <= kept["yarn"]


def test_a_finished_file_is_shown_and_drawn_without_a_model(finished: tuple[Path, str, str], tmp_path: Path) -> None:
    path, shown, _ = finished
    code, out, err = run_here("rope", "--from", str(path), "--plot", str(tmp_path / "pictures"))
    assert code == 0, err
    assert out == shown
    assert "loading" not in err
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["rope-needles.png", "rope-text.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_another_seed_is_another_file(finished: tuple[Path, str, str], tiny_model: Path) -> None:
    path, *_ = finished
    code, _, err = run_here("rope", "-m", str(tiny_model), "--out", str(path), *SHAPE, "--seed", "5")
    assert code == 2
    assert "seed 0 there, 5 now" in err


@pytest.mark.parametrize(
    ("args", "code", "message", "hint"),
    [
        (("--kinds", "yran:2"), 2, "yran", "yarn"),
        (("--kinds", "yarn:2,auto"), 2, "auto", "--kinds"),
        (("--tokens", "16q"), 2, "16q", "--tokens"),
        (("--budget", "full"), 2, "full", "--budget"),
        (("--depths", "0"), 2, "0", ""),
        (("--from", "nothing.jsonl"), 2, "nothing.jsonl", "results file"),
        (("--from", "nothing.jsonl", "--tokens", "16k"), 2, "--tokens", "leave one"),
        (("--from", "nothing.jsonl", "--seed", "3"), 2, "--seed", "leave one"),
        (("--from", "nothing.jsonl", "--preset", "full"), 2, "--preset", "leave one"),
        (("--from", "nothing.jsonl", "--dtype", "float32"), 2, "--dtype", "leave one"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: int, message: str, hint: str
) -> None:
    model = () if "--from" in args else ("-m", "no-such-model")
    found, said, advised = refused(capsys, "-q", *model, *args)
    assert found == code
    assert message in said
    assert hint in advised


def test_a_file_of_uncomp_eval_is_not_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "eval.jsonl"
    other.write_text(json.dumps({"schema_version": 1, "kind": "uncomp eval", "settings": {}}) + "\n")
    code, said, _ = refused(capsys, "--from", str(other))
    assert code == 2
    assert "not a results file of uncomp rope" in said


def test_a_context_larger_than_memory_is_refused(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    code, said, advised = refused(
        capsys, "-q", "-m", str(tiny_model), "--kinds", "plain", "--tokens", "999999999", "--out", "r.jsonl"
    )
    assert code == 3
    assert "999,999,999" in said
    assert advised


def test_a_model_is_not_read_on_as_trained_past_what_its_own_scaling_says(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    model = scaled_model(tiny_model, 256, rope_type="dynamic", factor=2.0)
    args = ("-m", model, "--kinds", "plain,yarn", "--tokens", "400,600", "--depths", "1", "--out", "r.jsonl")
    code = run(["rope", *args])
    err = capsys.readouterr().err
    assert code == 0, err
    assert "plain reads up to 512 tokens: not measured at 600" in err
    cells = read_journal(Path("r.jsonl"), CELLS)[1]
    assert {(cell.name, cell.arm, cell.tokens) for cell in cells} == {
        ("text", "plain", 400), ("text", "yarn:3", 600),
        ("needle", "plain", 400), ("needle", "yarn:3", 400), ("needle", "yarn:3", 600),
    }  # fmt: skip


def test_factors_are_what_ask_takes(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    own = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    model = scaled_model(tiny_model, 256, rope_type="llama3", factor=2.0, **own)
    args = ("-m", model, "--kinds", "yarn,ntk:2", "--tokens", "512", "--depths", "1", "--out", "r.jsonl")
    code = run(["rope", *args])
    err = capsys.readouterr().err
    assert code == 0, err
    assert "ntk:2 reads up to 256 tokens: not measured at 512" in err
    assert {cell.arm for cell in read_journal(Path("r.jsonl"), CELLS)[1]} == {"plain", "yarn:4"}


@pytest.mark.parametrize(("kinds", "named"), [("plain,yarn:2", "yarn:2"), ("plain,repack,ntk", "ntk:2")])
def test_a_kind_that_the_model_cannot_take_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, kinds: str, named: str
) -> None:
    model = scaled_model(tiny_model, 512, rope_type="linear", factor=2.0)
    code, said, advised = refused(capsys, "-q", "-m", model, "--kinds", kinds, "--tokens", "512,1k", "--out", "r.jsonl")
    assert code == 2
    assert f"--rope {named} cannot replace the scaling that the model came with, linear:2" in said
    assert f"leave {named} out of --kinds" in advised
    assert not Path("r.jsonl").exists()
