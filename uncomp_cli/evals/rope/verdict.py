"""What the cells of `uncomp rope` come to: a row an arm and length, one an arm's text, correlations, a recommendation.

    found        share of needles in the greedy answer, with Wilson's interval
    entropy      attention entropy of the answer's tokens / ln n, over all heads and over the retrieval heads
    divergence   mean over heads of the Jensen-Shannon divergence, in nats, of attention by relative distance from that
                 of the model as trained, at its trained length (arXiv 2406.13282)

Recommended is the arm that finds most needles at the longest length, of equals the one with the least NLL.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.rope.arms import PLAIN
from uncomp_cli.evals.rope.cells import NeedleCell, RopeCell, TextCell
from uncomp_cli.evals.tables.statistics import Interval, RankCorrelation, rank_correlation, wilson
from uncomp_cli.numerals import format_bytes, format_count, format_seconds
from uncomp_cli.table import Table
from uncomp_cli.uncertainty.distance_pattern import js_divergence

SCHEMA_VERSION = 1

ALL_ARMS = "all"
_NEEDLES = ("ROPE", "TOKENS", "FOUND", "95 %", "NLL", "ENTROPY", "RETRIEVAL", "DIVERGENCE", "KEPT", "KV", "TIME")
_TEXTS = ("ROPE", "TOKENS", "NLL INSIDE", "NLL PAST", "DIVERGENCE INSIDE", "DIVERGENCE PAST")
_CORRELATIONS = ("CELLS OF", "ENTROPY OF", "WITH", "RHO", "95 %", "CELLS")
_HEADS = {"entropy": "all heads", "retrieval_entropy": "retrieval heads"}
_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class NeedleRow:
    """One arm's needles at one length: means over its cells."""

    arm: str
    tokens: int
    found: Interval
    nll: float
    entropy: float
    retrieval_entropy: float | None
    divergence: float | None
    kept_fraction: float
    kv_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TextRow:
    """One arm's text: NLL inside and past the trained length, divergence at the trained and at the longest length.

    None where the text is too short for it.
    """

    arm: str
    tokens: int
    nll_inside: float | None
    nll_past: float | None
    divergence_inside: float | None
    divergence_past: float | None
    losses: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Rank correlation of an entropy (`entropy`, `retrieval_entropy`) with `nll` or `missed`, over an arm's cells."""

    arm: str
    signal: str
    outcome: str
    ranks: RankCorrelation


@dataclass(frozen=True, slots=True)
class RopeSummary:
    """All that tables, JSON and pictures show. `best` is None when no needle was found; `reason` says so."""

    trained_length: int
    needles: tuple[NeedleRow, ...]
    texts: tuple[TextRow, ...]
    correlations: tuple[Correlation, ...]
    best: NeedleRow | None
    reason: str | None


def summarise_rope(cells: Sequence[RopeCell], *, trained_length: int) -> RopeSummary:
    """The summary of cells, arms in the order in which they were first measured."""
    needles = [cell for cell in cells if isinstance(cell, NeedleCell)]
    texts = [cell for cell in cells if isinstance(cell, TextCell)]
    apart = _Divergence(texts, trained_length)
    rows = tuple(_needle_rows(needles, apart))
    best = _best(rows)
    found = best is not None and best.found.mean > 0
    return RopeSummary(
        trained_length,
        rows,
        tuple(_text_row(cell, trained_length, apart) for cell in _longest_texts(texts)),
        tuple(_correlations(needles)),
        best if found else None,
        None if best is None else _reason(best, rows) if found else _none_found(best),
    )


class _Divergence:
    """How far arms are from the model as trained at its trained length, by the patterns of their texts."""

    def __init__(self, texts: Sequence[TextCell], trained_length: int) -> None:
        self._texts = texts
        self._reference = self._pattern(PLAIN, trained_length)

    def at(self, arm: str, tokens: int) -> float | None:
        """The mean over heads in nats; None where a pattern is missing."""
        pattern = self._pattern(arm, tokens)
        if pattern is None or self._reference is None:
            return None
        try:
            return fmean(
                float(js_divergence(torch.tensor(ours), torch.tensor(theirs)).mean())
                for ours, theirs in zip(pattern, self._reference, strict=True)
                if ours and theirs
            )
        except ValueError as error:
            message = f"the patterns of {arm} at {tokens:,} tokens are not of the model's heads and bins: {error}"
            raise UsageError(message, hint="measure them again: uncomp rope --out FILE") from error

    def _pattern(self, arm: str, tokens: int) -> list[list[list[float]]] | None:
        found = (cell.patterns.get(str(tokens)) for cell in self._texts if cell.arm == arm)
        return next((pattern for pattern in found if pattern is not None), None)


def _needle_rows(needles: Sequence[NeedleCell], apart: _Divergence) -> Iterator[NeedleRow]:
    arms = dict.fromkeys(cell.arm for cell in needles)
    for tokens in sorted({cell.tokens for cell in needles}):
        for arm in arms:
            cells = [cell for cell in needles if cell.arm == arm and cell.tokens == tokens]
            if cells:
                yield _needle_row(cells, apart)


def _needle_row(cells: Sequence[NeedleCell], apart: _Divergence) -> NeedleRow:
    arm, tokens = cells[0].arm, cells[0].tokens
    retrieval = [cell.retrieval_entropy for cell in cells if cell.retrieval_entropy is not None]
    return NeedleRow(
        arm=arm,
        tokens=tokens,
        found=wilson(sum(cell.match == 1 for cell in cells), len(cells)),
        nll=fmean(cell.nll for cell in cells),
        entropy=fmean(cell.entropy for cell in cells),
        retrieval_entropy=fmean(retrieval) if retrieval else None,
        divergence=apart.at(arm, tokens),
        kept_fraction=fmean(cell.kept_fraction for cell in cells),
        kv_bytes=round(fmean(cell.kv_bytes for cell in cells)),
        seconds=fmean(cell.seconds for cell in cells),
    )


def _longest_texts(texts: Sequence[TextCell]) -> list[TextCell]:
    """The longest text of every arm."""
    longest: dict[str, TextCell] = {}
    for cell in texts:
        if cell.arm not in longest or cell.tokens > longest[cell.arm].tokens:
            longest[cell.arm] = cell
    return list(longest.values())


def _text_row(cell: TextCell, trained_length: int, apart: _Divergence) -> TextRow:
    past = cell.tokens > trained_length
    return TextRow(
        arm=cell.arm,
        tokens=cell.tokens,
        nll_inside=_mean(cell, 0, trained_length),
        nll_past=_mean(cell, trained_length, cell.tokens),
        divergence_inside=apart.at(cell.arm, trained_length),
        divergence_past=apart.at(cell.arm, cell.tokens) if past else None,
        losses=[(int(end), float(loss)) for end, loss in cell.losses],
    )


def _mean(cell: TextCell, first: int, last: int) -> float | None:
    """Mean NLL of the bins that end behind `first` and not behind `last`, each by its tokens."""
    before, total, count = 1, 0.0, 0
    for end, loss in cell.losses:
        if before >= first and end <= last + 1:
            total, count = total + loss * (end - before), count + end - before
        before = end
    return total / count if count else None


def _correlations(needles: Sequence[NeedleCell]) -> Iterator[Correlation]:
    """Over all cells, then within each arm, since arms may differ in both figures for reasons of their own."""
    for arm in [ALL_ARMS, *dict.fromkeys(cell.arm for cell in needles)]:
        cells = [cell for cell in needles if arm in (ALL_ARMS, cell.arm)]
        for signal in ("entropy", "retrieval_entropy"):
            known = [cell for cell in cells if getattr(cell, signal) is not None]
            values = [getattr(cell, signal) for cell in known]
            for outcome, scores in (("nll", [c.nll for c in known]), ("missed", [1 - c.match for c in known])):
                ranks = rank_correlation(values, scores)
                if ranks is not None:
                    yield Correlation(arm, signal, outcome, ranks)


def _best(rows: Sequence[NeedleRow]) -> NeedleRow | None:
    """Of the longest length alone: what cannot read it is no candidate."""
    longest = max((row.tokens for row in rows), default=0)
    candidates = [row for row in rows if row.tokens == longest]
    return max(candidates, key=lambda row: (row.found.mean, -row.nll), default=None)


def _reason(best: NeedleRow, rows: Sequence[NeedleRow]) -> str:
    """One sentence: what it finds, against what, and how its attention looks."""
    others = [row for row in rows if row.tokens == best.tokens and row.arm != best.arm]
    second = _best(others)
    plain = next((row for row in others if row.arm == PLAIN), None)
    against = [f"{row.arm} {_found(row)}" for row in dict.fromkeys(filter(None, (second, plain)))]
    seen = [f"attention entropy {best.entropy:.3f}"]
    if best.divergence is not None:
        seen.append(f"divergence {best.divergence:.3f} nats from the pattern of the trained length")
    than = f", where {' and '.join(against)}" if against else ""
    return f"{best.arm} finds {_found(best)} at {best.tokens:,} tokens{than}; its {' and '.join(seen)}."


def _none_found(best: NeedleRow) -> str:
    return f"No kind finds a needle at {best.tokens:,} tokens; the least NLL, {best.nll:.2f}, is that of {best.arm}."


def _found(row: NeedleRow) -> str:
    return f"{round(row.found.mean * row.found.count)} of {row.found.count} needles (NLL {row.nll:.2f})"


def tables_of(summary: RopeSummary) -> Iterator[Table]:
    """Needles, text and correlation, where they were measured."""
    if summary.needles:
        title = "needles by length, means over depths; entropy / ln n of the answer's tokens"
        yield Table(_NEEDLES, [*_needle_cells(summary)], title)
    if summary.texts:
        trained = format_count(summary.trained_length)
        title = f"plain text, nats a token inside and past the trained {trained} tokens"
        yield Table(_TEXTS, [*_text_cells(summary)], title)
        yield _position_table(summary, "plain text by position, nats a token up to there")
    if summary.correlations:
        title = "rank correlation of entropy with failure, over needles"
        yield Table(_CORRELATIONS, [*_correlation_cells(summary)], title)


def recommended(summary: RopeSummary) -> str | None:
    """Which flags to give, and why; None where no needle was measured."""
    if summary.reason is None:
        return None
    return f"recommended: {'none' if summary.best is None else flags_of(summary.best.arm)}\n{summary.reason}"


def flags_of(arm: str) -> str:
    """`repack@10%` → `--rope repack --budget 10%`."""
    rope, _, budget = arm.partition("@")
    return f"--rope {rope} --budget {budget or 'full'}"


def _needle_cells(summary: RopeSummary) -> Iterator[tuple[str, ...]]:
    for row in summary.needles:
        yield (
            row.arm,
            format_count(row.tokens),
            f"{100 * row.found.mean:.0f} %",
            _interval(row.found),
            f"{row.nll:.2f}",
            f"{row.entropy:.3f}",
            _or_dash(row.retrieval_entropy),
            _or_dash(row.divergence),
            f"{100 * row.kept_fraction:.1f} %",
            format_bytes(row.kv_bytes),
            format_seconds(row.seconds),
        )


def _interval(interval: Interval) -> str:
    return f"{100 * max(0.0, interval.low):.0f} to {100 * interval.high:.0f} of {interval.count}"


def _text_cells(summary: RopeSummary) -> Iterator[tuple[str, ...]]:
    for row in summary.texts:
        figures = (row.nll_inside, row.nll_past, row.divergence_inside, row.divergence_past)
        yield (row.arm, format_count(row.tokens), *map(_or_dash, figures))


def _position_table(summary: RopeSummary, title: str) -> Table:
    """An arm a row; neighbouring positions are joined until there are few columns."""
    longest = max(summary.texts, key=lambda row: row.tokens)
    joined = -(-len(longest.losses) // _COLUMNS)
    ends = [end for end, _ in longest.losses][joined - 1 :: joined]
    rows = []
    for row in summary.texts:
        parts = [row.losses[at : at + joined] for at in range(0, len(row.losses), joined)][: len(ends)]
        means = [f"{sum(loss for _, loss in part) / len(part):.2f}" for part in parts]
        rows.append((row.arm, *means, *["-"] * (len(ends) - len(means))))
    return Table(("ROPE", *(format_count(end) for end in ends)), rows, title)


def _correlation_cells(summary: RopeSummary) -> Iterator[tuple[str, ...]]:
    for found in summary.correlations:
        ranks = found.ranks
        interval = f"{ranks.low:.2f} to {ranks.high:.2f}"
        outcome = "NLL" if found.outcome == "nll" else "needles missed"
        yield (found.arm, _HEADS[found.signal], outcome, f"{ranks.rho:.2f}", interval, str(ranks.count))


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def record(
    summary: RopeSummary,
    cells: Sequence[RopeCell],
    *,
    results: Path,
    settings: Mapping[str, object],
    made: Mapping[str, object],
) -> dict[str, Any]:
    """The JSON object of a run: summary, needles, what made them; the texts' patterns are in the results file."""
    best = summary.best
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "uncomp rope",
        "settings": dict(settings),
        "made": dict(made),
        "results": str(results),
        "trained_length": summary.trained_length,
        "needles": [asdict(row) for row in summary.needles],
        "text": [asdict(row) for row in summary.texts],
        "correlations": [asdict(found) for found in summary.correlations],
        "recommendation": {
            "rope": None if best is None else best.arm,
            "flags": None if best is None else flags_of(best.arm),
            "reason": summary.reason,
        },
        "cells": [asdict(cell) for cell in cells if isinstance(cell, NeedleCell)],
    }
