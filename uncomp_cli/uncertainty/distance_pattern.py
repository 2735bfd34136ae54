"""Distance patterns: how attention falls off with relative distance, and how far two such patterns are apart.

    pattern[b] = mean over rows i of sum over tokens s with edge[b] <= i - s < edge[b + 1] of a_is       sums to 1
    JS(p, q)   = (KL(p | m) + KL(q | m)) / 2,  m = (p + q) / 2             in nats, from 0 to ln 2

An extension that keeps the pattern of the trained length extrapolates better (arXiv 2406.13282, where divergences are
compared at one length). Distances are counted in logarithmic bins, a fixed number to the doubling: near ones one by
one, far ones together, so that patterns of different lengths can be compared. What lies beyond the shorter one's
reach has bins of its own. Sinks stand at the far end whatever a head looks for: leave them out.
"""

import math

import torch
from torch import Tensor

from uncomp_cli.uncertainty.mass import check_attention

_PER_DOUBLING = 2


def distance_edges(longest: int) -> Tensor:
    """Ascending int64 edges [E]: 0, 1, 2, … and then two to a doubling; the last is above `longest`.

    The edges of a shorter reach begin those of a longer one, but for the last.
    """
    steps = math.ceil(_PER_DOUBLING * math.log2(longest + 1)) + 1
    edges = {round(2 ** (step / _PER_DOUBLING)) for step in range(steps)}
    return torch.tensor(sorted({0, longest + 1, *(edge for edge in edges if edge <= longest)}))


def distance_pattern(rows: Tensor, distances: Tensor, edges: Tensor) -> Tensor:
    """The share [..., E - 1] of attention in each bin of distance: rows [..., S] at `distances` [S] or [..., S] >= 0.

    A pattern sums to 1 (0 for a row without weight). Average patterns of rows, not rows: each row has distances of its
    own. Raises ValueError for distances outside of the edges, ModelError for rows that are not finite.
    """
    if distances.numel() and not (edges[0] <= distances.min() and distances.max() < edges[-1]):
        reach = f"{int(distances.min())} to {int(distances.max())}"
        raise ValueError(f"distances {reach} lie outside of the edges {int(edges[0])} to {int(edges[-1])}")
    check_attention(rows)
    weights = rows.to(torch.promote_types(rows.dtype, torch.float32))
    bins = torch.bucketize(distances, edges.to(distances.device), right=True) - 1
    pattern = weights.new_zeros(*rows.shape[:-1], len(edges) - 1)
    pattern.scatter_add_(-1, bins.expand(weights.shape).contiguous(), weights)
    return pattern / pattern.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)


def js_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence [...] in nats of distributions [..., X], each made to sum to 1; 0 to ln 2.

    A distribution without weight is nobody's: NaN. Raises ValueError for negative weights.
    """
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(f"distributions over {first.shape[-1]} and {second.shape[-1]} bins are compared")
    if (first < 0).any() or (second < 0).any():
        raise ValueError("weights of a distribution are below 0")
    p, q = (one.double() / one.double().sum(dim=-1, keepdim=True) for one in (first, second))
    middle = (p + q) / 2
    divergence: Tensor = torch.special.entr(middle) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return divergence.sum(dim=-1).clamp_min(0.0)
