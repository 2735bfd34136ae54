"""Heads of one layer share what it may keep: more for a head whose tokens score high (AdaKV, arXiv 2407.11550).

Algorithm 1: the best of all heads' tokens are chosen together, and a head is due as many as it has among them.
Safeguard: a part `floor` of the layer's budget stays where the plan put it. With free_g the plan's unprotected tokens
of head g and won_g its tokens among the best sum(free) of the layer,

    share_g = floor · free_g + (1 - floor) · won_g,    rounded so that the layer's sum is exact.

Scores must be comparable between heads, as attention is; protected tokens stay in every head and do not compete.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.budget.plan import apportion

__all__ = ["share_heads"]


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
