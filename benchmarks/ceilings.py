"""What this machine can do at most, measured, and what a run needs at least, computed (docs/performance.md).

    decode    bytes a step = weights + B · KV bytes kept           floor = bytes / read bandwidth
    prefill   FLOPs = 2 · weights · n + 2 · L · H · D · n²          floor = FLOPs / speed of matrix products

The second term is causal attention: two products of 2 · H · D FLOPs for each of n² / 2 pairs of tokens, in L layers.
`weights` are the matrices that every token meets: an embedding is looked up, and a prompt's logits are wanted at its
last token alone, so a tied embedding counts in a step of decoding and not in a prefill.

    python benchmarks/ceilings.py [--model smollm2-135m]        one JSON object
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.errors import UncompError
from uncomp_cli.models.loading import load_model
from uncomp_cli.spec import ModelSpec

_READ_BYTES = 2**29
_ROWS = 4096
_REPEATS = 5


def layer_weights(spec: ModelSpec) -> int:
    """Elements of the matrices of all layers: queries, keys, values, output, gate, up and down."""
    hidden, queries, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return spec.num_layers * (2 * hidden * queries + 2 * hidden * kv + 3 * hidden * spec.intermediate_size)


def step_weights(spec: ModelSpec) -> int:
    """Elements that one step of decoding reads: the layers' matrices and that of the logits."""
    return layer_weights(spec) + spec.vocab_size * spec.hidden_size


def prefill_flops(spec: ModelSpec, tokens: int, shares: Sequence[float] = ()) -> int:
    """FLOPs of reading a prompt: matrices and causal attention. `shares` [L] of its tokens enter the layers, or all."""
    entering = [tokens * share for share in shares or (1.0,) * spec.num_layers]
    matrices = 2 * layer_weights(spec) / spec.num_layers * sum(entering)
    attention = 2 * spec.num_heads * spec.head_dim * sum(count**2 for count in entering)
    return round(matrices + attention)


def measure_ceilings(spec: ModelSpec) -> dict[str, Any]:
    """Read bandwidth, and the speed of fp32 matrix products in this model's shapes and in a large square."""
    buffer = torch.ones(_READ_BYTES // 4)
    read_s = _median_s(lambda: buffer.sum())
    square = torch.randn(2048, 2048)
    square_s = _median_s(lambda: square @ square)
    return {
        "read_gb_s": _READ_BYTES / read_s / 1e9,
        "gemm_gflop_s": _layer_gflop_s(spec),
        "square_gemm_gflop_s": 2 * 2048**3 / square_s / 1e9,
        "threads": torch.get_num_threads(),
    }


def _layer_gflop_s(spec: ModelSpec) -> float:
    """FLOPs over time of one layer's seven products with 4,096 rows."""
    hidden, queries, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes = [(hidden, queries), (hidden, kv), (hidden, kv), (queries, hidden)]
    shapes += [(hidden, spec.intermediate_size)] * 2 + [(spec.intermediate_size, hidden)]
    pairs = [(torch.randn(_ROWS, inner), torch.randn(outer, inner)) for inner, outer in shapes]
    seconds = sum(_median_s(lambda rows=rows, w=w: torch.nn.functional.linear(rows, w)) for rows, w in pairs)
    return 2 * _ROWS * sum(inner * outer for inner, outer in shapes) / seconds / 1e9


def _median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    try:
        spec = load_model(parser.parse_args().model, device="cpu").spec
    except UncompError as error:
        print(f"{error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    needs = {"layer_weights": layer_weights(spec), "step_weights": step_weights(spec)}
    print(json.dumps({**needs, "kv_bytes_per_token": spec.kv_bytes_per_token, **measure_ceilings(spec)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
