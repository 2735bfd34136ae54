"""What `uncomp rope` shows of its results: tables for people, one JSON object for programs, pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import UncompError
from uncomp_cli.numerals import format_bytes, format_count, format_seconds
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.evals.rope.cells import RopeCell
    from uncomp_cli.evals.rope.rope_summary import RopeSummary
    from uncomp_cli.evals.tables.statistics import Interval

__all__ = ["SCHEMA_VERSION", "draw", "flags_of", "record", "write_tables"]

SCHEMA_VERSION = 1
_NEEDLES = ("ROPE", "TOKENS", "FOUND", "95 %", "NLL", "ENTROPY", "RETRIEVAL", "DIVERGENCE", "KEPT", "KV", "TIME")
_TEXTS = ("ROPE", "TOKENS", "NLL INSIDE", "NLL PAST", "DIVERGENCE INSIDE", "DIVERGENCE PAST")
_CORRELATIONS = ("CELLS OF", "ENTROPY OF", "WITH", "RHO", "95 %", "CELLS")
_HEADS = {"entropy": "all heads", "retrieval_entropy": "retrieval heads"}
_COLUMNS = 8


def write_tables(summary: "RopeSummary", terminal: Terminal) -> None:
    """Needles, text, correlation and the recommendation on standard output."""
    trained = format_count(summary.trained_length)
    if summary.needles:
        terminal.write_line("needles by length, means over depths; entropy / ln n of the answer's tokens")
        terminal.write_table(_NEEDLES, _needle_rows(summary))
    if summary.texts:
        terminal.write_line(f"\nplain text, nats a token inside and past the trained {trained} tokens")
        terminal.write_table(_TEXTS, _text_rows(summary))
        terminal.write_line("\nplain text by position, nats a token up to there")
        terminal.write_table(*_position_table(summary))
    if summary.correlations:
        terminal.write_line("\nrank correlation of entropy with failure, over needles")
        terminal.write_table(_CORRELATIONS, _correlation_rows(summary))
    if summary.reason is not None:
        flags = "none" if summary.best is None else flags_of(summary.best.arm)
        terminal.write_line(f"\nrecommended: {flags}\n{summary.reason}")


def flags_of(arm: str) -> str:
    """`repack@10%` → `--rope repack --budget 10%`."""
    rope, _, budget = arm.partition("@")
    return f"--rope {rope} --budget {budget or 'full'}"


def _needle_rows(summary: "RopeSummary") -> Iterator[tuple[str, ...]]:
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


def _interval(interval: "Interval") -> str:
    return f"{100 * max(0.0, interval.low):.0f} to {100 * interval.high:.0f} of {interval.count}"


def _text_rows(summary: "RopeSummary") -> Iterator[tuple[str, ...]]:
    for row in summary.texts:
        figures = (row.nll_inside, row.nll_past, row.divergence_inside, row.divergence_past)
        yield (row.arm, format_count(row.tokens), *map(_or_dash, figures))


def _position_table(summary: "RopeSummary") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """An arm a row; neighbouring positions are joined until there are few columns."""
    longest = max(summary.texts, key=lambda row: row.tokens)
    joined = -(-len(longest.losses) // _COLUMNS)
    ends = [end for end, _ in longest.losses][joined - 1 :: joined]
    rows = []
    for row in summary.texts:
        parts = [row.losses[at : at + joined] for at in range(0, len(row.losses), joined)][: len(ends)]
        means = [f"{sum(loss for _, loss in part) / len(part):.2f}" for part in parts]
        rows.append((row.arm, *means, *["-"] * (len(ends) - len(means))))
    return ("ROPE", *(format_count(end) for end in ends)), rows


def _correlation_rows(summary: "RopeSummary") -> Iterator[tuple[str, ...]]:
    for found in summary.correlations:
        ranks = found.ranks
        interval = f"{ranks.low:.2f} to {ranks.high:.2f}"
        outcome = "NLL" if found.outcome == "nll" else "needles missed"
        yield (found.arm, _HEADS[found.signal], outcome, f"{ranks.rho:.2f}", interval, str(ranks.count))


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def record(
    summary: "RopeSummary",
    cells: "Sequence[RopeCell]",
    *,
    results: Path,
    settings: Mapping[str, object],
    made: Mapping[str, object],
) -> dict[str, Any]:
    """The JSON object of a run: summary, needles, what made them; the texts' patterns are in the results file."""
    from uncomp_cli.evals.rope.cells import NeedleCell

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


def draw(summary: "RopeSummary", cells: "Sequence[RopeCell]", folder: Path) -> list[Path]:
    """Needles beside entropy for every arm, and the text by position. Raises UncompError when nothing can be drawn."""
    from uncomp_cli.evals.rope.maps import arm_maps
    from uncomp_cli.ui import plots_rope

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made: {error.strerror or error}"
        raise UncompError(message, hint="give another directory with --plot") from error
    drawn = []
    if maps := arm_maps(cells):
        drawn.append(plots_rope.plot_arm_maps(maps, folder / "rope-needles.png", trained_length=summary.trained_length))
    if curves := {row.arm: row.losses for row in summary.texts}:
        path = folder / "rope-text.png"
        drawn.append(plots_rope.plot_losses(curves, path, trained_length=summary.trained_length))
    return drawn
