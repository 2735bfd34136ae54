"""Peak memory above the loaded weights against the length of the prompt, with a KV budget of fixed bytes.

    python benchmarks/memory_curve.py --out memory.json --plot memory.png
        [--tokens 2000 4000 8000 16000 32000] [--kv-mem 64MiB] [--rope yarn:4] [--chunk TOKENS]
        [--stock-tokens 16000] [--one-pass-tokens 32000]

Arms: stock transformers with its full cache; the engine reading the prompt in one pass and evicting to the budget; the
engine in chunks, never holding more than the budget; in chunks and thinned. Each run has a process of its own: load,
warm up with a short prompt, note the resident bytes, start a new high-water mark, read the prompt, write a few tokens.
The last line of standard output is the JSON, which has peak(32,000) / peak(8,000) of every arm that ran both. Lengths
beyond an arm's limit are left out and said to be.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.bench.rounds import cpu_name, measure_in_child
from uncomp_cli.bench.workload import Job, Setup, build_prompt
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_MODEL, DEFAULT_PRESET, Limits
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.models.catalog import ensure_local, local_path
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.steps import finished
from uncomp_cli.ui.figure import add_axes, new_figure, write

Line = dict[str, Any]
STOCK, ONE_PASS, CHUNKED, THINNED = "stock", "one pass", "chunks", "chunks, thinned"
ARMS = (STOCK, ONE_PASS, CHUNKED, THINNED)
_SHORT, _LONG = 8000, 32000
_LOOKS = dict(zip(ARMS, (("#000000", "s"), ("#D55E00", "o"), ("#0072B2", "^"), ("#009E73", "D")), strict=True))
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """One process: an arm on a prompt of `tokens` tokens; `chunk_tokens` None leaves the choice to the engine."""

    arm: str
    tokens: int
    model: str
    rope: str | None
    preset: str
    kv_bytes: int
    chunk_tokens: int | None
    thinning: str
    new_tokens: int
    seed: int

    @property
    def limits(self) -> Limits:
        """What bounds the engine: one pass holds more than the budget on the way, so it cannot have the cap."""
        if self.arm == ONE_PASS:
            return Limits(chunk_tokens=self.tokens)
        return Limits(chunk_tokens=self.chunk_tokens, kv_bytes=self.kv_bytes)

    def settled(self) -> Preset:
        """The preset, with a budget of the same bytes for every length."""
        base = load_preset(self.preset)
        budget = f"{self.kv_bytes // 2**10}KiB"
        thinning = self.thinning if self.arm == THINNED else "none"
        return replace(base, budget=budget, floor_tokens=0, thinning=thinning)


def measure(run: Run) -> Line:
    """What a run in a process of its own takes; its error, or that of a child that the system killed, otherwise."""
    try:
        model_dir = local_path(run.model)
        if model_dir is None:
            raise UsageError(f"model {run.model} is not here", hint=f"uncomp model pull {run.model}")
        document = write_prose(run.tokens, seed=run.seed)
        prompt = build_prompt(load_tokenizer(model_dir), document, tokens=run.tokens, sinks=4)
        setup = Setup(run.model, run.new_tokens, device="cpu", limits=run.limits, rope=run.rope)
        preset = None if run.arm == STOCK else run.settled()
        found = finished(measure_in_child(Job.of(setup, prompt, run.arm, preset)))
    except UncompError as error:
        return {"error": error.message}
    if found.peak_bytes is None:
        return {"error": "the system starts no new high-water mark: use Linux, outside a restricted container"}
    return {key: getattr(found, key) for key in ("peak_bytes", "kv_bytes", "resident_bytes", "full_kv_bytes")}


def runs_of(args: argparse.Namespace) -> tuple[list[Run], list[Line]]:
    """What to run, shortest prompts first, and what is left out because it is beyond an arm's limit."""
    most = {STOCK: args.stock_tokens, ONE_PASS: args.one_pass_tokens}
    runs: list[Run] = []
    left_out: list[Line] = []
    for tokens in sorted(args.tokens):
        for arm in args.arms:
            if tokens > most.get(arm, tokens):
                left_out.append({"arm": arm, "tokens": tokens, "why": f"beyond the limit of {most[arm]:,} tokens"})
                continue
            runs.append(
                Run(
                    arm=arm,
                    tokens=tokens,
                    model=args.model,
                    rope=args.rope,
                    preset=args.preset,
                    kv_bytes=kv_bytes(args.kv_mem),
                    chunk_tokens=args.chunk,
                    thinning=args.thinning,
                    new_tokens=args.new_tokens,
                    seed=args.seed,
                )
            )
    return runs, left_out


def growth(points: Sequence[Line], short: int, long: int) -> dict[str, float]:
    """peak(long) / peak(short) of every arm that has both."""
    peaks = {(point["arm"], point["tokens"]): point["peak_bytes"] for point in points if "error" not in point}
    both = [arm for arm in ARMS if (arm, short) in peaks and (arm, long) in peaks]
    return {arm: peaks[arm, long] / peaks[arm, short] for arm in both}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def measured(runs: Sequence[Run]) -> list[Line]:
    """Every run in turn."""
    points = []
    for run in runs:
        point = {"arm": run.arm, "tokens": run.tokens, **measure(run)}
        found = point.get("error") or f"{point['peak_bytes'] / 2**20:,.0f} MiB"
        say(f"{run.arm}, {run.tokens:,} tokens: {found}")
        points.append(point)
    return points


def plot(points: Sequence[Line], path: Path, *, budget_bytes: int, title: str) -> Path:
    """Peaks by length, a line an arm, on logarithmic axes, and the KV budget as a horizontal line."""
    figure, top = new_figure(8.6, 5.4, title)
    axes = add_axes(figure, (0.85, top + 0.05), (5.6, 4.6))
    for arm, (colour, marker) in _LOOKS.items():
        own = sorted((p["tokens"], p["peak_bytes"] / _MIB) for p in points if p["arm"] == arm and "error" not in p)
        if own:
            label = f"{arm}\n{own[-1][1]:,.0f} MiB at {own[-1][0]:,}"
            axes.plot(*zip(*own, strict=True), color=colour, marker=marker, label=label, linewidth=1.6)
    axes.axhline(
        budget_bytes / _MIB,
        color="#6E7781",
        linestyle="--",
        linewidth=1,
        label=f"KV budget\n{budget_bytes / _MIB:,.0f} MiB",
    )
    lengths = sorted({point["tokens"] for point in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("prompt (tokens)")
    axes.set_ylabel("peak memory above the weights (MiB)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.06, 1), frameon=False, fontsize=9, labelspacing=0.8)
    return write(figure, path)


def kv_bytes(text: str) -> int:
    """Bytes of `64MiB`. Raises UsageError for what is no size in bytes."""
    budget = Budget.parse(text)
    if budget.kind != "bytes":
        raise UsageError(f"--kv-mem {text} is no size in bytes", hint="--kv-mem 64MiB")
    return int(budget.amount)


def about(args: argparse.Namespace) -> Line:
    """What was measured with what."""
    return {
        "schema_version": 1,
        "kind": "memory curve",
        "model": args.model,
        "rope": args.rope,
        "preset": args.preset,
        "thinning": args.thinning,
        "kv_budget_bytes": kv_bytes(args.kv_mem),
        "chunk_tokens": args.chunk,
        "new_tokens": args.new_tokens,
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2000, 4000, 8000, 16000, 32000])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--kv-mem", default="64MiB", help="bytes that the KV cache may take")
    parser.add_argument("--rope", default="yarn:4", help="extends the trained length")
    parser.add_argument("--chunk", type=int, metavar="TOKENS", help="default: the engine's own choice")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="how the budget is spent")
    parser.add_argument("--thinning", default="uncertain")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--stock-tokens", type=int, default=16000, help="the longest prompt of stock transformers")
    parser.add_argument("--one-pass-tokens", type=int, default=32000, help="the longest prompt in one pass")
    parser.add_argument("--compare", type=int, nargs=2, default=[_SHORT, _LONG], help="lengths whose peaks are divided")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--plot", type=Path, help="the PNG")
    return parser.parse_args()


def curve(args: argparse.Namespace) -> Line:
    """Run all, draw, and return the record. Raises UncompError for settings that mean nothing."""
    for _ in ensure_local(args.model):
        pass
    record = about(args)
    runs, left_out = runs_of(args)
    points = measured(runs)
    record |= {"points": points, "left_out": left_out, "growth": growth(points, *args.compare), "compare": args.compare}
    for arm, ratio in record["growth"].items():
        say(f"{arm}: peak({args.compare[1]:,}) / peak({args.compare[0]:,}) = {ratio:.2f}")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        title = f"Peak memory of {args.model}, KV budget {args.kv_mem}"
        say(f"wrote {plot(points, args.plot, budget_bytes=record['kv_budget_bytes'], title=title)}")
    return record


def main() -> int:
    try:
        print(json.dumps(curve(arguments())))
    except UncompError as error:
        say(f"{error.message}\nhint: {error.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
