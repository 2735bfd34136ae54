"""benchmarks/speed.py and the peers' stopwatch: rounds, failures, ratios, the table, and an end to end run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.programs import script
from uncomp_cli.bench.contenders import run_job
from uncomp_cli.engine.forward.products import has_fast_bfloat16

CEILINGS = {"read_gb_s": 10.0, "gemm_gflop_s": 100.0, "square_gemm_gflop_s": 100.0, "threads": 2}

timing, timed = script("timing"), script("timed")
speed = script("speed")


def run(turn: int, label: str, ttft_s: float, decode: float) -> dict[str, Any]:
    """A run's line."""
    measured = {"ttft_s": ttft_s, "decode_tok_s": decode, "kv_bytes": 2**20, "token_ids": [1, 2]}
    return {"round": turn, "label": label, "loadavg_1min": 0.1, "others_percent": 3.0, **measured}


def record_of(arms: list[tuple[str, str, dict[str, Any]]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    floors = {"prefill_flops": 10**11, "step_weight_bytes": 10**9}
    about = {"model": "m", "new_tokens": 32, "hardware": {"cpu": "Some CPU"}, "ceilings": CEILINGS}
    length = {"tokens": 7500, "floors": floors, **speed.summarise(arms, runs)}
    return {**about, "lengths": [length], **length}


ARMS = [("stock", "stock transformers", {}), ("uncomp", "full", {}), ("llama.cpp", "llama.cpp Q4_0", {})]


def test_ratios_are_medians_of_those_within_a_round() -> None:
    stock = [run(turn, "stock transformers", ttft, 10) for turn, ttft in enumerate((1.0, 10.0, 100.0))]
    ours = [run(turn, "full", ttft, 20) for turn, ttft in enumerate((0.5, 2.0, 30.0))]
    _, full = record_of(ARMS[:2], stock + ours)["arms"]
    assert full["ratios"] == {"stock transformers": {"ttft": pytest.approx(0.3), "decode": 2.0}}
    assert full["ttft_s"] == 2.0
    assert full["same_tokens_as_stock"]


def test_a_failed_arm_is_named_and_only_rounds_of_both_are_compared() -> None:
    failed = {"round": 0, "label": "llama.cpp Q4_0", "others_percent": 1.0, "error": "no such file"}
    runs = [run(0, "stock transformers", 1, 1), run(1, "stock transformers", 2, 1), run(1, "full", 1, 1), failed]
    record = record_of(ARMS, runs)
    assert record["arms"][1]["ratios"]["stock transformers"]["ttft"] == 0.5
    assert record["arms"][2]["error"] == "no such file"
    assert "failed: no such file" in speed.table(record)


def test_the_table_has_fractions_of_the_ceilings_for_float32_alone() -> None:
    lines = speed.table(record_of(ARMS, [run(0, label, 2.0, 5.0) for _, label, _ in ARMS])).splitlines()
    stock, full, llama = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[-3:])
    # 1e11 FLOPs at 100 GFLOP/s are 1 s of 2; 1e9 bytes and a MiB at 10 GB/s are 0.1 s of a step of 0.2.
    assert stock[5:7] == ["50 %", "50 %"]
    assert full[5:7] == llama[5:7] == ["–", "–"]
    assert full[-2:] == ["1.00x / 1.00x", "1.00x / 1.00x"]
    assert stock[-2] == "–"


def test_arms_run_in_turn_and_one_that_fails_is_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "machine_load", lambda: {"others_percent": 0.0})

    def fail() -> dict[str, Any]:
        raise RuntimeError("no such file")

    good = {"ttft_s": 1.0, "decode_tok_s": 1.0}
    arms = [
        speed.Arm("uncomp", name, {}, work) for name, work in (("a", lambda: good), ("b", fail), ("c", dict(good).copy))
    ]
    runs = list(speed.run_rounds(arms, 2))
    assert [(line["round"], line["label"]) for line in runs] == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "c")]
    assert runs[1]["error"] == "no such file"
    for cut in range(len(runs)):  # whatever was done before is not done again, and what failed fails no second time
        assert runs[cut:] == list(speed.run_rounds(arms, 2, runs[:cut]))


def test_what_another_command_found_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "--rounds", "2"])
    assert speed.earlier(out) == speed.earlier(None) == {}
    out.write_text(json.dumps({"command": "python benchmarks/speed.py --rounds 2", "lengths": []}))
    assert speed.earlier(out)["lengths"] == []
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "--rounds", "3"])
    with pytest.raises(speed.UsageError, match="another command"):
        speed.earlier(out)


def test_the_stopwatch_counts_from_its_start_and_decodes_all_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 12.5, 13.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.timed(iter([7, 8, 9])) == {"token_ids": [7, 8, 9], "ttft_s": 2.0, "decode_tok_s": 2.0}


def fake_environment(directory: Path, folder: str, body: str) -> None:
    python = directory / folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for an interpreter is a shell script")
def test_a_peer_runs_in_its_environment_and_a_missing_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_environment(tmp_path, "llamacpp", 'read job; echo "$1 $job" >&2; echo noise; echo \'{"ttft_s": 1.5}\'')
    fake_environment(tmp_path, "openvino", "exit 1")  # which has no stopwatch
    ggufs = [Path("Model.Q4_1.gguf"), Path("Model.Q4_0.gguf")]
    arms = timed.peer_arms(tmp_path, (1, 2), new_tokens=4, model=tmp_path, ggufs=ggufs, keep=0.05)
    ways = [", flash attention", ", flash attention, 8-bit cache", ""]
    assert [arm.label for arm in arms] == [f"llama.cpp {kind}{way}" for kind in ("Q4_1", "Q4_0") for way in ways]
    assert timed.run_peer(arms[0]) == {"ttft_s": 1.5}
    assert "kvpress: no environment" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for an interpreter is a shell script")
def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    fake_environment(tmp_path, "kvpress", 'echo "OSError: no model" >&2; exit 3')
    (arm,) = timed.peer_arms(tmp_path, (1, 2), new_tokens=4, model=tmp_path, ggufs=[], keep=0.05)
    with pytest.raises(RuntimeError, match="code 3: OSError: no model"):
        timed.run_peer(arm)


@pytest.mark.slow
@pytest.mark.model
def test_all_techniques_run_on_one_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], default_model_dir: Path
) -> None:
    def in_process(job: Any) -> Iterator[None]:
        yield
        return run_job(job)

    monkeypatch.setattr(speed, "measure_in_child", in_process)
    monkeypatch.setattr(speed, "measure_ceilings", lambda spec: CEILINGS)
    monkeypatch.setattr(speed, "_LISTEN_S", 0.01)
    out = tmp_path / "speed.json"
    words = ["--tokens", "200", "300", "--new-tokens", "2", "--rounds", "1", "--chunk", "128", "--budget", "50%"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, "--out", str(out), "--markdown", str(tmp_path / "t.md")])
    assert speed.main() == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert [length["tokens"] for length in record["lengths"]] == [200, 300]
    stock, own = (2, 10) if has_fast_bfloat16() else (1, 8)
    arms = record["lengths"][1]["arms"]
    assert [arm["source"] for arm in arms] == ["stock"] * stock + ["uncomp"] * own
    assert not [arm for arm in arms if "error" in arm]
    kept = {arm["label"]: arm["kv_bytes"] for arm in arms}
    assert kept["evicted to 50%"] < 0.7 * kept["full"]
    assert kept["thinned"] < kept["full"]
    assert kept["chunks of 128"] == pytest.approx(kept["full"], rel=0.05)
    assert record["command"].startswith("python benchmarks/speed.py --tokens 200 300")
    assert (tmp_path / "t.md").read_text().count("| uncomp ") == 2 * own
