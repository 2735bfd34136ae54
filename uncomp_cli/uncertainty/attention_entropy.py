"""Attention entropy: how widely a head looks (attention uncertainty, arXiv 2406.13282).

H = -sum_s p_s ln p_s over the attention row of a generated or observed token. It grows with the length of the row, so
that lengths compare only after division by ln n. A flag for risk, not a probability of error (risk.py).

Of scores z before the softmax, with log p = z - ln sum exp z, the same in fewer passes: H = -sum_s e^(log p_s) log p_s.
"""

import math

import torch
from torch import Tensor

from uncomp_cli.uncertainty.attention_mass import attended

__all__ = ["attention_entropy", "score_entropy"]


def attention_entropy(rows: Tensor, *, exclude: Tensor | None = None, normalise: bool = False) -> Tensor:
    """Entropy [...] in nats of the attention rows [..., S], each made to sum to 1 after the exclusion.

    Tokens where `exclude` (bool [S]) is true, such as sinks, are left out. With `normalise` it is divided by ln n, n
    being the tokens not excluded, whether or not a row can see them: cut rows to what they see. A row without weight,
    or with one token, has entropy 0. float32, or float64 for float64 rows; raises ModelError when not finite.
    """
    weights = attended(rows, exclude).to(torch.promote_types(rows.dtype, torch.float32))
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    if not normalise:
        return entropy
    tokens = rows.shape[-1] - (0 if exclude is None else int(exclude.sum()))
    return entropy / math.log(max(tokens, 2))


def score_entropy(scores: Tensor) -> Tensor:
    """Entropy [...] in nats of the attention that scores [..., S] become by a softmax; what is not seen is far below.

    Unseen tokens have a very low, finite score. Cut sinks away beforehand: the rest then sums to 1. 0 for S of 0 or 1.
    """
    logs = scores.log_softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    entropy: Tensor = -(logs.exp() * logs).sum(dim=-1)
    return entropy
