"""The benchmark's arithmetic, order, document and JSON, without a model."""

import json
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from uncomp_cli.bench import rounds
from uncomp_cli.bench.rounds import Round, bench_table, conditions, csv_rows, figures, ratio, report, run_bench
from uncomp_cli.bench.workload import BenchRequest, Job, Measurement, Setup, decode_result, encode_error
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cli.app import run
from uncomp_cli.config import ScorerConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UncompError, UsageError
from uncomp_cli.steps import Progress

STOCK = Measurement((1, 2), 10.0, 5.0, 900, 1000, 1000, 7, 400, "cpu", "float32", 2)
PRESET = Preset("small", "", "10%", "uniform", ScorerConfig())
SETUP = Setup("m", 2, Path("t"), device="cpu")
JOB = Job(SETUP, "10% uniform", (1, 2, 3), (4,), (True, False, False), (0, 1, 1), PRESET)
STOCK_JOB = replace(JOB, label="stock transformers", preset=None)


def ours(**changes: Any) -> Measurement:
    return replace(STOCK, **changes)


def finish(steps: Generator[Progress, None, list[Round]]) -> tuple[list[Progress], list[Round]]:
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_ratios_are_medians_of_the_rounds_own_ratios() -> None:
    """Not the ratio of the medians: a slow round slows both arms."""
    stock = [STOCK, ours(ttft_s=20.0, decode_tok_s=2.0), ours(ttft_s=100.0)]
    mine = [ours(ttft_s=5.0), ours(ttft_s=8.0, decode_tok_s=4.0), ours(ttft_s=90.0, decode_tok_s=15.0)]
    found = ratio(mine, stock)
    assert (found.ttft, found.decode, found.kv_bytes, found.peak_bytes) == (0.5, 2.0, 1.0, 1.0)
    assert figures(mine).ttft_s == 8.0
    assert figures(mine).decode_tok_s == 5.0


def test_an_unknown_peak_stays_unknown() -> None:
    mine = [STOCK, ours(peak_bytes=None)]
    assert figures(mine).peak_bytes is None
    assert ratio(mine, [STOCK, STOCK]).peak_bytes is None
    assert ratio([STOCK, STOCK], mine).peak_bytes is None


def test_arms_alternate_and_every_run_is_announced() -> None:
    order, clock = [], iter(range(1000))

    def measure(job: Job) -> Generator[None, None, Measurement]:
        order.append(job.label)
        yield
        return ours(ttft_s=float(len(order)))

    steps, turns = finish(run_bench([STOCK_JOB, JOB], 3, measure=measure, clock=lambda: float(next(clock))))
    assert order == ["stock transformers", "10% uniform"] * 3
    assert [[m.ttft_s for m in turn] for turn in turns] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert [step.label[:10] for step in steps] == [f"run {i} of 6" for i in range(1, 7) for _ in range(2)]
    fractions = [step.fraction for step in steps if step.fraction is not None]
    assert [step.fraction for step in steps[:2]] == [None, None]
    assert fractions == sorted(fractions)
    assert fractions[-1] < 1


def test_stopping_early_stops_the_run_that_is_under_way() -> None:
    stopped = []

    def measure(job: Job) -> Generator[None, None, Measurement]:
        try:
            while True:
                yield
        finally:
            stopped.append(job.label)

    steps = run_bench([STOCK_JOB, JOB], 1, measure=measure)
    next(steps), next(steps)
    steps.close()
    assert stopped == ["stock transformers"]


def test_the_report_has_the_documented_shape() -> None:
    smaller = ours(ttft_s=5.0, decode_tok_s=10.0, kv_bytes=110, token_ids=(1, 9))
    record = json.loads(json.dumps(report([STOCK_JOB, JOB], [(STOCK, smaller)] * 3, source="prose")))
    assert set(record) == {
        "schema_version", "model", "hardware", "versions", "document", "tokens", "new_tokens", "runs", "stock",
        "settings", "rounds", "ratio", "limits", "matmul",
    }  # fmt: skip
    assert set(record["hardware"]) == {"cpu", "cores", "threads", "device"}
    assert (record["tokens"], record["runs"], len(record["rounds"])) == (4, 3, 3)
    (setting,) = record["settings"]
    assert (setting["budget_requested"], setting["policy"], setting["scorer"]) == ("10%", "uniform", "window")
    assert (setting["kept_fraction"], setting["kept_of_16_bit"]) == (0.11, 0.22)
    assert setting["same_tokens"] is False
    assert setting["ratio"] == record["ratio"] == {"ttft": 0.5, "decode": 2.0, "kv_bytes": 0.11, "peak_bytes": 1.0}
    assert [run["label"] for run in record["rounds"][0]] == ["stock transformers", "10% uniform"]


def test_the_table_has_the_ratio_of_the_medians_that_it_prints() -> None:
    """Medians of paired ratios may contradict the medians themselves: 3.5 s, 3.6 s and a ratio of 1.19."""
    pairs = [(3.0, 3.6), (3.5, 3.4), (3.6, 4.3)]
    rounds = [(ours(ttft_s=stock), ours(ttft_s=mine, peak_bytes=None)) for stock, mine in pairs]
    record = report([STOCK_JOB, JOB], rounds, source="prose")
    assert record["ratio"]["ttft"] == pytest.approx(4.3 / 3.6)  # of each round, for JSON
    rows = bench_table(record, ["stock", "ours"]).record()
    assert rows[0]["FIRST TOKEN"] == "3.5 s"
    assert rows[1]["FIRST TOKEN"] == f"3.6 s ({3.6 / 3.5:.3g}x)"
    assert rows[1]["PEAK"] == "unknown"
    assert "(x) = our median / stock's" in conditions(record)
    assert conditions(record).startswith("m (float32), ")
    record["model"]["weights"] = "disk"
    assert conditions(record).startswith("m (float32, ours with --weights disk), ")


def test_the_figures_as_csv_are_numbers() -> None:
    record = report([STOCK_JOB, JOB], [(STOCK, ours(ttft_s=5.0))] * 3, source="prose")
    columns, rows = csv_rows(record, ["stock", "ours"])
    stock, mine = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (mine["setting"], mine["ttft_s"], mine["ttft_ratio"], mine["kv_bits"]) == ("ours", 5.0, 0.5, 16)
    assert (stock["ttft_s"], stock["ttft_ratio"], stock["policy"]) == (10.0, None, None)


def test_several_settings_have_no_single_ratio() -> None:
    full = replace(JOB, preset=replace(PRESET, budget="full"))
    record = report([STOCK_JOB, JOB, full], [(STOCK, STOCK, STOCK)], source="prose")
    assert "ratio" not in record
    assert [(s["policy"], s["scorer"]) for s in record["settings"]] == [("uniform", "window"), ("full", None)]


@pytest.mark.parametrize("job", [JOB, STOCK_JOB], ids=["uncomp", "stock"])
def test_a_job_survives_its_line(job: Job) -> None:
    line = job.to_json()
    assert "\n" not in line
    assert Job.from_json(line) == job
    assert job.prompt.always_kept == 2


def test_results_and_errors_survive_their_line() -> None:
    assert decode_result(STOCK.to_json()) == STOCK
    with pytest.raises(DoesNotFitError, match="too long") as caught:
        decode_result(encode_error(DoesNotFitError("too long", hint="cut it")))
    assert caught.value.hint == "cut it"
    for line in ("[]", "nonsense", "{}"):
        with pytest.raises(ValueError, match=r"."):
            decode_result(line)


@pytest.mark.parametrize(
    ("returncode", "output", "log", "kind", "words"),
    [
        (-9, "", "", OutOfMemoryError, "memory ran out"),
        (-6, "", "terminate called after throwing 'std::bad_alloc'", OutOfMemoryError, "memory ran out"),
        (1, "", "Traceback\nImportError: no torch", UncompError, "ImportError: no torch"),
        (0, "noise", "", UncompError, "no result"),
        (0, "noise\n" + encode_error(UsageError("bad")), "", UsageError, "bad"),
    ],
)
def test_what_a_dead_child_comes_to(
    returncode: int, output: str, log: str, kind: type[UncompError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        rounds._result(returncode, output, log)
    assert type(caught.value) is kind


def test_a_run_that_is_given_up_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(rounds, "_COMMAND", (sys.executable, "-c", script))
    ticks = rounds.measure_in_child(JOB)
    while not note.exists() or not note.read_text():
        next(ticks)
    with pytest.raises(KeyboardInterrupt):
        ticks.throw(KeyboardInterrupt)
    assert not psutil.pid_exists(int(note.read_text()))


def test_prose_is_seeded_long_and_varied() -> None:
    text = write_prose(5000, seed=1)
    assert text == write_prose(5000, seed=1) != write_prose(5000, seed=2)
    words = text.split()
    assert 5000 <= len(words) < 5200
    assert len(set(words)) > 1000


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-f", "no-such-file.txt"], 2, "no-such-file.txt"),
        (["--runs", "0"], 2, "0"),
        (["--new-tokens", "1"], 2, "1"),
        (["-b", "lots"], 2, "lots"),
        (["-m", "no such model"], 2, "no such model"),
    ],
)
def test_wrong_values_are_refused_in_two_lines(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "-q", *args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")


def test_a_request_that_measures_nothing_is_refused() -> None:
    for document, new_tokens, runs in (("text", 2, 0), ("text", 1, 3), (" \n", 2, 3)):
        with pytest.raises(UsageError):
            BenchRequest(replace(SETUP, new_tokens=new_tokens), Path("m"), document, (PRESET,), 4, runs)
