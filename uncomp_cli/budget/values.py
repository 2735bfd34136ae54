"""What was measured of a model, as budgets use it: one measure, plain numbers per layer and head.

Values may hold fewer layers than the model has: during a prefill they come in layer by layer. Sliding layers are not
compressed, so their values are never looked at.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from uncomp_cli.errors import ModelError, UncompError, UsageError
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import Measure, parse_measure

# A row whose attention is all in sinks and window has a least budget of 0: it counts as one token.
LEAST_TOKENS = 1.0

_DECIMAL = re.compile(r"[0-9]{0,6}\.[0-9]{1,6}", re.ASCII)

_HINT = "measure again with `uncomp calibrate`, or use --policy uniform, which needs no measurement"

Rows = list[tuple[float, ...] | None]
"""Values per KV head of every layer; None where there are none: sliding layers, and those that did not report yet."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Values of the measure `key` (uncertainty/measures.py): values[l] has H, G or 1 numbers, H query and G KV heads.

    `source` says whether a profile held them or they were measured on the text itself, which makes no others of them.
    Raises ModelError for a value that is not a number, not finite or below 0.
    """

    key: str
    values: tuple[tuple[float, ...], ...]
    source: Literal["profile", "live"] = field(default="profile", compare=False)

    def __post_init__(self) -> None:
        for layer, row in enumerate(self.values):
            for head, value in enumerate(row):
                if not 0 <= value < math.inf:
                    raise ModelError(f"{self.key} of layer {layer}, head {head} is {value}", hint=_HINT)

    def per_kv_head(self, num_kv_heads: int) -> tuple[tuple[float, ...], ...]:
        """[L][G]: the mean over each KV head's query heads; a layer's single value stands for all of its heads."""
        for layer, row in enumerate(self.values):
            if not row or (len(row) > 1 and len(row) % num_kv_heads):
                message = f"{self.key} of layer {layer} has {len(row)} values for {num_kv_heads} KV heads"
                raise ModelError(message, hint=_HINT)
        return tuple(_per_kv_head(row, num_kv_heads) for row in self.values)


def _per_kv_head(row: Sequence[float], num_kv_heads: int) -> tuple[float, ...]:
    if len(row) == 1:
        return (row[0],) * num_kv_heads
    group = len(row) // num_kv_heads
    return tuple(sum(value / group for value in row[head * group :][:group]) for head in range(num_kv_heads))


def kv_rows(uncertainty: Uncertainty | None, spec: ModelSpec, *, measures: Sequence[str]) -> Rows:
    """Values per KV head of the layers that a budget may compress.

    Raises ModelError when they are of a measure that is not asked for, or do not have the model's shape.
    """
    rows: Rows = [None] * spec.num_layers
    if uncertainty is None:
        return rows
    if uncertainty.key not in measures:
        raise ModelError(f"the policy needs {' or '.join(measures)}, the values are {uncertainty.key}", hint=_HINT)
    if len(uncertainty.values) > spec.num_layers:
        message = f"{uncertainty.key} has values of {len(uncertainty.values)} layers, the model has {spec.num_layers}"
        raise ModelError(message, hint=_HINT)
    for layer in spec.full_layers:
        if layer < len(uncertainty.values):
            rows[layer] = _checked_row(uncertainty, layer, spec)
    return rows


def is_complete(uncertainty: Uncertainty, spec: ModelSpec) -> bool:
    """Whether every layer that a budget may compress has values."""
    return len(uncertainty.values) > max(spec.full_layers, default=-1)


def _checked_row(uncertainty: Uncertainty, layer: int, spec: ModelSpec) -> tuple[float, ...]:
    row = uncertainty.values[layer]
    if len(row) not in (1, spec.num_kv_heads, spec.num_heads):
        message = (
            f"{uncertainty.key} of layer {layer} has {len(row)} values, "
            f"the model has {spec.num_heads} query and {spec.num_kv_heads} KV heads"
        )
        raise ModelError(message, hint=_HINT)
    return _per_kv_head(row, spec.num_kv_heads)


def spread_rows(rows: Rows, spec: ModelSpec, *, power: float, least: float) -> list[list[float]]:
    """Weights proportional to max(value, least) ** power, at most 1; layers without values weigh 0.

    A layer's weights depend on its own values, up to the one scale that all share: what it gets can only shrink as
    others report.
    """
    raised = [None if row is None else [max(value, least) for value in row] for row in rows]
    present = [value for row in raised if row is not None for value in row]
    scale = (max(present, default=0.0) if power > 0 else min(present, default=0.0)) or 1.0
    return [
        [0.0] * spec.num_kv_heads
        if row is None
        else [float((value / scale if power > 0 else scale / value) ** abs(power)) for value in row]
        for row in raised
    ]


def entropy_measure(*, state: str, rank: str, renormalise: bool, rope: str) -> Measure:
    """The matrix entropy that a policy's settings name; a rank is 16, 1/4 or 0.25 of the dimension, knee or full."""
    suffixes = "/renormalised" * renormalise + "/prerope" * (rope == "pre")
    return parse_measure(f"entropy/{state}/r{_known_rank(rank)}{suffixes}")


def _known_rank(rank: str) -> str:
    try:  # no exponent: 1.0e999999999 would be written out
        measure = parse_measure(f"entropy/q/r{Fraction(rank) if _DECIMAL.fullmatch(rank) else rank}")
    except (UncompError, ValueError) as error:
        raise UsageError(f"policy rank is '{rank}'", hint="use 16, 1/4, 0.25, knee or full") from error
    if measure.prerope or measure.renormalised:
        raise UsageError(f"policy rank is '{rank}'", hint="use rope=pre or renormalise=true")
    return str(measure.rank)
