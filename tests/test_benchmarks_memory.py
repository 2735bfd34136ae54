"""benchmarks/memory_curve.py: what is run and left out, the ratio, the picture, and one real curve."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from support.programs import script
from uncomp_cli.errors import UsageError

MIB = 2**20

curve = script("memory_curve")


def settings(**changed: Any) -> argparse.Namespace:
    given = {
        "tokens": [8000, 2000], "arms": curve.ARMS, "stock_tokens": 4000, "one_pass_tokens": 8000, "model": "m",
        "rope": "yarn:4", "preset": "balanced", "kv_mem": "64MiB", "chunk": 512, "thinning": "uncertain",
        "new_tokens": 4, "seed": 0,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changed})


def peak(arm: str, tokens: int, mib: float) -> dict[str, Any]:
    return {"arm": arm, "tokens": tokens, "peak_bytes": int(mib * MIB)}


def test_short_prompts_come_first_and_what_is_too_long_is_named() -> None:
    runs, left_out = curve.runs_of(settings())
    assert [(run.arm, run.tokens) for run in runs] == [
        *((arm, 2000) for arm in curve.ARMS),
        *((arm, 8000) for arm in curve.ARMS[1:]),
    ]
    assert left_out == [{"arm": "stock", "tokens": 8000, "why": "beyond the limit of 4,000 tokens"}]


def test_every_length_has_a_budget_of_the_same_bytes() -> None:
    runs, _ = curve.runs_of(settings())
    assert {str(run.settled().budget) for run in runs} == {f"{64 * 1024}KiB"}
    assert {run.settled().thinning for run in runs if run.arm != curve.THINNED} == {"none"}
    assert {run.settled().thinning for run in runs if run.arm == curve.THINNED} == {"uncertain"}
    caps = {run.arm: run.limits.kv_bytes for run in runs if run.arm != curve.STOCK}
    assert caps == {curve.ONE_PASS: None, curve.CHUNKED: 64 * MIB, curve.THINNED: 64 * MIB}


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="20%"):
        curve.kv_bytes("20%")


def test_growth_is_of_arms_that_ran_both() -> None:
    failed = {"arm": "one pass", "tokens": 32000, "error": "memory ran out"}
    points = [peak("chunks", 8000, 200), peak("chunks", 32000, 250), peak("one pass", 8000, 300), failed]
    assert curve.growth(points, 8000, 32000) == {"chunks": 1.25}


def test_the_picture_is_written(tmp_path: Path) -> None:
    points = [peak(arm, tokens, tokens / 10 + 3 * i) for i, arm in enumerate(curve.ARMS) for tokens in (2000, 8000)]
    path = curve.plot(points, tmp_path / "memory.png", budget_bytes=64 * MIB, title="Peak memory")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.model
def test_a_point_holds_its_budget(default_model_dir: Path) -> None:
    run = curve.Run("chunks", 1024, "smollm2-135m", "yarn:4", "balanced", 24 * MIB, 128, "none", 2, 0)
    measured = curve.measure(run)
    assert "error" not in measured
    assert 0 < measured["kv_bytes"] <= 24 * MIB < measured["full_kv_bytes"]
    assert measured["peak_bytes"] > measured["kv_bytes"] / 2


@pytest.mark.slow
def test_a_refusal_in_the_child_is_the_points_error() -> None:
    run = curve.Run("chunks", 300, "no-such-model", None, "balanced", 24 * MIB, 128, "none", 2, 0)
    assert "no-such-model" in curve.measure(run)["error"]
