"""Survival: how much of each token a compressed cache still holds.

    survival[s] = |{(l, g) : head g of layer l holds position s}| / (layers x KV heads)

A token that every head dropped has 0 and cannot have been read; 1 is a token that nothing was lost of.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import LayerCache, RaggedKVCache

__all__ = ["survival"]


def survival(cache: RaggedKVCache, seq_len: int, *, layers: Sequence[int] | None = None) -> Tensor:
    """The share [S] of heads of `layers` (None: all) that hold each of the first `seq_len` positions, on the CPU.

    Name the layers that a budget decides about (`ModelSpec.full_layers`): one with a sliding window keeps its window.
    Of a cache of several rows it is the share over all of them.
    """
    counts, heads = torch.zeros(seq_len, dtype=torch.int64), 0
    for index in range(len(cache.layers)) if layers is None else layers:
        for held in _positions(cache.layer(index)):
            counts += torch.bincount(held[held < seq_len], minlength=seq_len)
            heads += 1
    return counts / max(1, heads)


def _positions(layer: LayerCache) -> Iterator[Tensor]:
    """The positions that each head holds; keys and values are not touched, so that nothing is dequantised."""
    for head, before in enumerate(layer.quantized):
        tail = layer.tail(head)[2].cpu()
        yield tail if before is None else torch.cat([before.positions.cpu(), tail])
