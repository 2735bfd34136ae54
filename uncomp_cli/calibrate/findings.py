"""What a profile says: each measure's size and spread, and how stable its order of heads and layers is.

Agreement is the share of pairs that two measurements put in the same order (uncertainty/stability.py): 1 is always, 0.5
chance; first of heads within their layers, then of layers.
"""

from collections.abc import Sequence
from typing import Any

from uncomp_cli.calibrate.sample_pass import LOSS
from uncomp_cli.table import Table
from uncomp_cli.uncertainty.profile import UncertaintyProfile
from uncomp_cli.uncertainty.stability import Agreement, stability

__all__ = ["profile_record", "profile_table"]

_SPREAD = (
    "spread: over samples, of the mean; then the share of pairs in the same order, heads / layers (0.50 is "
    "chance): from text to text, from length to length, and as the last column's measure orders them"
)


def profile_table(profile: UncertaintyProfile) -> Table:
    """A row a measure."""
    reference = LOSS if LOSS in profile.values else next(iter(profile.values))
    columns = ["MEASURE", "MEAN", "SPREAD", "TEXTS", "LENGTHS", f"LIKE {reference}"]
    rows = [
        [row.measure, *_size(profile, row.measure), *map(_shown, (row.texts, row.lengths, row.reference))]
        for row in stability(profile).rows(reference)
    ]
    return Table(columns, rows, notes=[_SPREAD])


def profile_record(profile: UncertaintyProfile) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "parameters": dict(profile.parameters),
        "samples": [
            {"source": sample.source, "sha256": sample.sha256, "tokens": sample.tokens, "task": sample.task}
            for sample in profile.samples
        ],
        "measures": {key: _figures(profile, key) for key in profile.values},
        "stability": stability(profile).to_dict(),
    }


def _figures(profile: UncertaintyProfile, key: str) -> dict[str, Any]:
    """Means over all layers and heads, the largest and least of the mean, and every layer's mean."""
    mean, spread = profile.mean(key).double(), profile.spread(key).double()
    return {
        "mean": mean.mean().item(),
        "spread": spread.mean().item(),
        "least": mean.min().item(),
        "largest": mean.max().item(),
        "layers": mean.mean(dim=1).tolist(),
    }


def _size(profile: UncertaintyProfile, key: str) -> Sequence[str]:
    """The mean over layers and heads, and the mean spread over samples as a share of it."""
    mean, spread = profile.mean(key).mean().item(), profile.spread(key).mean().item()
    return f"{mean:.3g}", f"{spread / mean:.0%}".replace("%", " %") if mean else "–"


def _shown(agreement: Agreement) -> str:
    return " / ".join("–" if share is None else f"{share:.2f}" for share in (agreement.heads, agreement.layers))
