"""benchmarks/gpu.py on tiny shapes: the code that a GPU runs, its arithmetic, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.programs import script

gpu, ceilings = script("gpu"), script("ceilings")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded() -> Any:
    return gpu.random_model(gpu.tiny(), CPU)


def test_tiny_measures_every_case_and_prints_one_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert record["left_out"] == []
    cases = [(m["phase"], m["tokens"], m["batch"], m["setting"]) for m in record["measurements"]]
    assert len(set(cases)) == len(cases) == 2 * 2 + 2 * 2 * 3
    assert all(m["tok_s"] > 0 and m["peak_bytes"] > 0 for m in record["measurements"])
    assert record["hardware"]["name"]
    assert record["versions"]["torch"]


def test_bytes_fall_with_what_is_kept(loaded: Any) -> None:
    size, ceiling = gpu.tiny(), {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0}
    cases = [gpu.Case("decode", 1000, 4, setting) for setting in (gpu.FULL, gpu.EVEN, gpu.RAGGED)]
    full, even, ragged = (gpu.measure(loaded, case, size, ceiling) for case in cases)
    entry = loaded.spec.kv_bytes_per_token
    weights = ceilings.step_weights(loaded.spec) * 4
    assert full["step_bytes"] == weights + 4 * 1000 * entry
    assert even["step_bytes"] == ragged["step_bytes"] == weights + 4 * 100 * entry
    assert even["gb_s"] == pytest.approx(even["step_bytes"] / even["step_ms"] / 1e6)


def test_thinning_takes_entries_away_from_later_layers(loaded: Any) -> None:
    size, ceiling = gpu.tiny(), {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0}
    cases = [gpu.Case("prefill", 1024, 1, setting) for setting in (gpu.FULL, gpu.THINNED)]
    full, thinned = (gpu.measure(loaded, case, size, ceiling) for case in cases)
    assert full["kv_bytes"] >= 1024 * loaded.spec.kv_bytes_per_token
    assert 0.3 * full["kv_bytes"] < thinned["kv_bytes"] < 0.6 * full["kv_bytes"]
    assert thinned["tflop_s"] * thinned["seconds"] < full["tflop_s"] * full["seconds"]


def test_the_time_guard_leaves_out_what_it_names(loaded: Any) -> None:
    found = list(gpu.run_all(loaded, gpu.tiny(), {}, until=0.0))
    assert len(found) == 16
    assert {line["why"] for _, line in found} == {"the time was up"}


def test_what_does_not_fit_is_left_out_with_both_sizes(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(gpu, "cases", lambda size: iter([gpu.Case("decode", 512, 4, gpu.FULL)]))
    ((_, found),) = gpu.run_all(loaded, gpu.tiny(), {}, until=float("inf"))
    assert "GiB of cache" in found["why"]
    assert "are free" in found["why"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_way_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "--tiny" in capsys.readouterr().err


def test_the_floors_follow_their_formulas(loaded: Any) -> None:
    spec = loaded.spec  # 4 layers, 4 heads and 2 KV heads of 16, hidden 64, intermediate 128, vocabulary 256
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    assert ceilings.layer_weights(spec) == 4 * layer
    assert ceilings.step_weights(spec) == 4 * layer + 256 * 64
    named = sum(p.numel() for name, p in loaded.model.named_parameters() if name.endswith("proj.weight"))
    assert ceilings.layer_weights(spec) == named
    assert ceilings.prefill_flops(spec, 100) == 2 * 4 * layer * 100 + 2 * 4 * 4 * 16 * 100**2
    half = ceilings.prefill_flops(spec, 100, (1.0, 1.0, 0.5, 0.5))
    assert half == 2 * layer * (2 * 100 + 2 * 50) + 2 * 4 * 16 * (2 * 100**2 + 2 * 50**2)
