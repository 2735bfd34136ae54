"""Attention of new tokens over a ragged cache: append in place, then packed grouped-query attention.

One new token a row reads each layer in a few calls (cache/packs.py). Several are one call for neighbouring heads of
one length; in it each KV head's H/G queries meet that head's own keys.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from uncomp_cli.cache.packs import Pack, Packs
from uncomp_cli.cache.ragged import LayerCache, RaggedKVCache
from uncomp_cli.engine.forward.attention import attend_after

__all__ = ["AppendState", "OnQuery", "attend_cached", "equal_runs", "in_turn"]

OnQuery = Callable[[int, Tensor, float], None]
"""Is told (layer, queries [B, H, N, D], scaling) when a layer has been attended."""


class AppendState:
    """The engine's state while N tokens a row are added behind the cache at logical positions [B, N].

    `on_query(layer, query, scaling)` is told each layer's queries [B, H, N, D] when it has been attended.
    """

    def __init__(
        self,
        cache: RaggedKVCache,
        positions: Tensor,
        *,
        on_layer: Callable[[int], None] | None = None,
        on_query: OnQuery | None = None,
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.on_layer = on_layer
        self.on_query = on_query
        self._spread = cache.spread(positions)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Attention [B, H, N, D] of the new tokens over everything kept, their own keys included."""
        self.cache.append(layer, key, value, self._spread)
        output = attend_cached(query, self.cache.layer(layer), scaling=scaling, window=sliding_window)
        if self.on_query is not None:
            self.on_query(layer, query, scaling)
        if self.on_layer is not None:
            self.on_layer(layer)
        return output


def in_turn(*observers: OnQuery | None) -> OnQuery | None:
    """What tells all of `observers` that are there, in their order; None when there is none."""
    told = [observer for observer in observers if observer is not None]

    def tell(layer: int, query: Tensor, scaling: float) -> None:
        for observer in told:
            observer(layer, query, scaling)

    return tell if told else None


def attend_cached(query: Tensor, layer: LayerCache, *, scaling: float, window: int | None = None) -> Tensor:
    """Attention of query [B, H, N, D], whose tokens end every head of `layer`."""
    rows, heads, new, head_dim = query.shape
    total = len(layer.lengths)
    if new == 1:
        packs = layer.packs(rows * heads // total, windowed=window is not None)
        if packs is not None:
            grouped = query.reshape(total, -1, head_dim)
            return _attend_packs(grouped, packs, scaling=scaling, window=window).view(rows, heads, 1, head_dim)
    grouped = query.reshape(total, -1, new, head_dim)
    outputs = []
    for first, count in equal_runs(layer):
        keys, values = layer.rectangle(first, count)
        packed = grouped[first : first + count].flatten(0, 1)
        outputs.append(attend_after(packed, keys, values, scaling=scaling, window=window))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.view(rows, heads, new, -1)


def _attend_packs(query: Tensor, packs: Packs, *, scaling: float, window: int | None) -> Tensor:
    """Attention [heads, Q, D] of one token's queries [heads, Q, D]."""
    if packs.order is not None:
        query = query.index_select(0, packs.order)
    outputs, first = [], 0
    for pack in packs.packs:
        outputs.append(_attend_pack(query[first : first + pack.heads], pack, scaling=scaling, window=window))
        first += pack.heads
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output if packs.inverse is None else output.index_select(0, packs.inverse)


def _attend_pack(query: Tensor, pack: Pack, *, scaling: float, window: int | None) -> Tensor:
    """One call: the heads of a rectangle are the heads of SDPA, their queries its rows."""
    seen = slice(0 if window is None else max(0, pack.end - window), pack.end)
    keys, values = pack.keys[None, :, seen], pack.values[None, :, seen]
    mask = None if pack.mask is None else pack.mask[None, :, :, seen]
    packed = query.reshape(1, keys.shape[1], -1, query.shape[-1])
    return scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling).view(query.shape)


def equal_runs(layer: LayerCache) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbouring heads that one rectangle holds: each is one attention call."""
    first = 0
    for _, run in groupby(range(len(layer.lengths)), key=layer.shape):
        count = len(list(run))
        yield first, count
        first += count
