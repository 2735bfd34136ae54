"""`--kv-bits` from the command line to the record: real bytes, in plans, presets, variables and benchmarks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.commands import last_object, two_lines
from support.town import town
from uncomp_cli.asking.request import choose_preset
from uncomp_cli.bench.workload import BenchRequest, Setup, make_jobs
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cli.app import run

HEAD_DIM, HEADS, DTYPE_BYTES = 16, 4 * 2, 4
FULL_ENTRY = 2 * HEAD_DIM * DTYPE_BYTES

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("town.txt").write_text(town())


@pytest.fixture
def ask(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `uncomp ask --json` on the tiny model; the last object, with what was written to standard error."""

    def run_ask(*args: str) -> dict[str, Any]:
        code = run(["ask", "-f", "town.txt", "-m", str(tiny_model), "--max-new-tokens", "4", "--json", *args, "Where?"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return {**last_object(out), "stderr": err}

    return run_ask


@pytest.mark.parametrize(("bits", "codes"), [(8, 2 * HEAD_DIM), (4, HEAD_DIM + HEAD_DIM // 8)])
def test_the_full_cache_in_fewer_bits(ask: Ask, bits: int, codes: int) -> None:
    full, small = ask("-b", "full"), ask("-b", "full", "--kv-bits", str(bits))
    said = small["compression"].pop("budget_kept"), full["compression"].pop("budget_kept")
    assert small["compression"] == {**full["compression"], "kv_bits": bits}
    assert said[1] == "100%"
    assert float(said[0].removesuffix("%")) == pytest.approx(100 * small["memory"]["kept_fraction"], abs=1)
    assert full["compression"]["kv_bits"] == 32
    assert small["memory"]["kv_full_bytes"] == full["memory"]["kv_full_bytes"]
    entry = codes + 4 + 4 + 4  # codes, scales of keys and of values, position
    expected = entry / FULL_ENTRY
    assert small["memory"]["kept_fraction"] == pytest.approx(expected, abs=0.04)
    assert small["memory"]["kept_fraction"] < 0.45 * full["memory"]["kept_fraction"]
    assert f"tokens per head in {bits} bits, " in small["stderr"]
    assert "tokens per head in" not in full["stderr"]


def test_a_fifth_of_the_bytes_holds_more_tokens(ask: Ask) -> None:
    exact, small = ask("-b", "20%"), ask("-b", "20%", "--kv-bits", "8")
    notes = [next(line for line in r["stderr"].splitlines() if line.startswith("budget 20%")) for r in (exact, small)]
    kept = [int(note.partition(": ")[2].partition(" of ")[0].replace(",", "")) for note in notes]
    assert kept[1] > 2.4 * kept[0]
    assert [note.rpartition("(")[2] for note in notes] == ["40.0 %, 20.0 % of float32)"] * 2
    assert small["memory"]["kept_fraction"] <= exact["memory"]["kept_fraction"] + 0.01


@pytest.mark.parametrize("budget", ["full", "20%", "256", "300KiB"])
def test_a_plan_says_what_will_be_allocated(
    ask: Ask, tiny_model: Path, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    args = ["--kv-bits", "4", "-b", budget, "--thin", "none"]
    held = ask(*args, "--max-new-tokens", "1")
    assert run(["ask", "-f", "town.txt", "-m", str(tiny_model), "--json", "--dry-run", *args, "Where?"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kv_bits"] == held["compression"]["kv_bits"] == 4
    assert plan["kv_full_bytes"] == held["memory"]["kv_full_bytes"]
    question = 60  # and the template behind it, at most: a byte is a token
    slack = HEADS * (16 * (FULL_ENTRY + 4) + question * 4)
    assert 0 < held["memory"]["kv_bytes"] - plan["kv_planned_bytes"] <= slack
    if budget == "300KiB":
        assert held["memory"]["kv_bytes"] <= 300 * 2**10


def test_variables_settings_and_presets_set_it(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = {**load_preset("full").to_dict(), "name": "mine", "kv_bits": 4}
    Path("mine.json").write_text(json.dumps(preset))
    assert ask("-p", "./mine.json")["compression"]["kv_bits"] == 4
    assert ask("-p", "./mine.json", "--kv-bits", "16")["compression"]["kv_bits"] == 32
    Path("settings.toml").write_text("[ask]\nkv-bits = 8\n")
    monkeypatch.setenv("UNCOMP_CONFIG", "settings.toml")
    assert ask()["compression"]["kv_bits"] == 8
    monkeypatch.setenv("UNCOMP_KV_BITS", "4")
    assert ask()["compression"]["kv_bits"] == 4


def test_other_numbers_of_bits_are_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "-f", "town.txt", "-m", str(tiny_model), "--kv-bits", "6", "Where?"]) == 2
    assert "6" in capsys.readouterr().err
    preset = {**load_preset("full").to_dict(), "name": "mine", "kv_bits": 6}
    Path("mine.json").write_text(json.dumps(preset))
    assert run(["preset", "validate", "mine.json"]) == 2
    refusal = "preset file mine.json: kv_bits is 6", "use 16 (the model's own dtype), 8 or 4"
    assert two_lines(capsys.readouterr().err) == refusal


def test_several_questions_have_one_quantised_document(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["ask", "-f", "town.txt", "-m", str(tiny_model), "--max-new-tokens", "8", "--json", "--kv-bits", "8"]
    assert run([*args, "-b", "full", "Who was it?", "-Q", "Where?"]) == 0
    both = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run([*args, "-b", "full", "Where?"]) == 0
    alone = last_object(capsys.readouterr().out)
    assert both[1]["answer"] == alone["answer"]
    assert both[1]["memory"]["kept_fraction"] < 0.45


def test_a_benchmark_measures_it(tiny_model: Path) -> None:
    presets = tuple(
        choose_preset(None, budget=budget, policy="uniform" if budget != "full" else None, scorer=None, kv_bits=bits)
        for budget, bits in (("full", 8), ("30%", 4), ("30%", None))
    )
    request = BenchRequest(Setup(str(tiny_model), 4), tiny_model, town(), presets, 600, 1)
    jobs = make_jobs(request)
    assert [job.label for job in jobs] == ["stock transformers", "full, 8 bits", "30% uniform, 4 bits", "30% uniform"]
    again = type(jobs[1]).from_json(jobs[1].to_json())
    assert again.preset == replace(presets[0], kv_bits=8)
    from uncomp_cli.bench.contenders import run_job

    exact = run_job(replace(jobs[1], preset=replace(presets[0], kv_bits=16)))
    small = run_job(jobs[1])
    assert small.kv_bytes < 0.5 * exact.kv_bytes
    assert small.full_kv_bytes == exact.full_kv_bytes
