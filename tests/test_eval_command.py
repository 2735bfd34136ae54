"""`uncomp eval` as its users run it: tables, JSON, pictures, a run that is killed and goes on, and what is refused."""

import csv
import json
from pathlib import Path

import pytest

from support.commands import Running, last_object, run_here, start, two_lines
from uncomp_cli.cli.app import run
from uncomp_cli.engine.forward import products
from uncomp_cli.engine.forward.products import has_fast_bfloat16
from uncomp_cli.evals.journal import read_journal
from uncomp_cli.evals.tables.outcome import OUTCOMES

SHAPE = ("--samples", "2", "--tokens", "800", "-b", "50%", "-b", "20%")
COMMON = (*SHAPE, "--policy", "uniform", "--policy", "full/8bit")

pytestmark = pytest.mark.usefixtures("alone", "short_prose")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["eval", *args])
    out, err = capsys.readouterr()
    assert out == ""
    return code, *two_lines(err)


def evaluate(model: Path, *args: str, out: str = "results.jsonl") -> tuple[int, str, str]:
    return run_here("eval", "-m", str(model), "--out", out, *COMMON, *args)


def test_tables_of_both_regimes_with_achieved_bytes(tiny_model: Path) -> None:
    code, out, err = evaluate(tiny_model, "-t", "needle/digits7")
    assert code == 0, err
    aware, agnostic = out.index("regime aware"), out.index("regime agnostic")
    assert 0 <= aware < agnostic
    for table in (out[aware:agnostic], out[agnostic:]):
        for setting in ("full ", "uniform 50%", "uniform 20%", "full/8bit"):
            assert setting in table
        assert "KEPT" in table
    assert "results: results.jsonl (0 there)" in err
    _, outcomes = read_journal(Path("results.jsonl"), OUTCOMES)
    assert len(outcomes) == 2 * 2 * 4
    kept = {o.setting: o.kept_fraction for o in outcomes if o.regime == "aware"}
    assert 0.19 < kept["uniform 20%"] < 0.25
    assert 0.49 < kept["uniform 50%"] < 0.55
    assert 1 <= kept["full"] < 1.1
    assert kept["full/8bit"] < kept["full"] / 2


def test_json_is_one_object_and_the_last_line(tiny_model: Path) -> None:
    code, out, err = evaluate(
        tiny_model, "-t", "ruler/niah_multikey_1", "-t", "fidelity", "--regime", "aware", "--json"
    )
    assert code == 0, err
    assert len(out.splitlines()) == 1
    record = last_object(out)
    assert record["schema_version"] == 3
    assert [(table["tasks"], table["regime"]) for table in record["tables"]] == [
        (["ruler"], "aware"),
        (["fidelity"], "aware"),
    ]
    rows = {row["setting"]: row for row in record["tables"][1]["overall"]}
    assert rows["full"]["figures"]["kl"]["mean"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["uniform 20%"]["figures"]["kl"]["mean"]["mean"] > 1e-6
    assert record["settings"]["haystack"].startswith("generated prose")


def test_a_killed_run_goes_on_and_loses_nothing(tiny_model: Path, long_lived: list[Running]) -> None:
    args = ("eval", "-m", str(tiny_model), "--out", "results.jsonl", "-t", "needle/uuid", "--regime", "aware")
    shape = ("--samples", "40", "--tokens", "800", "-b", "20%", "--policy", "uniform")
    running = start(*args, *shape)
    long_lived.append(running)
    running.wait_for("stderr", "results: results.jsonl (0 there)")
    while not Path("results.jsonl").is_file() or Path("results.jsonl").read_bytes().count(b"\n") < 4:
        running.process.join(0.05)
        assert running.process.is_alive()
    running.process.kill()
    running.process.join()
    torn = Path("results.jsonl").read_bytes()
    Path("results.jsonl").write_bytes(torn + b'{"subtask": "needle/uu')
    there = torn[: torn.rindex(b"\n") + 1]
    before = there.count(b"\n") - 1
    assert 3 <= before < 80
    code, _, err = run_here(*args, "--samples", "6", "--tokens", "800", "-b", "20%", "--policy", "uniform")
    assert code == 0, err
    assert f"results: results.jsonl ({before} there)" in err
    assert Path("results.jsonl").read_bytes().startswith(there)
    _, outcomes = read_journal(Path("results.jsonl"), OUTCOMES)
    keys = [outcome.key for outcome in outcomes]
    assert len(keys) == len(set(keys)) == max(before, 12)


def test_a_resumed_run_gives_what_one_run_gives(tiny_model: Path) -> None:
    evaluate(tiny_model, "-t", "needle/uuid", "--regime", "aware", out="one.jsonl")
    evaluate(tiny_model, "-t", "needle/uuid", "--regime", "aware", "--samples", "1", out="two.jsonl")
    evaluate(tiny_model, "-t", "needle/uuid", "--regime", "aware", out="two.jsonl")
    one, two = (
        {o.key: o.metrics for o in read_journal(Path(name), OUTCOMES)[1]} for name in ("one.jsonl", "two.jsonl")
    )
    assert one.keys() == two.keys()
    for key, metrics in one.items():
        assert two[key] == pytest.approx(metrics, abs=1e-5)


def test_results_of_other_settings_are_refused_and_both_are_named(tiny_model: Path) -> None:
    evaluate(tiny_model, "-t", "needle/uuid", "--regime", "aware", "--samples", "1")
    before = Path("results.jsonl").read_bytes()
    code, out, err = evaluate(tiny_model, "-t", "needle/uuid", "--regime", "aware", "--seed", "7")
    assert (code, out) == (2, "")
    message, hint = two_lines(err)
    assert "seed" in message
    assert "0" in message
    assert "7" in message
    assert "--fresh" in hint
    assert Path("results.jsonl").read_bytes() == before
    code, _, err = evaluate(
        tiny_model, "-t", "needle/uuid", "--regime", "aware", "--seed", "7", "--fresh", "--samples", "1"
    )
    assert code == 0, err
    assert Path("results.1.jsonl").read_bytes() == before


@pytest.mark.skipif(not has_fast_bfloat16(), reason="this CPU has no other products")
def test_other_products_are_other_results(tiny_model: Path) -> None:
    evaluate(tiny_model, "-t", "needle/uuid", "--samples", "1", "--matmul", "float32")
    exact = read_journal(Path("results.jsonl"), OUTCOMES)[1]
    code, _, err = evaluate(tiny_model, "-t", "needle/uuid", "--samples", "1", "--matmul", "int8")
    assert (code, "matmul not set there" in two_lines(err)[0]) == (2, True)
    code, _, err = evaluate(tiny_model, "-t", "needle/uuid", "--samples", "1", "--matmul", "int8", "--fresh")
    assert code == 0, err
    settings, rounded = read_journal(Path("results.jsonl"), OUTCOMES)
    assert settings["matmul"] == "int8"
    assert [outcome.metrics for outcome in rounded] != [outcome.metrics for outcome in exact]


def test_products_that_there_are_not_leave_the_old_results_where_they_are(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(products, "has_fast_bfloat16", lambda: False)
    Path("results.jsonl").write_text("mine")
    _, message, _ = refused(
        capsys,
        "-m",
        str(tiny_model),
        "-t",
        "needle/uuid",
        *COMMON,
        "--out",
        "results.jsonl",
        "--matmul",
        "int8",
        "--fresh",
    )
    assert "no instructions" in message
    assert [path.name for path in Path().glob("results*")] == ["results.jsonl"]


def test_without_out_the_same_command_goes_on_where_it_ended(tiny_model: Path, tmp_path: Path) -> None:
    args = ("eval", "-m", str(tiny_model), "-t", "needle/digits7", "--regime", "aware", *COMMON)
    code, first, err = run_here(*args, XDG_DATA_HOME=str(tmp_path / "data"))
    assert code == 0, err
    code, second, err = run_here(*args, XDG_DATA_HOME=str(tmp_path / "data"))
    assert code == 0, err
    assert "(8 there)" in err
    assert first == second


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made and have their files, but are not painted, as they are in the tests of `uncomp rope`."""

    def write(_: object, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr("uncomp_cli.ui.figure.write", write)


@pytest.mark.usefixtures("sketched")
def test_pictures_and_markdown(tiny_model: Path) -> None:
    shown = ("--plot", "pictures", "--markdown", "docs/table.md")
    code, _, err = evaluate(tiny_model, "-t", "needle/digits7", "-t", "fidelity", *shown)
    assert code == 0, err
    drawn = {path.name for path in Path("pictures").iterdir()}
    for regime in ("aware", "agnostic"):
        for budget in ("50pct", "20pct"):
            assert {f"needle-{regime}-{budget}-{what}.png" for what in ("needles", "coverage")} <= drawn
        assert {f"fidelity-{regime}-{metric}.png" for metric in ("kl", "agreement")} <= drawn
        assert f"needle-{regime}-match.png" in drawn
    text = Path("docs/table.md").read_text()
    assert "## needle, aware" in text
    assert "## needle, agnostic" in text
    assert "uncomp eval" in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("-t", "nedle"), "unknown task 'nedle'", "did you mean"),
        (("-t", "ruler/vvt"), "unknown task 'ruler/vvt'", "ruler/vt"),
        (("--policy", "unifrom"), "unknown policy 'unifrom'", "did you mean 'uniform'?"),
        (("--policy", "uniform/keydif"), "unknown part 'keydif'", "did you mean 'keydiff'?"),
        (("-b", "auto"), "budget auto", "--budget 20%"),
        (("--thin", "gathr"), "'gathr'", "gather"),
        (("--thin", "gather@5%"), "'gather@5%'", "gather"),
        (("--thin", "gather/4bit"), "'gather/4bit'", "gather"),
        (("--policy", "uniform/thin=none", "--thin", "gather"), "says one thing twice", "one thin="),
        (("-t", "lm-eval/qa_squad"), "SQuAD", "lm-eval/vt"),
        (("-t", "perplexity", "--regime", "aware"), "task perplexity", "--regime agnostic"),
        (("-b", "15 %%"), "budget '15 %%'", "10%"),
        (("-f", "absent.txt"), "absent.txt", ""),
    ],
)
def test_a_slip_is_named_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str, hint: str
) -> None:
    code, said, mends = refused(capsys, "-m", "no-such-model", *args)
    assert code == 2
    assert message in said
    assert hint in mends


def test_a_haystack_that_is_too_short(tiny_model: Path) -> None:
    Path("short.txt").write_text("The harbour was quiet and the lamps were lit along the whole of the old wall. " * 4)
    code, out, err = evaluate(tiny_model, "-t", "needle/digits7", "-f", "short.txt")
    assert (code, out) == (2, "")
    message, hint = two_lines("\n".join(line for line in err.splitlines() if not line.startswith("results:")))
    assert "'short.txt' has" in message
    assert "are needed" in message
    assert "--file" in hint


def test_a_length_past_the_models_context(tiny_model: Path) -> None:
    code, out, err = run_here("eval", "-m", str(tiny_model), "-t", "needle", "--tokens", "4090", "--samples", "1")
    assert (code, out) == (3, "")
    message, hint = two_lines(err)
    assert "4,090" in message
    assert "--tokens" in hint


def test_a_budget_too_small_is_a_row_that_says_so(tiny_model: Path) -> None:
    code, out, err = evaluate(tiny_model, "-t", "needle/digits7", "--regime", "aware", "-b", "8")
    assert code == 0, err
    assert "refused 2 of 2" in out
    assert json.loads(Path("results.jsonl").read_text().splitlines()[0])["kind"] == "uncomp eval"


@pytest.mark.usefixtures("sketched")
def test_a_results_file_is_shown_again_without_a_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = evaluate(tiny_model, "-t", "needle/digits7")
    before = Path("results.jsonl").read_bytes()
    assert run(["eval", "--show", "--out", "results.jsonl", "--plot", "again"]) == 0
    assert capsys.readouterr().out == out
    assert Path("results.jsonl").read_bytes() == before
    assert any(Path("again").iterdir())
    assert run(["eval", "--show", "--out", "results.jsonl", "--csv"]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert {row[head.index("setting")] for row in rows} == {"full", "uniform 50%", "uniform 20%", "full/8bit"}
    kept = [row[head.index("kept")] for row in rows]
    assert all(0 < float(share) < 2.2 for share in kept if share)  # none where full fails all that there is
    assert any(kept)
    code, message, hint = refused(capsys, "--show", "--out", "results.jsonl", "--csv", "--json")
    assert code == 2
    assert "--csv and --json" in message
    code, message, hint = refused(capsys, "--show")
    assert (code, message) == (2, "--show shows an existing file")
    assert "--out" in hint
    code, message, _ = refused(capsys, "--show", "--out", "results.jsonl", "--regime", "aware")
    assert code == 2
    assert "--regime" in message
    Path("results.jsonl").write_bytes(before.splitlines(keepends=True)[0])
    code, message, _ = refused(capsys, "--show", "--out", "results.jsonl")
    assert (code, message) == (2, "results.jsonl holds no results yet")


def test_every_contestant_with_every_thinning(tiny_model: Path) -> None:
    given = ("-t", "needle/digits7", "--regime", "aware", "--samples", "1", "--thin", "none", "--thin", "gather")
    code, _, err = evaluate(tiny_model, *given, "--policy", "uniform@10%", "-p", "live")
    assert code == 0, err
    settings = {outcome.setting.partition("#")[0] for outcome in read_journal(Path("results.jsonl"), OUTCOMES)[1]}
    thinned = {f"{one}/thin={how}" for one in ("full/8bit", "preset:live") for how in ("none", "gather")}
    even = {f"uniform/thin={how} {share}" for how in ("none", "gather") for share in ("50%", "20%", "10%")}
    assert settings == {"full", *(f"{one}@own" if "preset" in one else one for one in thinned), *even}


def test_settings_for_ask_do_not_choose_who_is_judged(tiny_model: Path) -> None:
    args = ("eval", "-m", str(tiny_model), "-t", "needle/digits7", "--samples", "1", "--tokens", "900")
    settings = {"UNCOMP_POLICY": "random", "UNCOMP_BUDGET": "auto", "UNCOMP_ROPE": "plain", "UNCOMP_CONTEXT": "32k"}
    code, out, err = run_here(*args, "--regime", "aware", "--json", **settings)
    assert code == 0, err
    assert "pyramid 5%" in out
    assert "rope" not in last_object(out)["settings"]
