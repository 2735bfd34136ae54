"""What `uncomp eval` shows of its results: tables for people, one JSON object for programs, Markdown, pictures.

A table holds one regime and one kind of task: likelihoods of an answer and of running text are not averaged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import UncompError
from uncomp_cli.files import write_whole
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.evals.judges.run import EvalRequest
    from uncomp_cli.evals.tables.outcome import Outcome
    from uncomp_cli.evals.tables.summary import Summary
    from uncomp_cli.evals.tasks.sample import Regime

__all__ = [
    "SCHEMA_VERSION",
    "Table",
    "asked_for",
    "draw",
    "record",
    "tables_of",
    "write_markdown",
    "write_tables",
]

SCHEMA_VERSION = 1
_TOGETHER = ("needle", "ruler")
_SHOWN = {
    "match": "accepted strings found (share)",
    "exact": "exact answers (share)",
    "top_1": "needed line cited first (share of right answers)",
    "top_3": "needed line among the first three cited (share of right answers)",
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


@dataclass(frozen=True, slots=True)
class Table:
    """The outcomes of one kind of task in one regime."""

    title: str
    regime: "Regime"
    outcomes: "tuple[Outcome, ...]"

    @property
    def stem(self) -> str:
        """For file names: `needle-ruler-aware`."""
        return "-".join([*self.title.split(", "), self.regime])


def tables_of(outcomes: "Sequence[Outcome]") -> list[Table]:
    """All outcomes of a results file, by regime and kind of task, the regimes in their order."""
    tables = []
    for regime in dict.fromkeys(sorted((outcome.regime for outcome in outcomes), reverse=True)):
        tasks = list(dict.fromkeys(outcome.subtask.partition("/")[0] for outcome in outcomes))
        for names in _groups(tasks):
            group = tuple(o for o in outcomes if o.regime == regime and o.subtask.partition("/")[0] in names)
            if group:
                tables.append(Table(", ".join(names), regime, group))
    return tables


def asked_for(request: "EvalRequest", outcomes: "Sequence[Outcome]") -> "list[Outcome]":
    """Those of `outcomes` that a command asked for; a results file may hold more than that."""
    from uncomp_cli.evals.judges.likelihood import UNRELATED

    subtasks = {subtask for _, subtask in request.subtasks}
    settings = {setting.label for setting in request.settings} | {UNRELATED}
    return [
        outcome
        for outcome in outcomes
        if outcome.subtask in subtasks
        and outcome.setting in settings
        and outcome.tokens in request.tokens
        and outcome.index < request.samples
        and outcome.regime in request.regimes
    ]


def _groups(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    together = tuple(name for name in _TOGETHER if name in names)
    if together:
        yield together
    yield from ((name,) for name in names if name not in _TOGETHER)


def write_tables(tables: Sequence[Table], terminal: Terminal) -> None:
    """Every table on standard output, with its notes."""
    from uncomp_cli.evals.tables.markdown import notes, table_rows
    from uncomp_cli.evals.tables.summary import summarise

    for index, table in enumerate(tables):
        summary = summarise(table.outcomes, regime=table.regime)
        terminal.write_line(f"{'' if index == 0 else chr(10)}{table.title}, regime {table.regime}: all subtasks")
        _write_rows(table_rows(summary, metrics=list(_SHOWN)), terminal)
        if len({row.subtask for row in summary.by_subtask}) > 1 or summary.failed:
            terminal.write_line(f"\n{table.title}, regime {table.regime}: by subtask")
            _write_rows(table_rows(summary, by_subtask=True, metrics=list(_SHOWN)), terminal)
        for note in [*notes(summary), *_own_notes(summary)]:
            terminal.write_line(f"- {note}")


def _own_notes(summary: "Summary") -> Iterator[str]:
    """Settings with fewer samples than others, and what a share of bytes is of where bits were saved."""
    most = max(row.samples for row in summary.overall)
    fewer = [f"{row.setting} ({row.samples})" for row in summary.overall if row.samples < most]
    if fewer:
        yield f"over fewer than {most} samples, so not to be compared with the others: {', '.join(fewer)}"
    if any(part in row.contestant.split("/") for row in summary.overall for part in ("8bit", "4bit")):
        yield "kept is of the full cache in the run's own format: what is 27 % in float32 is 54 % of a 16-bit cache"


def _write_rows(table: "list[tuple[str, ...]]", terminal: Terminal) -> None:
    header, *rows = table
    terminal.write_table(header, rows)


def write_markdown(tables: Sequence[Table], path: Path, *, facts: Mapping[str, object]) -> None:
    """All tables in one Markdown file, below the facts about them. Raises UncompError when it cannot be written."""
    from uncomp_cli.evals.tables.markdown import markdown
    from uncomp_cli.evals.tables.summary import summarise

    parts = ["# Evaluation\n", "\n".join(f"- {key}: `{value}`" for key, value in facts.items()) + "\n"]
    for table in tables:
        summary = summarise(table.outcomes, regime=table.regime)
        parts += [f"## {table.title}, {table.regime}\n", markdown(summary, metrics=list(_SHOWN))]
        parts += [f"- {note}\n" for note in _own_notes(summary)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(parts).encode())
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UncompError(message, hint="give another file with --markdown") from error


def record(
    tables: Sequence[Table], *, results: Path, settings: Mapping[str, object], made: Mapping[str, object]
) -> dict[str, Any]:
    """The JSON object of an evaluation."""
    from uncomp_cli.evals.tables import curves
    from uncomp_cli.evals.tables.summary import summarise

    return {
        "schema_version": SCHEMA_VERSION,
        "settings": dict(settings),
        "made": dict(made),
        "results": str(results),
        "tables": [
            {
                "tasks": table.title.split(", "),
                **summarise(table.outcomes, regime=table.regime).to_dict(),
                "coverage": [asdict(shown) for shown in curves.coverage_maps(table.outcomes, regime=table.regime)],
            }
            for table in tables
        ],
    }


def draw(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Curves of every main metric, needle heat maps and coverage maps, one regime a picture."""
    from uncomp_cli.evals.tables import curves
    from uncomp_cli.evals.tables.outcome import LOWER_IS_BETTER
    from uncomp_cli.evals.tables.summary import metric_names
    from uncomp_cli.ui import plots

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made: {error.strerror or error}"
        raise UncompError(message, hint="give another directory with --plot") from error
    drawn = []
    for table in tables:
        about = f"{table.title}, question {'seen' if table.regime == 'aware' else 'unseen'} at compression"
        for metric in (m for m in _SHOWN if m in metric_names(table.outcomes)):
            found = curves.quality_curves(table.outcomes, regime=table.regime, metric=metric)
            if any(curve.label != plots.FULL_CACHE for curve in found):
                path = folder / f"{table.stem}-{metric}.png"
                lower = metric in LOWER_IS_BETTER
                drawn.append(plots.plot_curves(found, path, title=about, metric=_SHOWN[metric], lower_is_better=lower))
        drawn += [path for budget in _budgets(table) for path in _draw_maps(table, budget, folder)]
    return drawn


def _budgets(table: Table) -> list[str]:
    """The budgets of a table, those of settings that keep every token with all of them."""
    from uncomp_cli.evals.judges.contestants import FULL

    found = list(dict.fromkeys(outcome.budget for outcome in table.outcomes))
    return [budget for budget in found if budget != FULL] or found


def _draw_maps(table: Table, budget: str, folder: Path) -> Iterator[Path]:
    """Needle heat maps and coverage maps of one budget: a panel for each contestant."""
    from uncomp_cli.evals.judges.contestants import FULL
    from uncomp_cli.evals.tables import curves
    from uncomp_cli.evals.tables.summary import counted_outcomes
    from uncomp_cli.ui import plots

    shown = [outcome for outcome in table.outcomes if outcome.budget in (budget, FULL)]
    about = f"{budget} kept, question {'seen' if table.regime == 'aware' else 'unseen'}"
    stem = f"{table.stem}-{budget.replace('%', 'pct').replace(' ', '')}"
    counted = counted_outcomes(shown, regime=table.regime) or shown
    if grids := curves.needle_grids(counted, regime=table.regime, metric="match"):
        title = f"Needles found by depth and length: {about}"
        yield plots.plot_needles(grids, folder / f"{stem}-needles.png", title=title)
    if maps := curves.coverage_maps(shown, regime=table.regime):
        title = f"Evidence kept by layer and KV head: {about}"
        yield plots.plot_coverage(maps, folder / f"{stem}-coverage.png", title=title)
