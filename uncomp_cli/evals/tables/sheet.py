"""What an evaluation shows: tables of plain strings with their notes, the same as Markdown, and one JSON object.

    84.2 % (-8.3 -15.0…-2.1)        a score, its difference to the full cache on the same samples, the 95 % interval

Shares are in per cent and their differences in points; likelihoods and divergences are in nats a token. What is kept
is a share of a 16-bit cache, whatever the run holds. A part holds one regime and one kind of task: likelihoods of an
answer and of running text are not averaged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uncomp_cli.evals.tables.outcome import SHARES, Outcome
from uncomp_cli.evals.tables.statistics import Interval
from uncomp_cli.evals.tables.summary import (
    OF_RIGHT,
    FailedSubtask,
    Figure,
    Kept,
    Row,
    Summary,
    coverage_maps,
    summarise,
)
from uncomp_cli.evals.tasks.task import Regime
from uncomp_cli.numerals import format_count
from uncomp_cli.share import Share, bytes_of_dtype
from uncomp_cli.table import Table, bound

SCHEMA_VERSION = 3
SHOWN = {
    "match": "accepted strings found (share)",
    "of_right": "of what the full cache gets right (share)",
    "exact": "exact answers (share)",
    "f1": "words shared with the right answer (F1)",
    "choice": "right choice likeliest (share)",
    "top_1": "needed line cited first (share of right answers)",
    "top_3": "needed line among the first three cited (share of right answers)",
    "coverage": "evidence's keys and values kept (share)",
    "reread": "turns that read evicted text again (share)",
    "within": "conversations within the budget at every turn (share)",
    "nll": "NLL per token (nats)",
    "kl": "KL to the full cache (nats a token)",
    "kl_p99": "KL to the full cache, 99th percentile (nats)",
    "agreement": "same most likely token (share)",
    "divergence": "first difference (share of the text)",
    "nll_weighted": "NLL where the context matters (nats)",
    "gain_lost": "share of the context's gain that is lost",
}
"""The metrics that tables and pictures show, in their order."""

_SAY_MOST = (
    "match",
    "choice",
    "of_right",
    "top_1",
    "kl",
    "gain_lost",
    "within",
    "nll",
    "agreement",
    "nll_weighted",
    *SHOWN,
)
_TOGETHER = ("needle", "ruler", "nq", "kv", "hotpot", "qa")
_REGIMES = {"aware": "question seen at compression", "agnostic": "question unseen at compression"}
_RANGE, _BRACKETS = "{low}…{high}", "[{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Part:
    """The outcomes of one kind of task in one regime; the run's full cache has `width` times a 16-bit one's bytes."""

    title: str
    regime: Regime
    outcomes: tuple[Outcome, ...]
    width: float = 1.0

    @property
    def stem(self) -> str:
        """For file names: `needle-ruler-aware`."""
        return "-".join([*self.title.split(", "), self.regime])

    @property
    def summary(self) -> Summary:
        """What its tables are made of: kept of a 16-bit cache."""
        found = summarise(self.outcomes, regime=self.regime)
        overall, by_subtask = (tuple(map(self._widened, rows)) for rows in (found.overall, found.by_subtask))
        return replace(found, overall=overall, by_subtask=by_subtask)

    def _widened(self, row: Row) -> Row:
        kept = row.kept and Kept(*(self.width * share for share in (row.kept.mean, row.kept.minimum, row.kept.maximum)))
        return replace(row, kept=kept)


def parts_of(outcomes: Sequence[Outcome], *, dtype: str = "float16") -> list[Part]:
    """All outcomes of a results file, by regime and kind of task, the regimes in their order; `dtype` is the run's."""
    parts = []
    for regime in dict.fromkeys(sorted((outcome.regime for outcome in outcomes), reverse=True)):
        tasks = list(dict.fromkeys(outcome.subtask.partition("/")[0] for outcome in outcomes))
        for names in _groups(tasks):
            group = tuple(o for o in outcomes if o.regime == regime and o.subtask.partition("/")[0] in names)
            if group:
                parts.append(Part(", ".join(names), regime, group, Share(0, 1, bytes_of_dtype(dtype)).width))
    return parts


def _groups(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    together = tuple(name for name in _TOGETHER if name in names)
    if together:
        yield together
    yield from ((name,) for name in names if name not in _TOGETHER)


def tables_of(part: Part, *, wide: bool = False) -> list[Table]:
    """The table of all subtasks, and where there are several those of each; the notes stand below the last.

    Two metrics that say most, so that 80 columns hold them; `wide`: all of them, and all subtasks in one table.
    """
    summary, about = part.summary, f"{part.title}, regime {part.regime}"
    said = [*notes(summary), *_own_notes(part)]
    most = 3 if OF_RIGHT in summary.metrics else 2
    metrics = [*SHOWN] if wide else [name for name in _SAY_MOST if name in summary.metrics][:most]
    if hidden := [name for name in SHOWN if name in summary.metrics and name not in metrics]:
        said.append(f"--wide shows {', '.join(hidden)} too; (…): difference to full, from low to high at 95 %")
    tables = [score_table(summary, metrics=metrics, title=f"{about}: all subtasks")]
    subtasks = list(dict.fromkeys(row.subtask for row in summary.by_subtask))
    if len(subtasks) > 1:
        if wide:
            tables.append(score_table(summary, by_subtask=True, metrics=metrics, title=f"{about}: by subtask"))
        else:
            tables += [_subtask_table(summary, name, metrics, about) for name in subtasks]
    return [*tables[:-1], replace(tables[-1], notes=said)]


def _subtask_table(summary: Summary, subtask: str | None, metrics: Sequence[str], about: str) -> Table:
    rows = tuple(row for row in summary.by_subtask if row.subtask == subtask)
    return score_table(replace(summary, overall=rows), metrics=metrics, title=f"{about}: {subtask}")


def csv_rows(parts: Sequence[Part]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows for a spreadsheet: a row a setting and subtask (none: over all), numbers as such."""
    names = [name for name in SHOWN if any(name in part.summary.metrics for part in parts)]
    figures = [f"{name}{end}" for name in names for end in ("", "_difference", "_low", "_high")]
    columns = ["tasks", "regime", "subtask", "setting", "contestant", "budget", "samples", "refused", "kept"]
    columns += ["kept_of_run", *figures]
    rows = [_csv_row(part, row, names) for part in parts for row in (*part.summary.overall, *part.summary.by_subtask)]
    return columns, rows


def _csv_row(part: Part, row: Row, names: Sequence[str]) -> list[object]:
    counts = row.subtask, row.setting, row.contestant, row.budget, row.samples, row.refused
    kept = None if row.kept is None else row.kept.mean
    of_run = None if kept is None else kept / part.width
    return [
        part.title,
        part.regime,
        *counts,
        kept,
        of_run,
        *(n for name in names for n in _numbers(row.figures.get(name))),
    ]


def _numbers(figure: Figure | None) -> tuple[float | None, ...]:
    """A mean, its difference to the full cache, and that one's interval."""
    if figure is None:
        return (None,) * 4
    apart = figure.difference
    return figure.mean.mean, *((None,) * 3 if apart is None else (apart.mean, apart.low, apart.high))


def document(parts: Sequence[Part], *, facts: Mapping[str, object]) -> str:
    """All tables as one Markdown text, below the facts about them."""
    written = ["# Evaluation\n", "\n".join(f"- {key}: `{value}`" for key, value in facts.items()) + "\n"]
    for part in parts:
        summary = part.summary
        written += [f"## {part.title}, {part.regime}\n", markdown(summary, metrics=[*SHOWN])]
        written += [f"- {note}\n" for note in _own_notes(part)]
    return "\n".join(written)


def record(
    parts: Sequence[Part], *, results: Path, settings: Mapping[str, object], made: Mapping[str, object]
) -> dict[str, Any]:
    """The JSON object of an evaluation."""
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": dict(settings),
        "made": dict(made),
        "results": str(results),
        "tables": [
            {
                "tasks": part.title.split(", "),
                "kept_of_bits": 16,
                **part.summary.to_dict(),
                "coverage": [asdict(shown) for shown in coverage_maps(part.outcomes, regime=part.regime)],
            }
            for part in parts
        ],
    }


def score_table(
    summary: Summary,
    *,
    by_subtask: bool = False,
    metrics: Sequence[str] | None = None,
    interval: str = _RANGE,
    title: str = "",
) -> Table:
    """SETTING, KEPT, the metrics, SAMPLES; by subtask with SUBTASK in front.

    `metrics` chooses and orders columns, of those measured; `interval` is how low and high are written.
    """
    names = [name for name in metrics or summary.metrics if name in summary.metrics]
    columns = ("SETTING", "KEPT", *(name.upper() for name in names), "SAMPLES")
    if not by_subtask:
        return Table(columns, [_cells(row, names, interval) for row in summary.overall], title)
    rows = [(str(row.subtask), *_cells(row, names, interval)) for row in summary.by_subtask]
    return Table(("SUBTASK", *columns), rows, title)


def notes(summary: Summary) -> list[str]:
    """What a reader must know beside the table: subtasks that full fails, and refusals."""
    return [*map(_failed_note, summary.failed), *(_refused_note(row) for row in summary.by_subtask if row.refused)]


def _own_notes(part: Part) -> Iterator[str]:
    """Settings with fewer samples than others, and what a share of bytes is of."""
    overall = part.summary.overall
    most = max(row.samples for row in overall)
    fewer = [f"{row.setting} ({row.samples})" for row in overall if row.samples < most]
    if fewer:
        yield f"over fewer than {most} samples, so not to be compared with the others: {', '.join(fewer)}"
    if part.width != 1:
        yield "kept is of a 16-bit cache; of the float32 cache that this run holds it is half"


def markdown(summary: Summary, *, metrics: Sequence[str] | None = None) -> str:
    """The overall table, the table by subtask and the notes, for a document."""
    overall = score_table(summary, metrics=metrics, interval=_BRACKETS)
    by_subtask = score_table(summary, by_subtask=True, metrics=metrics, interval=_BRACKETS)
    heading = f"Regime {summary.regime}: {_REGIMES[summary.regime]}. In brackets: difference to full, 95 % interval."
    below = replace(by_subtask, notes=notes(summary))
    return f"{heading}\n\n{overall.markdown()}\n\n{below.markdown()}\n"


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
    return f"{value} {bound(f'({_interval(metric, figure.difference, interval, signed=True)})')}"


def _interval(metric: str, of: Interval, interval: str, *, signed: bool) -> str:
    mean, low, high = (format_score(metric, value, signed=signed) for value in (of.mean, of.low, of.high))
    return f"{mean} {interval.format(low=low, high=high)}"


def _kept(kept: Kept | None) -> str:
    if kept is None:
        return ""
    mean, low, high = (f"{100 * value:.1f}" for value in (kept.mean, kept.minimum, kept.maximum))
    return f"{mean} %" if low == high else f"{mean} % ({low}…{high})"


def _failed_note(failed: FailedSubtask) -> str:
    found = f"{100 * failed.full_match:.1f} % ({format_count(failed.samples, 'sample')})"
    return f"the full cache itself gets {found} of {failed.subtask} right: see of_right"


def _refused_note(row: Row) -> str:
    samples = format_count(row.samples, "sample")
    return f"refused: {row.setting} on {row.subtask}, {row.refused} of {samples}: {row.reason}"
