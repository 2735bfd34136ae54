"""Rows of a sheet, of a CSV file or of records as lines: their tables told apart, and each row with its header's names.

A sheet may hold several tables, titles above them, and rows left empty within one. A table ends at an empty row, unless
what follows has no header of its own and stands under the last one; tables beside each other are parted where an empty
column lies between two headers. How rows are written was measured (benchmarks/forms.py, docs/log.md).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Cells = Mapping[int, str]
"""What stands in the columns of a row that have something."""

_NUMBER = re.compile(
    r"[-+(]?[$€£¥]?\s?\d[\d,.\s]*(?:[eE][-+]?\d+)?\s?[%$€£¥)]?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|\d+:\d\d.*"
)
_YEAR = re.compile(r"(?:1[89]|20|21)\d\d")
_LONGEST_NAME = 120
_SPARE_CELLS = 100_000  # in which merged cells stand again
_MOST_HEADERS = 4
MOST_ROWS_BELOW_A_HEADER = 12
"""Longer tables have the names in every row: in 24 rows a model finds cells so that it does not below one header."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row by its number in the file, from 1 on."""

    number: int
    cells: Cells


@dataclass(frozen=True, slots=True)
class Line:
    """Lines of the text that show one row; `column` is its first."""

    number: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class _Header:
    """The names of columns, and how many rows they take."""

    names: Cells
    rows: int = 1


def lines_of(rows: Sequence[Row]) -> Iterator[Line]:
    """The rows as lines, an empty one between tables. Rows without cells part tables, as missing ones do."""
    headers: list[_Header] = []
    blank = ""
    for block in _blocks(rows):
        titles = _titles(block)
        body = block[len(titles) :]
        found = _header(body)
        headers = [*headers, found][-_MOST_HEADERS:] if found else [] if titles else headers
        header = found or next((one for one in reversed(headers) if _stands_under(body, one)), None)
        for row in titles:
            yield _line(row, blank + _plain(row))
            blank = "\n" if header else ""
        for line in _table(body, header, begins=found is not None):
            yield Line(line.number, line.column, blank + line.text)
            blank = ""
        blank = "\n"


def merged(rows: Iterable[Row], spans: Iterable[tuple[int, int, int, int]]) -> list[Row]:
    """The rows in order, a merged cell in each row and column that it spans; a title alone in its row once.

    `spans` are the first row and column, and the last row and column of each.
    """
    cells, spare = {row.number: row.cells for row in rows}, _SPARE_CELLS
    for top, left, bottom, right in spans:
        text = cells.get(top, {}).get(left)
        alone = bottom == top and len(cells.get(top, {})) == 1
        size = (bottom - top + 1) * (right - left + 1)
        if text is None or alone or size > spare:
            continue
        spare -= size
        for number in range(top, bottom + 1):
            if number in cells:
                cells[number] = {**dict.fromkeys(range(left, right + 1), text), **cells[number]}
    return [Row(number, found) for number, found in sorted(cells.items())]


def _line(row: Row, text: str) -> Line:
    return Line(row.number, min(row.cells), text)


def _table(rows: Sequence[Row], header: _Header | None, *, begins: bool) -> Iterator[Line]:
    """The rows of one table: a short one as Markdown, of a long one each row with the names of its cells."""
    if header is None:
        yield from (_line(row, _plain(row)) for row in rows)
        return
    body = rows[header.rows * begins :]
    if len(body) > MOST_ROWS_BELOW_A_HEADER:
        yield from (_line(row, _named(row, header.names)) for row in body)
        return
    columns = sorted(header.names.keys() | {column for row in rows for column in row.cells})
    top = f"{_barred(header.names, columns)}\n|{' --- |' * len(columns)}"
    if begins:
        yield _line(rows[0], top)
    for number, row in enumerate(body):
        before = "" if begins or number else f"{top}\n"
        yield _line(row, before + _barred(row.cells, columns))


def _named(row: Row, names: Cells) -> str:
    """`item: kettle, price: 31`; a cell below no name by itself."""
    cells = ((names.get(column), _one_line(row.cells[column])) for column in sorted(row.cells))
    return ", ".join(f"{_one_line(name)}: {text}" if name else text for name, text in cells)


def _barred(cells: Cells, columns: Sequence[int]) -> str:
    return f"| {' | '.join(_one_line(cells.get(column, '')).replace('|', chr(92) + '|') for column in columns)} |"


def _plain(row: Row) -> str:
    return " | ".join(_one_line(row.cells[column]) for column in sorted(row.cells))


def _one_line(text: str) -> str:
    return text if "\n" not in text else "; ".join(filter(None, map(str.strip, text.split("\n"))))


# --- where tables begin and end


def _blocks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows that follow each other, tables that stand beside each other one after the other."""
    for block in _runs(rows):
        segments = _segments(block)
        parts = [list(_runs(_between(block, *segment))) for segment in segments]
        if len(parts) > 1 and all(_header(part[0][len(_titles(part[0])) :]) for part in parts):
            yield from (run for part in parts for run in part)
        else:
            yield block


def _runs(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows whose numbers follow each other."""
    filled = [row for row in rows if row.cells]
    begins = [0, *(at + 1 for at, (a, b) in enumerate(pairwise(filled)) if b.number - a.number > 1), len(filled)]
    return (filled[begin:end] for begin, end in pairwise(begins) if begin < end)


def _segments(block: Sequence[Row]) -> list[tuple[int, int]]:
    """Ranges of columns without an empty one in them."""
    used = sorted({column for row in block for column in row.cells})
    begins = [used[0], *(b for a, b in pairwise(used) if b - a > 1)]
    return [(begin, end - 1) for begin, end in pairwise([*begins, used[-1] + 1])]


def _between(block: Sequence[Row], first: int, last: int) -> list[Row]:
    return [Row(row.number, {c: text for c, text in row.cells.items() if first <= c <= last}) for row in block]


def _titles(block: Sequence[Row]) -> Sequence[Row]:
    """Rows of one cell above a table of several columns."""
    if max(len(row.cells) for row in block) < 2:
        return block
    count = next(at for at, row in enumerate(block) if len(row.cells) > 1)
    return block[:count]


def _header(block: Sequence[Row]) -> _Header | None:
    """The names at the top of a table; of two rows where those of the first stand over several columns."""
    if len(block) < 2:
        return None
    columns = {column for row in block for column in row.cells}
    named = block[0].cells
    if len(columns) < 2 or not all(map(_is_name, named.values())):
        return None
    if len(set(named.values())) == len(named):
        return _Header(named) if len(columns - named.keys()) <= max(1, len(columns) // 3) else None
    below = block[1].cells
    stacked = {c: " ".join(dict.fromkeys(filter(None, (named.get(c), below.get(c))))) for c in {*named, *below}}
    both = len(block) > 2 and all(map(_is_name, below.values())) and len(set(stacked.values())) == len(stacked)
    return _Header(stacked, 2) if both else None


def _is_name(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and (not _NUMBER.fullmatch(text) or bool(_YEAR.fullmatch(text)))


def _stands_under(block: Sequence[Row], header: _Header) -> bool:
    return all(row.cells.keys() <= header.names.keys() for row in block)


def letters(number: int) -> str:
    """A column as sheets name it: A, B, …, Z, AA."""
    name = ""
    while number:
        number, rest = divmod(number - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def place_name(sheet: str) -> str:
    """A sheet's name as places have it."""
    return re.sub(r"[\s:!]+", "_", sheet)
