"""From outcomes to a table: what each setting scores, how far that is from the full cache, and what does not count.

    overall = mean over subtasks of the subtask's mean        difference = the same mean of (setting − full), by sample

Regimes are never mixed: everything here is of one. Averages are over all samples; `of_right` is a setting's share of
those that the full cache itself gets right, which says more of compression and less of the model, and never stands
alone: what the full cache fails, a setting may well find. Subtasks of which the full cache finds less than half are
named. A setting that was refused on a sample has no average, which would be one of the easier samples.

The data of the pictures, without their look, is made of the same outcomes: quality against kept bytes, needles by depth
and length, evidence kept by layer and head. ui/plots.py draws them, the JSON report carries them. Heat maps leave out
the fields that the full cache fails, one length at one depth; its own heat map shows those scores.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from operator import itemgetter
from statistics import fmean
from typing import Any

import numpy as np

from uncomp_cli.errors import require
from uncomp_cli.evals.judges.contestants import FULL
from uncomp_cli.evals.tables.outcome import ORDER, RIGHT_OR_WRONG, Outcome
from uncomp_cli.evals.tables.statistics import Interval, paired_difference, stratified_mean, wilson
from uncomp_cli.evals.tasks.task import Regime

FULL_FAILS_BELOW = 0.5
"""The full cache gets right what it finds at least this much of."""

OF_RIGHT = "of_right"


SampleKey = tuple[str, int, int]
"""What settings are paired by: subtask, tokens, index."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one setting; `difference` is the setting minus full by sample, None where full was not run."""

    mean: Interval
    difference: Interval | None


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept fraction that was reached, over samples."""

    mean: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Row:
    """One setting on one subtask, or with `subtask` None over all that count.

    Where `refused` of the `samples` were refused there are no figures, and `reason` is the first refusal's.
    """

    setting: str
    contestant: str
    budget: str
    subtask: str | None
    samples: int
    kept: Kept | None
    figures: dict[str, Figure]
    refused: int = 0
    reason: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether this is the full cache, whose difference to itself says nothing."""
        return self.contestant == FULL


@dataclass(frozen=True, slots=True)
class FailedSubtask:
    """A subtask in which the full cache's mean match is low."""

    subtask: str
    full_match: float
    samples: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One regime's table. Rows come as the outcomes did: full first, a contestant's budgets from the largest."""

    regime: Regime
    metrics: tuple[str, ...]
    overall: tuple[Row, ...]
    by_subtask: tuple[Row, ...]
    failed: tuple[FailedSubtask, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a figure that is no finite number is None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def summarise(outcomes: Iterable[Outcome], *, regime: Regime) -> Summary:
    """The summary of `regime`."""
    ours = _with_right([outcome for outcome in outcomes if outcome.regime == regime])
    names = metric_names(ours)
    return Summary(
        regime=regime,
        metrics=names,
        overall=tuple(_rows(ours, settings_of(ours), names, subtask=None)),
        by_subtask=tuple(_subtask_rows(ours, names)),
        failed=tuple(_failed_subtasks(ours)),
    )


def _with_right(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, with `of_right` where the full cache is right; as they are where it is right everywhere."""
    found = {
        key_of(one): score >= FULL_FAILS_BELOW for one in outcomes if one.contestant == FULL for score in _right(one)
    }
    if all(found.values()):
        return [*outcomes]
    return [_marked(one) if found.get(key_of(one)) else one for one in outcomes]


def _marked(outcome: Outcome) -> Outcome:
    scores = _right(outcome)
    return replace(outcome, metrics={**outcome.metrics, OF_RIGHT: scores[0]}) if scores else outcome


def _right(outcome: Outcome) -> list[float]:
    """How right an answer is, nothing where no answer was judged: of choices which is likeliest, else what it holds."""
    return [outcome.metrics[name] for name in ("choice", "match") if name in outcome.metrics][:1]


def key_of(outcome: Outcome) -> SampleKey:
    """By what the outcomes of two settings are paired."""
    return (outcome.subtask, outcome.tokens, outcome.index)


def settings_of(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by setting: full first, then contestants as they appear, the budgets of each from the most kept."""
    groups = _grouped(outcomes, lambda outcome: outcome.setting)
    contestants = list(dict.fromkeys([FULL, *(group[0].contestant for group in groups.values())]))

    def place(group: Sequence[Outcome]) -> tuple[int, float]:
        kept = _kept(group)
        return contestants.index(group[0].contestant), -kept.mean if kept else 0.0

    return {group[0].setting: group for group in sorted(groups.values(), key=place)}


def metric_names(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """The metrics that were measured: answers first, then likelihood, then distances; the rest by name."""
    found = {name for outcome in outcomes for name in outcome.metrics}
    return (*(name for name in ORDER if name in found), *sorted(found.difference(ORDER)))


def mean_over_subtasks(outcomes: Iterable[Outcome], metric: str) -> Interval | None:
    """The mean of the subtasks' means, with its interval; None when no outcome has the metric.

    The interval of one subtask's zeros and ones is Wilson's: a bootstrap would call ten right of ten certain.
    """
    measured = (outcome for outcome in outcomes if metric in outcome.metrics)
    strata = [[o.metrics[metric] for o in group] for group in _grouped(measured, _subtask).values()]
    if not strata:
        return None
    if len(strata) == 1 and len(strata[0]) > 1 and all(value in (0, 1) for value in strata[0]):
        return wilson(round(sum(strata[0])), len(strata[0]))
    return stratified_mean(strata, binary=metric in RIGHT_OR_WRONG)


def _subtask_rows(ours: Sequence[Outcome], metrics: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for subtask, outcomes in _grouped(ours, _subtask).items():
        rows += _rows(outcomes, settings_of(outcomes), metrics, subtask=subtask)
    return rows


def _rows(
    outcomes: Sequence[Outcome],
    settings: Mapping[str, Sequence[Outcome]],
    metrics: Sequence[str],
    *,
    subtask: str | None,
) -> list[Row]:
    groups = _grouped(outcomes, lambda outcome: outcome.setting)
    full = [outcome for outcome in outcomes if outcome.contestant == FULL]
    return [_row(group[0], groups.get(setting, []), full, metrics, subtask) for setting, group in settings.items()]


def _row(
    named: Outcome, outcomes: Sequence[Outcome], full: Sequence[Outcome], metrics: Sequence[str], subtask: str | None
) -> Row:
    reasons = [outcome.refused for outcome in outcomes if outcome.refused is not None]
    figures = {} if reasons else {metric: _figure(outcomes, full, metric) for metric in metrics}
    return Row(
        setting=named.setting,
        contestant=named.contestant,
        budget=named.budget,
        subtask=subtask,
        samples=len(outcomes),
        kept=_kept(outcomes),
        figures={metric: figure for metric, figure in figures.items() if figure is not None},
        refused=len(reasons),
        reason=reasons[0] if reasons else None,
    )


def _figure(outcomes: Sequence[Outcome], full: Sequence[Outcome], metric: str) -> Figure | None:
    mean = mean_over_subtasks(outcomes, metric)
    if mean is None:
        return None
    ours, theirs = _scores(outcomes, metric), _scores(full, metric)
    if ours.keys().isdisjoint(theirs):
        return Figure(mean, None)
    return Figure(mean, paired_difference(ours, theirs, stratum=itemgetter(0), binary=metric in RIGHT_OR_WRONG))


def _failed_subtasks(outcomes: Iterable[Outcome]) -> list[FailedSubtask]:
    judged = _grouped((one for one in outcomes if one.contestant == FULL and _right(one)), _subtask)
    means = {subtask: fmean(_right(one)[0] for one in group) for subtask, group in judged.items()}
    return [FailedSubtask(name, mean, len(judged[name])) for name, mean in means.items() if mean < FULL_FAILS_BELOW]


def _kept(outcomes: Iterable[Outcome]) -> Kept | None:
    fractions = [outcome.kept_fraction for outcome in outcomes if outcome.refused is None]
    return Kept(fmean(fractions), min(fractions), max(fractions)) if fractions else None


def _scores(outcomes: Iterable[Outcome], metric: str) -> dict[SampleKey, float]:
    return {key_of(o): o.metrics[metric] for o in outcomes if metric in o.metrics}


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], Hashable]) -> dict[Any, list[Outcome]]:
    groups: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups


def _subtask(outcome: Outcome) -> str:
    return outcome.subtask


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


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
    for group in settings_of(outcome for outcome in outcomes if outcome.regime == regime).values():
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
        if outcome.depth is None or metric not in outcome.metrics:
            continue
        if (outcome.tokens, outcome.depth) not in left_out:
            kinds = values.setdefault((outcome.tokens, outcome.depth), {})
            kinds.setdefault(outcome.subtask, []).append(outcome.metrics[metric])
    return {field: fmean(map(fmean, kinds.values())) for field, kinds in values.items()}


def _mean_map(followed: Sequence[Outcome]) -> tuple[tuple[float, ...], ...]:
    maps = [outcome.coverage_by_head for outcome in followed if outcome.coverage_by_head is not None]
    shapes = {tuple(map(len, one)) for one in maps}
    same = len(shapes) == 1 and len({heads for shape in shapes for heads in shape}) <= 1
    message = f"the coverage by head of {followed[0].setting} is not of one model's layers and heads"
    require(same, message, hint="take those lines out of the results file, or --fresh")
    mean = np.mean(maps, axis=0)  # [L][G]
    return tuple(tuple(map(float, layer)) for layer in mean)


def _refused(group: Iterable[Outcome]) -> bool:
    return any(outcome.refused is not None for outcome in group)
