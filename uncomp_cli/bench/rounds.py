"""Runs in child processes that end when we do, in turn: stock, A, B, stock, A, B, …; from them to medians and ratios.

A machine that slows down slows all arms alike so. `run_bench` yields how far it is about twice a second, and returns
the rounds: the measurements of one round, in the order of the jobs.

ratio = median over rounds of (ours / stock of the same round)      decode: above 1 is better; the others: below 1
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.bench.workload import Job, Measurement, decode_result
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.errors import OutOfMemoryError, UncompError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.steps import Progress
from uncomp_cli.table import Table

_TICK_S = 0.5
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-P", "-m", "uncomp_cli.bench.contenders")
_MEMORY_HINT = "use fewer --tokens, or --quantize int8"


def measure_in_child(job: Job) -> Generator[None, None, Measurement]:
    """Run `job`, yielding about twice a second; a caller that stops early, or Ctrl-C, kills the child.

    Raises the error that the child met, OutOfMemoryError when the system killed it.
    """
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    with TemporaryFile("w+") as job_file:  # a pipe would fill up: communicate() sends nothing after its first timeout
        job_file.write(job.to_json() + "\n")
        job_file.seek(0)
        process = subprocess.Popen(
            _COMMAND,
            stdin=job_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    with process:
        try:
            output, log = yield from _wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()  # after Ctrl-C Popen itself would not wait for the end
    try:
        return _result(process.returncode, output, log)
    except UncompError as error:
        error.add_note(f"In the process of the run:\n{log.strip()}")  # a traceback, which --debug shows
        raise


def _wait(process: "subprocess.Popen[str]") -> Generator[None, None, tuple[str, str]]:
    """Everything that the child wrote, once it has ended."""
    while True:
        try:
            return process.communicate(timeout=_TICK_S)
        except subprocess.TimeoutExpired:
            yield


def _result(returncode: int, output: str, log: str) -> Measurement:
    lines = output.strip().splitlines()
    if returncode == 0 and lines:
        try:
            return decode_result(lines[-1])
        except ValueError as error:
            raise UncompError(f"a run wrote no result ({error})", hint="run it again with --debug") from error
    if returncode == -signal.SIGKILL or "bad_alloc" in log:
        raise OutOfMemoryError("a run was killed, most likely because memory ran out", hint=_MEMORY_HINT)
    last = (log.strip().splitlines() or ["no message"])[-1]
    raise UncompError(f"a run ended with code {returncode}: {last}", hint="run it again with --debug")


Measure = Callable[[Job], Generator[None, None, Measurement]]
Round = tuple[Measurement, ...]

_NEVER_QUITE = 0.95


def run_bench(
    jobs: Sequence[Job], runs: int, *, measure: Measure = measure_in_child, clock: Callable[[], float] = time.monotonic
) -> Generator[Progress, None, list[Round]]:
    """Measure every job `runs` times, in turn."""
    begun_s, total = clock(), runs * len(jobs)
    rounds: list[Round] = []
    for turn in range(runs):
        measured: list[Measurement] = []
        for job in jobs:
            index, run_begun_s = turn * len(jobs) + len(measured), clock()
            label = f"run {index + 1} of {total}: {job.label}"
            yield _progress(label, index, total, elapsed_s=run_begun_s - begun_s, run_s=0.0)
            ticks = measure(job)
            try:
                while True:
                    next(ticks)
                    now_s = clock()
                    yield _progress(label, index, total, elapsed_s=now_s - begun_s, run_s=now_s - run_begun_s)
            except StopIteration as end:
                measured.append(end.value)
            finally:
                ticks.close()
        rounds.append(tuple(measured))
    return rounds


def _progress(label: str, index: int, total: int, *, elapsed_s: float, run_s: float) -> Progress:
    """Run `index` of `total` (from 0) is under way, for `run_s`, judged by the mean of those before it."""
    if index == 0:
        return Progress(label, None, None, elapsed_s)
    mean_s = (elapsed_s - run_s) / index
    of_this_run = min(_NEVER_QUITE, run_s / mean_s) if mean_s > 0 else 0.0
    return Progress(label, (index + of_this_run) / total, None, elapsed_s)


SCHEMA_VERSION = 1
_COLUMNS = ("SETTING", "FIRST TOKEN", "DECODE TOK/S", "KV", "PEAK", "OF 16 BITS", "SAME TOKENS")


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


def report(jobs: Sequence[Job], rounds: Sequence[Round], *, source: str) -> dict[str, Any]:
    """The JSON object of a benchmark; `source` names the document. Raises IndexError without rounds."""
    arms, setup = list(zip(*rounds, strict=True)), jobs[0].setup
    stock, first = arms[0], arms[0][0]
    settings = [
        _setting(job.preset, ours, stock)
        for job, ours in zip(jobs[1:], arms[1:], strict=True)
        if job.preset is not None
    ]
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": setup.model,
            "dtype": first.dtype,
            "quantization": None if setup.quantize == "none" else setup.quantize,
            "weights": setup.weights,
        },
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": first.threads, "device": first.device},
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "document": source,
        "tokens": len(jobs[0].context) + len(jobs[0].question),
        "new_tokens": setup.new_tokens,
        "limits": asdict(setup.limits),
        "matmul": setup.matmul,
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
        "kept_fraction": median(m.kv_share.of_run for m in ours),
        "kept_of_16_bit": median(m.kv_share.of_16_bit for m in ours),
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


def bench_table(record: dict[str, Any], labels: Sequence[str]) -> Table:
    """Stock, then every setting, each under its label; behind each figure stands its ratio to stock's figure."""
    stock = record["stock"]
    return Table(_COLUMNS, [_row(*named, stock) for named in zip(labels, [stock, *record["settings"]], strict=True)])


def csv_rows(record: dict[str, Any], labels: Sequence[str]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows for a spreadsheet: medians, and the medians of the ratios within a round."""
    figures, ratios = [one.name for one in fields(Figures)], [one.name for one in fields(Ratio)]
    more = [
        "budget_requested",
        "policy",
        "scorer",
        "kv_bits",
        "thinning",
        "kept_fraction",
        "kept_of_16_bit",
        "same_tokens",
    ]
    rows: list[list[object]] = [
        [
            label,
            *(of[name] for name in figures),
            *(of.get("ratio", {}).get(name) for name in ratios),
            *map(of.get, more),
        ]
        for label, of in zip(labels, [record["stock"], *record["settings"]], strict=True)
    ]
    return ["setting", *figures, *(f"{name}_ratio" for name in ratios), *more], rows


def conditions(record: dict[str, Any]) -> str:
    """What the figures are of, in one line."""
    hardware, model = record["hardware"], record["model"]
    held = "" if model["weights"] == "auto" else f", ours with --weights {model['weights']}"
    return (
        f"{model['id']} ({model['dtype']}{held}), {format_count(record['tokens'])} tokens and "
        f"{record['new_tokens']} new ones, medians of {record['runs']} alternating runs, (x) = our median / stock's; "
        f"{hardware['cpu']}, {hardware['threads']} threads, {hardware['device']}"
    )


def _row(label: str, figures: dict[str, Any], stock: dict[str, Any]) -> tuple[str, ...]:
    def with_ratio(key: str, shown: Callable[[Any], str]) -> str:
        """The ratio is that of the two medians which are printed, so that nothing contradicts it."""
        ours, theirs = figures[key], stock[key]
        if ours is None:
            return "unknown"
        return shown(ours) if figures is stock or not theirs else f"{shown(ours)} ({ours / theirs:.3g}x)"

    same = figures.get("same_tokens")
    return (
        label,
        with_ratio("ttft_s", format_seconds),
        with_ratio("decode_tok_s", format_decimal),
        with_ratio("kv_bytes", format_bytes),
        with_ratio("peak_bytes", format_bytes),
        f"{100 * figures['kept_of_16_bit']:.1f} %" if "kept_of_16_bit" in figures else "-",
        "-" if same is None else "yes" if same else "no",
    )
