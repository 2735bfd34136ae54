"""One exact prefill, many presses: what kvpress's hooks see is recorded once and handed to each press in turn.

kvpress compresses a layer's cache in a hook after that layer's attention, which was computed in full: nothing in the
prefill depends on the press. `compressed` calls the presses' own hooks in the same order with the same arguments, and
so leaves the cache that a prefill under the press leaves (`run_kvpress.py --check` compares the two). KVzip reads the
context once more behind the prefill and scores there: it is given the recorded cache and makes that second pass itself,
once for all fractions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from kvpress import KVzipPress
from kvpress.presses.base_press import BasePress
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Recording:
    """A prompt that was read: each layer's arguments, keys and values [1, G, S, D], and the last logits [1, vocab].

    `zipped` has KVzip's scores [L, 1, G, S] when its second pass was made.
    """

    ids: list[int]
    calls: tuple[dict[str, Any], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    logits: Tensor
    zipped: list[Tensor] = field(default_factory=list)

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
        ids=ids,
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
    unmask(model)
    cache = _filled(recording.keys, recording.values)
    if press is None:
        return cache
    if isinstance(press, KVzipPress):
        _zip(model, recording, press, cache)
        return cache
    with press(model):  # for what it prepares in the model; its hooks are called here, not by a forward pass
        for module, call in zip(attentions(model), recording.calls, strict=True):
            press.forward_hook(module, [], {**call, "past_key_values": cache}, [None, None])
    return cache


def _zip(model: PreTrainedModel, recording: Recording, press: KVzipPress, cache: DynamicCache) -> None:
    """KVzip on a copy of the recorded cache, whose entries it masks."""
    evict = press.compress_post

    def keep_scores(model: PreTrainedModel) -> None:
        recording.zipped.append(press.score_val.clone())
        evict(model)

    if recording.zipped:
        press.score_val = recording.zipped[0].clone()
        evict(model)
        return
    press.compress_post = keep_scores
    with press(model):  # what a forward pass in here would leave it; it scores and compresses when the block ends
        press._context_ids, press._cache = torch.tensor([recording.ids]), cache


def copied(cache: DynamicCache) -> DynamicCache:
    """Another cache of the same entries."""
    return _filled([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers])


def _filled(keys: Sequence[Tensor], values: Sequence[Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key.clone(), value.clone(), layer)
    return cache


def masks(model: PreTrainedModel) -> list[Any]:
    """Of every layer the entries that attention passes over, or None: AdaKV and KVzip free nothing."""
    return [getattr(module, "masked_key_indices", None) for module in attentions(model)]


def mask(model: PreTrainedModel, found: Sequence[Any]) -> None:
    """Let attention pass over what `masks` found."""
    for module, entries_of_layer in zip(attentions(model), found, strict=True):
        module.masked_key_indices = entries_of_layer


def unmask(model: PreTrainedModel) -> None:
    """Forget the entries that a press has masked, as kvpress does when a prefill begins."""
    mask(model, [None] * len(attentions(model)))


def masked_entries(model: PreTrainedModel) -> int:
    """Entries that are in the cache and that attention passes over."""
    return sum(found[0].numel() for found in masks(model) if found is not None)


def entries(model: PreTrainedModel, cache: DynamicCache) -> int:
    """Entries (a token in a KV head) that attention sees."""
    stored = sum(layer.keys.shape[1] * layer.keys.shape[2] for layer in cache.layers)
    return stored - masked_entries(model)


def layer_bytes(cache: DynamicCache) -> int:
    """Bytes of the storages that hold keys and values: what is allocated, not what views of it show."""
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def together(caches: Sequence[DynamicCache]) -> tuple[DynamicCache, Tensor | None]:
    """Rows of one cache; the shorter ones begin with room, which `seen` [B, S] leaves out. They are copied.

    Of one cache `seen` is None: it needs no room. Several must be of equal layers each.
    """
    if len(caches) == 1:
        return copied(caches[0]), None
    lengths = [cache.layers[0].keys.shape[2] for cache in caches]
    longest = max(lengths)
    rows = DynamicCache()
    for layer in range(len(caches[0].layers)):
        keys = torch.cat([_wide(cache.layers[layer].keys, longest) for cache in caches])
        values = torch.cat([_wide(cache.layers[layer].values, longest) for cache in caches])
        rows.update(keys, values, layer)
    return rows, (torch.arange(longest)[None] >= longest - torch.tensor(lengths)[:, None]).long()


def _wide(entries_of_layer: Tensor, length: int) -> Tensor:
    """[1, G, S, D] behind so much room that it is `length` long."""
    return torch.nn.functional.pad(entries_of_layer, (0, 0, length - entries_of_layer.shape[2], 0))


def is_even(cache: DynamicCache) -> bool:
    """Whether all layers hold as many tokens."""
    return len({layer.keys.shape[2] for layer in cache.layers}) == 1


def follow(
    model: PreTrainedModel, cache: DynamicCache, tokens: Tensor, *, position: int, seen: Tensor | None = None
) -> Tensor:
    """Logits [B, N, vocab] of `tokens` [B, N] after the prompt, which stand at `position` and onwards in every row,
    whatever was evicted; `seen` [B, S] are the entries that were there first.

    transformers makes one causal mask from layer 0's length, and a masking press looks for one vector that all
    queries of a call ignore: both hold for several tokens at once only with equal layers and no mask. Otherwise the
    tokens go one by one, as in generation.
    """
    at_once = is_even(cache) and not masked_entries(model)
    logits = []
    for piece in [tokens] if at_once else tokens.split(1, dim=1):
        count = piece.shape[1]
        positions = torch.arange(position, position + count)[None].expand(len(tokens), -1)
        shown = None if seen is None else _grown(seen, cache.get_seq_length() + count)
        given = {"position_ids": positions, "attention_mask": shown}
        logits.append(model(piece, past_key_values=cache, **given).logits)
        position += count
    return torch.cat(logits, dim=1)


def _grown(seen: Tensor, length: int) -> Tensor:
    """`seen`, and all that came after it."""
    return torch.nn.functional.pad(seen, (0, length - seen.shape[1]), value=1)
