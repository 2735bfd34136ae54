"""From the runs of speed.py to medians, ratios to each opponent, fractions of the ceilings, and a Markdown table.

ratio = median over rounds of (an arm's figure / the opponent's of the same round); first token: below 1 is faster,
decode: above 1 is faster.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Line = dict[str, Any]
STOCK, OWN = "stock", "uncomp"
FIGURES = ("ttft_s", "decode_tok_s", "kv_bytes", "peak_bytes", "others_percent")
RATIOS = {"ttft": "ttft_s", "decode": "decode_tok_s"}


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
    """Markdown: an arm a row, its ratios to each opponent as first token / decode."""
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
    """The floor of the prefill by the time of the first token; None where not all tokens enter all layers, in fp32."""
    thinned = arm["settings"].get("preset", {}).get("thinning", "none") != "none"
    if thinned or not _in_fp32(arm):
        return None
    return record["floors"]["prefill_flops"] / record["ceilings"]["gemm_gflop_s"] / 1e9 / arm["ttft_s"]


def decode_fraction(arm: Line, record: Line) -> float | None:
    """The time of reading weights and cache once by that of a step; None for weights in another type."""
    if not _in_fp32(arm):
        return None
    floor_s = (record["floors"]["step_weight_bytes"] + arm["kv_bytes"]) / record["ceilings"]["read_gb_s"] / 1e9
    return floor_s * float(arm["decode_tok_s"])


def _in_fp32(arm: Line) -> bool:
    return not arm["source"].startswith("llama.cpp")


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _ratio_cell(ratios: dict[str, float | None] | None) -> str:
    if ratios is None or ratios["ttft"] is None:
        return "–"
    return f"{ratios['ttft']:.2f}x / {ratios['decode']:.2f}x"
