"""Time to first token and decode speed in one run: stock transformers, this engine's techniques, kvpress, llama.cpp.

    python benchmarks/speed.py --peers DIRECTORY --out speed.json [--markdown speed.md] [--rounds 3]
        [--tokens 300 7500] [--new-tokens 32] [--budget 5%] [--thinning NAME] [--chunk 2048] [--gguf FILE ...]

All get the same token ids and generate greedily. Arms run in turn, round after round, each run in a process of its own,
so that a machine that slows down slows all alike; before each run the load and what other processes use are noted.
Figures are medians over rounds, ratios medians of the ratios within a round (an arm's figure / the opponent's; first
token: below 1 is faster, decode: above 1 is faster). DIRECTORY holds the peers' environments
(peers/README.md says how they are built); without it, and without one of them, the others run. The last line of
standard output is the JSON; `--out` is written anew after each run, and a command that is repeated goes on from there.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # programs that import each other by name

from ceilings import layer_weights, measure_ceilings, prefill_flops, step_weights
from records import command_line, cpu_name, say
from timed import PeerArm, peer_arms, run_peer
from weights import gguf_file, plain_directory

from uncomp_cli import __version__
from uncomp_cli.bench.rounds import measure_in_child
from uncomp_cli.bench.workload import BenchRequest, Job, Setup, make_jobs
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_MODEL, DEFAULT_PRESET, Limits, Matmul
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.forward.products import has_fast_bfloat16
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.models.catalog import ensure_local, local_path, read_config
from uncomp_cli.models.loading import choose_device, choose_dtype
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec
from uncomp_cli.steps import finished

Line = dict[str, Any]
STOCK, OWN = "stock", "uncomp"
FIGURES = ("ttft_s", "decode_tok_s", "kv_bytes", "peak_bytes", "others_percent")
RATIOS = {"ttft": "ttft_s", "decode": "decode_tok_s"}


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: whose it is, what it is called, its settings, the prompt's tokens, and how it is run."""

    source: str
    label: str
    settings: Line
    run: Callable[[], Line]
    tokens: int = 0


def summarise_lengths(arms: Sequence[Arm], runs: Sequence[Line], spec: ModelSpec) -> list[Line]:
    """What was found at each length of the prompt."""
    found = []
    for tokens in sorted({arm.tokens for arm in arms}):
        these = [(arm.source, arm.label, arm.settings) for arm in arms if arm.tokens == tokens]
        floors = {
            "prefill_flops": prefill_flops(spec, tokens),
            "layer_weights": layer_weights(spec),
            "step_weight_bytes": step_weights(spec) * spec.dtype_bytes,
            "full_kv_bytes": spec.full_kv_bytes(tokens),
        }
        own = [run for run in runs if run["tokens"] == tokens]
        found.append({"tokens": tokens, "floors": floors, **summarise(these, own)})
    return found


def summarise(arms: Sequence[tuple[str, str, Line]], runs: Sequence[Line]) -> Line:
    """`arms` with their figures, and the runs themselves; an arm is (source, label, settings)."""
    by_label = {label: {run["round"]: run for run in runs if run["label"] == label} for _, label, _ in arms}
    good = {
        label: {turn: run for turn, run in found.items() if "error" not in run} for label, found in by_label.items()
    }
    opponents = [label for source, label, _ in arms if source != OWN and good[label]]
    return {"arms": [_arm(arm, by_label, good, opponents) for arm in arms if by_label[arm[1]]], "runs": list(runs)}


def _arm(
    arm: tuple[str, str, Line],
    by_label: dict[str, dict[int, Line]],
    good: dict[str, dict[int, Line]],
    opponents: Sequence[str],
) -> Line:
    source, label, settings = arm
    found = good[label]
    described = {"source": source, "label": label, "settings": settings, "runs": len(found)}
    if not found:
        return {**described, "error": next(iter(by_label[label].values()))["error"]}
    stock = next(iter(good[opponents[0]].values()), None) if opponents else None
    own = next(iter(found.values()))
    return {
        **described,
        **{name: _median_of(name, found) for name in FIGURES},
        "ratios": {other: _ratios(found, good[other]) for other in opponents if other != label},
        "same_tokens_as_stock": stock is not None and list(own["token_ids"]) == list(stock["token_ids"]),
    }


def _median_of(name: str, runs: dict[int, Line]) -> float | None:
    values = [run[name] for run in runs.values() if run.get(name) is not None]
    return median(values) if values else None


def _ratios(ours: dict[int, Line], theirs: dict[int, Line]) -> dict[str, float | None]:
    common = sorted(ours.keys() & theirs.keys())
    return {
        name: median(ours[turn][figure] / theirs[turn][figure] for turn in common) if common else None
        for name, figure in RATIOS.items()
    }


def table(record: Line) -> str:
    """Markdown, a part for each length: an arm a row, its ratios to each opponent as first token / decode."""
    return "\n\n".join(_part({**record, **length}) for length in record["lengths"])


def _part(record: Line) -> str:
    opponents = [arm["label"] for arm in record["arms"] if arm["source"] != OWN and "error" not in arm]
    head = ["setting", "first token", "tok/s", "KV", "peak", "of GEMM", "of bandwidth", "others busy"]
    head += [f"to {other}" for other in opponents]
    rows = [_row(arm, record, opponents) for arm in record["arms"]]
    lines = [head, ["---"] * len(head), *rows]
    hardware, ceilings = record["hardware"], record["ceilings"]
    note = (
        f"{record['model']}, {record['tokens']:,} tokens and {record['new_tokens']} new ones; {hardware['cpu']}, "
        f"{ceilings['threads']} threads; read {ceilings['read_gb_s']:.1f} GB/s, "
        f"GEMM {ceilings['gemm_gflop_s']:.0f} GFLOP/s. Ratios: first token / decode."
    )
    return "\n".join([note, "", *("| " + " | ".join(cells) + " |" for cells in lines)])


def _row(arm: Line, record: Line, opponents: Sequence[str]) -> list[str]:
    name = arm["label"] if arm["source"] != OWN else f"uncomp {arm['label']}"
    if "error" in arm:
        return [name, f"failed: {arm['error']}", *["–"] * (6 + len(opponents))]
    ratios = [_ratio_cell(arm["ratios"].get(other)) for other in opponents]
    return [
        name,
        f"{arm['ttft_s']:.2f} s",
        f"{arm['decode_tok_s']:.1f}",
        _cell(arm["kv_bytes"], lambda value: f"{value / 2**20:.1f} MiB"),
        _cell(arm["peak_bytes"], lambda value: f"{value / 2**20:.0f} MiB"),
        _cell(prefill_fraction(arm, record), lambda value: f"{100 * value:.0f} %"),
        _cell(decode_fraction(arm, record), lambda value: f"{100 * value:.0f} %"),
        f"{arm['others_percent']:.0f} %",
        *ratios,
    ]


def prefill_fraction(arm: Line, record: Line) -> float | None:
    """The floor of the prefill by the time of the first token; None for other arithmetic."""
    if not _in_fp32(arm):
        return None
    return record["floors"]["prefill_flops"] / record["ceilings"]["gemm_gflop_s"] / 1e9 / arm["ttft_s"]


def decode_fraction(arm: Line, record: Line) -> float | None:
    """The time of reading weights and cache once by that of a step; None for weights in another type."""
    if not _in_fp32(arm):
        return None
    floor_s = (record["floors"]["step_weight_bytes"] + arm["kv_bytes"]) / record["ceilings"]["read_gb_s"] / 1e9
    return floor_s * float(arm["decode_tok_s"])


def _in_fp32(arm: Line) -> bool:
    """Whether weights and products are float32: ours hold 4-bit blocks and may multiply bfloat16."""
    return arm["source"] in (STOCK, "kvpress") and "dtype" not in arm["settings"]


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _ratio_cell(ratios: dict[str, float | None] | None) -> str:
    if ratios is None or ratios["ttft"] is None:
        return "–"
    return f"{ratios['ttft']:.2f}x / {ratios['decode']:.2f}x"


_LISTEN_S = 1.0


@dataclass(frozen=True, slots=True)
class Technique:
    """A label, the preset that goes with it, and what bounds its memory."""

    label: str
    preset: Preset
    limits: Limits = field(default_factory=Limits)
    matmul: Matmul = "auto"
    lookup: bool = True


def techniques(base: Preset, *, budget: str, thinning: str, chunk_tokens: int) -> list[Technique]:
    """The full cache, each technique alone, and all together; `base` says how the budget is spent."""
    full = replace(load_preset("full"), thinning="none")
    evicted = replace(base, budget=budget, floor_tokens=0, thinning="none")
    chunked = Limits(chunk_tokens=chunk_tokens)
    narrow = [
        Technique("thinned, evicted, float32 products", replace(evicted, thinning=thinning), matmul="float32"),
        Technique("thinned, evicted, int8 weights", replace(evicted, thinning=thinning), matmul="int8"),
    ]
    return [
        Technique("full", full),
        Technique("full, no guesses", full, lookup=False),
        Technique("thinned", replace(full, thinning=thinning)),
        Technique(f"evicted to {budget}", evicted),
        Technique(f"chunks of {chunk_tokens}", full, chunked),
        Technique(f"thinned, evicted to {budget}", replace(evicted, thinning=thinning)),
        Technique(f"thinned, evicted to {budget}, no guesses", replace(evicted, thinning=thinning), lookup=False),
        Technique("all together", replace(evicted, thinning=thinning), chunked),
        *(narrow if has_fast_bfloat16() else ()),
    ]


def own_arms(request: BenchRequest, chosen: Sequence[Technique]) -> tuple[list[Arm], Job]:
    """Stock, then an arm a technique; and stock's job, which has the prompt. Refuses what would not run."""
    stock, *jobs = make_jobs(request)
    arms = [Arm(STOCK, stock.label, {}, partial(measure_own, stock), request.tokens)]
    if has_fast_bfloat16():
        short = replace(stock, label=f"{stock.label}, bfloat16", setup=replace(stock.setup, dtype="bfloat16"))
        arms.append(Arm(STOCK, short.label, {"dtype": "bfloat16"}, partial(measure_own, short), request.tokens))
    for technique, job in zip(chosen, jobs, strict=True):
        setup = replace(job.setup, limits=technique.limits, matmul=technique.matmul, lookup=technique.lookup)
        job = replace(job, label=technique.label, setup=setup)
        settings = {
            "preset": technique.preset.to_dict(),
            "limits": asdict(technique.limits),
            "matmul": technique.matmul,
            "lookup": technique.lookup,
        }
        settings["preset"].pop("quality")
        arms.append(Arm(OWN, technique.label, settings, partial(measure_own, job), request.tokens))
    return arms, stock


def measure_own(job: Job) -> Line:
    """Run a job in a child and wait for it."""
    return asdict(finished(measure_in_child(job)))


def as_arm(peer: PeerArm) -> Arm:
    """A peer's arm in the same form."""
    settings = {name: value for name, value in peer.job.items() if name not in ("ids", "model", "new_tokens")}
    return Arm(peer.peer, peer.label, settings, partial(run_peer, peer), len(peer.job["ids"]))


def run_rounds(arms: Sequence[Arm], rounds: int, before: Sequence[Line] = ()) -> Iterator[Line]:
    """The runs that are missing `before`. An arm that fails says why, once, and is left out from then on."""
    done = {(run["round"], run["tokens"], run["label"]) for run in before}
    failed = {(run["tokens"], run["label"]) for run in before if "error" in run}
    for turn in range(rounds):
        for arm in arms:
            name = arm.tokens, arm.label
            if name not in failed and (turn, *name) not in done:
                yield (run := run_one(arm, turn))
                failed |= {name} if "error" in run else set()


def run_one(arm: Arm, turn: int) -> Line:
    """One run, with the machine's load before it."""
    names = {"round": turn, "tokens": arm.tokens, "label": arm.label, **machine_load()}
    try:
        measured = arm.run()
    except (UncompError, RuntimeError) as error:
        say(f"{arm.label}: {error}")
        return {**names, "error": str(error)}
    say(f"{turn + 1} {arm.tokens} {arm.label}: {measured['ttft_s']:.2f} s, {measured['decode_tok_s']:.1f} tok/s")
    return {**names, **measured}


def machine_load() -> Line:
    """The load average, and how much of all cores others use while nothing of ours runs, for a second."""
    return {"loadavg_1min": os.getloadavg()[0], "others_percent": psutil.cpu_percent(interval=_LISTEN_S)}


def about(args: argparse.Namespace, spec: ModelSpec) -> Line:
    """What was measured with what, and the ceilings of the machine before the first run."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {
        "schema_version": 2,
        "kind": "speed",
        "command": command_line(folder="benchmarks"),
        "model": args.model,
        "new_tokens": args.new_tokens,
        "document": f"generated prose, seed {args.seed}",
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"uncomp": __version__, **packages},
        "ceilings": measure_ceilings(spec),
    }


def prepare(args: argparse.Namespace) -> tuple[list[Arm], ModelSpec]:
    """Everything that is to be run. Raises UncompError for what would be refused."""
    for _ in ensure_local(args.model):
        pass
    directory = local_path(args.model)
    if directory is None:
        raise UsageError(f"model {args.model} is not here", hint=f"uncomp model pull {args.model}")
    spec = spec_from_config(read_config(directory), choose_dtype("auto", choose_device("cpu")))
    arms = [arm for tokens in args.tokens for arm in arms_at(args, directory, tokens)]
    return chosen_arms(arms, args.only), spec


def arms_at(args: argparse.Namespace, directory: Path, tokens: int) -> list[Arm]:
    """All arms on a prompt of so many tokens."""
    base = load_preset(args.preset)
    thinning = args.thinning or base.thinning
    chosen = techniques(base, budget=args.budget, thinning=thinning, chunk_tokens=args.chunk)
    document = write_prose(tokens, seed=args.seed)
    presets = tuple(technique.preset for technique in chosen)
    setup = Setup(args.model, args.new_tokens, device="cpu")
    request = BenchRequest(setup, directory, document, presets, tokens, args.rounds)
    arms, stock = own_arms(request, chosen)
    if args.peers:
        ids = [*stock.context, *stock.question]
        ggufs = args.gguf or [gguf_file(args.peers)]
        plain = plain_directory(args.peers, args.model)
        found = peer_arms(args.peers, ids, new_tokens=args.new_tokens, model=plain, ggufs=ggufs, keep=args.peer_keep)
        arms += map(as_arm, found)
    return arms


def chosen_arms(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """Stock, and the arms in whose label one of `only` is, or whose label it is; all without any."""
    labels = {arm.label for arm in arms}

    def wanted(arm: Arm) -> bool:
        return any(part == arm.label if part in labels else part in arm.label for part in only)

    return [arm for arm in arms if not only or arm.source == STOCK or wanted(arm)]


def earlier(out: Path | None) -> Line:
    """What the same command has found already. Raises UsageError for another command's results."""
    if out is None or not out.exists():
        return {}
    record: Line = json.loads(out.read_text(encoding="utf-8"))
    if record["command"] != command_line(folder="benchmarks"):
        raise UsageError(f"{out} is of another command: {record['command']}", hint="give --out another name")
    return record


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="directory of the peers' environments; without it, none run")
    parser.add_argument("--gguf", type=Path, action="append", help="for llama.cpp, repeatable; default: the model's")
    parser.add_argument("--peer-keep", type=float, default=0.05, help="fraction that kvpress keeps")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="how the budget is spent")
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--thinning", help="the preset's own without it")
    parser.add_argument("--chunk", type=int, default=2048, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, nargs="+", default=[7500])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="stock, and arms with this in their label"
    )
    parser.add_argument("--out", type=Path, help="the JSON, written after each run")
    parser.add_argument("--markdown", type=Path, help="the table")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        before = earlier(args.out)
        arms, spec = prepare(args)
    except UncompError as error:
        say(f"{error.message}\nhint: {error.hint}")
        return 1
    record, runs = before or about(args, spec), [run for length in before.get("lengths", ()) for run in length["runs"]]
    for run in run_rounds(arms, args.rounds, list(runs)):
        runs.append(run)
        record = {**record, "lengths": summarise_lengths(arms, runs, spec)}
        if args.out:
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table(record)
    say(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
