"""One timed run through llama.cpp, in its environment: a prompt, then greedy decoding; for ../speed.py.

The job has `model` (a GGUF file), `ids`, `new_tokens`, `flash_attention` and `cache` (f16 or q8_0). Batches are
llama.cpp's default of 512 tokens, and all cores work.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import Llama
from run_llamacpp import KVType, load, next_logits
from timing import WARM_UP_TOKENS, read_job, threads, timed, write_measurement

CACHES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}


def tokens(llama: Llama, ids: list[int], *, count: int) -> Iterator[int]:
    """`count` greedy tokens after `ids`, from an empty cache."""
    llama.reset()
    logits = next_logits(llama, ids)
    for left in reversed(range(count)):
        token = int(logits.argmax())
        yield token
        if left:
            logits = next_logits(llama, [token])


def run(job: dict[str, Any]) -> None:
    """Warm up, then run."""
    path, ids, count = Path(job["model"]), job["ids"], job["new_tokens"]
    kept = KVType(CACHES[job["cache"]], flash_attention=job["flash_attention"])
    llama = load(path, kept, context_tokens=len(ids) + count, threads=threads())
    for _ in tokens(llama, ids[:WARM_UP_TOKENS], count=2):
        pass
    measured = timed(tokens(llama, ids, count=count))
    kv_bytes = llama_cpp.llama_state_seq_get_size(llama.ctx, 0)
    versions = {"llama-cpp-python": version("llama-cpp-python"), "instructions": instructions()}
    write_measurement(measured, kv_bytes=kv_bytes, threads=llama.n_threads, versions=versions, weights=path.name)


def instructions() -> str:
    """What llama.cpp was compiled for on this machine: without AVX it would be a weak opponent."""
    named = llama_cpp.llama_print_system_info().decode()
    return " ".join(part.split("=")[0].strip() for part in named.split("|") if part.strip().endswith("= 1"))


if __name__ == "__main__":
    run(read_job())
