"""A table: columns, rows and notes, all of them plain strings, whatever it is shown with.

A terminal aligns it (ui/console.py), a document has it as Markdown, a program as JSON data. Lines break between words,
never inside of one: a cell that must stay on one line is bound with `bound`, and numbers stay with their units.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

_GAP = 2
_BOUND = "\u00a0"
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMGT]?i?B|[mµ]?s|min|h|tok|tokens|nats)(?![\w]))")


@dataclass(frozen=True, slots=True)
class Table:
    """Every row has a cell for each of the `columns`; `notes` are what a reader must know beside them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    def lines(self, width: int | None = None) -> tuple[list[str], list[str]]:
        """The heads of the columns, and the rows, in lines of at most `width` terminal columns, as far as words allow.

        A line a row where all fit; else cells of several lines, broken between words; else the first cell above the
        others of its row; else a line a cell, behind the head of its column. None: a line a row, however long.
        """
        grid = [self.columns, *self.rows]
        if (widths := _widths(grid, width)) is not None:
            heads, *rows = ([*_grid_lines(row, widths)] for row in grid)
        elif (widths := _widths([row[1:] for row in grid], (width or 0) - _GAP)) is not None:
            heads, *rows = ([*wrapped(row[0], width or 0), *_grid_lines(row[1:], widths, " " * _GAP)] for row in grid)
        else:
            heads, rows = [], [[*_block(self.columns, row, width or 0)] for row in self.rows]
        return heads, [line for row in rows for line in row]

    def markdown(self) -> str:
        """Title, table and notes, a blank line between them."""
        rule = "|" + "---|" * len(self.columns)
        grid = "\n".join([_markdown_row(self.columns), rule, *map(_markdown_row, self.rows)])
        notes = "\n".join(f"- {_escaped(note)}" for note in self.notes)
        return "\n\n".join(part for part in (self.title, grid, notes) if part)

    def record(self) -> list[dict[str, str]]:
        """Plain data for JSON: a row by the names of its columns."""
        return [dict(zip(self.columns, map(_unbound, row), strict=True)) for row in self.rows]


def bound(text: str) -> str:
    """`text` as one word: no line is broken inside of it."""
    return text.replace(" ", _BOUND)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: wide letters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """`text` in lines of at most `width` columns, broken between words; those behind the first begin with `indent`.

    A word that is longer has a line of its own: nothing is cut off. Spaces in front, and line breaks, stay.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        if columns_of(part) <= width:
            lines.append(_unbound(part))
            continue
        line = part[: len(part) - len(part.lstrip(" "))]
        empty = True
        for word in _words(part):
            if not empty and columns_of(line) + 1 + columns_of(word) > width:
                lines.append(_unbound(line))
                line, empty = indent, True
            line = f"{line}{word}" if empty else f"{line} {word}"
            empty = False
        lines.append(_unbound(line))
    return lines


def shortened(text: str, width: int, *, between: str = " · ") -> str:
    """As many whole parts of `text`, from the first, as `width` columns hold; never fewer than one."""
    parts = text.split(between)
    while len(parts) > 1 and columns_of(between.join(parts)) > width:
        parts.pop()
    return between.join(parts)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[ \n]", _UNIT.sub(_BOUND, text)) if word]


def _unbound(text: str) -> str:
    return text.replace(_BOUND, " ")


def _widths(grid: Sequence[Sequence[str]], width: int | None) -> list[int] | None:
    """How wide each column is; None when even the longest words of all do not fit beside each other."""
    columns = list(zip(*grid, strict=True))
    widths = [max(map(columns_of, cells)) for cells in columns]
    if width is None:
        return widths
    least = [max((columns_of(word) for cell in cells for word in _words(cell)), default=0) for cells in columns]
    room = width - _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda at: (widths[at] > least[at], widths[at]))
        widths[widest] -= 1
    return [
        max(columns_of(line) for cell in cells for line in wrapped(cell, most))
        for cells, most in zip(columns, widths, strict=True)
    ]


def _grid_lines(row: Sequence[str], widths: Sequence[int], indent: str = "") -> Iterator[str]:
    """The lines of one row, its cells beside each other."""
    cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=""):
        padded = (part + " " * (width - columns_of(part)) for part, width in zip(parts, widths, strict=True))
        yield (indent + (" " * _GAP).join(padded)).rstrip()


def _block(columns: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """One row as lines: its first cell, and below it each column with its name."""
    name = max(map(columns_of, columns[1:]), default=0) + 2 * _GAP
    yield from wrapped(row[0], width)
    for column, cell in zip(columns[1:], row[1:], strict=True):
        for number, line in enumerate(wrapped(cell, width - name)):
            head = "" if number else f"{' ' * _GAP}{column}"
            yield f"{head}{' ' * (name - columns_of(head))}{line}".rstrip()


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return _unbound(text).replace("|", "\\|").replace("\n", " ")
