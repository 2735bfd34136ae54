"""The two arms of the comparison, each from the same token ids to exactly N greedy tokens; no token stops them.

`run_stock` is what a user of `model.generate(..., do_sample=False)` gets from transformers, without generate's own
overhead: the model's forward with `attn_implementation="sdpa"` and the DynamicCache that it makes, logits of the last
position only, no mask (generate's is all ones, which transformers drops before attention). With that, transformers
calls SDPA with `enable_gqa`; its packed decode is reached only when a mask is given, which generate does not for one
unpadded prompt.
`run_uncomp` is the road of `uncomp ask`: plan, read and evict, put the question behind the context, write, and watch
the heads that the preset has watched.

`python -m uncomp_cli.bench.contenders` is one run in a process of its own, a job on stdin, the result last: load, warm
up with 32 tokens (which also brings every page of the weights into memory), note the resident bytes, start a new peak,
run. Whatever fails is reported in the result's place, with its traceback on stderr.
"""

import gc
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.bench.workload import Job, Measurement, Setup, encode_error
from uncomp_cli.budget.amount import FULL_BUDGET
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, Matmul, SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import OutOfMemoryError, UncompError, is_out_of_memory
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: its tokens, times and cache bytes; `decode_s` is the time of all tokens but the first."""

    token_ids: tuple[int, ...]
    ttft_s: float
    decode_s: float
    kv_prefill_bytes: int
    kv_bytes: int


@torch.no_grad()
def run_stock(loaded: LoadedModel, prompt: Prompt, *, new_tokens: int) -> Timed:
    """Greedy generation by transformers itself, with its full cache."""
    model = loaded.model
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]], device=loaded.device)
    begun = time.perf_counter()
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(dim=-1)
    chosen = [int(token)]
    ttft_s = time.perf_counter() - begun
    cache = output.past_key_values
    kv_prefill_bytes = _dynamic_cache_bytes(cache)
    begun = time.perf_counter()
    for _ in range(new_tokens - 1):
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(dim=-1)
        chosen.append(int(token))
    decode_s = time.perf_counter() - begun
    return Timed(tuple(chosen), ttft_s, decode_s, kv_prefill_bytes, _dynamic_cache_bytes(cache))


def run_uncomp(
    loaded: LoadedModel,
    prompt: Prompt,
    *,
    preset: Preset,
    new_tokens: int,
    limits: Limits | None = None,
    matmul: Matmul = "float32",
    lookup: bool = True,
) -> Timed:
    """Greedy generation by the engine, with the cache that `preset` leaves, within `limits`."""
    sampling = SamplingConfig(max_new_tokens=new_tokens, lookup=lookup)
    engine = Engine(loaded, sampling=sampling, limits=limits, matmul=matmul)
    begun = time.perf_counter()
    context = engine.read(prompt, preset).finish()
    writer = engine.writer(engine.asked(context), stop_ids=())
    chosen, arrivals, kv_bytes = [], [], []
    for step in writer.write():
        arrivals.append(time.perf_counter())
        chosen.append(step.token)
        kv_bytes.append(step.kv_bytes)
    ttft_s, decode_s = arrivals[0] - begun, arrivals[-1] - arrivals[0]
    return Timed(tuple(chosen), ttft_s, decode_s, kv_bytes[0], kv_bytes[-1])


def _dynamic_cache_bytes(cache: Any) -> int:
    """Bytes that transformers' cache has allocated for keys and values."""
    return storage_bytes(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages as allocated; a storage that several share counts once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


_WARM_UP_TOKENS = 32
_WARM_UP_QUESTION = 8
# A mark this far above the resident memory is an old one: the system did not start a new one.
_STALE_BYTES = 32 * 2**20


def run_job(job: Job) -> Measurement:
    """Load the job's model, warm up, run, measure."""
    setup = job.setup
    loaded = load_model(
        setup.model,
        dtype=setup.dtype,
        device=setup.device,
        quantize=setup.quantize,
        tokenizer_dir=setup.tokenizer_dir,
        rope=setup.rope,
        widened=job.preset is None,
        weights="auto" if job.preset is None else setup.weights,
    )
    warm_up = None if job.preset is None else replace(job.preset, budget=FULL_BUDGET)
    _run(replace(setup, new_tokens=2), warm_up, loaded, _warm_up_prompt(job))
    gc.collect()
    resident = resident_bytes(loaded.device)
    reset_peak(loaded.device)
    knows_peak = peak_bytes(loaded.device) - resident < _STALE_BYTES
    prompt = job.prompt
    timed = _run(setup, job.preset, loaded, prompt)
    peak = peak_bytes(loaded.device) - resident
    tokens = prompt.seq_len + setup.new_tokens - 1
    return Measurement(
        token_ids=timed.token_ids,
        ttft_s=timed.ttft_s,
        decode_tok_s=(setup.new_tokens - 1) / timed.decode_s,
        kv_prefill_bytes=timed.kv_prefill_bytes,
        kv_bytes=timed.kv_bytes,
        full_kv_bytes=loaded.spec.full_kv_bytes(tokens),
        resident_bytes=resident,
        peak_bytes=max(0, peak) if knows_peak else None,
        device=_device_name(loaded.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _run(setup: Setup, preset: Preset | None, loaded: LoadedModel, prompt: Prompt) -> Timed:
    new_tokens = setup.new_tokens
    if preset is None:
        return run_stock(loaded, prompt, new_tokens=new_tokens)
    return run_uncomp(
        loaded,
        prompt,
        preset=preset,
        new_tokens=new_tokens,
        limits=setup.limits,
        matmul=setup.matmul,
        lookup=setup.lookup,
    )


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
