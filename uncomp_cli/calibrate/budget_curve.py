"""Quality against budget: what a preset's budgets lose on held-out samples, as points that --max-loss can go by.

Every sample is read once; all budgets, and the full cache, are then judged as rows of one batch by the NLL of the right
answer, with the question seen (as `uncomp ask` does). With d the difference to the full cache on the same sample:

    loss = 1 - exp(-mean of d)        the bounds of the mean's 95 % interval likewise: the transform is increasing

Each task weighs the same. The preset's floor is left out: it can only keep more than was measured. The samples are
held out of the calibration (tasks/maker.py).
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.loss_curve import QualityPoint, quality_table
from uncomp_cli.budget.presets import Preset
from uncomp_cli.calibrate.calibration import measurable_sample
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.answers import teacher_forced
from uncomp_cli.evals.judges.case import read_case
from uncomp_cli.evals.judges.contestants import FULL, Setting, make_settings
from uncomp_cli.evals.judges.evaluation import results_settings
from uncomp_cli.evals.judges.forced_rows import in_batches
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.statistics import paired_difference
from uncomp_cli.evals.tables.summary import SampleKey, key_of
from uncomp_cli.evals.tasks.maker import SampleMaker
from uncomp_cli.evals.tasks.task import Regime, Sample
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.steps import Progress, resume
from uncomp_cli.table import Table

_REGIME: Regime = "aware"
_LOSS = (
    "loss: share of the likelihood of an answer's token that is lost against the full cache, on samples that were "
    "not calibrated on; --max-loss takes the smallest budget whose interval ends at or below it"
)


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """The points of the budgets that were measured, and the reason for each budget that is too small for a sample."""

    points: tuple[QualityPoint, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """The points, and what they say."""
        return quality_table(self.points, [_LOSS])

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "quality": [asdict(point) for point in self.points],
            "quality_refused": [{"budget": budget, "reason": reason} for budget, reason in self.refused.items()],
        }


def quality_settings(preset: Preset, budgets: Sequence[Budget | str]) -> tuple[Setting, ...]:
    """The full cache, and a preset that was saved at every budget; labelled with a digest of preset and profile.

    Raises UsageError for a budget that is none, and for `auto`.
    """
    source = preset.name if preset.folder is None else str(Path(preset.folder) / f"{preset.name}.json")
    return tuple(make_settings([f"preset:{source}"], budgets, seed=preset.scorer.seed))


def quality_file_settings(maker: SampleMaker, loaded: LoadedModel) -> dict[str, object]:
    """What all lines of a file of outcomes share; the preset is in their settings' labels."""
    return {**results_settings(loaded, maker.haystack, seed=maker.seed), "measured": "quality of a preset"}


def measure_quality(
    loaded: LoadedModel,
    preset: Preset,
    samples: Sequence[Sample],
    budgets: Sequence[Budget | str],
    *,
    results: Journal[Outcome],
) -> Generator[Progress, None, QualityCurve]:
    """Judge what `results` lacks, a sample at a time; yields before each and once at the end, returns the curve.

    Raises UsageError for an answer of one token, which no eviction changes, DoesNotFitError for a sample that is
    longer than the model's context.
    """
    settings = quality_settings(preset, budgets)
    for sample in samples:
        measurable_sample(loaded, sample)
    decoder = Decoder(loaded.model, loaded.spec)
    todo = [(sample, missing) for sample in samples if (missing := _missing(sample, settings, results))]
    yield from resume(
        todo,
        lambda work: _judge(decoder, loaded.tokenizer, *work),
        results.append,
        label=lambda work: f"quality, {work[0].subtask}, {work[0].tokens:,} tokens",
        done="quality done",
    )
    wanted = {(sample.subtask, sample.tokens, sample.index) for sample in samples}
    return quality_curve([outcome for outcome in results.records if key_of(outcome) in wanted], settings)


def quality_curve(outcomes: Sequence[Outcome], settings: Sequence[Setting]) -> QualityCurve:
    """The points of `settings` but the full cache, which they are compared with on the same samples.

    A budget that was refused for one sample has no point: its mean would be over easier samples than the others'.
    """
    full = {key_of(outcome): outcome.metrics["nll"] for outcome in outcomes if outcome.setting == FULL}
    points: list[QualityPoint] = []
    refused: dict[str, str] = {}
    for setting in (setting for setting in settings if setting.label != FULL):
        group = [outcome for outcome in outcomes if outcome.setting == setting.label]
        reason = next((outcome.refused for outcome in group if outcome.refused is not None), None)
        if reason is None:
            points.append(_point(setting.budget, group, full))
        else:
            refused[setting.budget] = reason
    return QualityCurve(tuple(points), refused)


def likelihood_lost(nll_rise: float) -> float:
    """Share of the likelihood of a token that is lost when its NLL rises by so many nats: 1 - exp(-rise)."""
    return -math.expm1(-nll_rise)


def _point(budget: str, outcomes: Sequence[Outcome], full: Mapping[SampleKey, float]) -> QualityPoint:
    scores = {key_of(outcome): outcome.metrics["nll"] for outcome in outcomes}
    counts = [sum(key[0] == subtask for key in scores) for subtask in {key[0] for key in scores}]
    # A task of one sample would add no width: then all samples are one stratum, and the tasks' differences count too.
    stratum = (lambda key: key[0]) if min(counts) > 1 else None
    rise = paired_difference(scores, full, stratum=stratum)
    return QualityPoint(
        budget=budget,
        kept_fraction=fmean(outcome.kept_fraction for outcome in outcomes),
        loss=likelihood_lost(rise.mean),
        loss_low=likelihood_lost(rise.low),
        loss_high=likelihood_lost(rise.high),
        samples=rise.count,
    )


def _missing(sample: Sample, settings: Sequence[Setting], results: Journal[Outcome]) -> list[Setting]:
    key = (sample.subtask, sample.tokens, sample.index, _REGIME)
    return [setting for setting in settings if (*key, setting.label) not in results.done]


@torch.no_grad()
def _judge(decoder: Decoder, tokenizer: Any, sample: Sample, settings: Sequence[Setting]) -> list[Outcome]:
    """The NLL of the answer under every setting, and the settings that are refused."""
    case = read_case(decoder, tokenizer, sample)
    (reference,) = case.answers
    compressed, outcomes = case.compress(settings, _REGIME)
    for batch in in_batches([one.cache for one in compressed], decoder.spec, tokens=len(reference)):
        chosen = [compressed[i] for i in batch]
        rows, logits = case.begin(chosen, _REGIME, 0, room=len(reference))
        losses, _ = teacher_forced(rows, logits, reference)
        outcomes += [one.judged({"nll": loss}) for one, loss in zip(chosen, losses, strict=True)]
    return outcomes
