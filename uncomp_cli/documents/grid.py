"""Tables with spans as lines of Markdown: every cell stands under its headers, whatever spans it and them.

A cell over several columns or rows is written in each of them, headers of several rows become one row ("Sales 2023"),
and a long table repeats it. What only lays out a page (one column, cells of many paragraphs) becomes its text.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

ROWS_A_HEADER = 30
_LONGEST_REPEATED = 200
_SPARE_CHARACTERS = 100_000


@dataclass(slots=True)
class Cell:
    """A cell's lines and spans; `above` where it goes on with the cell above it, instead of that one's `rows`.

    It is `complex` where it holds what cannot stand in a row (a table, code, a heading).
    """

    lines: list[str] = field(default_factory=list)
    columns: int = 1
    rows: int = 1
    header: bool = False
    above: bool = False
    complex: bool = False

    @property
    def text(self) -> str:
        """Its lines as one."""
        text = ""
        for line in filter(None, map(str.strip, self.lines)):
            text += ("" if not text else " " if text[-1] in ".,:;!?-" else "; ") + line
        return text.replace("|", "\\|")


def table_lines(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of a table."""
    rows = [row for row in rows if row]
    if _is_layout(rows):
        return _laid_out(rows)
    headers = _count_headers(rows)
    spread, begun = _spread(rows)
    used = sorted(begun)
    # A row ends at its last cell: what is empty behind it costs nothing.
    grid = [[row.get(column, "") for column in used[: bisect_right(used, max(row, default=-1))]] for row in spread]
    body = [_row(cells) for cells in grid[headers:] if any(cells)]
    if not headers:
        return body
    columns = [_stacked(column) for column in zip_longest(*grid[:headers], fillvalue="")]
    top = [_row(columns), _row(["---"] * len(columns))]
    parts = [body[start : start + ROWS_A_HEADER] for start in range(0, max(len(body), 1), ROWS_A_HEADER)]
    return [line for number, part in enumerate(parts) for line in ([""] * bool(number) + top + part)]


def _is_layout(rows: Sequence[Sequence[Cell]]) -> bool:
    return max((len(row) for row in rows), default=0) < 2 or any(cell.complex for row in rows for cell in row)


def _laid_out(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The text of cells in reading order; a row of short ones stays one line."""
    lines: list[str] = []
    for row in rows:
        filled = [cell for cell in row if any(map(str.strip, cell.lines))]
        if len(filled) > 1 and not any(cell.complex for cell in filled) and all(len(c.lines) == 1 for c in filled):
            lines.append(_row([cell.text for cell in filled]))
            continue
        for cell in filled:
            several = len(cell.lines) > 1
            lines += [""] * (several and bool(lines) and lines[-1] != "") + cell.lines + [""] * several
    return lines[:-1] if lines and not lines[-1] else lines


def _count_headers(rows: Sequence[Sequence[Cell]]) -> int:
    """How many rows at the top are headers: of header cells and empty ones alone."""
    count = 0
    for row in rows[:-1]:
        if not any(cell.header for cell in row) or any(not cell.header and cell.text for cell in row):
            break
        count += 1
    return count


def _spread(rows: Sequence[Sequence[Cell]]) -> tuple[list[dict[int, str]], set[int]]:
    """Every cell's text in every column that it spans, by row; and the columns in which a cell with text begins.

    Repetition is paid from a purse: spans are no bomb.
    """
    widest = max(map(len, rows))
    purse = _SPARE_CHARACTERS + 10 * sum(len(line) + 1 for row in rows for cell in row for line in cell.lines)
    hanging: dict[int, tuple[str, int]] = {}  # column: the text that hangs down into it, and for how many rows more
    grid: list[dict[int, str]] = []
    begun: set[int] = set()
    for row in rows:
        placed = {column: text for column, (text, _) in hanging.items()}
        hanging = {column: (text, more - 1) for column, (text, more) in hanging.items() if more > 1 and purse > 0}
        for column, cell in _seated(row, placed):
            text = grid[-1].get(column, "") if cell.above and grid and purse > 0 else cell.text
            text = cell.text if len(text) > _LONGEST_REPEATED else text
            across = min(cell.columns, widest) if purse > 0 else 1
            again = "" if len(text) > _LONGEST_REPEATED or (len(row) == 1 and not cell.header) else text
            spanned = dict.fromkeys(range(column, column + across), again) | {column: text}
            for place, shown in spanned.items():
                placed.setdefault(place, shown)
            begun |= {column} if text else set()
            if cell.rows > 1 and purse > 0:
                hanging |= dict.fromkeys(spanned, (again, cell.rows - 1))
            purse -= across
        purse -= sum(len(text) + 1 for text in placed.values()) + max(placed, default=0) - min(placed, default=0)
        grid.append(placed)
    return grid, begun


def _seated(row: Sequence[Cell], placed: dict[int, str]) -> Iterator[tuple[int, Cell]]:
    """The cells of a row with their columns: the next that nothing hangs into."""
    column = 0
    for cell in row:
        while column in placed:
            column += 1
        yield column, cell


def _stacked(texts: Sequence[str]) -> str:
    """A column's headers as one: each once."""
    return " ".join(dict.fromkeys(filter(None, texts)))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
