"""Recall: tokens that were evicted are read again where they stand, and their keys and values put back.

The tokens go through the model once more at their own positions, those of several passages in one pass. Each head sees
what it still holds before a token and, of the passages, what stands before it: exact where nothing else before it was
evicted, close where the rest was kept for being distinct. It costs the passages, not the document.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from uncomp_cli.cache.ragged import Head, RaggedKVCache
from uncomp_cli.engine.forward.decoder import Decoder

__all__ = ["recall", "recall_note"]


class _Reading:
    """The engine's state while tokens at `positions` [N] are read again; `heads[l]` are the merged heads of layer l."""

    def __init__(self, cache: RaggedKVCache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions.to(torch.int32)
        self.heads: list[list[Head]] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Attention [1, H, N, D] of the tokens over what lies before each of them."""
        held = self.cache.layer(layer)
        groups = key.shape[1]
        queries = query[0].view(groups, -1, *query.shape[2:])
        outputs, merged = [], []
        for group in range(groups):
            before, read = held.head(group), (key[0, group], value[0, group], self.positions)
            outputs.append(_attend(queries[group], before, read, scaling=scaling))
            merged.append(_merge(before, read))
        self.heads.append(merged)
        return torch.cat(outputs)[None]


def recall(decoder: Decoder, cache: RaggedKVCache, ids: Sequence[int], positions: Tensor) -> None:
    """Put back what `cache`, of one row, no longer holds of the tokens `ids` at `positions` [N], ascending.

    What it holds stays as it is. The cache must not be quantised, nor have layers with a sliding window: they have
    dropped what the tokens would see.
    """
    state = _Reading(cache, positions.to(decoder.device))
    decoder.forward(torch.tensor([list(ids)]), positions[None], state, 1)
    for layer, heads in enumerate(state.heads):
        cache.store(layer, heads, quantize=False)


def recall_note(spans: Sequence[range], seconds: float) -> str:
    """What is said of passages that were read again."""
    count, tokens = len(spans), sum(map(len, spans))
    passages = "1 passage" if count == 1 else f"{count} passages"
    return f"{passages} ({tokens:,} tokens) that had been evicted: read again in {seconds:.1f} s"


def _attend(query: Tensor, held: Head, read: Head, *, scaling: float) -> Tensor:
    """Output [R, N, D] of query [R, N, D] over what is held of other tokens and over the tokens themselves."""
    others = ~torch.isin(held[2], read[2])
    keys, values, positions = (torch.cat([old[others], new]) for old, new in zip(held, read, strict=True))
    mask = positions <= read[2][:, None]
    shape = len(query), *keys.shape
    return scaled_dot_product_attention(query, keys.expand(shape), values.expand(shape), attn_mask=mask, scale=scaling)


def _merge(held: Head, read: Head) -> Head:
    """What a head holds with the entries read again that it lacks, ascending by position."""
    lacking = ~torch.isin(read[2], held[2])
    keys, values, positions = (torch.cat([old, new[lacking]]) for old, new in zip(held, read, strict=True))
    order = positions.argsort(stable=True)
    return keys[order], values[order], positions[order]
