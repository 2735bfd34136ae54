"""Softmax: how an attention layer makes weights of its scores, wherever it is computed; a `Form` says it.

    s_j = q·k_j scaling                        capped: c tanh(s_j / c) (Gemma 2)
    w_j = e^(s_j) / (e^z + Σ_i e^(s_i))        z: the head's sink, a logit that was learnt (gpt-oss)

A sink takes a part of the weight and gives nothing for it; without one e^z is 0.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """Scores become weights over `window` keys at most (None: all of them).

    `softcap` is c, `sinks` are z of each query head [H]; without them scores are as they are. Of many tokens the
    products may be `narrow`: bfloat16.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    narrow: bool = False
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a softmax of scores as they are, which fused kernels know."""
        return self.softcap is None and self.sinks is None

    def of(self, heads: slice) -> "Form":
        """That of some query heads of several rows, which are counted on from row to row."""
        if self.sinks is None:
            return self
        return replace(self, sinks=self.sinks[torch.arange(heads.start, heads.stop) % len(self.sinks)])

    def weights(self, scores: Tensor, unseen: Tensor | None = None) -> Tensor:
        """Weights of scaled scores [..., N, S] in float32, none where it is `unseen`; what leads are query heads."""
        scores = self.capped(scores)
        if unseen is not None:
            scores = scores.masked_fill(unseen, float("-inf"))
        if self.sinks is None:
            return scores.softmax(dim=-1, dtype=torch.float32)
        lead, rows = scores.shape[:-2], scores.shape[:-1]
        sinks = self.sinks.to(scores).repeat(lead.numel() // len(self.sinks)).view(*lead, 1, 1).expand(*rows, 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]

    def capped(self, scores: Tensor) -> Tensor:
        """Scaled scores, as softmax takes them."""
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()
