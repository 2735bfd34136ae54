"""What stays of the entries that the heads of a layer hold already: each head its own, ranked by position.

Between two chunks of a prompt, or two turns of a chat, every head holds other positions. Scores are therefore given by
position: [G, S], of which each head looks at those it holds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.coherence import share_by_word
from uncomp_cli.cache.eviction import select
from uncomp_cli.cache.head_shares import share_heads

__all__ = ["choose_held"]


def choose_held(
    scores: Tensor,
    held: Sequence[Tensor],
    counts: Sequence[int],
    *,
    protected: Tensor,
    words: Tensor | None,
    floor: float = 1.0,
) -> list[Tensor]:
    """Ascending indices into what each head holds: `counts[g]` entries of head g, or all when there are fewer.

    scores [G, S]; held[g] [S_g] ascending positions; protected bool [S] entries stay, in addition when they are more
    than the count; words int64 [S]: tokens of a word share their score and stay together. `floor` below 1: heads share
    their counts by their scores (head_shares.py).
    """
    ranked = _ranked(scores, held, words)
    if floor < 1:
        counts = share_heads(ranked, counts, protected=protected, floor=floor)
    chosen = []
    for row, positions, count in zip(ranked, held, counts, strict=True):
        at = positions.long()
        must = protected[at]
        numbers = None if words is None else words[at]
        chosen += select(row[at][None], [max(count, int(must.sum()))], protected=must, words=numbers)
    return chosen


def _ranked(scores: Tensor, held: Sequence[Tensor], words: Tensor | None) -> Tensor:
    """Scores [G, S] of what each head holds, where words are given those of its words; -inf for what it does not."""
    ranked = torch.full_like(scores, float("-inf"))
    for row, own, positions in zip(ranked, scores, held, strict=True):
        at = positions.long()
        row[at] = own[at] if words is None else share_by_word(own[at][None], words[at])[0]
    return ranked
