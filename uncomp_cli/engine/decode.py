"""Attention of new tokens over a ragged cache: append in place, then packed grouped-query attention.

A layer whose heads all have one length is one call; otherwise each KV head's H/G queries meet that head's own keys.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import LayerCache, RaggedKVCache
from uncomp_cli.engine.attention import attend_after

__all__ = ["AppendState"]


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
    if layer.is_rectangular(0, total):
        keys, values = layer.rectangle(0, total)
        output = attend_after(query.reshape(rows * heads, new, head_dim), keys, values, scaling=scaling, window=window)
        return output.view(rows, heads, new, -1)
    grouped = query.reshape(total, -1, new, head_dim)
    outputs = []
    for i in range(total):
        keys, values, _ = layer.head(i)
        outputs.append(attend_after(grouped[i], keys[None], values[None], scaling=scaling, window=window))
    return torch.cat(outputs).view(rows, heads, new, -1)
