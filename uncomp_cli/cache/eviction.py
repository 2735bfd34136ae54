"""Eviction: from scores and a number per head to the positions that stay.

Protected tokens stay first, then words in order of score, each whole when it still fits: exactly `kept` tokens a head,
ascending and unique. At most one word is torn, and only when no whole one near the cut fits into what is left. No word
further than REACH_TOKENS behind the cut is looked at, so that what is kept lies in the beginning of a ranking, as
engine/read/overkeep.py needs it.

Heads of one layer may share what it keeps: more for a head whose tokens score high (AdaKV, arXiv 2407.11550, algorithm
1). The best of all heads' tokens are chosen together, and a head is due as many as it has among them. Safeguard: a part
`floor` of the layer's budget stays where the plan put it. With free_g the plan's unprotected tokens of head g and won_g
its tokens among the best sum(free) of the layer,

    share_g = floor · free_g + (1 - floor) · won_g,    rounded so that the layer's sum is exact.

Scores must be comparable between heads, as attention is; protected tokens stay in every head and do not compete.

Between two chunks of a prompt, or two turns of a chat, every head holds other positions (`choose_held`): scores are
then given by position, [G, S], of which each head looks at those it holds.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from uncomp_cli.budget.plan import apportion
from uncomp_cli.cache.coherence import share_by_word


def share_heads(scores: Tensor, counts: Sequence[int], *, protected: Tensor, floor: float) -> list[int]:
    """Tokens that each head keeps, with the sum of `counts`: scores [G, S], protected bool [S], floor in [0, 1].

    No head gets fewer tokens than are protected, nor more than S. With floor 1 the counts are the plan's.
    """
    must = int(protected.sum())
    if floor >= 1 or min(counts) < must:  # what is below the protected tokens is refused where it is cut
        return list(counts)
    room = scores.shape[1] - must
    free = [count - must for count in counts]
    won = _won(scores[:, ~protected], sum(free))
    weights = [floor * own + (1 - floor) * best for own, best in zip(free, won, strict=True)]
    return [must + share for share in apportion(sum(free), weights, floor=0, cap=room)]


def _won(scores: Tensor, total: int) -> list[int]:
    """How many of the `total` best of scores [G, S] each head has; equal ones count by position, then by head."""
    num_heads = scores.shape[0]
    order = torch.sort(scores.T.flatten(), descending=True, stable=True).indices[:total]
    return torch.bincount(order % num_heads, minlength=num_heads).tolist()


REACH_TOKENS = 32


def select(scores: Tensor, kept: Sequence[int], *, protected: Tensor, words: Tensor | None) -> list[Tensor]:
    """Positions that stay in each head: G ascending index tensors, `kept[g]` long.

    scores [G, S]; protected bool [S]; words int64 [S] (ascending word numbers, equal score within a word) or None.
    Raises ValueError when a head may keep fewer tokens than are protected.
    """
    must = int(protected.sum())
    if any(count < must for count in kept):
        raise ValueError(f"a head keeps {min(kept)} tokens, but {must} are protected")
    return [_select_head(row, count - must, must, protected, words) for row, count in zip(scores, kept, strict=True)]


def _select_head(scores: Tensor, count: int, must: int, protected: Tensor, words: Tensor | None) -> Tensor:
    """Positions of one head: those that are protected, `must` of them, and the `count` best of the others."""
    if count >= len(scores) - must:
        return torch.arange(len(scores), device=scores.device)
    free = scores.masked_fill(protected, float("-inf"))
    order = torch.sort(free, descending=True, stable=True).indices[: len(scores) - must]
    chosen = order[:count] if words is None else _whole_words(order, count, words)
    keep = protected.clone()
    keep[chosen] = True
    return keep.nonzero(as_tuple=True)[0]


def _whole_words(order: Tensor, count: int, words: Tensor) -> Tensor:
    """`count` of `order`, whole words: each is taken when it still fits, in order of score.

    When none fits any more, or none that ends within REACH_TOKENS of the cut, the first that did not is torn and fills
    the rest: the count is exact. What is near the cut is read from the device at once.
    """
    if count in (0, len(order)):
        return order[:count]
    numbers = words[order[: count + REACH_TOKENS + 1]]
    before = (numbers[:count] == numbers[count]).sum()  # a word's tokens are neighbours in `order`
    torn, *behind = torch.cat([before[None], numbers[count:]]).tolist()
    if torn == 0:
        return order[:count]
    begin, (fillers, room) = count - torn, _fill(behind, torn)
    filled = [order[count + first : count + last] for first, last in fillers]
    return torch.cat([order[:begin], *filled, order[begin : begin + room]])


def _fill(behind: Sequence[int], room: int) -> tuple[list[tuple[int, int]], int]:
    """The ranges of the words that fit into `room` tokens, taken one after the other, and the room that is left.

    `behind` are the numbers of the words of what follows the cut, which falls into the first.
    """
    chosen: list[tuple[int, int]] = []
    first = 0
    for _, run in groupby(behind):
        last = first + sum(1 for _ in run)
        if first > 0 and last <= REACH_TOKENS and last - first <= room:
            chosen.append((first, last))
            room -= last - first
        first = last
    return chosen, room


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
    their counts by their scores.
    """
    ranked = _ranked(scores, held, words)
    if floor < 1:
        counts = share_heads(ranked, counts, protected=protected, floor=floor)
    places = [positions.long() for positions in held]
    musts = torch.stack([protected[at].sum() for at in places]).tolist()
    chosen = []
    for row, at, count, must in zip(ranked, places, counts, musts, strict=True):
        numbers = None if words is None else words[at]
        chosen.append(_select_head(row[at], max(0, count - must), must, protected[at], numbers))
    return chosen


def _ranked(scores: Tensor, held: Sequence[Tensor], words: Tensor | None) -> Tensor:
    """Scores [G, S] of what each head holds, where words are given those of its words; -inf for what it does not."""
    ranked = torch.full_like(scores, float("-inf"))
    for row, own, positions in zip(ranked, scores, held, strict=True):
        at = positions.long()
        row[at] = own[at] if words is None else share_by_word(own[at][None], words[at])[0]
    return ranked
