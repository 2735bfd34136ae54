"""The data of the pictures, without their look, and how it is made of outcomes: curves, heat maps, coverage maps.

Quality against kept bytes, needles by depth and length, evidence kept by layer and head: ui/plots.py draws them, the
JSON report carries them. As in the table, regimes are never mixed, and what the full cache fails is left out: from
curves by cell (summary.py); from heat maps by field, one length at one depth. The full cache's own heat map shows those
scores, where they are low.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from uncomp_cli.evals.judges.contestants import FULL
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.summary import FULL_FAILS_BELOW, counted_outcomes, mean_over_subtasks, settings_of
from uncomp_cli.evals.tasks.task import Regime


@dataclass(frozen=True, slots=True)
class NeedleGrid:
    """One setting's needle scores: rows are depths, columns lengths; None where nothing was measured."""

    title: str
    kept_fraction: float
    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean quality at the bytes that were kept, with its 95 % interval."""

    kept_fraction: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One contestant over its budgets, by rising kept fraction; a single point is drawn as a marker alone."""

    label: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class CoverageMap:
    """Share of the evidence that one setting kept, [L][G], 0 to 1."""

    title: str
    kept_fraction: float
    shares: tuple[tuple[float, ...], ...]


_NEEDLE = "needle/"

Field = tuple[int, float]
"""A field of the heat map: tokens, depth."""


def quality_curves(outcomes: Iterable[Outcome], *, regime: Regime, metric: str) -> list[Curve]:
    """One curve a contestant, full first; settings that were refused on a sample or lack the metric have no point."""
    curves: dict[str, list[CurvePoint]] = {}
    for group in settings_of(counted_outcomes(outcomes, regime=regime)).values():
        quality = None if _refused(group) else mean_over_subtasks(group, metric)
        if quality is not None:
            kept = fmean(outcome.kept_fraction for outcome in group if metric in outcome.metrics)
            point = CurvePoint(kept, quality.mean, quality.low, quality.high)
            curves.setdefault(group[0].contestant, []).append(point)
    return [Curve(name, tuple(sorted(points, key=lambda p: p.kept_fraction))) for name, points in curves.items()]


def needle_grids(outcomes: Iterable[Outcome], *, regime: Regime, metric: str = "exact") -> list[NeedleGrid]:
    """One heat map a setting, full first: the mean over kinds of needle of their mean; refused samples are blank.

    Fields that the full cache fails (`unanswered_fields`) are blank in all maps but its own.
    """
    needles = _needles(outcomes, regime)
    unanswered = unanswered_fields(needles, regime=regime)
    measured = [o for o in needles if o.depth is not None and metric in o.metrics and o.refused is None]
    depths = tuple(sorted({o.depth for o in measured if o.depth is not None}))
    lengths = tuple(sorted({o.tokens for o in measured}))
    return [
        NeedleGrid(
            title=setting,
            kept_fraction=fmean(o.kept_fraction for o in group),
            depths=depths,
            lengths=lengths,
            scores=tuple(tuple(scores.get((tokens, depth)) for tokens in lengths) for depth in depths),
        )
        for setting, group in settings_of(measured).items()
        for scores in [_fields(group, metric, () if group[0].contestant == FULL else unanswered)]
    ]


def unanswered_fields(outcomes: Iterable[Outcome], *, regime: Regime) -> frozenset[Field]:
    """The fields of the heat map in which the full cache's own match is too low to judge anything by."""
    full = [o for o in _needles(outcomes, regime) if o.contestant == FULL and "match" in o.metrics]
    return frozenset(field for field, match in _fields(full, "match", ()).items() if match < FULL_FAILS_BELOW)


def coverage_maps(outcomes: Iterable[Outcome], *, regime: Regime) -> list[CoverageMap]:
    """One map a setting: the mean over samples of the share of the evidence kept, by layer and KV head.

    Settings that were refused on a sample, or whose evidence was not followed, have none.
    """
    groups = settings_of(outcome for outcome in outcomes if outcome.regime == regime)
    return [
        CoverageMap(setting, fmean(outcome.kept_fraction for outcome in followed), _mean_map(followed))
        for setting, group in groups.items()
        if not _refused(group) and (followed := [o for o in group if o.coverage_by_head is not None])
    ]


def _needles(outcomes: Iterable[Outcome], regime: Regime) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.regime == regime and outcome.subtask.startswith(_NEEDLE)]


def _fields(outcomes: Iterable[Outcome], metric: str, left_out: Iterable[Field]) -> dict[Field, float]:
    values: dict[Field, dict[str, list[float]]] = {}
    for outcome in outcomes:
        if outcome.depth is not None and (outcome.tokens, outcome.depth) not in left_out:
            kinds = values.setdefault((outcome.tokens, outcome.depth), {})
            kinds.setdefault(outcome.subtask, []).append(outcome.metrics[metric])
    return {field: fmean(map(fmean, kinds.values())) for field, kinds in values.items()}


def _mean_map(followed: Sequence[Outcome]) -> tuple[tuple[float, ...], ...]:
    maps = [outcome.coverage_by_head for outcome in followed if outcome.coverage_by_head is not None]
    mean = np.mean(maps, axis=0)  # [L][G]
    return tuple(tuple(map(float, layer)) for layer in mean)


def _refused(group: Iterable[Outcome]) -> bool:
    return any(outcome.refused is not None for outcome in group)
