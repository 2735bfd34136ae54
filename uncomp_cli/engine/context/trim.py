"""Trim: a cache that is in use is cut down to what each head may hold.

It is ranked by what it holds itself, keys and values alone, so no question is needed and none is favoured.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.eviction import choose_held
from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.spec import ModelSpec


def cut_cache(
    cache: RaggedKVCache,
    counts: Sequence[Sequence[int]],
    *,
    spec: ModelSpec,
    scorer: Scorer,
    config: ScorerConfig,
    protected: Tensor,
    words: Tensor,
    frequencies: Tensor | None = None,
    floor: float = 1.0,
    reserve: int = 0,
) -> None:
    """Cut the heads of layer l to `counts[l]`, protected tokens (bool [S]) not counted out; sliding layers to a window.

    `words` int64 [S]. Layers that hold no more than that stay as they are. Every head that is cut gets room for
    `reserve` tokens more.
    """
    for index, window in enumerate(spec.sliding_windows):
        layer = cache.layer(index)
        held = [_positions(layer, i) for i in range(len(layer.lengths))]
        most = counts[index] if window is None else [window] * len(held)
        if all(len(at) <= count for at, count in zip(held, most, strict=True)):
            continue
        if window is not None:
            keep = [torch.arange(max(0, len(at) - window), len(at), device=at.device) for at in held]
        else:
            scores = _scores(layer, index, held, scorer, config, frequencies, length=len(protected))
            keep = choose_held(
                scores,
                held,
                most,
                protected=protected.to(scores.device),
                words=words.to(scores.device) if config.whole_words else None,
                floor=floor,
            )
        cache.retain(index, keep, reserve=reserve)


def _positions(layer: LayerCache, index: int) -> Tensor:
    before, tail = layer.quantized[index], layer.tail(index)[2]
    return tail if before is None else torch.cat([before.positions, tail])


def _scores(
    layer: LayerCache,
    index: int,
    held: Sequence[Tensor],
    scorer: Scorer,
    config: ScorerConfig,
    frequencies: Tensor | None,
    *,
    length: int,
) -> Tensor:
    """Pooled scores by position [G, length], 0 where a head has nothing."""
    dense = torch.zeros(len(held), length, device=held[0].device)
    for head, positions in enumerate(held):
        keys, values, _ = layer.head(head)
        at = positions.long()
        view = LayerView(
            layer=index,
            queries=keys[None, :0],
            keys=keys[None],
            values=values[None],
            branches=(),
            scaling=1.0,
            frequencies=frequencies,
            key_positions=at[None],
            first_head=head,
        )
        dense[head, at] = pool(scorer.score(view), kind=config.pooling, width=config.width)[0]
    return dense
