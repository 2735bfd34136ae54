"""Layer stages: where the entropy of a decoder's layers falls, a new stage begins (UNComp, arXiv 2410.03090, 3.3).

    layer l starts a stage when E[l] - E[l-1] < -threshold

The published threshold is 1 on sums over heads of values near 2.3; `relative_threshold` is its counterpart for sums of
any size: a tenth of their spread, which is what 1 is of the published sums of 32 layers.
"""

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["PAPER_THRESHOLD", "layer_stages", "relative_threshold", "stage_weights"]

PAPER_THRESHOLD = 1.0
SPREAD_SHARE = 0.1


def layer_stages(sums: Sequence[float], *, threshold: float) -> list[range]:
    """The stages of layers with entropy `sums` [L], in order; together they are range(L)."""
    starts = [layer for layer in range(len(sums)) if layer == 0 or sums[layer] - sums[layer - 1] < -threshold]
    return [range(start, end) for start, end in pairwise([*starts, len(sums)])]


def relative_threshold(sums: Sequence[float]) -> float:
    """SPREAD_SHARE of the distance from the lowest sum to the highest."""
    return SPREAD_SHARE * (max(sums) - min(sums)) if sums else 0.0


def stage_weights(stages: Sequence[range], *, first: float, last: float) -> list[float]:
    """Weights [L] that fall linearly from the first stage to the last, equal within a stage, with mean 1."""
    slope = (last - first) / max(1, len(stages) - 1)
    weights = [first + slope * order for order, stage in enumerate(stages) for _ in stage]
    total = sum(weights)
    return [weight * len(weights) / total for weight in weights]
