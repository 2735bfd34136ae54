"""A summary in words: table cells and notes as plain strings, and the same as Markdown for documents.

    84.2 % (-8.3 -15.0…-2.1)        a score, its difference to the full cache on the same samples, the 95 % interval

Shares are in per cent and their differences in points; likelihoods and divergences are in nats a token.
"""

from collections.abc import Iterable, Sequence

from uncomp_cli.evals.tables.outcome import SHARES
from uncomp_cli.evals.tables.statistics import Interval
from uncomp_cli.evals.tables.summary import FULL_FAILS_BELOW, FailedCell, Figure, Kept, NonMonotone, Row, Summary

__all__ = ["format_score", "markdown", "notes", "table_rows"]

_REGIMES = {"aware": "question seen at compression", "agnostic": "question unseen at compression"}
_RANGE, _BRACKETS = "{low}…{high}", "[{low}, {high}]"


def table_rows(
    summary: Summary, *, by_subtask: bool = False, metrics: Sequence[str] | None = None, interval: str = _RANGE
) -> list[tuple[str, ...]]:
    """The header and the rows: SETTING, KEPT, the metrics, SAMPLES; by subtask with SUBTASK in front.

    `metrics` chooses and orders columns, of those measured; `interval` is how low and high are written.
    """
    names = [name for name in metrics or summary.metrics if name in summary.metrics]
    header = ("SETTING", "KEPT", *(name.upper() for name in names), "SAMPLES")
    if not by_subtask:
        return [header, *(_cells(row, names, interval) for row in summary.overall)]
    rows = ((_subtask(row), *_cells(row, names, interval)) for row in summary.by_subtask)
    return [("SUBTASK", *header), *rows]


def notes(summary: Summary, *, interval: str = _RANGE) -> list[str]:
    """What a reader must know beside the table: cells that were left out, refusals, curves that run the wrong way."""
    return [
        *map(_failed_note, summary.failed),
        *(_refused_note(row) for row in summary.by_subtask if row.refused),
        *(_non_monotone_note(found, interval) for found in summary.non_monotone),
    ]


def markdown(summary: Summary, *, metrics: Sequence[str] | None = None) -> str:
    """The overall table, the table by subtask and the notes, for a document."""
    overall = table_rows(summary, metrics=metrics, interval=_BRACKETS)
    by_subtask = table_rows(summary, by_subtask=True, metrics=metrics, interval=_BRACKETS)
    heading = f"Regime {summary.regime}: {_REGIMES[summary.regime]}. In brackets: difference to full, 95 % interval."
    listed = "\n".join(f"- {_escaped(note)}" for note in notes(summary, interval=_BRACKETS))
    return "\n\n".join(part for part in (heading, _table(overall), _table(by_subtask), listed) if part) + "\n"


def format_score(metric: str, value: float, *, signed: bool = False) -> str:
    """`84.2` for a share, `0.174` for another metric; a difference has its sign."""
    shown, digits = (100 * value, 1) if metric in SHARES else (value, 3)
    rounded = round(shown, digits) + 0.0  # never "-0.0"
    return f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"


def _cells(row: Row, metrics: Iterable[str], interval: str) -> tuple[str, ...]:
    kept = f"refused {row.refused} of {row.samples}" if row.refused else _kept(row.kept)
    figures = (_figure(row, metric, row.figures.get(metric), interval) for metric in metrics)
    return (row.setting, kept, *figures, str(row.samples))


def _figure(row: Row, metric: str, figure: Figure | None, interval: str) -> str:
    if figure is None:
        return ""
    value = format_score(metric, figure.mean.mean) + (" %" if metric in SHARES else "")
    if figure.difference is None or row.is_full:
        return value
    return f"{value} ({_interval(metric, figure.difference, interval, signed=True)})"


def _interval(metric: str, of: Interval, interval: str, *, signed: bool) -> str:
    mean, low, high = (format_score(metric, value, signed=signed) for value in (of.mean, of.low, of.high))
    return f"{mean} {interval.format(low=low, high=high)}"


def _kept(kept: Kept | None) -> str:
    if kept is None:
        return ""
    mean, low, high = (f"{100 * value:.1f}" for value in (kept.mean, kept.minimum, kept.maximum))
    return f"{mean} %" if low == high else f"{mean} % ({low}…{high})"


def _subtask(row: Row) -> str:
    return f"{row.subtask} (full fails)" if row.full_fails else str(row.subtask)


def _failed_note(cell: FailedCell) -> str:
    where = cell.subtask if cell.tokens is None else f"{cell.subtask} at {cell.tokens:,} tokens"
    reason = f"the full cache itself matches {100 * cell.full_match:.1f} % ({_samples(cell.samples)})"
    return f"left out of averages: {where}, where {reason}; at least {100 * FULL_FAILS_BELOW:.0f} % are needed"


def _refused_note(row: Row) -> str:
    return f"refused: {row.setting} on {row.subtask}, {row.refused} of {_samples(row.samples)}: {row.reason}"


def _non_monotone_note(found: NonMonotone, interval: str) -> str:
    inversion = found.inversion
    gain = _interval(found.metric, inversion.gain, interval, signed=False)
    return f"not monotone: {found.metric} is better at {inversion.smaller} than at {inversion.larger}, by {gain}"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
