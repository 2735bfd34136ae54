"""One exact prefill, many presses: what kvpress's hooks see is recorded once and handed to each press in turn.

kvpress compresses a layer's cache in a hook after that layer's attention, which was computed in full: nothing in the
prefill depends on the press. `compressed` calls the presses' own hooks in the same order with the same arguments, and
so leaves the cache that a prefill under the press leaves (`run_kvpress.py --check` compares the two).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kvpress.presses.base_press import BasePress
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Recording:
    """A prompt that was read: each layer's arguments, keys and values [1, G, S, D], and the last logits [1, vocab]."""

    calls: tuple[dict[str, Any], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    logits: Tensor

    @property
    def seq_len(self) -> int:
        return self.keys[0].shape[2]


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer."""
    return [layer.self_attn for layer in model.model.layers]


def record(model: PreTrainedModel, ids: list[int]) -> Recording:
    """Read `ids` with nothing compressed."""
    calls: list[dict[str, Any]] = []
    with _listening(model, calls):
        cache, logits = prefill_under(model, ids, None)
    kept = ("hidden_states", "position_embeddings", "cache_position")
    return Recording(
        calls=tuple({name: call[name] for name in kept} for call in calls),
        keys=tuple(layer.keys for layer in cache.layers),
        values=tuple(layer.values for layer in cache.layers),
        logits=logits,
    )


@contextmanager
def _listening(model: PreTrainedModel, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Keep the keyword arguments of every attention module's call."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(kwargs)

    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in attentions(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prefill_under(model: PreTrainedModel, ids: list[int], press: BasePress | None) -> tuple[DynamicCache, Tensor]:
    """An ordinary prefill, under a press as kvpress's users do it; the cache and the last logits [1, vocab]."""
    cache = DynamicCache()
    unmask(model)
    if press is None:
        return cache, _last_logits(model, ids, cache)
    with press(model):
        return cache, _last_logits(model, ids, cache)


def _last_logits(model: PreTrainedModel, ids: list[int], cache: DynamicCache) -> Tensor:
    return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0]


def compressed(model: PreTrainedModel, recording: Recording, press: BasePress | None) -> DynamicCache:
    """The cache that a prefill under `press` leaves. It shares no memory with the recording."""
    cache = DynamicCache()
    unmask(model)
    for layer, (keys, values) in enumerate(zip(recording.keys, recording.values, strict=True)):
        cache.update(keys.clone(), values.clone(), layer)
    if press is None:
        return cache
    with press(model):  # for what it prepares in the model; its hooks are called here, not by a forward pass
        for module, call in zip(attentions(model), recording.calls, strict=True):
            press.forward_hook(module, [], {**call, "past_key_values": cache}, [None, None])
    return cache


def unmask(model: PreTrainedModel) -> None:
    """Forget the entries that AdaKV has masked, as kvpress does when a prefill begins."""
    for module in attentions(model):
        module.masked_key_indices = None


def masked_entries(model: PreTrainedModel) -> int:
    """Entries that are in the cache and that attention passes over."""
    masks = (getattr(module, "masked_key_indices", None) for module in attentions(model))
    return sum(mask[0].numel() for mask in masks if mask is not None)


def entries(model: PreTrainedModel, cache: DynamicCache) -> int:
    """Entries (a token in a KV head) that attention sees."""
    stored = sum(layer.keys.shape[1] * layer.keys.shape[2] for layer in cache.layers)
    return stored - masked_entries(model)


def layer_bytes(cache: DynamicCache) -> int:
    """Bytes of the storages that hold keys and values: what is allocated, not what views of it show."""
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def follow(model: PreTrainedModel, cache: DynamicCache, ids: list[int], *, position: int) -> Tensor:
    """Logits [N, vocab] of the tokens after the prompt, which stand at `position` and onwards whatever was evicted.

    transformers makes one causal mask from layer 0's length, and a masking press looks for one vector that all
    queries of a call ignore: both hold for several tokens at once only with equal layers and no mask. Otherwise the
    tokens go one by one, as in generation.
    """
    lengths = {layer.keys.shape[2] for layer in cache.layers}
    at_once = len(lengths) == 1 and not masked_entries(model)
    pieces = [ids] if at_once else [[token] for token in ids]
    logits = []
    for piece in pieces:
        positions = torch.arange(position, position + len(piece))[None]
        logits.append(model(torch.tensor([piece]), past_key_values=cache, position_ids=positions).logits[0])
        position += len(piece)
    return torch.cat(logits)
