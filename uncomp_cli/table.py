"""A table: columns, rows and notes, all of them plain strings, whatever it is shown with.

A terminal aligns it (ui/console.py), a document has it as Markdown, a program as JSON data.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Every row has a cell for each of the `columns`; `notes` are what a reader must know beside them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Title, table and notes, a blank line between them."""
        rule = "|" + "---|" * len(self.columns)
        grid = "\n".join([_markdown_row(self.columns), rule, *map(_markdown_row, self.rows)])
        notes = "\n".join(f"- {_escaped(note)}" for note in self.notes)
        return "\n\n".join(part for part in (self.title, grid, notes) if part)

    def record(self) -> list[dict[str, str]]:
        """Plain data for JSON: a row by the names of its columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
