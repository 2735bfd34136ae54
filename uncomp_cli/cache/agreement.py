"""What the heads of all layers agree on: the few heads that find things tell the others what to keep.

    agreed(s)  = Σ_lg trust_lg · score_lg(s) / Σ_lg trust_lg        a weighted mean, when it is known whom to trust
               = max_lg score_lg(s)                                 otherwise
    final_lg   = (1 - shared) · score_lg + shared · agreed

Scores must be comparable between heads: attention without the sinks, every row normalised (window_scores.py). A sum
without trust would wash the few retrieval heads out; the maximum keeps them. Trust is the square of the weights that a
policy gives the heads (calibrated or measured live), so that the floor of many heads does not outweigh a few.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["agree", "mix"]


def agree(scores: Sequence[Tensor], trust: Sequence[Sequence[float]] | None) -> Tensor:
    """The agreed score [S] of layers of scores [G, S]; `trust` has a number of 0 or more for each of them.

    Where nobody is trusted, the maximum.
    """
    stacked = torch.stack(list(scores))
    weights = None if trust is None else torch.tensor(trust, dtype=stacked.dtype, device=stacked.device)
    if weights is None or not float(weights.sum()) > 0:
        return stacked.amax(dim=(0, 1))
    return torch.einsum("lg,lgs->s", weights / weights.sum(), stacked)


def mix(own: Tensor, agreed: Tensor, *, shared: float) -> Tensor:
    """Scores [G, S] of which the part `shared` is agreed [S]."""
    return (1 - shared) * own + shared * agreed
