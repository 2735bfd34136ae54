"""Eviction: from scores and a number per head to the positions that stay.

Protected tokens stay first, then whole words in order of score, then single-token words into what is left: exactly
`kept` tokens a head, ascending and unique.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["select"]


def select(scores: Tensor, kept: Sequence[int], *, protected: Tensor, words: Tensor | None) -> list[Tensor]:
    """Positions that stay in each head: G ascending index tensors, `kept[g]` long.

    scores [G, S]; protected bool [S]; words int64 [S] (ascending word numbers, equal score within a word) or None.
    Raises ValueError when a head may keep fewer tokens than are protected.
    """
    must = int(protected.sum())
    if any(count < must for count in kept):
        raise ValueError(f"a head keeps {min(kept)} tokens, but {must} are protected")
    free = scores.masked_fill(protected, float("-inf"))
    return [_select_head(free[g], count - must, protected, words) for g, count in enumerate(kept)]


def _select_head(scores: Tensor, count: int, protected: Tensor, words: Tensor | None) -> Tensor:
    """Positions of one head: the protected ones and the `count` best of the others."""
    free = int((~protected).sum())
    if count >= free:
        return torch.arange(len(scores), device=scores.device)
    order = torch.sort(scores, descending=True, stable=True).indices[:free]
    chosen = order[:count] if words is None else _whole_words(order, count, words)
    keep = protected.clone()
    keep[chosen] = True
    return keep.nonzero(as_tuple=True)[0]


def _whole_words(order: Tensor, count: int, words: Tensor) -> Tensor:
    """The first `count` of `order`, with a word that the cut would split replaced by the next single-token words.

    Where those run out, the split word fills the rest: the count is exact.
    """
    taken = order[:count]
    if count == 0 or count == len(order) or words[order[count - 1]] != words[order[count]]:
        return taken
    split = words[order[count]]
    whole = taken[words[taken] != split]
    rest = order[count:]
    lengths = torch.bincount(words)
    singles = rest[lengths[words[rest]] == 1][: count - len(whole)]
    filler = taken[words[taken] == split][: count - len(whole) - len(singles)]
    return torch.cat([whole, singles, filler])
