"""`uncomp calibrate --risk` as its users run it: answers that are kept, a curve in the preset, and refusals."""

import contextlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.commands import last_object, start, two_lines
from support.curves import absent_below
from uncomp_cli.budget.presets import load_preset, save_preset
from uncomp_cli.calibrate.observation import ANSWERS, RISK_TASKS
from uncomp_cli.cli.app import run
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.journal import Journal, set_aside

BASE = ("--tokens", "400", "-t", "needle/digits7", "--samples", "1", "-o", "mine")
RISK = ("--risk", "--risk-samples", "10", "--risk-tokens", "500", "--risk-tokens", "520")
KEPT = Path("mine.risk.jsonl")

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a run has kept its answers, all of them wrong, and what it said."""
    folder = tmp_path_factory.mktemp("answered")
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNCOMP_CONFIG", os.devnull)
        assert run(["calibrate", "-m", str(tiny_model), *BASE, *RISK]) == 2
    return folder, said.getvalue()


@pytest.fixture
def kept(answered: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that, where the test runs."""
    shutil.copytree(answered[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def calibrate(model: Path, *args: str) -> tuple[int, str, str]:
    return start("calibrate", "-m", str(model), *BASE, *args).finish()


def as_if_right(every: int, *, lacking: bool = False) -> None:
    """Random weights find nothing: take every so many of the answers for right, and certain.

    With `lacking` the text of all others is taken to have no answer.
    """
    header, *lines = KEPT.read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    for number, record in enumerate(changed):
        if number % every == 0:
            record["wrong"] = False
            record["signs"]["attention"] /= 4
        record["absent"] = bool(number % every) if lacking else record["absent"]
    KEPT.write_text("\n".join([header, *map(json.dumps, changed)]) + "\n")


def test_too_few_right_answers_leave_the_preset_as_it_was(answered: tuple[Path, str]) -> None:
    folder, said = answered
    message, hint = two_lines("\n".join(said.splitlines()[-2:]))
    assert "20 of 20 answers were wrong" in message
    assert "--risk-tokens" in hint
    mine = load_preset(str(folder / "mine.json"))
    assert (mine.risk, mine.absent) == ((), load_preset("balanced").absent)
    records = [json.loads(line) for line in (folder / KEPT).read_text().splitlines()][1:]
    assert {record["absent"] for record in records} == {True, False}
    assert {record["subtask"] for record in records} == set(RISK_TASKS)
    assert len({record["sha256"] for record in records}) == 20


@pytest.mark.usefixtures("kept")
def test_a_curve_is_written_and_stays_as_long_as_it_is_that_of_the_preset(tiny_model: Path) -> None:
    as_if_right(2)
    code, out, err = calibrate(tiny_model, *RISK)
    assert code == 0, err
    (curve,) = load_preset("./mine.json").risk
    assert (curve.samples, curve.rope, curve.auroc) == (20, "trained", 1.0)
    table = [line.split() for line in out.partition("\n\n")[2].splitlines()]
    assert table[0][0] == "SIGNAL"
    assert [row[2] for row in table[1:]] == [str(one.samples) for one in curve.bins]
    assert "AUROC 1.00" in err
    assert not KEPT.exists()
    assert curve.flagged(curve.bins[-1].upper)
    assert load_preset("./mine.json").absent == load_preset("balanced").absent  # too few of 20 lacked an answer
    absent = absent_below(0.5)
    save_preset(replace(load_preset("./mine.json"), absent=absent), Path())
    assert calibrate(tiny_model)[0] == 0
    assert load_preset("./mine.json").risk == (curve,)
    for name in ("mine", "mine-tiny", "mine-unseen"):  # it goes by the text, whatever is kept
        assert load_preset(f"./{name}.json").absent == absent
    code, _, err = calibrate(tiny_model, "-b", "33%")
    assert code == 0, err
    assert load_preset("./mine.json").risk == ()
    assert "the risk that was measured is of other settings" in err
    assert load_preset("./mine.json").absent == absent


@pytest.mark.usefixtures("kept")
def test_json_has_the_curve_the_candidates_and_the_baseline_and_a_picture_is_drawn(tiny_model: Path) -> None:
    as_if_right(2, lacking=True)
    code, out, err = calibrate(tiny_model, *RISK, "--json", "--plot", "pictures")
    assert code == 0, err
    (picture,) = Path("pictures").iterdir()
    assert picture.name == "mine-risk.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = last_object(out)
    (curve,) = load_preset("./mine.json").risk
    assert record["risk"][0]["auroc"] == curve.auroc
    absent = load_preset("./mine.json").absent
    assert absent is not None
    assert (absent.samples, absent.limit) == (20, record["absent"][0]["limit"])
    assert record["risk_candidates"][0][0]["auroc"] == 1
    assert {"name", "auroc", "low", "high"} == set(record["risk_baseline"][0])


def test_answers_of_other_settings_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / KEPT
    with Journal.open(path, ANSWERS, {"rope": "else"}):
        pass
    with pytest.raises(UsageError, match="other settings"):
        Journal.open(path, ANSWERS, {"rope": "repack"})
    assert set_aside(path, ANSWERS) == tmp_path / "mine.risk.1.jsonl"
    assert set_aside(path, ANSWERS) is None
    with Journal.open(path, ANSWERS, {"rope": "repack"}) as found:
        assert found.done == {}


def test_a_torn_line_is_read_again(tmp_path: Path) -> None:
    path, settings = tmp_path / "x.risk.jsonl", {"rope": "repack"}
    line = '{"sha256":"a","subtask":"s","tokens":1,"depth":null,"wrong":true,"absent":false,"text":"","signs":{}}'
    with Journal.open(path, ANSWERS, settings):
        pass
    with path.open("a") as stream:
        stream.write(f"{line}\n{line[:40]}")
    with Journal.open(path, ANSWERS, settings) as found:
        assert list(found.done) == ["a"]
    assert path.read_text().endswith(f"{line}\n")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("--risk-samples", "3"), "--risk-samples", "add --risk"),
        (("--risk-tokens", "500"), "--risk-tokens", "add --risk"),
        (("--risk-data", "x.jsonl"), "--risk-data", "add --risk"),
        (("--rope", "yarn:2"), "--rope", "add --risk"),
        (("--plot", "pictures"), "--plot", "add --risk"),
        (("--risk", "--rope", "yrn:2"), "yrn", "yarn"),
    ],
)
def test_a_choice_that_chooses_nothing_is_refused(
    tiny_model: Path, args: tuple[str, ...], message: str, hint: str
) -> None:
    code, out, err = calibrate(tiny_model, *args)
    assert (code, out) == (2, "")
    said, mend = two_lines(err)
    assert message in said
    assert hint in mend
