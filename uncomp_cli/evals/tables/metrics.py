"""What the metrics of outcomes are: in which order they are shown, which are shares, which only right or wrong."""

__all__ = ["ORDER", "RIGHT_OR_WRONG", "SHARES"]

ORDER = (
    "exact",
    "match",
    "match_first",
    "match_last",
    "top_1",
    "top_3",
    "nll",
    "coverage",
    "kl",
    "kl_p99",
    "agreement",
    "divergence",
)
"""Answers first, then likelihood, then distances; others follow by name."""

RIGHT_OR_WRONG = frozenset({"exact", "match", "match_first", "match_last", "top_1", "top_3", "within"})
"""Of one query these are 0 or 1, so that their intervals are those of a proportion."""

SHARES = RIGHT_OR_WRONG | {"coverage", "agreement", "divergence", "reread"}
"""Shown in per cent."""
