"""Tables with spans as lines of Markdown: every cell stands under its headers, whatever spans it and them.

A cell over several columns or rows is written in each of them, headers of several rows become one row ("Sales 2023"),
and a long table repeats it. What only lays out a page (one column, cells of many paragraphs) becomes its text.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

ROWS_A_HEADER = 30
_LONGEST_REPEATED = 200
_SPARE_CHARACTERS = 100_000
_MOST_NESTED = 0.25  # of the cells of a table of data


@dataclass(slots=True)
class Cell:
    """A cell's lines and spans; `above` where it goes on with the cell above it, instead of that one's `rows`.

    It is `complex` where it holds what cannot stand in a row (a table, code, a heading), and `fresh` where it is the
    first of a group of rows, into which none hangs from above.
    """

    lines: list[str] = field(default_factory=list)
    columns: int = 1
    rows: int = 1
    header: bool = False
    above: bool = False
    complex: bool = False
    fresh: bool = False

    @property
    def text(self) -> str:
        """Its lines as one."""
        text = self.lines[0].strip() if len(self.lines) == 1 and not self.lines[0].startswith("| ") else ""
        for line in () if text else filter(None, map(_unruled, self.lines)):
            text += ("" if not text else " " if text[-1] in ".,:;!?-" else "; ") + line
        return text.replace("|", "\\|")


def table_lines(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """The lines of a table that is there as a whole."""
    return Grid().lines(rows)


class Grid:
    """A table, whose rows are given as they come: however long it is, few of them are held.

    What the first rows say of headers goes for those that follow. A cell's text stands in every column and row that it
    spans; such repetition is paid from a purse, which text fills: spans are no bomb.
    """

    def __init__(self) -> None:
        self._headers: list[dict[int, str]] | None = None
        self._last: dict[int, str] = {}  # the last row's texts, by column
        self._hanging: dict[int, tuple[str, int]] = {}  # column: what hangs down into it, and for how many rows more
        self._begun: set[int] = set()  # the columns in which a cell with text began
        self._widest = self._written = 0
        self._purse = _SPARE_CHARACTERS

    def lines(self, rows: Sequence[Sequence[Cell]]) -> list[str]:
        """The lines of its next rows."""
        rows = [row for row in rows if row]
        if not rows or _is_layout(rows):
            return _laid_out(rows)
        if self._headers is None and max(map(len, rows)) < 2:
            return _laid_out(rows)
        self._widest = max(self._widest, *map(len, rows))
        spread = [self._spread(row) for row in rows]
        count = _count_headers(rows) if self._headers is None else 0
        self._headers = spread[:count] if self._headers is None else self._headers
        return self._below_header(spread[count:])

    def _below_header(self, spread: Sequence[Mapping[int, str]]) -> list[str]:
        used = sorted(self._begun)
        # A row ends at its last cell: what is empty behind it costs nothing.
        headers, end = (
            [[row.get(column, "") for column in used[: bisect_right(used, max(row, default=-1))]] for row in rows]
            for rows in (self._headers or (), spread)
        )
        body = [_row(cells) for cells in end if any(cells)]
        if not headers:
            return body
        columns = [_stacked(column) for column in zip_longest(*headers, fillvalue="")]
        top = [_row(columns), _row(["---"] * len(columns))]
        lines = [] if body or self._written else top
        for row in body:
            if self._written % ROWS_A_HEADER == 0:
                lines += [""] * bool(self._written) + top
            self._written += 1
            lines.append(row)
        return lines

    def _spread(self, row: Sequence[Cell]) -> dict[int, str]:
        """Every cell's text in every column that it spans."""
        self._hanging = {} if row[0].fresh else self._hanging
        if not self._hanging and all(cell.columns == cell.rows == 1 and not cell.above for cell in row):
            placed = {column: cell.text for column, cell in enumerate(row)}
            self._begun.update(column for column, text in placed.items() if text)
        else:
            placed = self._spread_far(row)
        self._last = placed
        return placed

    def _spread_far(self, row: Sequence[Cell]) -> dict[int, str]:
        self._purse += 10 * sum(len(line) + 1 for cell in row for line in cell.lines)
        hanging, can_pay = self._hanging, self._purse > 0
        placed = {column: text for column, (text, _) in hanging.items()}
        hanging = {column: (text, more - 1) for column, (text, more) in hanging.items() if more > 1 and can_pay}
        for column, cell in _seated(row, placed):
            text = self._last.get(column, "") if cell.above and self._purse > 0 else cell.text
            text = cell.text if len(text) > _LONGEST_REPEATED else text
            across = min(cell.columns, self._widest) if self._purse > 0 else 1
            again = "" if len(text) > _LONGEST_REPEATED or (len(row) == 1 and not cell.header) else text
            spanned = dict.fromkeys(range(column, column + across), again) | {column: text}
            for place, shown in spanned.items():
                placed.setdefault(place, shown)
            self._begun |= {column} if text else set()
            if cell.rows > 1 and self._purse > 0:
                hanging |= dict.fromkeys(spanned, (again, cell.rows - 1))
            self._purse -= across
        self._purse -= sum(len(text) + 1 for text in placed.values()) + max(placed, default=0) - min(placed, default=0)
        self._hanging = hanging
        return placed


def _is_layout(rows: Sequence[Sequence[Cell]]) -> bool:
    """Whether cells hold what cannot stand in a row; a short table within one of data is told in its cell."""
    filled = [cell for row in rows for cell in row if cell.lines]
    nested = [cell for cell in filled if cell.complex]
    short = all(sum(map(len, cell.lines)) <= _LONGEST_REPEATED for cell in nested)
    return not short or len(nested) > _MOST_NESTED * len(filled) or any(map(_has_blocks, nested))


def _has_blocks(cell: Cell) -> bool:
    return any(line.startswith(("```", "#")) for line in cell.lines)


def _unruled(line: str) -> str:
    """A row of a table within a cell as words; nothing of the line below a header."""
    text = line.strip()
    if not text.startswith("| ") or not text.endswith(" |"):
        return text
    return text[2:-2].replace(" | ", ", ") if text.strip("|- ") else ""


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
