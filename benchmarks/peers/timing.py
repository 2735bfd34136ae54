"""The stopwatch of the speed comparison, and how a peer's process is spoken to. Standard library only.

A job is one JSON object on standard input, the measurement the last line of standard output. All peers generate
greedily as an iterator of token ids, and the clock here is the same for all: `ttft_s` from the first step to the first
token, `decode_tok_s` the tokens after it by their time.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

Line = dict[str, Any]
WARM_UP_TOKENS = 32


def read_job() -> Line:
    """`{"model", "ids", "new_tokens", ...}` from standard input."""
    job: Line = json.loads(sys.stdin.readline())
    return job


def timed(tokens: Iterator[int]) -> Line:
    """Exhaust an iterator of two token ids or more, and say which they were and how long they took."""
    begun = time.perf_counter()
    chosen, arrivals = [], []
    for token in tokens:
        arrivals.append(time.perf_counter())
        chosen.append(token)
    return {
        "token_ids": chosen,
        "ttft_s": arrivals[0] - begun,
        "decode_tok_s": (len(chosen) - 1) / (arrivals[-1] - arrivals[0]),
    }


def threads() -> int:
    """OMP_NUM_THREADS, or all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def write_measurement(measured: Line, **more: Any) -> None:
    """The last line of standard output."""
    print(f"\n{json.dumps({**measured, **more})}", flush=True)
