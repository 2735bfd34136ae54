"""The two arms of the comparison, each from the same token ids to exactly N greedy tokens; no token stops them.

`run_stock` is what a user of `model.generate(..., do_sample=False)` gets from transformers, without generate's own
overhead: the model's forward with `attn_implementation="sdpa"` and the DynamicCache that it makes, logits of the last
position only, no mask (generate's is all ones, which transformers drops before attention). With that, transformers
calls SDPA with `enable_gqa`; its packed decode is reached only when a mask is given, which generate does not for one
unpadded prompt.
`run_uncomp` is the road of `uncomp ask`: plan, read and evict, put the question behind the context, write, and watch
the heads that the preset has watched.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.products import Matmul
from uncomp_cli.engine.tokens.prompt import Prompt
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
) -> Timed:
    """Greedy generation by the engine, with the cache that `preset` leaves, within `limits`."""
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=new_tokens), limits=limits, matmul=matmul)
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
