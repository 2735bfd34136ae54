"""Eviction: from scores and a number per head to the positions that stay.

Protected tokens stay first, then words in order of score, each whole when it still fits: exactly `kept` tokens a head,
ascending and unique. At most one word is torn, and only when no whole one near the cut fits into what is left. No word
further than REACH_TOKENS behind the cut is looked at, so that what is kept lies in the beginning of a ranking, as
engine/read/overkeep.py needs it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["REACH_TOKENS", "select"]

REACH_TOKENS = 32


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
    """`count` of `order`, whole words: each is taken when it still fits, in order of score.

    When none fits any more, or none that ends within REACH_TOKENS of the cut, the first that did not is torn and fills
    the rest: the count is exact.
    """
    numbers = words[order]
    if count == 0 or count == len(order) or numbers[count - 1] != numbers[count]:
        return order[:count]
    lengths = torch.unique_consecutive(numbers, return_counts=True)[1]  # a word's tokens are neighbours in `order`
    ends = lengths.cumsum(0)
    split = int((ends <= count).sum())  # the word in which the cut falls
    begin, end = int(ends[split] - lengths[split]), int(ends[split])
    near = int((ends <= count + REACH_TOKENS).sum())
    fillers, room = _fill(ends[split + 1 : near], lengths[split + 1 : near], count - begin)
    filled = [order[first:last] for first, last in fillers]
    return torch.cat([order[:begin], *filled, order[begin:end][:room]])


def _fill(ends: Tensor, lengths: Tensor, room: int) -> tuple[list[tuple[int, int]], int]:
    """The ranges of the words that fit into `room` tokens, taken one after the other, and the room that is left."""
    short = lengths <= room
    chosen: list[tuple[int, int]] = []
    for end, length in zip(ends[short].tolist(), lengths[short].tolist(), strict=True):
        if length <= room:
            chosen.append((end - length, end))
            room -= length
        if room == 0:
            break
    return chosen, room
