"""A scorer that guesses the questions to come: attention expected from queries like those of the context.

Queries before RoPE are taken as Gaussian, q ~ N(mu, Sigma) for every query head. At a coming position p the model would
compare R_p q with the cached keys, so with R the mean of R_p over the next positions

    E[exp(s k·Rq)] = exp(s k·R mu + s²/2 · k·R Sigma Rᵀ k),    s the scaling (1/sqrt(D))

(expected attention, arXiv 2510.00636, section 3). R is applied to the keys, from the other side: k·Rq = (Rᵀk)·q. What
YaRN multiplies queries by stays in them, as in those to come.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import ModelError

__all__ = ["FUTURE_TOKENS", "ExpectedScorer", "turn"]

FUTURE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ExpectedScorer:
    """Expected attention over the context, averaged over a KV head's query heads, times the value's norm.

    Sinks have no part in it, neither their queries in mu and Sigma nor their keys in the softmax: they score 0, and
    protection keeps them. Raises ModelError when the view has no RoPE frequencies.
    """

    name: ClassVar[str] = "expected"
    query_aware: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = True
    shared: ClassVar[float] = 0.0
    published: ClassVar[ScorerConfig] = ScorerConfig("expected", window=1, pooling="none", width=1, whole_words=False)
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]."""
        if view.frequencies is None:
            raise ModelError(
                "scorer expected needs a model whose layers all turn queries and keys by the same RoPE frequencies",
                hint="use --scorer keydiff or --scorer window",
            )
        num_kv_heads, context_len, _ = view.keys.shape
        sinks = self.config.sinks
        frequencies = view.frequencies.to(view.keys.device)
        positions = torch.arange(context_len) if view.positions is None else view.positions
        positions = positions.to(view.keys.device)
        back = _angles(positions, frequencies)
        ahead = _angles(positions[-1] + 1 + torch.arange(FUTURE_TOKENS, device=positions.device), frequencies)
        scores = torch.zeros(num_kv_heads, context_len, device=view.keys.device)
        for group, queries in enumerate(view.queries.reshape(num_kv_heads, -1, *view.queries.shape[1:])):
            before_rope = turn(queries.float(), back[0], -back[1])[:, sinks:]
            keys = turn(view.keys[group, sinks:].float(), ahead[0].mean(dim=0), -ahead[1].mean(dim=0))
            attention = _log_expected(before_rope, keys, view.scaling).softmax(dim=-1).mean(dim=0)
            scores[group, sinks:] = attention * view.values[group, sinks:].float().norm(dim=-1)
        return scores


def _angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, R] of RoPE at positions [N], in float32."""
    radians = positions[:, None] * frequencies.float()
    return radians.cos(), radians.sin()


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: states [..., D] with each pair (i, i + R) turned by cos, sin [..., R]; sin negated turns back."""
    pairs = cos.shape[-1]
    first, second, still = states[..., :pairs], states[..., pairs : 2 * pairs], states[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, still], dim=-1)


def _log_expected(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """s k·mu + s²/2 · k Sigma k of query heads [H/G, S, D] before RoPE for keys [S, D]: [H/G, S]."""
    mean = queries.mean(dim=1, keepdim=True)
    centred = queries - mean
    covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
    spread = ((keys @ covariance) * keys).sum(dim=-1)
    return scaling * (mean @ keys.T)[:, 0] + scaling**2 / 2 * spread
