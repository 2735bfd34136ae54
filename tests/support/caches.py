"""A ragged cache of random numbers."""

import torch

from uncomp_cli.cache.ragged import RaggedKVCache

LAYERS, KV_HEADS, DIM = 2, 3, 6


def make_cache(
    lengths: list[int], *, kv_bits: int = 16, dtype: torch.dtype = torch.float32, tail: int = 2, dim: int = DIM
) -> RaggedKVCache:
    """A cache of random numbers whose heads have these lengths in every layer, and `tail` tokens behind them."""
    torch.manual_seed(7)
    cache = RaggedKVCache(num_layers=LAYERS, num_rows=1, num_kv_heads=len(lengths), kv_bits=kv_bits)
    for layer in range(LAYERS):
        heads = [
            (torch.randn(n, dim).to(dtype), torch.randn(n, dim).to(dtype), torch.arange(n, dtype=torch.int32) * 2)
            for n in lengths
        ]
        cache.store(layer, heads, reserve=tail)
        if tail:
            first = 2 * max(lengths)
            new = torch.randn(2, 1, len(lengths), tail, dim).to(dtype)
            cache.append(layer, new[0], new[1], torch.arange(first, first + tail)[None])
    return cache
