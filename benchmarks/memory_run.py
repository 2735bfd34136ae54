"""One point of memory_curve.py in a process of its own: a job on standard input, the measurement as the last line."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uncomp_cli.bench.contenders import run_stock
from uncomp_cli.bench.workload import build_prompt
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import UncompError, is_out_of_memory
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

Line = dict[str, Any]
STOCK, ONE_PASS, CHUNKED, THINNED = "stock", "one pass", "chunks", "chunks, thinned"
ARMS = (STOCK, ONE_PASS, CHUNKED, THINNED)
_WARM_UP_TOKENS, _STALE_BYTES = 64, 32 * 2**20


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
    """Load, warm up, run, and say what the peak was above the resident bytes."""
    loaded = load_model(run.model, device="cpu", rope=run.rope)
    document = write_prose(run.tokens, seed=run.seed)
    work = of_stock(loaded, run) if run.arm == STOCK else of_engine(loaded, run)
    prompts = [build_prompt(loaded.tokenizer, document, tokens=n, sinks=4) for n in (_WARM_UP_TOKENS, run.tokens)]
    work(prompts[0])
    gc.collect()
    resident = resident_bytes(loaded.device)
    reset_peak(loaded.device)
    if peak_bytes(loaded.device) - resident > _STALE_BYTES:
        raise UncompError("the system starts no new high-water mark", hint="use Linux, outside a restricted container")
    kv_bytes = work(prompts[1])
    peak = peak_bytes(loaded.device) - resident
    return {
        "peak_bytes": peak,
        "kv_bytes": kv_bytes,
        "resident_bytes": resident,
        "full_kv_bytes": loaded.spec.full_kv_bytes(run.tokens),
    }


def of_stock(loaded: LoadedModel, run: Run) -> Callable[[Prompt], int]:
    """Stock transformers; the bytes of its cache."""
    return lambda prompt: run_stock(loaded, prompt, new_tokens=run.new_tokens).kv_bytes


def of_engine(loaded: LoadedModel, run: Run) -> Callable[[Prompt], int]:
    """The engine, as `uncomp ask` uses it; the bytes of its cache after the last token."""
    sampling = SamplingConfig(max_new_tokens=run.new_tokens)

    def work(prompt: Prompt) -> int:
        engine = Engine(loaded, sampling=sampling, limits=run.limits)
        asked = engine.asked(engine.read(prompt, run.settled()).finish())
        return [step.kv_bytes for step in engine.writer(asked).write()][-1]

    return work


def worker() -> None:
    """A run on standard input, its measurement or `{"error"}` as the last line of standard output."""
    run = Run(**json.loads(sys.stdin.readline()))
    try:
        result = measure(run)
    except Exception as error:
        known = isinstance(error, UncompError) or is_out_of_memory(error)
        if not known:
            raise
        result = {"error": getattr(error, "message", "memory ran out")}
    print(f"\n{json.dumps(result)}", flush=True)


def in_child(run: Run) -> Line:
    """`measure` in a process of its own; a child that the system killed is an error like any other."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    given = json.dumps(asdict(run)) + "\n"
    command = [sys.executable, str(Path(__file__).resolve())]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"ended with code {done.returncode}: {last}"}
    result: Line = json.loads(lines[-1])
    return result


if __name__ == "__main__":
    worker()
