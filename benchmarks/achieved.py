"""What share of this machine's ceilings the engine reaches, in one process (docs/performance.md).

Ceilings: reading and copying memory, matrix products in float32 and bfloat16 (a large square, and this model's own
layers), causal attention. Floors (ceilings.py): a prompt's FLOPs over the speed of float32 products, a decode step's
bytes over the bandwidth of reading. Then the engine itself: a prompt read in full, and decoding with a part kept.

    python benchmarks/achieved.py [--model smollm2-135m] [--prefill-tokens 4096] [--decode-tokens 7500] [--kept 5%]

Run it alone on the machine. A table on stderr; the last line on stdout is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from ceilings import measure_ceilings, prefill_flops, step_weights
from torch.nn.functional import linear, scaled_dot_product_attention

from uncomp_cli.bench.contenders import Timed, run_uncomp
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_MODEL, DEFAULT_PRESET
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import UncompError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

_COPY_BYTES = 2**28
_SQUARE = 2048
_QUESTION_TOKENS = 16
_REPEATS = 5


def layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(in, out) features of a layer's matrices."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    queries, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        "q": (hidden, queries), "k": (hidden, kv), "v": (hidden, kv), "o": (queries, hidden),
        "gate": (hidden, wide), "up": (hidden, wide), "down": (wide, hidden),
    }  # fmt: skip


def more_ceilings(spec: ModelSpec, *, rows: int, lengths: list[int]) -> dict[str, Any]:
    """Beside ceilings.py: copying, every shape for itself, bfloat16, and attention at several lengths."""
    source, target = torch.ones(_COPY_BYTES // 4), torch.empty(_COPY_BYTES // 4)
    copy_s = _median_seconds(lambda: target.copy_(source))
    shapes = {**layer_shapes(spec), "square": (_SQUARE, _SQUARE)}
    speeds = {
        f"{name}_gflop_s": {shape: gemm_gflop_s(rows, *sizes, dtype) for shape, sizes in shapes.items()}
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    attention = {str(length): attention_gflop_s(spec, length) for length in lengths}
    return {"copy_gb_s": 2 * _COPY_BYTES / copy_s / 1e9, **speeds, "attention_gflop_s": attention}


def gemm_gflop_s(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
    """FLOPs over time of rows [rows, inner] times a weight [outer, inner]."""
    states, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
    return 2 * rows * inner * outer / _median_seconds(lambda: linear(states, weight)) / 1e9


def attention_gflop_s(spec: ModelSpec, length: int) -> float:
    """FLOPs over time of fused causal attention in float32, 2 · H · D · n² of them."""
    query = torch.randn(1, spec.num_heads, length, spec.head_dim)
    key = torch.randn(1, spec.num_kv_heads, length, spec.head_dim)
    seconds = _median_seconds(lambda: scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True))
    return 2 * spec.num_heads * spec.head_dim * length**2 / seconds / 1e9


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times)


def random_prompt(spec: ModelSpec, tokens: int) -> Prompt:
    """Tokens that cost what any others do, the last of them the question."""
    ids = torch.randint(spec.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    context, question = tuple(ids[:-_QUESTION_TOKENS]), tuple(ids[-_QUESTION_TOKENS:])
    return Prompt(Tokens.of(context), (question,))


def run_engine(loaded: LoadedModel, preset: Preset, tokens: int, *, new_tokens: int, repeats: int) -> list[Timed]:
    prompt = random_prompt(loaded.spec, tokens)
    return [run_uncomp(loaded, prompt, preset=preset, new_tokens=new_tokens) for _ in range(repeats)]


def achieved(loaded: LoadedModel, options: argparse.Namespace, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Times of the engine beside their floors."""
    spec, preset = loaded.spec, load_preset(DEFAULT_PRESET)
    full, kept = load_preset("full"), replace(preset, budget=options.kept)
    run_engine(loaded, full, 2 * _QUESTION_TOKENS, new_tokens=2, repeats=1)  # brings every page of the weights in
    reads = run_engine(loaded, full, options.prefill_tokens, new_tokens=2, repeats=options.repeats)
    steps = run_engine(loaded, kept, options.decode_tokens, new_tokens=options.new_tokens, repeats=options.repeats)
    prefill_s = median(run.ttft_s for run in reads)
    step_s = median(run.decode_s / (options.new_tokens - 1) for run in steps)
    step_bytes = step_weights(spec) * spec.dtype_bytes + steps[0].kv_bytes
    flops = prefill_flops(spec, options.prefill_tokens)
    prefill_floor_s = flops / ceilings["gemm_gflop_s"] / 1e9
    step_floor_s = step_bytes / ceilings["read_gb_s"] / 1e9
    return {
        "prefill": {
            "tokens": options.prefill_tokens, "seconds": prefill_s, "flops": flops, "floor_s": prefill_floor_s,
            "gflop_s": flops / prefill_s / 1e9, "fraction": prefill_floor_s / prefill_s,
        },
        "decode": {
            "tokens": options.decode_tokens, "kept": options.kept, "step_s": step_s, "bytes": step_bytes,
            "floor_s": step_floor_s, "gb_s": step_bytes / step_s / 1e9, "fraction": step_floor_s / step_s,
        },
    }  # fmt: skip


def show(report: dict[str, Any], indent: str = "") -> None:
    """The report as lines on stderr."""
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{indent}{name}", file=sys.stderr)
            show(value, indent + "  ")
        else:
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            print(f"{indent}{name:24}{text}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--prefill-tokens", type=int, default=4096)
    parser.add_argument("--decode-tokens", type=int, default=7500)
    parser.add_argument("--kept", default="5%", help="the budget while decoding")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=4096, help="rows of the matrix products")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 7500], help="for attention")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> int:
    options = parse()
    try:
        loaded = load_model(options.model, dtype="float32", device="cpu")
        ceilings = measure_ceilings(loaded.spec)
        ceilings |= more_ceilings(loaded.spec, rows=options.rows, lengths=options.lengths)
        report = {"model": options.model, "ceilings": ceilings, **achieved(loaded, options, ceilings)}
    except UncompError as error:
        print(f"{error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    show(report)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
