"""Attention of new tokens over a ragged cache: append in place, then packed grouped-query attention.

Neighbouring heads of one length are one call; in it each KV head's H/G queries meet that head's own keys.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import LayerCache, RaggedKVCache
from uncomp_cli.engine.attention import attend_after

__all__ = ["AppendState", "attend_cached", "equal_runs"]


class AppendState:
    """The engine's state while N tokens a row are added behind the cache at logical positions [B, N]."""

    def __init__(
        self, cache: RaggedKVCache, positions: Tensor, *, on_layer: Callable[[int], None] | None = None
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.on_layer = on_layer

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Attention [B, H, N, D] of the new tokens over everything kept, their own keys included."""
        self.cache.append(layer, key, value, self.positions)
        output = attend_cached(query, self.cache.layer(layer), scaling=scaling, window=sliding_window)
        if self.on_layer is not None:
            self.on_layer(layer)
        return output


def attend_cached(query: Tensor, layer: LayerCache, *, scaling: float, window: int | None = None) -> Tensor:
    """Attention of query [B, H, N, D], whose tokens end every head of `layer`."""
    rows, heads, new, head_dim = query.shape
    total = len(layer.lengths)
    grouped = query.reshape(total, -1, new, head_dim)
    outputs = []
    for first, count in equal_runs(layer):
        keys, values = layer.rectangle(first, count)
        packed = grouped[first : first + count].flatten(0, 1)
        outputs.append(attend_after(packed, keys, values, scaling=scaling, window=window))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.view(rows, heads, new, -1)


def equal_runs(layer: LayerCache) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbouring heads that one rectangle holds: each is one attention call."""
    first = 0
    for _, run in groupby(range(len(layer.lengths)), key=layer.shape):
        count = len(list(run))
        yield first, count
        first += count
