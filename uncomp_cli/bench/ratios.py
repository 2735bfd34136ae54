"""From rounds of measurements to medians and ratios.

ratio = median over rounds of (ours / stock of the same round)      decode: above 1 is better; the others: below 1
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.bench.bench_prompt import BenchRequest
from uncomp_cli.bench.measurement import Job, Measurement
from uncomp_cli.bench.rounds import Round
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset

__all__ = ["SCHEMA_VERSION", "Figures", "Ratio", "cpu_name", "figures", "ratio", "report"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of one arm; `peak_bytes` is None where the system does not tell."""

    ttft_s: float
    decode_tok_s: float
    kv_bytes: int
    kv_prefill_bytes: int
    peak_bytes: int | None
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over stock."""

    ttft: float
    decode: float
    kv_bytes: float
    peak_bytes: float | None


def figures(measured: Sequence[Measurement]) -> Figures:
    """Medians over the runs of one arm."""
    peaks = [m.peak_bytes for m in measured]
    known = [peak for peak in peaks if peak is not None]
    return Figures(
        ttft_s=median(m.ttft_s for m in measured),
        decode_tok_s=median(m.decode_tok_s for m in measured),
        kv_bytes=round(median(m.kv_bytes for m in measured)),
        kv_prefill_bytes=round(median(m.kv_prefill_bytes for m in measured)),
        peak_bytes=round(median(known)) if len(known) == len(peaks) else None,
        resident_bytes=round(median(m.resident_bytes for m in measured)),
    )


def ratio(ours: Sequence[Measurement], stock: Sequence[Measurement]) -> Ratio:
    """Medians of the paired ratios; the two are in the order of the rounds."""
    pairs = list(zip(ours, stock, strict=True))

    def of(value: Callable[[Measurement], float]) -> float:
        return median(value(a) / value(b) for a, b in pairs)

    knows_peak = all(a.peak_bytes is not None and b.peak_bytes for a, b in pairs)
    return Ratio(
        ttft=of(lambda m: m.ttft_s),
        decode=of(lambda m: m.decode_tok_s),
        kv_bytes=of(lambda m: m.kv_bytes),
        peak_bytes=of(lambda m: m.peak_bytes or 0) if knows_peak else None,
    )


def report(request: BenchRequest, jobs: Sequence[Job], rounds: Sequence[Round], *, source: str) -> dict[str, Any]:
    """The JSON object of a benchmark; `source` names the document. Raises IndexError without rounds."""
    arms = list(zip(*rounds, strict=True))
    stock, first = arms[0], arms[0][0]
    settings = [
        _setting(job.preset, ours, stock)
        for job, ours in zip(jobs[1:], arms[1:], strict=True)
        if job.preset is not None
    ]
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {"id": request.model, "dtype": first.dtype, "quantization": _none_if_none(request.quantize)},
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": first.threads, "device": first.device},
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "document": source,
        "tokens": len(jobs[0].context) + len(jobs[0].question),
        "new_tokens": request.new_tokens,
        "limits": asdict(request.limits),
        "matmul": request.matmul,
        "runs": len(rounds),
        "stock": asdict(figures(stock)),
        "settings": settings,
        "rounds": [[{"label": j.label, **asdict(m)} for j, m in zip(jobs, turn, strict=True)] for turn in rounds],
    }
    if len(settings) == 1:
        record["ratio"] = settings[0]["ratio"]
    return record


def _setting(preset: Preset, ours: Sequence[Measurement], stock: Sequence[Measurement]) -> dict[str, Any]:
    keeps_all = preset.budget.kind == "full"
    fixed = make_policy(preset.policy).fixed_scorer
    return {
        "preset": preset.name,
        "budget_requested": str(preset.budget),
        "policy": "full" if keeps_all else preset.policy,
        "scorer": None if keeps_all else fixed or preset.scorer.name,
        "kv_bits": preset.kv_bits,
        "thinning": preset.thinning,
        "kept_fraction": median(m.kv_bytes / m.full_kv_bytes for m in ours),
        **asdict(figures(ours)),
        "ratio": asdict(ratio(ours, stock)),
        "same_tokens": all(a.token_ids == b.token_ids for a, b in zip(ours, stock, strict=True)),
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _none_if_none(method: str) -> str | None:
    return None if method == "none" else method
