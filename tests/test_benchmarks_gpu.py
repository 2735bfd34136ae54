"""benchmarks/gpu.py on tiny shapes: the code that a GPU runs, its arithmetic, and what is left out."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from support.programs import script
from uncomp_cli.kernels import launch

gpu, ceilings = script("gpu"), script("ceilings")
CPU = torch.device("cpu")
CEILING = {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0}


@pytest.fixture(scope="module")
def loaded() -> Any:
    return gpu.random_model(gpu.tiny().shapes[0], gpu.tiny(), CPU)


def case(phase: str, tokens: int, batch: int, setting: str, bits: int = 16) -> Any:
    return gpu.Case("tiny", phase, tokens, batch, setting, bits)


def test_tiny_measures_every_case_and_prints_one_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the kernel, which nobody asked to interpret, and the needles of a model that is not there."""
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--model", "nobody/nothing", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(out.read_text())
    assert {(m["phase"], m["why"]) for m in record["left_out"]} == {
        ("kernel", "it runs on a GPU; --interpret runs it here"),
        ("needles", "nobody/nothing is not on this machine"),
    }
    cases = [(m["shape"], m["phase"], m["tokens"], m["batch"], m["setting"]) for m in record["measurements"]]
    assert len(set(cases)) == len(cases) == 2 * 2 * 4 + 2 * 2 + 2 + 2 + 2
    assert all(m["tok_s"] > 0 and m["peak_bytes"] > 0 for m in record["measurements"])
    assert all(m["planned_peak_bytes"] > 0 for m in record["measurements"] if m["phase"] == "prefill")
    assert record["hardware"]["name"]
    assert record["versions"]["torch"]


def test_a_dry_run_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8B: kernel, 32,768 tokens, batch 1, 10 % kept, ragged: cache of 0.42 GiB" in lines
    assert "8B: prefill, 131,072 tokens, batch 1, thinned to 20 %: as its plan says" in lines
    assert sum(", decode, " in line or ": decode, " in line for line in lines) == 3 * 3 * 4 + 2 * 2
    assert lines[-1].startswith("needles of 1,800 tokens: smollm2-135m")


@pytest.mark.skipif(find_spec("triton") is None, reason=f"Triton is missing: {launch.HINT}")
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_kernel_agrees_with_torch_when_it_is_interpreted(loaded: Any, bits: int) -> None:
    wanted = case("kernel", 512, 2, gpu.RAGGED, bits)
    found = gpu.measure_kernel(loaded, wanted, gpu.tiny(), CEILING, interpret=True)
    assert found["agrees"]
    assert 0 < found["largest_error"] < 1e-4
    entries = 2 * 4 * (25 + 76)  # rows, layers, and both heads' entries
    read = {16: 2 * 16 * 4, 8: 2 * (16 + 4), 4: 10 + 8 + 2 * 4}[bits]  # numbers, or codes and a scale and a zero each
    assert found["gb_s"] * found["seconds"] * 1e9 == pytest.approx(entries * read, rel=0.35 if bits == 16 else 1e-6)


def test_bytes_fall_with_what_is_kept(loaded: Any) -> None:
    wanted = [case("decode", 1000, 4, setting) for setting in (gpu.FULL, gpu.EVEN, gpu.RAGGED)]
    full, even, ragged = (gpu.measure(loaded, each, gpu.tiny(), CEILING) for each in wanted)
    entry = loaded.spec.kv_bytes_per_token
    weights = ceilings.step_weights(loaded.spec) * 4
    assert full["step_bytes"] == weights + 4 * 1000 * entry
    assert even["step_bytes"] == ragged["step_bytes"] == weights + 4 * 100 * entry
    assert even["gb_s"] == pytest.approx(even["step_bytes"] / even["step_ms"] / 1e6)


def test_thinning_takes_entries_away_from_later_layers(loaded: Any) -> None:
    wanted = [case("prefill", 1024, 1, setting) for setting in (gpu.FULL, gpu.THINNED)]
    full, thinned = (gpu.measure(loaded, each, gpu.tiny(), CEILING) for each in wanted)
    assert full["kv_bytes"] >= 1024 * loaded.spec.kv_bytes_per_token
    assert 0.3 * full["kv_bytes"] < thinned["kv_bytes"] < 0.6 * full["kv_bytes"]
    assert thinned["tflop_s"] * thinned["seconds"] < full["tflop_s"] * full["seconds"]


def test_as_many_rows_as_the_memory_holds(loaded: Any) -> None:
    size, spec = gpu.large(), loaded.spec
    (shape,) = [shape for shape in size.shapes if shape.name == "7B, all heads"]
    spec = gpu.spec_from_config(shape.config, size.dtype)
    row = 4096 * spec.kv_bytes_per_token
    full, kept = (gpu.largest_batch(spec, setting, shape, size) for setting in (gpu.FULL, gpu.PAPERS))
    left = 64 * 2**30 - ceilings.step_weights(spec) * 2
    assert full == int(left / (1.05 * row * (4096 + 17) / 4096))
    assert kept == 256  # and no more: 64 GiB would hold 454


def test_the_time_guard_leaves_out_what_it_names() -> None:
    size = gpu.tiny()
    found = list(gpu.run_shape(size.shapes[0], size, CPU, {}, until=0.0))
    assert len(found) == 2 * 6 + 2 * 2 * 4 + 4 + 2
    assert {line["why"] for _, line in found} == {"the time was up"}


def test_what_does_not_fit_or_fails_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    size = gpu.tiny()
    monkeypatch.setattr(gpu, "cases", lambda shape, size: iter([case("decode", 512, 4, gpu.FULL)]))
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 1000)
    ((_, found),) = gpu.run_shape(size.shapes[0], size, CPU, CEILING, until=float("inf"))
    assert "GiB of cache" in found["why"]
    assert "are free" in found["why"]
    monkeypatch.setattr(gpu, "random_model", None)
    ((_, found),) = gpu.run_shape(size.shapes[0], size, CPU, CEILING, until=float("inf"))
    assert found["why"] == "TypeError: 'NoneType' object is not callable"


@pytest.mark.slow
@pytest.mark.model
def test_the_needle_tables_of_two_devices_are_compared() -> None:
    found = gpu.needles("cpu", gpu.tiny(), "smollm2-135m")
    assert found["equal"]
    assert len(found["table"]) >= 2
    assert all(line["match"] is not None for line in found["table"])


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
