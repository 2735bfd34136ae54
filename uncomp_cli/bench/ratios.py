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
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.table import Table

__all__ = ["SCHEMA_VERSION", "Figures", "Ratio", "bench_table", "conditions", "cpu_name", "figures", "ratio", "report"]

SCHEMA_VERSION = 1
_COLUMNS = ("SETTING", "FIRST TOKEN", "DECODE TOK/S", "KV", "PEAK", "KEPT", "SAME TOKENS")


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


def bench_table(record: dict[str, Any], labels: Sequence[str]) -> Table:
    """Stock, then every setting, each under its label; the ratios stand behind the figures."""
    rows = [_row(labels[0], record["stock"], None)]
    rows += [
        _row(label, figured, figured["ratio"]) for label, figured in zip(labels[1:], record["settings"], strict=True)
    ]
    return Table(_COLUMNS, rows)


def conditions(record: dict[str, Any]) -> str:
    """What the figures are of, in one line."""
    hardware = record["hardware"]
    return (
        f"{record['model']['id']} ({record['model']['dtype']}), {format_count(record['tokens'])} tokens and "
        f"{record['new_tokens']} new ones, medians of {record['runs']} alternating runs, (x) = ours / stock; "
        f"{hardware['cpu']}, {hardware['threads']} threads, {hardware['device']}"
    )


def _row(label: str, figures: dict[str, Any], ratio: dict[str, Any] | None) -> tuple[str, ...]:
    def with_ratio(text: str, key: str) -> str:
        value = None if ratio is None else ratio[key]
        return text if value is None else f"{text} ({value:.3g}x)"

    peak = figures["peak_bytes"]
    same = figures.get("same_tokens")
    return (
        label,
        with_ratio(format_seconds(figures["ttft_s"]), "ttft"),
        with_ratio(format_decimal(figures["decode_tok_s"]), "decode"),
        with_ratio(format_bytes(figures["kv_bytes"]), "kv_bytes"),
        "unknown" if peak is None else with_ratio(format_bytes(peak), "peak_bytes"),
        f"{100 * figures['kept_fraction']:.1f} %" if "kept_fraction" in figures else "-",
        "-" if same is None else "yes" if same else "no",
    )
