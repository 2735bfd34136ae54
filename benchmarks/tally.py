"""What many documents come to: rates with Wilson's 95 % interval, means with their standard error, a Markdown table."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

__all__ = ["markdown_table", "summarise", "wilson"]

_Z = 1.96


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a rate at 95 %."""
    centre = (hits + _Z**2 / 2) / (total + _Z**2)
    half = _Z / (total + _Z**2) * sqrt(hits * (total - hits) / total + _Z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One setting's documents: exact matches, their interval, the cache kept, and the likelihood where measured."""
    refused = [result["refused"] for result in results if "refused" in result]
    if refused:
        return {"refused": refused[0], "documents": len(results)}
    hits = sum(result["exact"] for result in results)
    summary: dict[str, Any] = {
        "documents": len(results),
        "exact": hits,
        "exact_rate": hits / len(results),
        "exact_interval": wilson(hits, len(results)),
        "kept_fraction": fmean(result["kept_fraction"] for result in results),
    }
    if "nll" in results[0]:
        losses = [result["nll"] for result in results]
        summary["nll"] = fmean(losses)
        summary["nll_error"] = stdev(losses) / sqrt(len(losses)) if len(losses) > 1 else None
    return summary


def markdown_table(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """`table[column][budget]` as Markdown: a row for each budget, a column for each policy."""
    columns = list(table)
    budgets = list(dict.fromkeys(budget for column in columns for budget in table[column]))
    lines = ["| budget | kept | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for budget in budgets:
        cells = [table[column].get(budget) for column in columns]
        kept = next((f"{100 * cell['kept_fraction']:.1f} %" for cell in cells if cell and "refused" not in cell), "-")
        lines.append(f"| {budget} | {kept} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return ""
    if "refused" in summary:
        return "refused"
    low, high = summary["exact_interval"]
    rate = f"{100 * summary['exact_rate']:.0f} % ({100 * low:.0f}–{100 * high:.0f})"
    if "nll" not in summary:
        return rate
    error = "" if summary["nll_error"] is None else f" ± {summary['nll_error']:.3f}"
    return f"{summary['nll']:.3f}{error}, {rate}"
