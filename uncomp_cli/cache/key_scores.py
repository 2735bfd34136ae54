"""Scorers that look at keys and values alone: what is unlike the rest is worth keeping."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig

__all__ = ["DistinctScorer", "KeyDiffScorer"]


@dataclass(frozen=True, slots=True)
class KeyDiffScorer:
    """Minus the cosine between a key and its head's anchor, the mean of the unit keys (KeyDiff, arXiv 2504.15364).

    score(s) = -cos(k_s, mean_t k_t / |k_t|), over the whole context at once, not block by block. A zero key scores 0.
    """

    name: ClassVar[str] = "keydiff"
    query_aware: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    published: ClassVar[ScorerConfig] = ScorerConfig("keydiff", window=1, pooling="none", width=1, whole_words=False)
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [-1, 1]."""
        unit = functional.normalize(view.keys.float(), dim=-1)
        anchor = functional.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
        return -(unit * anchor).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class DistinctScorer:
    """Distinct keys with large values: both min-max scaled within the head, then summed.

    score(s) = scaled(-cos(k_s, anchor)) + scaled(|v_s|), the anchor as in KeyDiffScorer; for questions nobody has asked
    yet. Our own combination of KeyDiff (arXiv 2504.15364) and the value norms of VATP (arXiv 2406.12335).
    """

    name: ClassVar[str] = "distinct"
    query_aware: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    published: ClassVar[ScorerConfig] = ScorerConfig("distinct", window=1)
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [0, 2]."""
        distinct = KeyDiffScorer(self.config).score(view)
        return _scaled(distinct) + _scaled(view.values.float().norm(dim=-1))


def _scaled(scores: Tensor) -> Tensor:
    """Scores [G, S] between 0 and 1 in every head; a head whose scores are all equal has zeros."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(1e-12)
