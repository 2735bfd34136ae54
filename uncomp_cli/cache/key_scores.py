"""A scorer that looks at keys alone: what is unlike the rest is worth keeping."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from uncomp_cli.cache.layer_view import LayerView
from uncomp_cli.config import ScorerConfig

__all__ = ["KeyDiffScorer"]


@dataclass(frozen=True, slots=True)
class KeyDiffScorer:
    """Minus the cosine between a key and its head's anchor, the mean of the unit keys (KeyDiff, arXiv 2504.15364).

    score(s) = -cos(k_s, mean_t k_t / |k_t|), over the whole context at once, not block by block. A zero key scores 0.
    """

    name: ClassVar[str] = "keydiff"
    query_aware: ClassVar[bool] = False
    published: ClassVar[ScorerConfig] = ScorerConfig("keydiff", window=1, pooling="none", width=1, whole_words=False)
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [-1, 1]."""
        unit = functional.normalize(view.keys.float(), dim=-1)
        anchor = functional.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
        return -(unit * anchor).sum(dim=-1)
