"""One run in a process of its own: `python -m uncomp_cli.bench.bench_process`, a job on stdin, the result last.

Load, warm up with 32 tokens (which also brings every page of the weights into memory), note the resident bytes, start
a new peak, run. Whatever fails is reported in the result's place, with its traceback on stderr.
"""

import gc
import logging
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from uncomp_cli.bench.contenders import Timed, run_stock, run_uncomp
from uncomp_cli.bench.measurement import Job, Measurement, encode_error
from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import OutOfMemoryError, UncompError, is_out_of_memory
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

_WARM_UP_TOKENS = 32
_WARM_UP_QUESTION = 8
# A mark this far above the resident memory is an old one: the system did not start a new one.
_STALE_BYTES = 32 * 2**20


def run_job(job: Job) -> Measurement:
    """Load the job's model, warm up, run, measure."""
    tokenizer_dir = None if job.tokenizer_dir is None else Path(job.tokenizer_dir)
    loaded = load_model(
        job.model, dtype=job.dtype, device=job.device, quantize=job.quantize, tokenizer_dir=tokenizer_dir
    )
    _run(replace(job, new_tokens=2), loaded, _warm_up_prompt(job), budget=FULL_BUDGET)
    gc.collect()
    resident = resident_bytes(loaded.device)
    reset_peak(loaded.device)
    knows_peak = peak_bytes(loaded.device) - resident < _STALE_BYTES
    prompt = job.prompt
    timed = _run(job, loaded, prompt)
    peak = peak_bytes(loaded.device) - resident
    tokens = prompt.seq_len + job.new_tokens - 1
    return Measurement(
        token_ids=timed.token_ids,
        ttft_s=timed.ttft_s,
        decode_tok_s=(job.new_tokens - 1) / timed.decode_s,
        kv_prefill_bytes=timed.kv_prefill_bytes,
        kv_bytes=timed.kv_bytes,
        full_kv_bytes=loaded.spec.full_kv_bytes(tokens),
        resident_bytes=resident,
        peak_bytes=max(0, peak) if knows_peak else None,
        device=_device_name(loaded.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _run(job: Job, loaded: LoadedModel, prompt: Prompt, *, budget: Budget | None = None) -> Timed:
    if job.preset is None:
        return run_stock(loaded, prompt, new_tokens=job.new_tokens)
    preset = job.preset if budget is None else replace(job.preset, budget=budget)
    return run_uncomp(loaded, prompt, preset=preset, new_tokens=job.new_tokens, limits=job.limits, matmul=job.matmul)


def _warm_up_prompt(job: Job) -> Prompt:
    """The first tokens of the job's prompt, with the last of them as the question."""
    ids = (*job.context, *job.question)[:_WARM_UP_TOKENS]
    context, question = ids[:-_WARM_UP_QUESTION] or ids[:1], ids[-_WARM_UP_QUESTION:]
    return Prompt(Tokens.of(context), (question,))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _as_known(error: Exception) -> UncompError:
    """Any failure as one of our own."""
    if isinstance(error, UncompError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError("memory ran out during a run", hint="use fewer --tokens, or --quantize int8")
    text = " ".join(str(error).split())
    return UncompError(f"a run failed: {type(error).__name__}: {text}", hint="run it again with --debug")


def main() -> None:
    """Read a job, run it, write its result."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        result = run_job(Job.from_json(sys.stdin.readline())).to_json()
    except Exception as error:
        traceback.print_exc()  # the parent shows it with --debug
        result = encode_error(_as_known(error))
    sys.stdout.write(f"\n{result}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
